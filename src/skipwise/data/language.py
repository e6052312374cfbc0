"""Which language a text is in."""

from collections import Counter
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# A long text is judged by pieces, since the code and the names in it would outweigh the sentences as a whole.
_PIECE_CHARACTERS = 2000
_NUM_PIECES = 16
_MIN_CONFIDENCE = 0.2
_NO_LANGUAGE = "zxx"


def language_of(text: str) -> str | None:
    """The language that most of a text is in.

    Args:
        text: a text of any length; of a long one, evenly spaced pieces are read.

    Returns:
        The code of ISO 639-1, such as "ja", "zh" or "de"; None if it cannot be told, as of numbers, code or one word.
    """
    num_pieces = min(_NUM_PIECES, -(-len(text) // _PIECE_CHARACTERS))
    found: Counter[str] = Counter()
    for number in range(num_pieces):
        start = number * len(text) // num_pieces
        language, confidence = _identifier().classify(text[start : start + _PIECE_CHARACTERS])
        if language != _NO_LANGUAGE and confidence >= _MIN_CONFIDENCE:
            found[language] += 1
    return found.most_common(1)[0][0] if found else None


@cache
def _identifier() -> "LanguageIdentifier":
    """The library's identifier, restricted to languages with a code of ISO 639-1 and to what is no language."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([code for code in identifier.labels if len(code) == 2 or code == _NO_LANGUAGE])
    return identifier

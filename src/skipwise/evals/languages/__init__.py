"""The wording of what evaluations hide in documents and ask about them, by language.

A new language is one more file here, and an entry of `LANGUAGES`.
"""

import logging
from collections import Counter
from collections.abc import Iterable

from skipwise.data.language import language_of
from skipwise.errors import ConfigError
from skipwise.evals.languages.chinese import CHINESE
from skipwise.evals.languages.english import ENGLISH
from skipwise.evals.languages.french import FRENCH
from skipwise.evals.languages.german import GERMAN
from skipwise.evals.languages.japanese import JAPANESE
from skipwise.evals.languages.korean import KOREAN
from skipwise.evals.languages.spanish import SPANISH
from skipwise.evals.languages.wording import Language, NeedleWords, Planted
from skipwise.names import did_you_mean

__all__ = ["ENGLISH", "LANGUAGES", "Language", "NeedleWords", "Planted", "language_named", "language_of_texts"]

logger = logging.getLogger("skipwise")

# Less text than this share in other languages is not worth a word.
_OTHERS_SHARE = 0.1

LANGUAGES: dict[str, Language] = {
    language.code: language for language in (ENGLISH, GERMAN, FRENCH, SPANISH, JAPANESE, CHINESE, KOREAN)
}
"""All languages by code."""


def language_named(code: str) -> Language:
    """The language of a code.

    Raises:
        ConfigError: there are no templates in it.
    """
    if code not in LANGUAGES:
        raise ConfigError(f"language is {code!r}; {did_you_mean(code, LANGUAGES)}there are templates in {_known()}")
    return LANGUAGES[code]


def language_of_texts(texts: Iterable[str]) -> Language:
    """The language that most of some documents are in; English where that has no templates or cannot be told.

    The latter is said in one line, and so is text in other languages.
    """
    from skipwise.distributed import process_state

    sizes: Counter[str | None] = Counter()
    for text in texts:
        sizes[language_of(text)] += len(text)
    shares = {code: size / sizes.total() for code, size in sizes.most_common() if code is not None and size}
    code = next(iter(shares), None)
    language = LANGUAGES.get(code or "", ENGLISH)
    said = " and ".join(f"{share:.0%} {code}" for code, share in shares.items() if share >= _OTHERS_SHARE)
    if code is None:
        said = "the language of the documents cannot be told"
    elif code not in LANGUAGES:
        said = f"the documents are in a language without templates ({said})"
    elif said.count("%") > 1:
        said = f"the documents are in several languages ({said})"
    else:
        return language
    if process_state().is_main_process:
        logger.warning(
            f"{said}; questions and hidden lines are in {language.name}: to choose, set the language, one of {_known()}"
        )
    return language


def _known() -> str:
    return ", ".join(f"{language.code} ({language.name})" for language in LANGUAGES.values())

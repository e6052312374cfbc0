"""The wording of what evaluations hide in documents and ask about them, by language.

A new language is one more file here, and an entry of `LANGUAGES`.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

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

__all__ = [
    "ENGLISH",
    "LANGUAGES",
    "Language",
    "NeedleWords",
    "Planted",
    "Told",
    "language_named",
    "language_of_texts",
    "tell_languages",
    "warn_of_wording",
]

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


class Told(NamedTuple):
    """Which languages some texts are in.

    Attributes:
        language: of most of the text; English where that has no templates or cannot be told.
        others: further languages of much of the text that have templates.
        shares: of the text, by code of the language, the largest first; without small ones.
        said: the same as words if these are not simply the texts of `language`, else empty.
    """

    language: Language
    others: Sequence[Language] = ()
    shares: Mapping[str, float] = {}
    said: str = ""


def tell_languages(texts: Iterable[str]) -> Told:
    """Which languages some texts are in, by their characters."""
    sizes: Counter[str | None] = Counter()
    for text in texts:
        sizes[language_of(text)] += len(text)
    known = [(code, size / sizes.total()) for code, size in sizes.most_common() if code is not None and size]
    shares = {code: share for place, (code, share) in enumerate(known) if place == 0 or share >= _OTHERS_SHARE}
    main, *others = shares or [None]
    share_of = " and ".join(f"{share:.0%} {code}" for code, share in shares.items())
    said = ""
    if main is None:
        said = "the language of the documents cannot be told"
    elif main not in LANGUAGES:
        said = f"the documents are in a language without templates ({share_of})"
    elif others:
        said = f"the documents are in several languages ({share_of})"
    language = LANGUAGES.get(main or "", ENGLISH)
    with_templates = [LANGUAGES[code] for code in others if code in LANGUAGES and code != language.code]
    return Told(language, with_templates, shares, said)


def language_of_texts(texts: Iterable[str]) -> Language:
    """The language that most of some documents are in; English where that has no templates or cannot be told.

    The latter is said in one line, and so is text in other languages.
    """
    told = tell_languages(texts)
    if told.said:
        warn_of_wording(f"{told.said}; questions and hidden lines are in {told.language.name}")
    return told.language


def warn_of_wording(what: str) -> None:
    """Says in one line which language is asked in, and how to choose one."""
    from skipwise.distributed import process_state

    if process_state().is_main_process:
        logger.warning(f"{what}: to choose, set the language, one of {_known()}")


def _known() -> str:
    return ", ".join(f"{language.code} ({language.name})" for language in LANGUAGES.values())

"""Builds a suite: draws questions about the documents and fits each to its length."""

import contextlib
import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mode
from typing import Any, NamedTuple

import numpy as np

from skipwise.bars import Bar
from skipwise.data.documents import Document, Sources, is_held_out, look_through
from skipwise.data.tokens import encoder_of
from skipwise.errors import ConfigError, DataError
from skipwise.evals.languages import ENGLISH, Language, language_named
from skipwise.evals.suite.folder import SuiteFolder, SuiteWriter, new_suite
from skipwise.evals.suite.item import Draft, Item, encode_item, total_tokens
from skipwise.evals.suite.kinds import KINDS, LABELS, Kind, Place
from skipwise.evals.suite.library import Collection, Library
from skipwise.names import did_you_mean
from skipwise.records.results import hash_tokenizer

# Texts drawn for a question, and of these those whose question was then too long or too short.
_DRAWS, _ATTEMPTS = 200, 40
_SAMPLE_CHARACTERS = 100_000
# The search for a size stops at a fit this close; an item must come within the second share.
_CLOSE_SHARE = 0.005
_CLOSEST_SHARE = 0.02


def build_suite(
    source: str | Path | Sequence[str | Path] | Sources,
    tokenizer: Any,
    out: str | Path,
    *,
    lengths: Sequence[int],
    num_items: int = 50,
    kinds: Sequence[str] = tuple(KINDS),
    seed: int = 0,
    field: str = "text",
    held_out: bool = False,
    language: str | None = None,
    tokenizer_name: str = "",
    progress: bool = True,
) -> SuiteFolder:
    """Makes a private benchmark of documents, without a network or another model.

    The same documents, tokenizer and arguments make the same bytes.

    Args:
        source: where the documents are, as in `documents.read_documents`; or the result of `documents.look_through`.
        tokenizer: the tokenizer that counts lengths.
        out: folder to write.
        lengths: tokens of prompt and answer; each item has at most that and at least 98% of it.
        num_items: number of items per kind and length.
        kinds: names of `KINDS`; `continue` includes its control.
        seed: seed of all random draws.
        field: name of the text field in JSON lines, CSV, Parquet and hub data sets.
        held_out: whether to use only the documents that skipwise keeps out of training.
        language: code of the language of questions and planted sentences, one of `languages.LANGUAGES`; None for the
            documents' own.
        tokenizer_name: name of the tokenizer, for people.
        progress: whether to show progress bars.

    Raises:
        ConfigError: an argument cannot be used, or `out` already exists.
        DataError: documents cannot be read or do not suffice.
    """
    _check_arguments(sorted(set(lengths)), num_items, kinds, seed)
    chosen = None if language is None else language_named(language)
    looked = look_through(source, field=field)
    found = Bar(looked.documents(), desc="Reading", unit=" documents", disable=not progress)
    return build_suite_of(
        lambda: Collection(_held_out(found) if held_out else found, chosen),
        tokenizer,
        out,
        lengths=lengths,
        num_items=num_items,
        kinds=kinds,
        seed=seed,
        tokenizer_name=tokenizer_name,
        progress=progress,
    )


def build_suite_of(
    collect: Callable[[], Collection],
    tokenizer: Any,
    out: str | Path,
    *,
    lengths: Sequence[int],
    num_items: int = 50,
    kinds: Sequence[str] = tuple(KINDS),
    seed: int = 0,
    tokenizer_name: str = "",
    progress: bool = True,
) -> SuiteFolder:
    """The same of documents that are at hand.

    Args:
        collect: makes the collection, once the folder is known to be free.
        tokenizer, out, lengths, num_items, kinds, seed, tokenizer_name, progress: as for `build_suite`.
    """
    lengths = sorted(set(lengths))
    _check_arguments(lengths, num_items, kinds, seed)
    with new_suite(Path(out)) as writer:
        collection = collect()
        makers = _Makers([_ItemMaker(library, tokenizer, seed) for library in collection.libraries], seed)
        _check_documents(collection, kinds)
        described, joined = _add_items(writer, makers, kinds, lengths, num_items, progress)
        writer.finish(
            {
                "seed": seed,
                **_described_languages(collection),
                "lengths": lengths,
                "num_items": num_items,
                "kinds": described,
                "tokenizer": {"name": tokenizer_name, "sha256": hash_tokenizer(tokenizer)},
                "documents": {
                    "number": collection.num_documents,
                    "characters": collection.num_characters,
                    "sha256": collection.sha256,
                    "items_with_joined": joined,
                    **({} if collection.shares is None else {"languages": collection.shares}),
                },
            }
        )
    return SuiteFolder(out)


def try_questions(
    collection: Collection, tokenizer: Any, *, lengths: Sequence[int], kinds: Sequence[str], seed: int = 0
) -> dict[tuple[str, int], float | DataError]:
    """Makes the first question of every kind and length.

    Returns:
        By kind and length, the seconds that it took, or why none can be made.
    """
    makers = _Makers([_ItemMaker(library, tokenizer, seed) for library in collection.libraries], seed)
    found: dict[tuple[str, int], float | DataError] = {}
    for kind, length in itertools.product(kinds, lengths):
        begun = time.perf_counter()
        try:
            _check_documents(collection, [kind])
            makers.items(KINDS[kind], length, 0)
            found[kind, length] = time.perf_counter() - begun
        except DataError as error:
            found[kind, length] = error
    return found


def _held_out(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents that skipwise keeps out of training.

    Raises:
        DataError: at their end, if none of them is.
    """
    number, is_any = 0, False
    for number, document in enumerate(documents, start=1):  # noqa: B007 - read below
        if is_held_out(document.identity):
            is_any = True
            yield document
    if number and not is_any:
        raise DataError(
            f"none of {number:,} documents is in the held-out part; give more documents, or leave --held-out out",
            page="no-long-documents",
        )


def _add_items(
    writer: SuiteWriter, makers: "_Makers", kinds: Sequence[str], lengths: Sequence[int], num: int, progress: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Makes and writes all items; returns the description of each kind, and the number of items that join documents."""
    described: dict[str, dict[str, Any]] = {}
    joined: dict[str, int] = {}
    with Bar(desc="Items", total=len(lengths) * len(kinds) * num, disable=not progress) as bar:
        first = _first_items(makers, kinds, lengths, bar)
        for length, name in itertools.product(lengths, kinds):
            made = {item.kind: [item] for item in first[length, name]}
            for number in range(1, num):
                for item in makers.items(KINDS[name], length, number):
                    made[item.kind].append(item)
                bar.update()
            for kind, items in made.items():
                writer.add_items(length, kind, items)
                described[kind] = _described(KINDS[name], items[0])
                joined[f"{length}-{kind}"] = sum(len(item.documents) > KINDS[name].num_texts for item in items)
    return described, joined


def _described_languages(collection: Collection) -> dict[str, list[str]]:
    """The languages that are asked in; nothing if documents in English are, since earlier versions did not say it."""
    codes = [library.language.code for library in collection.libraries]
    return {} if codes == [ENGLISH.code] and collection.shares is None else {"languages": codes}


def _check_documents(collection: Collection, kinds: Sequence[str]) -> None:
    """Raises DataError if kinds ask about more documents of one language than there are."""
    most = max(library.num_documents for library in collection.libraries)
    asking = [KINDS[name] for name in kinds if KINDS[name].num_texts > most]
    if asking:
        told = " and ".join(f"{kind.name} asks about {kind.num_texts} documents" for kind in asking)
        of_one = " in one language" if len(collection.libraries) > 1 else ""
        raise DataError(
            f"{told}{of_one} and {most} with text were given; give more, or leave out "
            f"{', '.join(kind.name for kind in asking)} (--kinds)",
            page="no-long-documents",
        )


def _first_items(
    makers: "_Makers", kinds: Sequence[str], lengths: Sequence[int], bar: Any
) -> dict[tuple[int, str], list[Item]]:
    """The first question of every length and kind; raises DataError with all for which none can be made."""
    made, problems = {}, []
    for length, name in itertools.product(lengths, kinds):
        try:
            made[length, name] = makers.items(KINDS[name], length, 0)
        except DataError as error:
            problems.append(str(error))
        bar.update()
    if problems:
        raise DataError("; ".join(problems), page="no-long-documents")
    return made


class _Makers:
    """Makes items about documents in several languages, in proportion to the tokens of each."""

    def __init__(self, makers: Sequence["_ItemMaker"], seed: int) -> None:
        self._makers, self._seed = makers, seed

    def items(self, kind: Kind, length: int, number: int) -> list[Item]:
        """As of `_ItemMaker`, in a drawn language, or in another if its documents do not suffice."""
        able = [maker for maker in self._makers if maker.library.num_documents >= kind.num_texts]
        able = [maker for maker in able if maker.num_tokens >= length] or able
        sizes = np.array([maker.num_tokens for maker in able])
        rng = np.random.default_rng([self._seed, zlib.crc32(kind.name.encode()), length, number])
        drawn = [able[index] for index in rng.choice(len(able), len(able), replace=False, p=sizes / sizes.sum())]
        for maker in drawn[:-1]:
            with contextlib.suppress(DataError):
                return maker.items(kind, length, number)
        return drawn[-1].items(kind, length, number)


class _ItemMaker:
    """Makes items; each depends only on the library, the seed, its kind, length and number."""

    def __init__(self, library: Library, tokenizer: Any, seed: int) -> None:
        self.library, self._tokenizer, self._seed = library, tokenizer, seed
        sample = library.sample(_SAMPLE_CHARACTERS)
        self._characters_per_token = len(sample) / len(encoder_of(tokenizer).encode(sample))
        self.num_tokens = round(library.num_characters / self._characters_per_token)
        self._labels = _even_labels(tokenizer, library.language)

    def items(self, kind: Kind, length: int, number: int) -> list[Item]:
        """One question, and its control if the kind has one; raises DataError if the documents do not suffice."""
        sure, drawn = 0.9, 1.4  # Shares of the length: text with all that is asked about, and text drawn.
        reason, misfits = "", 0
        for attempt in range(_DRAWS):
            size, most = (round(share * length * self._characters_per_token) for share in (sure, drawn))
            place = Place(number, size, most, self._labels)
            rng = np.random.default_rng([self._seed, zlib.crc32(kind.name.encode()), length, number, attempt])
            drafts = kind.drafts(self.library, place, rng)
            items = []
            for draft in drafts:
                fit = fit_size(
                    lambda size, draft=draft: self._tokens(draft, size),
                    length,
                    draft.least,
                    draft.most,
                    self._characters_per_token,
                )
                if fit is None:
                    sure *= 0.75
                    reason = f"{length} tokens are too few for question and text; ask for longer lengths"
                    break
                if fit.tokens < (1 - _CLOSEST_SHARE) * length:
                    drawn *= 1.2
                    reason = (
                        f"the text drawn makes {fit.tokens} of {length} tokens, and all {self.library.num_documents} "
                        f"documents together are about {self.num_tokens}; give more documents or ask for shorter "
                        "lengths"
                    )
                    break
                items.append(_item(draft, length, number, fit.characters, fit.tokens))
            if items and len(items) == len(drafts):
                return items
            if drafts and (misfits := misfits + 1) == _ATTEMPTS:
                break
            if not drafts:
                reason = (
                    "no text drawn has what could be quoted (whole sentences of 12 to 40 plain words, or headings, that"
                    " stand there once); give documents with more running text, or leave this kind out (--kinds)"
                )
        raise DataError(
            f"no question of kind {kind.name} at length {length} can be made: {reason}", page="no-long-documents"
        )

    def _tokens(self, draft: Draft, num_characters: int) -> int:
        prompt = draft.assemble(num_characters).text + draft.question
        encoded = encode_item(self._tokenizer, prompt, draft.choices or [draft.answer])
        return total_tokens(encoded, has_choices=bool(draft.choices))


class Fit(NamedTuple):
    """A number of characters of text, and the tokens of the prompt with it."""

    characters: int
    tokens: int


def fit_size(
    count_tokens: Callable[[int], int], limit_tokens: int, least: int, most: int, characters_per_token: float
) -> Fit | None:
    """The most characters whose prompt does not exceed the limit, to within half a percent.

    Each try interpolates linearly between known sizes, so a prompt of 128k tokens is tokenized about three times.

    Args:
        count_tokens: tokens of the prompt with a number of characters of text; never decreasing.
        limit_tokens: maximum tokens of the prompt.
        least: minimum number of characters.
        most: number of characters available.
        characters_per_token: a rough estimate.

    Returns:
        The fit; None if the prompt is too long even with the minimum.
    """
    low, high = least, most + 1  # `low` fits, `high` does not, or is not available.
    low_tokens, high_tokens = count_tokens(low), None
    if low_tokens > limit_tokens:
        return None
    tries = 0
    while high - low > 1 and limit_tokens - low_tokens > limit_tokens * _CLOSE_SHARE:
        tries += 1
        if high_tokens is not None:
            characters_per_token = (high - low) / (high_tokens - low_tokens)
        tried = low + round((limit_tokens * (1 - _CLOSE_SHARE / 2) - low_tokens) * characters_per_token)
        # Interpolation fails where the text is uneven, so every third try bisects.
        tried = (low + high) // 2 if tries % 3 == 0 else min(max(tried, low + 1), high - 1)
        tokens = count_tokens(tried)
        if tokens <= limit_tokens:
            low, low_tokens = tried, tokens
        else:
            high, high_tokens = tried, tokens
    return Fit(low, low_tokens)


def _even_labels(tokenizer: Any, language: Language) -> str:
    """The letters with the most common number of tokens, as shorter choices are likelier."""
    num_tokens = {label: len(tokenizer.encode(language.answer(label), add_special_tokens=False)) for label in LABELS}
    usual = mode(num_tokens.values())
    return "".join(label for label in LABELS if num_tokens[label] == usual)


def _item(draft: Draft, length: int, number: int, num_characters: int, num_tokens: int) -> Item:
    passage = draft.assemble(num_characters)
    return Item(
        id=f"{draft.kind}-{length}-{number:03d}",
        kind=draft.kind,
        length_tokens=length,
        num_tokens=num_tokens,
        answer=draft.answer,
        choices=list(draft.choices),
        depth=None if passage.depth is None else round(passage.depth, 4),
        documents=passage.documents,
        context=passage.text,
        question=draft.question,
    )


def _described(kind: Kind, item: Item) -> dict[str, Any]:
    """The suite's description of a kind, from one of its items."""
    control = "" if item.kind == kind.name else " (control: it is not in the text)"
    return {"asks": kind.asks + control, "chance": kind.chance, "scoring": kind.scoring}


def _check_arguments(lengths: Sequence[int], num_items: int, kinds: Sequence[str], seed: int) -> None:
    if not lengths or lengths[0] < 2:
        raise ConfigError(f"lengths are {list(lengths)}; give lengths of 2 tokens or more")
    if num_items < 1 or seed < 0:
        raise ConfigError(f"items are {num_items} and the seed is {seed}; give at least 1 item and a seed of 0 or more")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds or len(set(kinds)) < len(kinds):
        hint = did_you_mean(unknown[0], KINDS) if unknown else ""
        raise ConfigError(f"kinds are {', '.join(kinds) or 'none'}; {hint}give some of {', '.join(KINDS)}, each once")

"""Views: what bits and blocks say of documents is what plain lists of them say."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from skipwise.data.store import FORMAT, Counts, HeldOutEnd, TokenFiles, TokenStore, View, choose_held_out_end, files
from skipwise.errors import DataError

SEPARATOR = 0


def _listed(documents: list[list[int]], is_held_out: list[bool], wanted: View) -> tuple[list[list[int]], list[int]]:
    """Numbers of the documents that make up each one shown, and those that wait in vain; one after another."""
    shown: list[list[int]] = []
    waiting: list[int] = []
    for number, ids in enumerate(documents):
        if (wanted.part != "all" and is_held_out[number] != (wanted.part == "held_out")) or not ids:
            continue
        if len(ids) >= wanted.min_tokens:
            shown.append([number])
            continue
        waiting.append(number)
        if wanted.join and sum(len(documents[i]) for i in waiting) + len(waiting) - 1 >= wanted.min_tokens:
            shown.append(waiting)
            waiting = []
    return shown, waiting


def _counted(documents: list[list[int]], is_held_out: list[bool], wanted: View) -> Counts:
    """The counts of a view by plain lists."""
    shown, waiting = _listed(documents, is_held_out, wanted)
    of_part = [held == (wanted.part == "held_out") or wanted.part == "all" for held in is_held_out]
    return Counts(
        seen=len(documents),
        kept=sum(map(len, shown)),
        documents=len(shown),
        dropped_short=len(waiting),
        dropped_empty=sum(own and not ids for own, ids in zip(of_part, documents, strict=True)),
        other_part=of_part.count(False),
        tokens=sum(len(documents[number]) + 1 for members in shown for number in members) - len(shown),
        files_passed_over=0,
    )


def _fingerprint(documents: list[list[int]], shown: list[list[int]], wanted: View) -> str:
    """The hash of a view's tokens, document after document."""
    content = json.dumps([FORMAT, "none", "uint16", SEPARATOR if wanted.join else None]).encode()
    for number in (number for members in shown for number in members):
        content += hashlib.blake2b(np.array(documents[number], np.uint16).tobytes(), digest_size=16).digest()
    if wanted.join:
        content += np.cumsum([0, *map(len, shown)], dtype=np.int64).tobytes()
    return hashlib.sha256(content).hexdigest()


VIEWS = st.builds(
    View,
    min_tokens=st.integers(1, 40),
    join=st.booleans(),
    part=st.sampled_from(["all", "train", "held_out"]),
    held_out_share=st.sampled_from([0.1, 0.5]),
)


@given(
    size=st.integers(1, 150),
    seed=st.integers(0, 100),
    wanted=VIEWS,
    block=st.sampled_from([8, 64, 1 << 18]),
    shared=st.none() | st.tuples(st.floats(0, 0.999), st.floats(0, 1)),
)
@settings(max_examples=200)
def test_a_view_is_what_one_document_after_another_gives(
    tmp_path_factory: pytest.TempPathFactory, size: int, seed: int, wanted: View, block: int, shared: Any
) -> None:
    rng = np.random.default_rng(seed)
    documents = [rng.integers(1, 50, length).tolist() for length in rng.integers(0, 13, size)]
    splits = rng.integers(0, 1 << 64, size, np.uint64)
    folder = write_store(tmp_path_factory.mktemp("view"), documents, splits=splits.tolist(), separator_id=SEPARATOR)
    is_held_out = [int(split) / 2**64 < wanted.held_out_share for split in splits]
    if shared is not None:
        number = int(shared[0] * len(documents))
        begin = int(shared[1] * len(documents[number]))
        wanted = dataclasses.replace(wanted, held_out_end=HeldOutEnd(folder.name, number, begin))
        if wanted.part != "all":
            # Each split has its own part of the shared document, whatever its text says.
            is_held_out[number] = wanted.part == "held_out"
            documents[number] = documents[number][begin:] if is_held_out[number] else documents[number][:begin]
    shown, _ = _listed(documents, is_held_out, wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_BLOCK_DOCUMENTS", block)
        if not shown:
            with pytest.raises(DataError):
                TokenStore(folder, wanted)
            return
        store = TokenStore(folder, wanted)
        assert store.fingerprint == _fingerprint(documents, shown, wanted)
    texts = [[token for number in members for token in (SEPARATOR, *documents[number])][1:] for members in shown]
    assert [store.document(i).tolist() for i in range(store.num_documents)] == texts
    assert list(store.names) == [f"a.jsonl:{members[0] + 1}" for members in shown]
    assert store.names[-1] == store.names[::-1][0] == f"a.jsonl:{shown[-1][0] + 1}"
    sizes = [len(text) for text in texts]
    assert store.shortest_tokens == min(sizes)
    assert store.counts == _counted(documents, is_held_out, wanted)


def test_joining_reaches_over_many_documents_that_stand_by_themselves(tmp_path: Path) -> None:
    lengths = np.full(5000, 4)
    lengths[[0, 2500, 4999]] = 1
    documents = [[number] * length for number, length in enumerate(lengths.tolist())]
    write_store(tmp_path, documents, separator_id=SEPARATOR)
    store = TokenStore(tmp_path, View(min_tokens=4, join=True))
    assert store.num_documents == 4998
    assert store.document(4997).tolist() == [0, SEPARATOR, 2500, SEPARATOR, 4999]
    assert store.names[4997] == "a.jsonl:1"
    assert store.document(0).tolist() == [1] * 4


def _written(folder: Path, lengths: list[int], is_held_out: list[bool]) -> TokenFiles:
    documents = [np.arange(length) + 1000 * number for number, length in enumerate(lengths)]
    splits = [0 if held else (1 << 64) - 1 for held in is_held_out]
    return TokenFiles(write_store(folder, documents, splits=splits, separator_id=SEPARATOR))


@given(
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=12),
    held_out=st.integers(0, (1 << 12) - 1),
    share=st.sampled_from([0.1, 0.3, 0.9]),
    at_least=st.integers(1, 60),
    enough=st.integers(1, 150),
    keep=st.integers(1, 60),
    block=st.sampled_from([1, 3, 1 << 18]),
)
@settings(max_examples=200)
def test_the_end_that_is_held_out_is_of_the_longest_document_that_is_trained_on(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    held_out: int,
    share: float,
    at_least: int,
    enough: int,
    keep: int,
    block: int,
) -> None:
    is_held_out = [bool(held_out >> number & 1) for number in range(len(lengths))]
    written = _written(tmp_path_factory.mktemp("ends"), lengths, is_held_out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_BLOCK_DOCUMENTS", block)
        end = choose_held_out_end(written, share=share, at_least=at_least, enough=enough, keep=keep)

    whole = sum(length for length, held in zip(lengths, is_held_out, strict=True) if held)
    trained = [length for length, held in zip(lengths, is_held_out, strict=True) if not held and length]
    longest = max(trained or lengths)
    if (whole >= at_least and trained) or longest // 2 < at_least or longest - keep < at_least:
        assert end is None
        return
    assert end is not None
    candidates = [n for n, length in enumerate(lengths) if length == longest and (not trained or not is_held_out[n])]
    assert end.number == candidates[0]
    tokens = longest - end.begin
    assert at_least <= tokens <= longest // 2
    assert longest - tokens >= keep
    if tokens < min(longest // 2, longest - keep):
        assert tokens == max(at_least, enough, round(share * sum(lengths)))

    # What is trained on and what is held out make up all tokens, and share none.
    def ids_of(part: str) -> list[int]:
        store = TokenStore(written.folder, View(part=part, held_out_share=0.5, held_out_end=end))  # type: ignore[arg-type]
        return [int(token) for i in range(store.num_documents) for token in store.document(i)]

    both = [*ids_of("train"), *ids_of("held_out")]
    assert len(both) == len(set(both)) == sum(lengths)


def test_an_end_of_other_files_means_nothing(tmp_path: Path) -> None:
    written = _written(tmp_path, [50, 60], [False, True])
    other = HeldOutEnd("another-key", 0, 10)
    for part in ("train", "held_out"):
        with_end = TokenStore(written.folder, View(part=part, held_out_share=0.5, held_out_end=other))
        without = TokenStore(written.folder, View(part=part, held_out_share=0.5))
        assert with_end.fingerprint == without.fingerprint
        assert with_end.counts == without.counts

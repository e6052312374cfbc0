"""Views: what bits and blocks say of documents is what plain lists of them say."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipwise.errors import DataError
from skipwise.token_store import FORMAT, Counts, StoreWriter, TokenStore, View, view

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


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=150),
    seed=st.integers(0, 100),
    wanted=st.builds(
        View,
        min_tokens=st.integers(1, 40),
        join=st.booleans(),
        part=st.sampled_from(["all", "train", "held_out"]),
        held_out_share=st.sampled_from([0.1, 0.5]),
    ),
    block=st.sampled_from([8, 64, 1 << 18]),
)
@settings(max_examples=150)
def test_a_view_is_what_one_document_after_another_gives(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int, wanted: View, block: int
) -> None:
    rng = np.random.default_rng(seed)
    documents = [rng.integers(1, 50, length).tolist() for length in lengths]
    splits = rng.integers(0, 1 << 64, len(lengths), np.uint64)
    folder = tmp_path_factory.mktemp("view")
    with StoreWriter(folder, np.dtype(np.uint16)) as writer:
        for number, ids in enumerate(documents):
            writer.add(f"a.jsonl:{number + 1}", np.array(ids, np.uint16), int(splits[number]))
        writer.finish(separator_id=SEPARATOR, sentence_ends=np.zeros(50, bool), tokenizer_fingerprint="none")
    is_held_out = [int(split) / 2**64 < wanted.held_out_share for split in splits]
    shown, waiting = _listed(documents, is_held_out, wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, "_BLOCK_DOCUMENTS", block)
        if not shown:
            with pytest.raises(DataError):
                TokenStore(folder, wanted)
            return
        store = TokenStore(folder, wanted)
        fingerprint = store.fingerprint

    texts: list[list[int]] = []
    for members in shown:
        text = documents[members[0]]
        for number in members[1:]:
            text = [*text, SEPARATOR, *documents[number]]
        texts.append(text)
    assert [store.document(i).tolist() for i in range(store.num_documents)] == texts
    assert list(store.names) == [f"a.jsonl:{members[0] + 1}" for members in shown]
    assert store.names[-1] == store.names[::-1][0] == f"a.jsonl:{shown[-1][0] + 1}"
    sizes = [len(text) for text in texts]
    assert (store.shortest_tokens, store.longest_tokens) == (min(sizes), max(sizes))
    of_part = [held == (wanted.part == "held_out") or wanted.part == "all" for held in is_held_out]
    assert store.counts == Counts(
        seen=len(documents),
        kept=sum(map(len, shown)),
        documents=len(shown),
        dropped_short=len(waiting),
        dropped_empty=sum(own and not ids for own, ids in zip(of_part, documents, strict=True)),
        other_part=of_part.count(False),
        tokens=sum(sizes),
        files_passed_over=0,
    )
    content = [FORMAT, "none", "uint16", SEPARATOR if wanted.join else None]
    expected = json.dumps(content).encode()
    for members in shown:
        for number in members:
            expected += hashlib.blake2b(np.array(documents[number], np.uint16).tobytes(), digest_size=16).digest()
    if wanted.join:
        expected += np.cumsum([0, *map(len, shown)], dtype=np.int64).tobytes()
    assert fingerprint == hashlib.sha256(expected).hexdigest()


def test_joining_reaches_over_many_documents_that_stand_by_themselves(tmp_path: Path) -> None:
    lengths = np.full(5000, 4)
    lengths[[0, 2500, 4999]] = 1
    with StoreWriter(tmp_path, np.dtype(np.uint16)) as writer:
        for number, length in enumerate(lengths.tolist()):
            writer.add(f"{number}.txt", np.full(length, number, np.uint16), split_point=0)
        writer.finish(separator_id=SEPARATOR, sentence_ends=np.zeros(5000, bool), tokenizer_fingerprint="none")
    store = TokenStore(tmp_path, View(min_tokens=4, join=True))
    assert store.num_documents == 4998
    assert store.document(4997).tolist() == [0, SEPARATOR, 2500, SEPARATOR, 4999]
    assert store.names[4997] == "0.txt"
    assert store.document(0).tolist() == [1] * 4

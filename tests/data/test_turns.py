"""Windows and skips at turns, and items of conversations: valid samples, whole turns, a label in every window."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipwise.coverage import _covered_by
from skipwise.data.items import IGNORED_LABEL, TrainingItems, conversation_item
from skipwise.data.store import StoreWriter, TokenStore, View
from skipwise.data.turns import LABEL, TURN, Turns, flagged, moved_to_turns, plain_ids
from skipwise.positions import SAMPLERS, PoSE, sampler_from
from skipwise.window import Window

WINDOW = Window(train=32, original=64, target=256)
KINDS: list[Any] = [
    *SAMPLERS,
    *(
        {"kind": "pose", "chunks": chunks, "text": text, "start": start, "skips": "flat"}
        for chunks, text, start in (
            (2, "aligned", "mixed"),
            (3, "contiguous", "anywhere"),
            (4, "aligned", "document"),
            (5, "uniform", "mixed"),
        )
    ),
]


class AnyTokens:
    """Tokens of which every seventh ends a sentence."""

    separator_id = None
    sentence_ends = np.arange(1 << 12) % 7 == 0


def drawn(kind: Any, num_tokens: int, rng: np.random.Generator, window: Window = WINDOW) -> Any:
    sampler: Any = sampler_from(kind)
    ends = {"sentence_ends": AnyTokens.sentence_ends[:num_tokens]} if sampler.uses_sentence_ends else {}
    return sampler.sample(num_tokens, window, rng, **ends)


@pytest.mark.parametrize("skips_at", ["turns", "anywhere"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(seed=st.integers(0, 2**32), begins=st.sets(st.integers(0, 299), max_size=60), num_tokens=st.integers(32, 300))
def test_a_moved_sample_is_valid_and_keeps_its_skips(
    kind: Any, skips_at: Any, seed: int, begins: set[int], num_tokens: int
) -> None:
    before = drawn(kind, num_tokens, np.random.default_rng(seed))
    turns = np.array(sorted(begin for begin in begins if begin < num_tokens), np.int64)
    # The constructor holds both to be rising.
    after = moved_to_turns(before, turns, num_tokens=num_tokens, skips_at=skips_at)
    after.check_ends(num_tokens=num_tokens, target=WINDOW.target)
    assert len(after.token_index) == len(before.token_index)
    ends = [0, -1]
    np.testing.assert_array_equal(after.position_ids[ends], before.position_ids[ends])
    near = len(before.token_index) // 4
    assert abs(after.token_index[0] - before.token_index[0]) <= near
    if skips_at == "anywhere":
        np.testing.assert_array_equal(after.position_ids, before.position_ids)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_skips_and_windows_fall_at_turns_where_turns_are_short(kind: Any) -> None:
    window = Window(train=128, original=128, target=1024)
    begins = np.arange(0, 2000, 10)
    at_turns, skips, before = 0, 0, 0
    for seed in range(40):
        sample = drawn(kind, 2000, np.random.default_rng(seed), window)
        moved = moved_to_turns(sample, begins, num_tokens=2000)
        assert moved.token_index[0] % 10 == 0
        for each in (sample, moved):
            cuts = np.flatnonzero(np.diff(each.position_ids) != 1) + 1
            found = int((each.token_index[cuts] % 10 == 0).sum())
            at_turns, before = (found + at_turns, before) if each is moved else (at_turns, before + found)
        skips += len(cuts)
    if kind in ("randpos", "sentences"):
        # More skips than turns: each turn has one.
        assert at_turns > 1.2 * before or at_turns / skips > 0.1
    elif skips:
        few = kind in ("pose", "cream", "endprompt") or kind["chunks"] <= 3
        assert at_turns / skips > (0.9 if few else 0.6), (at_turns, skips)
        assert before / skips < 0.4


def test_the_text_before_a_skip_ends_with_a_turn_and_goes_on_with_another() -> None:
    window, begins = Window(train=128, original=128, target=1024), np.arange(0, 2000, 10)
    whole = 0
    for seed in range(100):
        moved = moved_to_turns(drawn("pose", 2000, np.random.default_rng(seed), window), begins, num_tokens=2000)
        (cut,) = np.flatnonzero(np.diff(moved.token_index) != 1)
        whole += (moved.token_index[cut] + 1) % 10 == 0 and moved.token_index[cut + 1] % 10 == 0
    assert whole > 90


def test_a_turn_longer_than_the_window_is_cut_within() -> None:
    begins = np.array([0, 5000])
    starts = {
        int(moved_to_turns(drawn("plain", 10_000, np.random.default_rng(s)), begins, num_tokens=10_000).token_index[0])
        for s in range(50)
    }
    assert len(starts) > 40


@pytest.mark.parametrize("kind", [{"kind": "pose", "skips": "flat"}, "pose", "cream", "randpos", "sentences"], ids=str)
def test_coverage_of_distances_hardly_changes(kind: Any) -> None:
    window, rng = Window(train=256, original=256, target=2048), np.random.default_rng(0)
    begins = np.cumsum(rng.integers(5, 120, 200))
    begins = begins[begins < 4000]
    before = np.zeros(window.target, np.int64)
    after = before.copy()
    number = 1500
    for seed in range(number):
        sample = drawn(kind, 4000, np.random.default_rng(seed), window)
        moved = moved_to_turns(sample, begins, num_tokens=4000)
        before += _covered_by(sample.position_ids, window.target)
        after += _covered_by(moved.position_ids, window.target)
    # In eight bands of distances, to leave out the noise of single ones.
    bands = np.array_split((after - before) / number, 8)
    assert max(abs(band.mean()) for band in bands) < 0.06, [round(float(band.mean()), 3) for band in bands]


def conversation(num_tokens: int, labels: slice) -> np.ndarray:
    is_label = np.zeros(num_tokens, bool)
    is_label[labels] = True
    return flagged(np.arange(num_tokens) % 4000 + 1, is_label, np.arange(num_tokens) % 20 == 0)


@pytest.mark.parametrize("near_labels", [1.0, 0.0])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_item_has_a_label_where_the_document_has_one(kind: Any, near_labels: float) -> None:
    entries = conversation(3000, slice(1500, 1503))
    turns, ids = Turns.of(entries), plain_ids(entries)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        how: Any = {"mask_joints": True, "near_labels": near_labels}
        item = conversation_item(ids, turns, AnyTokens(), sampler_from(kind), WINDOW, rng, **how)
        shown = np.flatnonzero(item.labels != IGNORED_LABEL)
        assert len(shown)
        assert set(item.labels[shown]) <= {1501, 1502, 1503}
        np.testing.assert_array_equal(item.labels[shown], item.input_ids[shown])
        assert shown[0] > 0


def test_a_document_without_labels_gives_items_without() -> None:
    entries = conversation(100, slice(0, 1))
    made_by = AnyTokens(), PoSE(), WINDOW, np.random.default_rng(0)
    item = conversation_item(plain_ids(entries), Turns.of(entries), *made_by, mask_joints=True)
    assert (item.labels == IGNORED_LABEL).all()


def store_of(folder: Path, documents: list[np.ndarray], view: View) -> TokenStore:
    folder.mkdir(exist_ok=True)
    with StoreWriter(folder, np.dtype(np.uint32)) as writer:
        for number, entries in enumerate(documents):
            writer.add(f"chats.jsonl:{number + 1}", entries, (1 << 64) - 1)
        ends = np.zeros(5000, bool)
        writer.finish(separator_id=None, sentence_ends=ends, tokenizer_fingerprint="none", has_turns=True)
    return TokenStore(folder, view)


def test_short_conversations_are_joined_without_a_separator_and_keep_their_flags(tmp_path: Path) -> None:
    documents = [conversation(12, slice(5, 9)) for _ in range(9)]
    store = store_of(tmp_path / "store", documents, View(min_tokens=32, join=True))
    assert store.num_documents == 3
    assert store.shortest_tokens == 36
    np.testing.assert_array_equal(store.document(1), np.tile(np.arange(1, 13), 3))
    assert store.document(1).dtype == np.uint32
    turns = Turns.of(store.entries(1))
    assert turns.begins.tolist() == [0, 12, 24]
    assert np.flatnonzero(turns.is_label).tolist() == [5, 6, 7, 8, 17, 18, 19, 20, 29, 30, 31, 32]
    assert (store.entries(1) & (LABEL | TURN)).any()
    item = TrainingItems(store, PoSE(), WINDOW, seed=0).item(0, 0)
    learned = item.labels != IGNORED_LABEL
    assert set(item.input_ids[learned]) <= {6, 7, 8, 9}


def test_the_share_of_labels_is_counted_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [conversation(50, slice(5, 5 + number)) for number in range(40)]
    store = store_of(tmp_path / "store", documents, View())
    assert store.label_share == pytest.approx(np.mean([number / 50 for number in range(40)]))
    monkeypatch.setattr("skipwise.data.store.files._COUNTED_TOKENS", 50)
    monkeypatch.setattr("skipwise.data.store.files._COUNTED_BLOCKS", 10)
    assert TokenStore(store.folder).label_share == pytest.approx(np.mean([number / 50 for number in range(0, 40, 4)]))


def test_flags_change_the_fingerprint(tmp_path: Path) -> None:
    view = View()
    one = store_of(tmp_path / "one", [conversation(40, slice(5, 9))], view)
    other = store_of(tmp_path / "other", [conversation(40, slice(5, 10))], view)
    assert one.fingerprint != other.fingerprint
    np.testing.assert_array_equal(one.document(0), other.document(0))

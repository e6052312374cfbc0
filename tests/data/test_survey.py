"""What is known of a corpus before training, compared with plain loops over its texts."""

import json
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skipwise.data.documents import inspect, is_held_out, split_point
from skipwise.data.store import View, count_documents
from skipwise.data.survey import Facts, Surveyed, estimated_tokens, find_facts, survey
from skipwise.data.survey.taken import EstimatedLengths, taken_by

WORDS = [first + second for first in "bdfgklmnprst" for second in ("an", "ere", "ilt", "os", "um", "ab", "iri")]


@pytest.fixture(autouse=True)
def quick_languages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Telling a language takes longer than everything else."""
    if "languages" not in request.node.name:
        monkeypatch.setattr("skipwise.data.survey.reading.language_of", lambda text: "en")


def text_of(number: int, words: int) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=words))


def with_changed_words(text: str, every: int) -> str:
    return " ".join("changed" if i % every == 0 else word for i, word in enumerate(text.split(), 1))


def written(folder: Path, texts: list[str]) -> Path:
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def surveyed(source: Path, **how: Any) -> Surveyed:
    sources, _ = inspect(source)
    return survey([sources], progress=False, **how)


def facts_of(found: Surveyed, **how: Any) -> Facts:
    settings = {"is_estimate": True, "lengths": [100, 1000], "held_out_share": 0.1}
    return find_facts(found, estimated_tokens(found.sizes), **{**settings, **how})


def test_lengths_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    texts = [text_of(number, 10 * number) for number in range(60)] + ["  ", "日本語の文書です。"]
    found = surveyed(written(tmp_path, texts))
    sizes = [len(text.strip().encode()) for text in texts]
    tokens = [-(-size // 4) for size in sizes]
    assert found.sizes.tolist() == sizes
    assert found.splits.tolist() == [split_point(text.strip()) for text in texts]
    facts = facts_of(found)
    assert (facts.documents, facts.empty, facts.empty_names) == (62, 2, ["texts.jsonl:1", "texts.jsonl:61"])
    assert (facts.num_bytes, facts.tokens) == (sum(sizes), sum(tokens))
    own = sorted(filter(None, tokens))
    assert facts.lengths == {
        "shortest": own[0],
        "10%": own[6],
        "median": own[30],
        "90%": own[53],
        "longest": own[-1],
    }
    for found_length in facts.as_long:
        long = [number for number in own if number >= found_length.tokens]
        assert found_length.documents == len(long)
        assert found_length.share_of_documents == pytest.approx(len(long) / len(own))
        assert found_length.share_of_tokens == pytest.approx(sum(long) / sum(own))
    held_out = [size for text, size in zip(texts, tokens, strict=True) if text.strip() and is_held_out(text.strip())]
    assert facts.held_out.documents == len(held_out) > 0
    assert facts.held_out.share_of_tokens == pytest.approx(sum(held_out) / sum(tokens))


def test_duplicates_are_counted_once_each(tmp_path: Path) -> None:
    base = [text_of(number, 200) for number in range(20)]
    copies = [base[0], f" {base[0]}\n", base[1]]
    near = [with_changed_words(base[2], 100), with_changed_words(base[2], 70), with_changed_words(base[3], 90)]
    far = [with_changed_words(base[4], 4)]
    facts = facts_of(surveyed(written(tmp_path, [*base, *copies, *near, near[0], *far])))
    assert (facts.copies.documents, facts.copies.groups) == (4, 3)
    assert facts.copies.share_of_documents == pytest.approx(4 / 28)
    assert (facts.alike.documents, facts.alike.groups) == (3, 2)
    assert facts.copies.examples[0] == ["texts.jsonl:1", "texts.jsonl:21"]
    assert facts.alike.examples == [["texts.jsonl:3", "texts.jsonl:24"], ["texts.jsonl:4", "texts.jsonl:26"]]
    tokens = [-(-len(text.strip().encode()) // 4) for text in (*base, *copies, *near, near[0], *far)]
    assert facts.copies.share_of_tokens == pytest.approx((sum(tokens[20:23]) + tokens[26]) / sum(tokens))


def test_held_out_documents_that_are_like_others_are_named(tmp_path: Path) -> None:
    trained = next(text for number in range(100) if not is_held_out(text := text_of(number, 300)))
    like = next(text for every in range(60, 200) if is_held_out(text := with_changed_words(trained, every)))
    # Two held-out texts that are like each other are no leak.
    own = next(text for number in range(200, 300) if is_held_out(text := text_of(number, 300)))
    other = next(text for every in range(60, 200) if is_held_out(text := with_changed_words(own, every)))
    texts = [trained, own, like, other]
    facts = facts_of(surveyed(written(tmp_path, texts)))
    assert facts.held_out.documents == facts.held_out.sampled == 3
    [leak] = facts.held_out.leaks
    assert (leak.held_out, leak.trained) == ("texts.jsonl:3", "texts.jsonl:1")
    assert 0.75 < leak.likeness < 1
    assert facts_of(surveyed(tmp_path), held_out_share=0.0).held_out.leaks == []


def test_compression_is_that_of_zlib(tmp_path: Path) -> None:
    noise = random.Random(0).choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=6000)
    texts = [text_of(1, 2000), "the same line\n" * 1000, "".join(noise), text_of(2, 1500), "short " * 20]
    found = surveyed(written(tmp_path, texts))
    data = [text.strip().encode() for text in texts]
    by_hand = [len(zlib.compress(one, 6)) / len(one) if len(one) >= 4096 else None for one in data]
    assert [one.gzip_ratio for one in found.sample] == by_hand
    compression = facts_of(found).compression
    assert compression.documents == 4
    assert compression.well.examples == [["texts.jsonl:2"]]
    assert compression.badly.examples == [["texts.jsonl:3"]]
    known = [ratio for ratio in by_hand if ratio is not None]
    assert compression.fifths == pytest.approx((np.quantile(known, 0.2), np.quantile(known, 0.8)))


def test_languages_are_shares_of_tokens(tmp_path: Path) -> None:
    german = "Der Zug nach Hamburg fährt heute wegen der Bauarbeiten erst am späten Nachmittag ab. " * 20
    japanese = "この列車は、工事のため、今日は夕方まで出発しません。駅の待合室でお待ちください。" * 30
    facts = facts_of(surveyed(written(tmp_path, [german, japanese, "7 8 9 " * 50])))
    sizes = [-(-len(text.strip().encode()) // 4) for text in (german, japanese, "7 8 9 " * 50)]
    assert facts.languages == pytest.approx(
        {"ja": sizes[1] / sum(sizes), "de": sizes[0] / sum(sizes), None: sizes[2] / sum(sizes)}
    )


def test_the_sample_is_chosen_by_content_and_not_by_threads(tmp_path: Path) -> None:
    base = [text_of(number, 60) for number in range(600)]
    near = [with_changed_words(text, 40) for text in base]
    texts = [*base, *base, *near]
    random.Random(1).shuffle(texts)
    source = written(tmp_path, texts)
    whole, some, again = (
        surveyed(source, most_sampled=most, workers=workers) for most, workers in ((10_000, 2), (500, 1), (500, 3))
    )
    assert len(whole.sample) == 1800
    numbers = [one.number for one in some.sample]
    assert numbers == [one.number for one in again.sample]
    assert 200 < len(numbers) <= 500
    assert some.sizes.tolist() == whole.sizes.tolist()
    facts = facts_of(some), facts_of(whole)
    for kind in ("copies", "alike"):
        found, true = (getattr(one, kind).share_of_documents for one in facts)
        assert found == pytest.approx(true, abs=0.05)
    assert facts[0].copies.share_of_documents > 0.3


def test_reading_ends_behind_so_much_text(tmp_path: Path) -> None:
    found = surveyed(written(tmp_path, [text_of(number, 50) for number in range(1000)]), most_bytes=5000)
    assert not found.is_whole
    assert 5000 <= found.sizes.sum() < 6000


@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_what_windows_take_adds_up(join: bool, share: float) -> None:
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 300, 500) * draw.integers(0, 2, 500)
    lengths = EstimatedLengths(tokens=tokens, splits=draw.integers(0, 2**64, 500, dtype=np.uint64))
    view = View(min_tokens=128, join=join, part="train", held_out_share=share)
    taken = taken_by(128, lengths, view)
    assert taken.counts == count_documents(lengths, view)
    held_out = lengths.splits / 2.0**64 < share
    assert taken.held_out_tokens == tokens[held_out].sum()
    separators = taken.counts.kept - taken.counts.documents
    assert taken.counts.tokens - separators + taken.short_tokens + taken.held_out_tokens == tokens.sum()
    if not join:
        long = tokens[~held_out & (tokens >= 128)]
        assert (taken.counts.documents, taken.counts.tokens) == (len(long), long.sum())
        assert taken.counts.dropped_short == (~held_out & (tokens > 0) & (tokens < 128)).sum()


def test_an_empty_corpus_has_no_facts_but_counts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    facts = facts_of(surveyed(tmp_path))
    assert (facts.documents, facts.empty, facts.tokens, facts.sampled) == (1, 1, 0, 0)
    assert (facts.lengths, facts.languages, facts.compression.fifths) == ({}, {}, None)


@pytest.mark.parametrize("most_hashes", [1 << 21, 2000])
def test_a_held_out_chapter_of_a_book_that_is_trained_on_is_named(tmp_path: Path, most_hashes: int) -> None:
    """Of many word sequences only some are kept."""
    chapters = [text_of(number, 300) for number in range(200)]
    inside = next(text for text in chapters if is_held_out(text))
    apart = next(text for number in range(500, 600) if is_held_out(text := text_of(number, 300)))
    half = " ".join(apart.split()[:150])
    rest = [text for text in chapters if text != inside]
    books = (" ".join([*rest[:number], inside, half, *rest[number:20]]) for number in range(20))
    book = next(text for text in books if not is_held_out(text))
    found = surveyed(written(tmp_path, [book, inside, apart]), most_hashes=most_hashes)
    assert len(found.hashes) == len(found.owners) <= most_hashes
    facts = facts_of(found)
    assert facts.held_out.documents == 2
    assert facts.held_out.leaks == []
    assert facts.held_out.contained == ["texts.jsonl:2"]

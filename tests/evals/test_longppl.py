"""LongPPL against a loop over all logits, by the model itself and by scorers with other tokenizers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_models import END, byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from skipwise.errors import ConfigError
from skipwise.evals import EvalContext, SampleCache
from skipwise.evals.tasks import longppl as longppl_module
from skipwise.evals.tasks.longppl import LongPPL, _located, inside
from skipwise.evals.tasks.truncated import TruncatedPerplexity

from .tiny import BOS, body_of, by_metric, calls_of, context_of, make_llama

SETTINGS: dict[str, Any] = {"short_tokens": 30, "stride_tokens": 17, "min_gain": 0.5, "max_nll": 6.0}


def longppl(**changes: Any) -> LongPPL:
    return LongPPL(**(SETTINGS | changes))


def naive_key_tokens(naive_nlls, model, bos: list[int], body: list[int], **settings) -> tuple[np.ndarray, np.ndarray]:
    """NLL of every token of `body` (NaN for one that nothing precedes), and whether it is key."""
    reach, stride = settings["short_tokens"] - len(bos), settings["stride_tokens"]
    long = np.concatenate([[np.nan] * (1 - len(bos)), naive_nlls(model, bos + body)])
    is_key = np.zeros(len(body), bool)
    for token in range(reach, len(body)):
        begin = (token - reach) // stride * stride
        short = naive_nlls(model, bos + body[begin : token + 1])[-1]
        is_key[token] = short - long[token] > settings["min_gain"] and long[token] < settings["max_nll"]
    return long, is_key


def text_tokenizer(*merges: tuple[str, str], trim_offsets: bool = False) -> PreTrainedTokenizerFast:
    """Bytes, and what merges make of them; a space that begins a token may be left out of its place."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    engine = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    engine.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=engine)


@pytest.mark.parametrize("bos", ["tokenizer", "never"])
def test_key_tokens_are_those_that_the_long_context_helps(bos, tiny_llama, documents, naive_nlls) -> None:
    context = context_of(tiny_llama, documents=documents)
    prefix = [BOS] if bos == "tokenizer" else []
    measured = list(longppl(bos=bos).run(context, [80, 120]))
    for length, (results, samples) in zip([80, 120], measured, strict=True):
        sums, counts, total = [], [], 0.0
        for sample in samples:
            body = body_of(documents[sample["document"]])[: length - len(prefix)]
            nlls, is_key = naive_key_tokens(naive_nlls, tiny_llama, prefix, body, **SETTINGS)
            sums.append(nlls[is_key].sum())
            counts.append(is_key.sum())
            total += np.nansum(nlls)
            assert sample["key_tokens"] == counts[-1]
        assert sum(counts) > 5, "the case is no case"
        found = by_metric(results)
        assert found["longppl"].value == pytest.approx(np.exp(sum(sums) / sum(counts)), rel=1e-5)
        assert found["longppl"].details["key_tokens"] == sum(counts)
        assert found["longppl"].details["scorer"] == "the evaluated model"
        assert {result.details["longest_tokens"] for result in results} == {120}
        num_scored = len(samples) * (length - 1)
        assert found["perplexity"].value == pytest.approx(np.exp(total / num_scored), rel=1e-5)
        assert found["key_share"].value == pytest.approx(sum(counts) / num_scored)


def test_documents_without_key_tokens_are_skipped_and_counted(tiny_llama, documents, caplog) -> None:
    context = context_of(tiny_llama, documents=documents)
    (usual,) = longppl().run(context, [80])
    # Gains that fewer and fewer documents reach, until one is left.
    gains = (0.5 * 1.1**power for power in range(100))
    keyed, measured = next(
        (keyed, measured)
        for gain in gains
        for measured in longppl(min_gain=gain).run(context, [80])
        if (keyed := sum(sample["key_tokens"] > 0 for sample in measured.samples)) <= 1
    )
    assert keyed == 1
    found = by_metric(measured.results)
    assert found["longppl"].num_samples == 1
    assert found["longppl"].num_skipped == found["perplexity"].num_skipped + len(usual.samples) - 1
    assert not caplog.records
    (none,) = longppl(min_gain=100.0).run(context, [80])
    assert "longppl at 80: no key token in the 5 documents that can be judged of 5, so there is no" in caplog.text
    assert [result.metric for result in none.results] == ["perplexity", "key_share"]
    assert none.results[1].value == 0


@pytest.mark.parametrize("cached", [True, False])
def test_one_pass_over_a_text_serves_all_lengths_and_tasks(cached, tiny_llama, documents, tmp_path) -> None:
    context = context_of(tiny_llama, documents=documents, cache=SampleCache(tmp_path) if cached else None)
    shown = calls_of(tiny_llama.model)
    alone = [list(task.run(context, [80, 120])) for task in (TruncatedPerplexity(), longppl(short_tokens=79))]
    lengths = [call["input_ids"].shape[1] for call in shown]
    assert lengths.count(119) == len(alone[0][0].samples), "a text is read once"
    if cached:
        again = replace(context, scored={})
        assert list(longppl(short_tokens=79, min_gain=0.4).run(again, [80, 120]))
        assert len(shown) == len(lengths), "another process finds what was read"


def test_a_scorer_reads_texts_once_for_all_models(text_context, tmp_path, monkeypatch) -> None:
    save_scorer(tmp_path / "scorer", text_context.tokenizer)
    read, original = [], longppl_module.load_model

    def watched(name: str, **how: Any) -> tuple[Any, Any]:
        assert how == {"dtype": text_context.model.dtype}, "the scorer computes as the evaluated model does"
        model, tokenizer = original(name, **how)
        read.append(calls_of(model.model))
        return model, tokenizer

    monkeypatch.setattr(longppl_module, "load_model", watched)
    for seed in (0, 1):
        context = replace(
            text_context,
            model=make_llama(vocab_size=257, num_hidden_layers=2 - seed),
            cache=SampleCache(tmp_path / "c"),
        )
        assert list(longppl(scorer=str(tmp_path / "scorer"), min_gain=0.1).run(replace(context, scored={}), [100, 150]))
    assert read[0]
    assert not read[1]


TEXTS = [
    "the heath, the other thing: a theme. naïve — the café then. " * 4,
    "then there  were\n\n  others; he hated the rest. " * 4,
]


@pytest.fixture
def text_context() -> EvalContext:
    tokenizer = text_tokenizer(("Ġ", "t"))
    documents = [np.array(tokenizer.encode(text)) for text in TEXTS]
    return context_of(make_llama(vocab_size=257), tokenizer, documents=documents)


def save_scorer(folder, tokenizer: PreTrainedTokenizerFast, **sizes):
    model = make_llama(vocab_size=len(tokenizer), num_hidden_layers=1, **sizes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


WORDS = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "a"), ("e", "r")]


@pytest.mark.parametrize("merges", [None, WORDS])
def test_a_scorer_marks_text_whatever_its_tokenizer(merges, text_context, tmp_path, naive_nlls) -> None:
    """With the model's own tokenizer it marks tokens; otherwise stretches of text."""
    tokenizer = text_tokenizer(*merges, trim_offsets=True) if merges else text_context.tokenizer
    scorer = save_scorer(tmp_path, tokenizer)
    settings = SETTINGS | {"min_gain": 0.1}
    (measured,) = longppl(scorer=str(tmp_path), min_gain=0.1).run(text_context, [150])
    assert measured.results[0].details["scorer"] == str(tmp_path)
    for sample in measured.samples:
        body = text_context.documents[sample["document"]][:150].tolist()
        own = text_context.tokenizer(TEXTS[sample["document"]], return_offsets_mapping=True).offset_mapping[:150]
        text = TEXTS[sample["document"]][: own[-1][1]]
        marked = tokenizer(text, return_offsets_mapping=True)
        _, chosen = naive_key_tokens(naive_nlls, scorer, [], marked.input_ids, **settings)
        characters = {
            c for key, (begin, end) in zip(chosen, marked.offset_mapping, strict=True) if key for c in range(begin, end)
        }
        if merges:
            bare = [(begin + (end - begin > 1 and text[begin] == " "), end) for begin, end in own]
            is_key = np.array([set(range(begin, end)) <= characters for begin, end in bare])
            assert any(is_key[token] and bare[token] != own[token] for token in range(150)), "the case is no case"
        else:
            is_key = chosen
        nlls = np.concatenate([[np.nan], naive_nlls(text_context.model, body)])
        assert 0 < is_key.sum() < 150
        assert sample["key_tokens"] == is_key.sum()
        assert sample["key_nll_sum"] == pytest.approx(nlls[is_key].sum(), rel=1e-5)


def test_a_document_that_is_not_its_own_text_is_unscorable(text_context, tmp_path) -> None:
    save_scorer(tmp_path, text_tokenizer(*WORDS))
    text_context.documents[0][10] = text_context.tokenizer.convert_tokens_to_ids("Ã")  # half a character
    (measured,) = longppl(scorer=str(tmp_path)).run(text_context, [150])
    assert sorted((sample["document"], "unscorable" in sample) for sample in measured.samples) == [
        (0, True),
        (1, False),
    ]
    assert measured.results[-1].num_skipped == 1


@pytest.mark.parametrize("reading", ["text", "tokens"])
def test_a_document_spells_control_tokens_or_is_joined_by_them(reading: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("a<end>b", split_special_tokens=reading == "text")
    assert (END in ids, len(ids)) == ((False, 7) if reading == "text" else (True, 3))
    found = _located(byte_tokenizer(), np.array(ids), len(ids))
    assert found is not None
    assert (found.text, found.reading) == ("a<end>b", reading)
    within = [[1, 6]] if reading == "tokens" else [[place, place + 1] for place in range(1, 6)]
    assert found.spans.tolist() == [[0, 1], *within, [6, 7]]


def test_a_length_that_ends_within_a_character_is_measured(text_context, tmp_path) -> None:
    save_scorer(tmp_path, text_tokenizer(*WORDS))
    ids = text_context.documents[0].tolist()
    half = ids.index(text_context.tokenizer.convert_tokens_to_ids("Ã"), 100) + 1
    (measured,) = longppl(scorer=str(tmp_path)).run(text_context, [half])
    assert not any("unscorable" in sample for sample in measured.samples)


@st.composite
def stretches_and_spans(draw):
    def spans(ordered: bool) -> np.ndarray:
        pairs = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=8))
        return np.array([(begin, begin + size) for begin, size in (sorted(pairs) if ordered else pairs)]).reshape(-1, 2)

    return spans(False), spans(True)


@given(stretches_and_spans())
@example((np.array([(1, 4)]), np.array([(0, 3), (3, 5)])))
def test_inside_means_that_every_character_is_marked(case) -> None:
    spans, stretches = case
    characters = {c for begin, end in stretches for c in range(begin, end)}
    assert inside(spans, stretches).tolist() == [set(range(begin, end)) <= characters for begin, end in spans]


def test_scorers_that_cannot_judge_are_refused_before_their_weights_are_read(
    tiny_llama, documents, text_context, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(longppl_module, "load_model", None)
    save_scorer(tmp_path / "other", text_tokenizer(("t", "h")))
    context = context_of(tiny_llama, documents=documents)
    with pytest.raises(ConfigError, match=r"longppl.scorer.*other'"):
        longppl(scorer=str(tmp_path / "other")).check_lengths(context, [80])
    save_scorer(tmp_path / "short", text_context.tokenizer, max_position_embeddings=100)
    longppl(scorer=str(tmp_path / "short")).check_lengths(text_context, [100])
    with pytest.raises(ConfigError, match=r" 150 .* 100"):
        longppl(scorer=str(tmp_path / "short")).check_lengths(text_context, [80, 150])


def test_a_scorer_with_another_tokenizer_must_hold_the_texts_in_its_own_tokens(text_context, tmp_path) -> None:
    tokenizer = text_tokenizer(*WORDS)
    texts = [text_context.tokenizer.decode(document[:150]) for document in text_context.documents]
    most = max(len(tokenizer.encode(text)) for text in texts)
    assert most < 150, "the case is no case"
    save_scorer(tmp_path / "fits", tokenizer, max_position_embeddings=most)
    longppl(scorer=str(tmp_path / "fits")).check_lengths(text_context, [100, 150])
    save_scorer(tmp_path / "short", tokenizer, max_position_embeddings=most - 1)
    with pytest.raises(ConfigError, match=f" {most} .* {most - 1}"):
        longppl(scorer=str(tmp_path / "short")).check_lengths(text_context, [150, 100])

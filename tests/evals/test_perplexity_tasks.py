"""Last-N, sliding-window and by-position scores against loops over all logits."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skipwise.evals import EvalContext, SampleCache, make_task
from skipwise.evals.tasks.perplexity import LastTokensPerplexity
from skipwise.evals.tasks.position import NLLByPosition, bucket_edges
from skipwise.evals.tasks.sliding import SlidingWindowPerplexity, window_spans
from skipwise.evals.tasks.truncated import TruncatedPerplexity
from skipwise.records.results import hash_tokens

from .tiny import BOS, ByteTokenizer, body_of, calls_of, context_of, make_llama

LENGTHS = [40, 64, 120]


@pytest.fixture(params=[True, False], ids=["bos", "no bos"])
def context(request, tiny_llama, documents) -> EvalContext:
    return context_of(tiny_llama, ByteTokenizer(adds_bos=request.param), documents=documents)


def test_last_tokens_are_the_same_ones_with_ever_more_context(context, documents, naive_nlls) -> None:
    measured = list(LastTokensPerplexity(scored_tokens=16).run(context, LENGTHS))
    bos = context.bos("tokenizer")
    for length, (results, samples) in zip(LENGTHS, measured, strict=True):
        assert {sample["document"] for sample in samples} == {1, 2, 3, 4}, "all of at least 120 tokens, and no other"
        total = 0.0
        for sample in samples:
            scored_end = body_of(documents[sample["document"]])[: 120 - len(bos)]
            ids = bos + scored_end[len(scored_end) - length + len(bos) :]
            assert len(ids) == length
            nll = naive_nlls(context.model, ids)[-16:].sum()
            assert sample["nll_sum"] == pytest.approx(nll, rel=1e-5)
            assert sample["prompt_sha256"] == hash_tokens(ids)
            total += nll
        (result,) = results
        assert result.value == pytest.approx(np.exp(total / 64), rel=1e-5)
        assert (result.ci_low or math.inf) < result.value < (result.ci_high or 0)
        assert (result.length_tokens, result.num_samples, result.num_skipped) == (length, 4, 2)


def test_cut_tokens_make_runs_with_other_lengths_comparable(context) -> None:
    alone = next(iter(LastTokensPerplexity(scored_tokens=16, cut_tokens=120).run(context, [40])))
    among = next(iter(LastTokensPerplexity(scored_tokens=16).run(context, LENGTHS)))
    assert alone.samples == among.samples


@pytest.mark.parametrize("stride", [7, 39, None])
def test_sliding_window_scores_each_token_once_in_its_window(context, documents, naive_nlls, stride) -> None:
    bos = context.bos("tokenizer")
    measured = SlidingWindowPerplexity(stride_tokens=stride, cut_tokens=90).run(context, [40, 64])
    for length, (results, samples) in zip([40, 64], measured, strict=True):
        total, count = 0.0, 0
        for sample in samples:
            body = body_of(documents[sample["document"]])[:90]
            step, reach = stride or length // 2, length - len(bos)
            for begin in range(0, len(body), step):
                in_window = naive_nlls(context.model, bos + body[begin : begin + reach])
                for token in range(begin, min(begin + reach, len(body))):
                    # Scored by the first window that reaches it, if anything comes before it there.
                    first_reaching = 0 if token < reach else -(-(token + 1 - reach) // step) * step
                    place = len(bos) + token - begin
                    if begin == first_reaching and place > 0:
                        total += in_window[place - 1]
                        count += 1
        (result,) = results
        assert sum(sample["scored_tokens"] for sample in samples) == count
        assert result.value == pytest.approx(np.exp(total / count), rel=1e-5)


@pytest.mark.parametrize(
    ("num_tokens", "window", "stride"), [(100, 10, 3), (100, 10, 10), (9, 10, 5), (10, 10, 5), (11, 10, 9)]
)
def test_window_spans_score_every_token_once(num_tokens: int, window: int, stride: int) -> None:
    spans = list(window_spans(num_tokens, window, stride))
    scored = [token for span in spans for token in range(span.scored_from, span.end)]
    assert scored == list(range(num_tokens))
    assert all(span.begin <= span.scored_from and span.end - span.begin <= window for span in spans)


def test_nll_by_position_averages_each_bucket(context, documents, naive_nlls) -> None:
    (measured,) = NLLByPosition(num_buckets=4).run(context, [120])
    bos = context.bos("tokenizer")
    inputs = [(bos + body_of(documents[sample["document"]]))[:120] for sample in measured.samples]
    per_document = np.stack([naive_nlls(context.model, ids) for ids in inputs])
    places = [(result.details["position_from"], result.details["position_to"]) for result in measured.results]
    assert places == [(1, 15), (15, 30), (30, 60), (60, 120)]
    for result, (begin, end) in zip(measured.results, places, strict=True):
        assert result.value == pytest.approx(per_document[:, begin - 1 : end - 1].mean(), rel=1e-5)


@pytest.mark.parametrize(("length", "buckets"), [(2, 8), (3, 1), (100, 8), (4096, 20)])
def test_bucket_edges_cover_every_scored_position(length: int, buckets: int) -> None:
    edges = bucket_edges(length, buckets)
    assert (edges[0], edges[-1]) == (1, length)
    assert edges == sorted(set(edges))


@pytest.mark.parametrize(
    ("spec", "about"),
    [
        ({"kind": "perplexity", "scored_tokens": 8}, {"cut_tokens": 64}),
        ({"kind": "perplexity", "scored_tokens": 8, "cut_tokens": 90}, {"cut_tokens": 90}),
        ({"kind": "sliding"}, {"cut_tokens": 128, "longest_tokens": 64}),
        ({"kind": "sliding", "cut_tokens": 80}, {"cut_tokens": 80, "longest_tokens": 64}),
        ({"kind": "truncated"}, {"longest_tokens": 64}),
        ({"kind": "nll_by_position"}, {"longest_tokens": 64}),
    ],
)
def test_results_say_which_documents_and_tokens_they_are_of(context, spec, about: dict) -> None:
    for measured in make_task(spec).run(context, [40, 64]):
        for result in measured.results:
            found = {name: value for name, value in result.details.items() if name in ("cut_tokens", "longest_tokens")}
            assert found == about


@pytest.mark.parametrize("kind", ["perplexity", "sliding", "truncated", "nll_by_position"])
def test_fewer_documents_are_found_among_those_that_were_measured(kind, context, tmp_path) -> None:
    context = replace(context, cache=SampleCache(tmp_path))
    settings = {"kind": kind} | ({"scored_tokens": 8} if kind == "perplexity" else {})
    (few,) = make_task(settings | {"num_documents": 2}).run(context, [64])
    shown: list[int] = []
    context.model.register_forward_pre_hook(lambda *_: shown.append(1))
    (one,) = make_task(settings | {"num_documents": 1}).run(context, [64])
    assert (one.samples, shown) == (few.samples[:1], [])


def test_bos_policies(tiny_llama) -> None:
    def bos(policy, **tokenizer) -> list[int]:
        return EvalContext(model=tiny_llama, tokenizer=ByteTokenizer(**tokenizer)).bos(policy)

    assert bos("tokenizer") == [BOS]
    assert bos("tokenizer", adds_bos=False) == bos("never") == []
    assert bos("always", adds_bos=False) == [BOS]


# --- truncated documents ---------------------------------------------------------------------------------------------

CUTS = [120, 40, 64]


def dynamic_llama() -> Any:
    """Its rotary base grows with every input longer than 50 tokens."""
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
    return make_llama(max_position_embeddings=50, rope_parameters=rope)


@pytest.mark.parametrize(("make", "passes"), [(make_llama, [119]), (dynamic_llama, [119, 39, 63])])
@pytest.mark.parametrize("bos", ["tokenizer", "never"])
def test_every_length_is_scored_as_by_a_pass_of_its_own(make, passes, bos, documents, naive_nlls) -> None:
    model = make()
    fresh = copy.deepcopy(model)
    shown = calls_of(model.model)
    measured = list(TruncatedPerplexity(bos=bos, num_documents=3).run(context_of(model, documents=documents), CUTS))
    prefix = [BOS] if bos == "tokenizer" else []
    for length, (results, samples) in zip(CUTS, measured, strict=True):
        total, count = 0.0, 0
        for sample in samples:
            ids = (prefix + body_of(documents[sample["document"]]))[:length]
            # A copy for each: tables that follow the length remember longer inputs.
            nlls = naive_nlls(copy.deepcopy(fresh), ids)
            assert sample["nll_sum"] == pytest.approx(nlls.sum(), rel=1e-5)
            assert (sample["length_tokens"], sample["prompt_sha256"]) == (length, hash_tokens(ids))
            total, count = total + nlls.sum(), count + len(nlls)
        (result,) = results
        assert (result.length_tokens, result.metric, result.num_samples) == (length, "perplexity", 3)
        assert result.value == pytest.approx(np.exp(total / count), rel=1e-5)
    read = [call["input_ids"].shape[1] for call in shown]
    assert read == [length for length in passes for _ in range(3)]


def test_a_prefix_is_no_shorter_input_where_rope_follows_the_length(naive_nlls) -> None:
    ids = np.random.default_rng(0).integers(0, 256, 120).tolist()
    longest, shorter = (naive_nlls(dynamic_llama(), ids[:length])[:63] for length in (120, 64))
    assert abs(longest.sum() / shorter.sum() - 1) > 1e-3


def test_a_rerun_finds_every_length_and_other_lengths_are_measured(tiny_llama, documents, tmp_path) -> None:
    context = context_of(tiny_llama, documents=documents, cache=SampleCache(tmp_path))
    shown = calls_of(tiny_llama.model)
    task = TruncatedPerplexity(num_documents=2)
    assert list(task.run(context, CUTS)) == list(task.run(context, CUTS))
    assert len(shown) == 2
    list(task.run(context, [40, 64]))
    assert len(shown) == 4

"""Perplexity of truncated documents: one pass has what a pass for each length has."""

import copy

import numpy as np
import pytest
from transformers import LlamaForCausalLM

from skipwise.evals import EvalContext, SampleCache
from skipwise.evals.tasks.truncated import TruncatedPerplexity
from skipwise.records.results import hash_tokens

from .conftest import BOS, ByteTokenizer, make_llama

LENGTHS = [120, 40, 64]


def context_of(model, documents, **more) -> EvalContext:
    return EvalContext(model=model, tokenizer=ByteTokenizer(), documents=documents, progress=False, **more)


def dynamic_llama() -> LlamaForCausalLM:
    """Its rotary base grows with every input longer than 50 tokens."""
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
    return make_llama(max_position_embeddings=50, rope_parameters=rope)


def count_inputs(model) -> list[int]:
    """Lengths of the inputs that the model is shown from now on."""
    lengths: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return lengths


@pytest.mark.parametrize(("make", "passes"), [(make_llama, [119]), (dynamic_llama, [119, 39, 63])])
@pytest.mark.parametrize("bos", ["tokenizer", "never"])
def test_every_length_is_scored_as_by_a_pass_of_its_own(make, passes, bos, documents, naive_nlls) -> None:
    model = make()
    fresh = copy.deepcopy(model)
    shown = count_inputs(model)
    measured = list(TruncatedPerplexity(bos=bos, num_documents=3).run(context_of(model, documents), LENGTHS))
    prefix = [BOS] if bos == "tokenizer" else []
    for length, (results, samples) in zip(LENGTHS, measured, strict=True):
        total, count = 0.0, 0
        for sample in samples:
            body = [token for token in documents[sample["document"]].tolist() if token != BOS]
            ids = (prefix + body)[:length]
            # A copy for each: tables that follow the length remember longer inputs.
            nlls = naive_nlls(copy.deepcopy(fresh), ids)
            assert sample["nll_sum"] == pytest.approx(nlls.sum(), rel=1e-5)
            assert (sample["length_tokens"], sample["prompt_sha256"]) == (length, hash_tokens(ids))
            total, count = total + nlls.sum(), count + len(nlls)
        (result,) = results
        assert (result.length_tokens, result.metric, result.num_samples) == (length, "perplexity", 3)
        assert result.value == pytest.approx(np.exp(total / count), rel=1e-5)
    assert shown == [length for length in passes for _ in range(3)]


def test_a_prefix_is_no_shorter_input_where_rope_follows_the_length(naive_nlls) -> None:
    ids = np.random.default_rng(0).integers(0, 256, 120).tolist()
    longest, shorter = (naive_nlls(dynamic_llama(), ids[:length])[:63] for length in (120, 64))
    assert abs(longest.sum() / shorter.sum() - 1) > 1e-3


def test_a_rerun_finds_every_length_and_other_lengths_are_measured(tiny_llama, documents, tmp_path) -> None:
    context = context_of(tiny_llama, documents, cache=SampleCache(tmp_path))
    shown = count_inputs(tiny_llama)
    task = TruncatedPerplexity(num_documents=2)
    assert list(task.run(context, LENGTHS)) == list(task.run(context, LENGTHS))
    assert len(shown) == 2
    list(task.run(context, [40, 64]))
    assert len(shown) == 4

"""The short-window regression against a loop over all logits, against planted differences, and its arms."""

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused
from tiny_models import family_config, tiny_model
from transformers import AutoTokenizer

from skipwise.errors import CheckpointError, ConfigError, DataError
from skipwise.evals import EvalContext, SampleCache, evaluate, paired
from skipwise.evals.paired import paired_scores
from skipwise.evals.tasks import regression
from skipwise.evals.tasks.position import bucket_edges
from skipwise.evals.tasks.regression import ShortWindowRegression, bootstrap_quantiles, paired_mean, under_config_of
from skipwise.model import load_model, rotary_tables, save_model, with_rope
from skipwise.records.results import EvalResult
from skipwise.rope import INTERPOLATIONS, YaRN
from skipwise.runtime import chunks
from skipwise.window import Window

from .tiny import context_of, make_llama, with_adapters

WINDOW = 128
LENGTHS = [40, 100]
STRETCHED = Window(train=WINDOW, original=WINDOW, target=4 * WINDOW)


@pytest.fixture(scope="module")
def base_folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of window 128 whose predictions are far from uniform."""
    folder = tmp_path_factory.mktemp("base")
    model = make_llama(vocab_size=256, max_position_embeddings=WINDOW, bos_token_id=None, eos_token_id=None)
    save_model(model, AutoTokenizer.from_pretrained(tiny_checkpoint), folder)
    return folder


@pytest.fixture(scope="module")
def texts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint16) for size in (120, 100, 70, 128, 110)]


@pytest.fixture
def context(base_folder: Path, texts: list[np.ndarray]) -> EvalContext:
    """The base itself, loaded once more."""
    return context_of(*load_model(base_folder), documents=texts)


def disturb(model: Any, scale: float = 0.05) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn_like(parameter)


def logits_of(model: Any, ids: np.ndarray) -> torch.Tensor:
    """float64 (tokens, vocabulary): what predicts each token but the first, all at once and without a cache."""
    inputs = torch.from_numpy(ids[None, :-1].astype(np.int64))
    with torch.no_grad():
        return model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits[0].double()


def whole(results: Any, arm: str = "model") -> dict[str, EvalResult]:
    """Results of all positions by metric."""
    return {r.metric: r for r in results if r.details["arm"] == arm and "position_from" not in r.details}


def test_every_figure_agrees_with_a_plain_loop(context, base_folder, texts) -> None:
    base: Any = load_model(base_folder).model
    disturb(context.model)
    task = ShortWindowRegression(base=str(base_folder), num_buckets=4)
    for length, (results, samples) in zip(LENGTHS, task.run(context, LENGTHS), strict=True):
        assert {sample["document"] for sample in samples} == {0, 1, 3, 4}, "all of at least 100 tokens"
        kls, tops, excesses = [], [], []
        for sample in samples:
            ids = texts[sample["document"]][:length]
            p, q = (logits_of(network, ids).log_softmax(-1) for network in (base, context.model))
            # The library's own, which takes its arguments the other way round: input is the model, target the base.
            kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
            target = torch.from_numpy(ids[1:].astype(np.int64))[:, None]
            kls.append(kl.numpy())
            tops.append((p.argmax(-1) == q.argmax(-1)).numpy())
            excesses.append((p.gather(-1, target) - q.gather(-1, target))[:, 0].numpy())
        kl, top, excess = np.stack(kls), np.stack(tops), np.stack(excesses)
        found = whole(results)
        expected = {
            "kl_mean": kl.mean(),
            "kl_median": np.median(kl),
            "kl_p99": np.quantile(kl, 0.99),
            "kl_max": kl.max(),
            "same_top": top.mean(),
            "log_perplexity_ratio": excess.mean(),
        }
        assert {metric: result.value for metric, result in found.items()} == pytest.approx(expected, rel=1e-4)
        assert 0.1 < top.mean() < 0.9, "the test would not tell a share from its complement"
        error = excess.mean(axis=1).std(ddof=1) / 2
        assert found["log_perplexity_ratio"].details["standard_error"] == pytest.approx(error, rel=1e-4)

        edges = bucket_edges(length, 4)
        for metric, values in {"kl_mean": kl, "same_top": top, "log_perplexity_ratio": excess}.items():
            parts = [r for r in results if r.metric == f"{metric}_at_position"]
            assert [r.details["position_from"] for r in parts] == edges[:-1]
            assert [r.details["position_to"] for r in parts] == edges[1:]
            # The first score belongs to position 1.
            means = [values[:, r.details["position_from"] - 1 : r.details["position_to"] - 1].mean() for r in parts]
            assert [r.value for r in parts] == pytest.approx(means, rel=1e-4)
            weighed = [r.value * (r.details["position_to"] - r.details["position_from"]) for r in parts]
            assert sum(weighed) == pytest.approx(found[metric].value * (length - 1)), "buckets add up to the whole"


def test_a_model_is_held_to_its_base_with_adapters_or_without(context, base_folder) -> None:
    bare, wrapped = copy.deepcopy(context.model), with_adapters(context.model)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    runs = []
    for model in (bare, wrapped, merged):
        (measured,) = ShortWindowRegression(base=str(base_folder)).run(replace(context, model=model), [100])
        assert {(result.details["longest_tokens"], result.details["arm"]) for result in measured.results} == {
            (100, "model")
        }
        runs.append(measured.results)
    own, of_wrapped, of_merged = ([result.value for result in results] for results in runs)
    assert own == [float(result.metric.startswith("same_top")) for result in runs[0]], "a model is as it is itself"
    assert of_wrapped == pytest.approx(of_merged, rel=1e-3)
    assert of_wrapped[0] > 1e-3, "adapters that do nothing"


def test_a_model_that_knows_nothing_is_as_far_away_as_the_base_is_from_uniform(context, base_folder, texts) -> None:
    base: Any = load_model(base_folder).model
    with torch.no_grad():
        context.model.lm_head.weight.zero_()
    (measured,) = ShortWindowRegression(base=str(base_folder), num_documents=1).run(context, [100])
    ids = texts[measured.samples[0]["document"]][:100]
    log_p = logits_of(base, ids).log_softmax(-1)
    # KL(p || uniform) = ln V - H(p), which is not KL(uniform || p).
    divergence = math.log(256) + (log_p.exp() * log_p).sum(-1)
    nll = -log_p[np.arange(99), ids[1:].astype(int)]
    found = whole(measured.results)
    assert found["kl_mean"].value == pytest.approx(divergence.mean().item(), rel=1e-5)
    assert found["kl_max"].value == pytest.approx(divergence.max().item(), rel=1e-4)
    assert found["log_perplexity_ratio"].value == pytest.approx(math.log(256) - nll.mean().item(), rel=1e-5)
    assert found["log_perplexity_ratio"].ci_low is found["log_perplexity_ratio"].details["standard_error"] is None


def test_two_tokens_that_changed_places_cost_what_their_shares_say(context, base_folder, texts) -> None:
    base: Any = load_model(base_folder).model
    log_p = logits_of(base, texts[0]).log_softmax(-1)
    ordered = log_p.mean(0).argsort(descending=True)[:2]
    with torch.no_grad():
        context.model.lm_head.weight[ordered] = context.model.lm_head.weight[ordered.flip(0)]
    inputs = torch.from_numpy(texts[0][None].astype(np.int64))
    scores = paired_scores(base, {"model": context.model}, inputs, where="test")["model"]
    of_two = log_p[:, ordered]
    expected = (of_two.exp().diff() * of_two.diff())[:, 0]
    torch.testing.assert_close(scores.kl, expected, rtol=1e-4, atol=1e-9)
    changed = torch.isin(log_p.argmax(-1), ordered)
    assert torch.equal(scores.same_top, (~changed).double())
    assert 0 < changed.double().mean() < 1


def test_pieces_do_not_change_the_scores(context, base_folder, texts, monkeypatch) -> None:
    base: Any = load_model(base_folder).model
    disturb(context.model)
    inputs = torch.from_numpy(texts[0][None].astype(np.int64))
    at_once = paired_scores(base, {"a": context.model, "b": base}, inputs, where="test")
    monkeypatch.setattr(chunks, "_CHUNK_TOKENS", {"cpu": 17})
    monkeypatch.setattr(paired, "_PIECE_BYTES", 5 * 4 * 256)
    in_pieces = paired_scores(base, {"a": context.model, "b": base}, inputs, where="test")
    for arm in "ab":
        for one, other in zip(at_once[arm], in_pieces[arm], strict=True):
            assert one.shape == (len(texts[0]) - 1,)
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in INTERPOLATIONS if kind != "none"])
def test_the_untrained_arm_rotates_as_the_model_does_with_the_weights_of_the_base(base_folder, kind: str) -> None:
    base: Any = load_model(base_folder).model
    model: Any = load_model(base_folder, interpolation=INTERPOLATIONS[kind](), window=STRETCHED).model
    before = rotary_tables(base)
    untrained = under_config_of(model, base)
    tables = rotary_tables(untrained)
    for path, table in rotary_tables(model).items():
        np.testing.assert_array_equal(tables[path].inv_freq, table.inv_freq)
        assert tables[path].attention_factor == table.attention_factor
        np.testing.assert_array_equal(rotary_tables(base)[path].inv_freq, before[path].inv_freq)
    assert all(one is other for one, other in zip(untrained.parameters(), base.parameters(), strict=True))


def test_the_untrained_arm_stands_beside_a_scaled_model(base_folder, texts) -> None:
    base: Any = load_model(base_folder).model
    trained: Any = load_model(base_folder, interpolation=YaRN(), window=STRETCHED)
    disturb(trained.model)
    context = context_of(*trained, documents=texts)
    task = ShortWindowRegression(base=str(base_folder))
    (measured,) = task.run(context, [100])
    arms = {arm: whole(measured.results, arm) for arm in ("model", "interpolation only")}
    assert len(arms["model"]) == len(arms["interpolation only"]) == 6

    untrained = with_rope(base, YaRN(), STRETCHED)
    for arm, model in {"model": trained.model, "interpolation only": untrained}.items():
        kls = []
        for sample in measured.samples:
            p, q = (logits_of(one, texts[sample["document"]][:100]).log_softmax(-1) for one in (base, model))
            kls.append(torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean().item())
        assert arms[arm]["kl_mean"].value == pytest.approx(np.mean(kls), rel=1e-4)
    alone = ShortWindowRegression(base=str(base_folder), untrained=False)
    (measured,) = alone.run(context, [100])
    assert {result.details["arm"] for result in measured.results} == {"model"}


def test_results_and_samples_are_lines_of_json_and_a_rerun_computes_nothing(
    context, base_folder, texts, tmp_path, monkeypatch
) -> None:
    disturb(context.model)
    files = {"out": tmp_path / "results.jsonl", "samples_out": tmp_path / "samples.jsonl"}
    cache = SampleCache(tmp_path / "cache")

    def run() -> list[EvalResult]:
        tasks = [ShortWindowRegression(base=str(base_folder))]
        return evaluate(context.model, context.tokenizer, tasks, [100], texts, cache=cache, progress=False, **files)

    results = run()
    assert [EvalResult.from_json(line) for line in files["out"].read_text().splitlines()] == results
    for line in files["samples_out"].read_text().splitlines():
        sample = json.loads(line)
        assert len(sample["prompt_sha256"]) == 64
        assert len(sample["arms"]["model"]["kls"]) == 99
    forwards = []
    context.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    assert run() == results
    assert not forwards
    # So it is by another path to the same base.
    shutil.copytree(base_folder, tmp_path / "moved")
    moved = ShortWindowRegression(base=str(tmp_path / "moved"))
    evaluate(context.model, context.tokenizer, [moved], [100], texts, cache=cache, progress=False)
    assert not forwards
    # Another base behind the same name is measured anew.
    other = load_model(base_folder)
    disturb(other.model)
    monkeypatch.setattr(regression, "load_model", lambda *_, **__: other)
    assert run() != results
    assert forwards


def test_infinite_logits_stop_with_where(context, base_folder) -> None:
    with torch.no_grad():
        context.model.lm_head.weight[5] = 1e38
    with pytest.raises(CheckpointError, match=r"regression, length 40, document [0-9]+, model: .*position"):
        list(ShortWindowRegression(base=str(base_folder)).run(context, [40]))


def test_lengths_beyond_the_window_of_the_base_are_refused_before_its_weights_are_read(
    base_folder, texts, monkeypatch
) -> None:
    context = context_of(*load_model(base_folder, interpolation=YaRN(), window=STRETCHED), documents=texts)
    monkeypatch.setattr(regression, "load_model", None)
    with pytest.raises(ConfigError, match=r"129 .* 128"):
        ShortWindowRegression(base=str(base_folder)).check_lengths(context, [64, 129])
    ShortWindowRegression(base=str(base_folder)).check_lengths(context, [64, 128])
    short = replace(context, documents=texts[1::3])
    with pytest.raises(DataError, match=r" 2 .* 110"):
        ShortWindowRegression(base=str(base_folder)).check_lengths(short, [64, 128])


def test_what_can_be_measured_is_and_the_rest_is_noted(base_folder, caplog) -> None:
    """Each of two tasks refuses one of two lengths, as if it had not been asked for."""
    model, tokenizer = load_model(base_folder, interpolation=YaRN(), window=STRETCHED)
    documents = [np.arange(512) % 256]
    passkey = {"kind": "passkey", "trials": 2, "num_depths": 1}
    of_base = {"kind": "regression", "base": str(base_folder), "num_documents": 1}

    def measured(tasks: list[dict[str, Any]], lengths: list[int], **how: Any) -> list[EvalResult]:
        return evaluate(model, tokenizer, tasks, lengths, documents, progress=False, **how)

    both = measured([passkey, of_base], [64, 256])
    assert both == [*measured([passkey], [256]), *measured([of_base], [64])]
    told = [record.message.partition(":")[0] for record in caplog.records if "not measured" in record.message]
    assert told == [
        "passkey is not measured at 64 tokens",
        "regression is not measured at 256 tokens",
    ]
    with pytest.raises(ConfigError, match=r"^passkey .*; bos is 'always'"):
        measured([passkey, {**of_base, "bos": "always"}], [8, 16])
    with pytest.raises(ConfigError, match=r"^passkey length is 64"):
        measured([passkey, of_base], [64, 256], whole=["passkey"])


def test_what_is_no_base_of_this_model_is_refused(context) -> None:
    (name, tokenizer) = (context.model.config.name_or_path, context.tokenizer)

    def refuses(context: EvalContext, named: str) -> None:
        with refused(ConfigError, named):
            list(ShortWindowRegression(base=name).run(context, [40]))

    tokenizer.add_tokens(["<new>"])
    refuses(context, "tokenizer")
    context.model.resize_token_embeddings(257)
    refuses(context, "256 and 257 ")
    other = tiny_model(family_config("mistral", vocab_size=256))
    refuses(replace(context, model=other), "LlamaForCausalLM .*MistralForCausalLM")


def test_intervals_of_paired_means_are_students() -> None:
    # Published to three places.
    for degrees, quantile in ((1, 12.706), (9, 2.262), (49, 2.010)):
        values = np.random.default_rng(0).normal(size=degrees + 1)
        estimate, error = paired_mean(values)
        assert error == pytest.approx(values.std(ddof=1) / math.sqrt(degrees + 1))
        assert (estimate.value - (estimate.low or math.nan)) / (error or math.nan) == pytest.approx(quantile, abs=1e-3)


def test_quantiles_draw_whole_documents() -> None:
    rng = np.random.default_rng(1)
    values = 10 + rng.normal(size=(400, 40))
    (median,) = bootstrap_quantiles(values, [0.5], rng)
    assert median.value == np.median(values)
    # 1.2533 s / sqrt(n) is the standard error of the median of normal draws.
    width = (median.high or math.nan) - (median.low or math.nan)
    assert width == pytest.approx(2 * 1.96 * 1.2533 / math.sqrt(16_000), rel=0.1)
    # Tokens that only repeat their document add nothing: the same interval as with one token each.
    alone, repeated = (
        bootstrap_quantiles(np.repeat(values[:, :1], times, axis=1), [0.5], np.random.default_rng(1))
        for times in (1, 50)
    )
    assert repeated[0] == pytest.approx(alone[0])

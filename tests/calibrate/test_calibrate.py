"""Calibration of real, tiny models: a planted factor is found, what cannot be calibrated is refused, nothing leaks."""

import copy
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skipwise.bars import Bar
from skipwise.calibrate import Search, calibrate, require_calibratable
from skipwise.cli.evaluate_documents import HeldOut
from skipwise.config import DataConfig
from skipwise.errors import CheckpointError, ConfigError, DataError
from skipwise.evals import SampleCache, evaluate
from skipwise.model import LoadedModel, load_model, rope_state, rotary_tables, with_scaled_attention
from skipwise.rope import INTERPOLATIONS, Interpolation, LongRoPE, YaRN
from skipwise.window import Window

# Not by `import ... as`: `skipwise.calibrate` is the public function.
package = sys.modules["skipwise.calibrate"]

TARGET = 320
WINDOW = Window(train=64, original=64, target=TARGET)
QUICK = Search(scales=(0.8, 1.25), refine=False, num_documents=3, trials=2, scored_tokens=32)


def sharpened(checkpoint: Path, interpolation: Interpolation) -> LoadedModel:
    """The tiny model with weights large enough for its attention to matter."""
    loaded = load_model(checkpoint, interpolation=interpolation, window=WINDOW)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(30.0 if "q_proj" in name or "k_proj" in name else 12.0)
    return loaded


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> LoadedModel:
    return sharpened(tiny_checkpoint, YaRN())


@pytest.fixture(scope="module")
def written_by(loaded: LoadedModel) -> Callable[[float], list[np.ndarray]]:
    """Texts that the model itself writes under an attention factor: no other predicts them as well on average."""

    @cache
    def write(scale: float, count: int = 4) -> list[np.ndarray]:
        writer: Any = with_scaled_attention(loaded.model, scale).eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            first = torch.randint(0, 256, (count, 1))
            texts = writer.generate(
                first, attention_mask=torch.ones_like(first), do_sample=True, top_k=0, max_new_tokens=TARGET - 1
            )
        return list(texts.numpy())

    return write


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, TARGET + extra).astype(np.uint16) for extra in (0, 9, 30, -1)]


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", [0.8, 1.25])
def test_a_planted_factor_is_found(planted: float, loaded: LoadedModel, written_by: Any) -> None:
    search = Search(scales=(0.64, 0.8, 1.25, 1.5625), refine=False, trials=1, scored_tokens=160)
    found = calibrate(*loaded, written_by(planted), [TARGET], search=search, progress=False)
    assert found.scale == planted
    assert found.attention_factor == pytest.approx(planted * (0.1 * np.log(5) + 1))
    assert found.line.startswith(f"{found.attention_factor:.4g}, {planted} times the trained 1.161: ")


def test_texts_of_the_model_itself_need_no_change(loaded: LoadedModel, written_by: Any) -> None:
    search = Search(scales=(0.8, 1.25), trials=1, scored_tokens=160)
    found = calibrate(*loaded, written_by(1.0), [TARGET], search=search, progress=False)
    assert (found.scale, found.attention_factor) == (1.0, found.trained_factor)
    assert "as trained" in found.line


def test_refinement_tries_between_the_choice_and_its_neighbours(loaded: LoadedModel, written_by: Any) -> None:
    search = Search(scales=(1.25, 1.6), trials=1, scored_tokens=160)
    found = calibrate(*loaded, written_by(1.25), [TARGET], search=search, progress=False)
    assert {one.scale for one in found.measured} == {1.0, 1.118, 1.25, 1.4142, 1.6}


def test_scores_are_those_of_the_evaluations(loaded: LoadedModel, documents: list[np.ndarray]) -> None:
    found = calibrate(*loaded, documents, [128, TARGET], search=QUICK, progress=False)
    for one in found.measured:
        model = with_scaled_attention(loaded.model, one.scale)
        task = {"kind": "perplexity", "scored_tokens": 32, "num_documents": 3, "cut_tokens": TARGET}
        for length in one.nlls:
            (result,) = evaluate(model, loaded.tokenizer, [task], [length], documents, progress=False)
            assert np.exp(one.log_perplexity(length)) == pytest.approx(result.value)
    assert found.measured[1].found is not None
    assert len(found.measured[1].found) == QUICK.trials


def test_what_is_ruled_out_is_not_measured_further(loaded: LoadedModel, written_by: Any) -> None:
    search = Search(scales=(0.3, 1.25), trials=1, refine=False)
    found = calibrate(*loaded, written_by(1.25), [128, TARGET], search=search, progress=False)
    spoilt, unchanged, _ = found.measured
    assert not found.rule.keeps_short(spoilt, unchanged)
    assert (spoilt.nlls.keys(), spoilt.found) == ({128}, None)
    assert unchanged.nlls.keys() == {128, TARGET}
    assert unchanged.found is not None


def test_every_bar_ends_at_its_end(
    loaded: LoadedModel, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: dict[str, list[tuple[int, int]]] = {}

    class Watched(Bar):
        def close(self) -> None:
            if not self.disable:
                ended.setdefault(self.desc, []).append((self.n, self.total))
            super().close()

    monkeypatch.setattr(sys.modules["skipwise.calibrate"], "Bar", Watched)
    calibrate(*loaded, documents, [TARGET], search=QUICK, progress=True)
    assert [*ended] == ["perplexity of factors", "passkeys of factors"]
    assert all(done == total for bars in ended.values() for done, total in bars), ended


# --- the model and what is recorded ----------------------------------------------------------------------------------


def test_the_model_stays_as_it_was(loaded: LoadedModel, documents: list[np.ndarray]) -> None:
    model: Any = loaded.model.train()
    config, forward = copy.deepcopy(model.config.to_dict()), model.forward
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    tables = rotary_tables(model)
    calibrate(*loaded, documents, [TARGET], search=QUICK, progress=False)
    assert model.training
    model.eval()
    assert model.config.to_dict() == config
    assert model.forward == forward
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])
    for path, table in rotary_tables(model).items():
        assert table.attention_factor == tables[path].attention_factor


def test_weights_are_shared_not_copied(loaded: LoadedModel) -> None:
    scaled = with_scaled_attention(loaded.model, 1.2)
    ours = {name: tensor.data_ptr() for name, tensor in loaded.model.named_parameters()}
    assert {name: tensor.data_ptr() for name, tensor in scaled.named_parameters()} == ours


def test_the_record_tells_what_was_tried(loaded: LoadedModel, documents: list[np.ndarray]) -> None:
    found = calibrate(*loaded, documents, [TARGET], search=QUICK, seed=3, progress=False)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [one["scale"] for one in told["factors"]] == [0.8, 1.0, 1.25]
    assert told["interpolation"] == "yarn"
    assert told["trained_factor"] * told["scale"] == told["attention_factor"]
    assert (told["seed"], told["lengths"]) == (3, [TARGET])
    assert told["settings"]["num_documents"] == 3
    # Of the three that are long enough, whatever their order.
    hashes = {package.hash_tokens(ids) for ids in documents[:3]}
    assert set(told["documents_sha256"]) == hashes
    assert told["rule"].startswith("The rule that chooses among the measured factors. 1. A factor is kept")


def test_no_passkey_is_one_of_an_evaluation(loaded: LoadedModel, documents: list[np.ndarray], tmp_path: Path) -> None:
    calibrate(*loaded, documents, [TARGET], search=QUICK, cache=SampleCache(tmp_path / "cache"), progress=False)
    asked = {
        json.loads(line)["sample"]["answer"]
        for file in (tmp_path / "cache").rglob("*.jsonl")
        for line in file.read_text().splitlines()
        if "answer" in line
    }
    assert len(asked) == QUICK.trials
    task = {"kind": "passkey", "trials": QUICK.trials, "num_depths": QUICK.trials}
    evaluate(*loaded, [task], [TARGET], samples_out=tmp_path / "samples", progress=False)
    samples = [json.loads(line) for line in (tmp_path / "samples").read_text().splitlines()]
    assert not asked & {sample["answer"] for sample in samples}


def test_an_interrupted_search_goes_on(loaded: LoadedModel, documents: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def run() -> Any:
        return calibrate(*loaded, documents, [TARGET], search=QUICK, cache=SampleCache(tmp_path), progress=False)

    whole = run()
    monkeypatch.setattr("skipwise.evals.tasks.perplexity.token_nlls", None)
    monkeypatch.setattr("skipwise.evals.tasks.passkey.greedy_answers", None)
    assert run() == whole


def test_a_calibrated_model_is_calibrated_from_what_it_was_trained_with(loaded: LoadedModel, documents: Any) -> None:
    fresh = calibrate(*loaded, documents, [TARGET], search=QUICK, progress=False)
    scaled = with_scaled_attention(loaded.model, 1.25)
    again = calibrate(scaled, loaded.tokenizer, documents, [TARGET], search=QUICK, progress=False)
    assert again.to_json() == fresh.to_json()


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in INTERPOLATIONS if kind not in ("yarn", "longrope")])
def test_an_interpolation_without_a_place_for_the_factor_is_refused(
    kind: str, tiny_checkpoint: Path, documents: list[np.ndarray]
) -> None:
    model, tokenizer = load_model(tiny_checkpoint, interpolation=INTERPOLATIONS[kind](), window=WINDOW)
    # A base change is written as such; without its record it would be no interpolation at all.
    shown = "none" if kind == "none" else kind
    with pytest.raises(ConfigError, match=f"'{shown}'.*yarn, longrope"):
        calibrate(model, tokenizer, documents, progress=False)


def test_longrope_carries_it(tiny_checkpoint: Path, documents: list[np.ndarray]) -> None:
    found = calibrate(*sharpened(tiny_checkpoint, LongRoPE()), documents, [TARGET], search=QUICK, progress=False)
    assert found.trained_factor == pytest.approx(np.sqrt(1 + np.log(5) / np.log(64)))


def test_documents_and_lengths_are_looked_at_first(loaded: LoadedModel, documents: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(package, "with_scaled_attention", None)
    with pytest.raises(DataError, match="320"):
        calibrate(*loaded, documents[3:], progress=False)
    with pytest.raises(DataError, match="320"):
        require_calibratable(*loaded, documents[3:])
    for length, named in ((1024, "1024"), (100, "passkey.*100")):
        with pytest.raises(ConfigError, match=named):
            calibrate(*loaded, documents, [length], progress=False)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ((None, None, False), {"source": "docs", "field": "body", "skip_unreadable": True}),
        ((None, "title", False), {"source": "docs", "field": "title", "skip_unreadable": True}),
        (("other", None, False), {"source": "other", "field": "text", "skip_unreadable": True}),
        (("other", "title", True), {"source": "other", "field": "title", "skip_unreadable": True}),
    ],
)
def test_other_documents_than_the_runs_have_their_own_field(given: Any, read: dict[str, Any]) -> None:
    kept = {"held_out": 0.3, "control_tokens": "tokens"}
    run = HeldOut(DataConfig(source="docs", field="body", skip_unreadable=True, **kept))
    *place, skip_unreadable = given
    assert run.reading(*place, skip_unreadable=skip_unreadable) == DataConfig(**read, **kept)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"scales": (1.1, 0.0)}, r"scales.*\[0\.0, 1\.0, 1\.1\]"),
        ({"scales": (float("nan"),)}, "scales"),
        ({"tolerance": -0.1}, r"tolerance.*-0\.1"),
        ({"trials": 0}, "trials"),
        ({"num_documents": 0}, "num_documents"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Search(**setting)


def test_no_change_is_always_tried() -> None:
    assert Search(scales=(1.3, 1.1)).scales == (1.0, 1.1, 1.3)


def test_logits_that_are_no_numbers_rule_out_a_factor_but_not_the_model_as_it_is(
    loaded: LoadedModel, documents: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    nan_at = [1.25]

    def fail(model: Any, *arguments: Any, **keywords: Any) -> Any:
        if rope_state(model.config).attention_scale == pytest.approx(nan_at[0]):
            raise CheckpointError("logits are NaN")
        return greedy(model, *arguments, **keywords)

    from skipwise.evals.tasks import passkey

    greedy = passkey.greedy_answers
    monkeypatch.setattr(passkey, "greedy_answers", fail)
    search = Search(scales=(1.25,), refine=False, num_documents=3, trials=2, scored_tokens=32, tolerance=0.99)
    found = calibrate(*loaded, documents, [TARGET], search=search, progress=False)
    assert found.scale == 1.0
    assert found.to_json()["factors"][1]["verdict"] == "its logits cannot be used: logits are NaN"
    nan_at[0] = 1.0
    with pytest.raises(CheckpointError, match="NaN"):
        calibrate(*loaded, documents, [TARGET], search=search, progress=False)

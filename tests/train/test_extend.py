"""Training end to end on a tiny model: exact resume, the checkpoint folder, refusals before any work."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from reference_pages.formats import RUN_FIELDS
from tiny_runs import STEPS, TARGET, assert_equal_weights, losses, run, settings_of, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from skipwise.config import RunConfig
from skipwise.data.documents import is_held_out
from skipwise.data.store import TokenFiles
from skipwise.errors import ConfigError
from skipwise.loss import training_inputs
from skipwise.model import load_model
from skipwise.positions import PositionSample
from skipwise.train import ExtendResult
from skipwise.train.trainer import SkipwiseTrainer
from skipwise.window import Window

# --- exact resume ----------------------------------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "full": {},
    "growing, with exercises": {
        "window": 240,
        "growth": {"window": 250, "share": 0.5},
        "data": {"retrieval": 0.5},
    },
    "low-rank, with dropout": {
        "tuning": {"kind": "lora", "rank": 2, "dropout": 0.2, "train_norms": True, "train_embeddings": True}
    },
    "diluted, with exercises": {"window": 240, "dilution": True, "data": {"retrieval": 0.5}},
    "half precision": {"dtype": "bfloat16"},
    "mixed precision, checkpointed": {"training": {"bf16": True, "use_cpu": True, "gradient_checkpointing": True}},
    "items by workers": {"training": {"dataloader_num_workers": 2}, "tuning": {"kind": "lora", "dropout": 0.2}},
}
_SLOW_RUNS = ("growing, with exercises", "diluted, with exercises", "items by workers")


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in _SLOW_RUNS)) for kind in RUNS])
def test_stopped_and_resumed_is_bit_equal_to_uninterrupted(
    kind: str, settings: dict[str, Any], stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    whole = run(settings, **RUNS[kind], output=str(tmp_path / "whole"))
    assert (whole.finished, whole.steps) == (True, STEPS)

    stop_after(2)
    stopped = run(settings, **RUNS[kind])
    assert (stopped.finished, stopped.steps, stopped.record) == (False, 2, {})
    assert not (stopped.folder / "skipwise.json").exists()
    # The process's own random state is no part of a run.
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    resumed = run(settings, **RUNS[kind], resume=True)
    assert (resumed.finished, resumed.steps) == (True, STEPS)
    assert resumed.record["resumed_at_step"] == 2
    assert_equal_weights(whole.folder, resumed.folder)
    assert losses(resumed.folder) == losses(whole.folder)

    trained, base = weights(whole.folder), weights(settings["model"])
    assert any(not torch.equal(tensor, base[name]) for name, tensor in trained.items())
    assert {tensor.dtype for tensor in trained.values()} == {getattr(torch, RUNS[kind].get("dtype", "float32"))}


@pytest.mark.usefixtures("sound_model")
def test_stopped_before_the_first_checkpoint_begins_again(settings: dict[str, Any], tmp_path: Path) -> None:
    whole = run(settings, output=str(tmp_path / "whole"))
    folder = Path(settings["output"])
    folder.mkdir()
    shutil.copy(whole.folder / "begun.json", folder)
    shutil.copy(whole.folder / "run.yaml", folder)
    settings_of_run = (folder / "run.yaml").read_text().replace(str(whole.folder), str(folder))
    (folder / "run.yaml").write_text(settings_of_run)
    (folder / "checkpoint-3").mkdir()  # Killed while it was written: without a seal it is no checkpoint.
    assert_equal_weights(whole.folder, run(settings, resume=True).folder)


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize("recipe", ["paper", "auto"])
def test_tokens_are_verified_once(recipe: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run(settings, recipe="paper", output=settings["output"] + "-before")  # So that they are there.
    verified: list[Path] = []
    own = TokenFiles.verify

    def verify(files: TokenFiles, **how: Any) -> None:
        verified.append(files.folder)
        own(files, **how)

    monkeypatch.setattr(TokenFiles, "verify", verify)
    run(settings, recipe=recipe)
    assert len(verified) == 1


@pytest.mark.usefixtures("sound_model")
def test_workers_change_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    alone = run(settings, output=str(tmp_path / "alone"))
    assert_equal_weights(alone.folder, run(settings, training={"dataloader_num_workers": 2}).folder)


@pytest.mark.usefixtures("sound_model")
def test_a_second_ctrl_c_interrupts_at_once(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def twice(*_: Any, **__: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not interrupted")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(SkipwiseTrainer, "training_step", twice)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    assert "once more" in caplog.text
    assert signal.getsignal(signal.SIGINT) is before


# --- what a run leaves behind ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> ExtendResult:
    """A run with its preflight, saving on the way."""
    settings = settings_of(tiny_checkpoint, documents, tmp_path_factory.mktemp("finished") / "run")
    settings["training"] = {
        "max_steps": STEPS,
        "learning_rate": 1e-3,
        "gradient_accumulation_steps": 1,
        "save_steps": 2,
    }
    return run(settings, validation={"num_documents": 2, "every_steps": 2}, seed=5)


def test_the_folder_holds_a_checkpoint_that_both_eras_read(finished: ExtendResult) -> None:
    config = json.loads((finished.folder / "config.json").read_text())
    for entry in (config["rope_parameters"], config["rope_scaling"]):
        assert entry["rope_type"] == "yarn"
        assert entry["factor"] == 4.0
        assert entry["original_max_position_embeddings"] == 64
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["max_position_embeddings"] == TARGET
    assert AutoTokenizer.from_pretrained(finished.folder).encode("ab") == [64, 65]
    assert json.loads((finished.folder / "config.json").read_text())["use_cache"] is True
    modes = {path.stat().st_mode & 0o777 for path in finished.folder.iterdir() if path.is_file()}
    assert len(modes) == 1, "weights are for whom the config is for"
    card = (finished.folder / "README.md").read_text()
    assert "256 tokens (4 times)" in card
    assert "causal" in card


def test_the_record_tells_all_that_was_done(finished: ExtendResult) -> None:
    record = json.loads((finished.folder / "skipwise.json").read_text())
    assert record == json.loads(json.dumps(finished.record))
    assert {*record} <= {*RUN_FIELDS}, "scripts/reference_pages/formats.py tells every field"
    assert record["window"] == {"train": 32, "original": 64, "target": TARGET}
    assert record["seed"] == record["config"]["seed"] == 5
    # Every default is spelled out, the recipe's too.
    assert record["config"]["training"]["warmup_steps"] == 0
    assert record["config"]["training"]["learning_rate"] == 1e-3
    assert record["config"]["data"]["mask_joints"] is True
    assert RunConfig.from_mapping(record["config"]).target == TARGET
    assert {verdict["name"] for verdict in record["preflight"]} >= {"reach", "causal", "tables", "loss", "reload"}
    assert all(verdict["status"] in ("pass", "note") for verdict in record["preflight"])
    assert len(record["corpus"]["fingerprint"]) == 64
    assert 10 <= record["corpus"]["documents"] < 24
    assert record["versions"].keys() >= {"skipwise", "torch", "transformers"}
    assert record["steps"] == STEPS
    assert record["seconds"] > 0
    assert record["resumed_at_step"] is None
    assert record["peak_bytes"] > 2**20


def test_plain_transformers_computes_what_was_trained(finished: ExtendResult) -> None:
    ids = torch.arange(200)[None] % 256
    positions = torch.arange(200)[None]
    positions[:, 100:] += TARGET - 200
    plain = AutoModelForCausalLM.from_pretrained(finished.folder)
    trained = load_model(finished.folder).model
    inputs = training_inputs(ids, positions)
    assert torch.equal(plain(**inputs).logits, trained(**inputs).logits)
    assert plain.config.max_position_embeddings == TARGET
    assert plain.config.eos_token_id is None  # The Trainer would have written the tokenizer's into it.


def test_checkpoints_on_the_way_are_models_too(finished: ExtendResult) -> None:
    halfway = finished.folder / "checkpoint-2"
    config = json.loads((halfway / "config.json").read_text())
    assert config["rope_scaling"]["factor"] == 4.0
    model, tokenizer = load_model(halfway)
    assert model.config.max_position_embeddings == TARGET  # pyright: ignore[reportAttributeAccessIssue]
    assert tokenizer.encode("ab") == [64, 65]
    assert_equal_weights(finished.folder / f"checkpoint-{STEPS}", finished.folder)
    assert not torch.equal(*(weights(finished.folder / f"checkpoint-{n}")["lm_head.weight"] for n in (2, STEPS)))


def test_validation_is_of_the_target_from_before_training_to_its_end(finished: ExtendResult) -> None:
    measured = [entry for entry in finished.log if "eval_perplexity_256" in entry]
    assert [entry["step"] for entry in measured] == [0, 2, 4]
    assert {name for name in measured[0] if name.startswith("eval_perplexity")} == {
        f"eval_perplexity_{length}" for length in (64, 128, 256)
    }
    assert measured[-1]["eval_perplexity_256"] < measured[0]["eval_perplexity_256"]
    assert finished.record["log"] == finished.log


@pytest.mark.usefixtures("sound_model")
def test_low_rank_additions_are_merged_into_a_plain_checkpoint(settings: dict[str, Any]) -> None:
    done = run(settings, tuning={"kind": "lora", "rank": 2, "train_embeddings": True})
    assert weights(done.folder).keys() == weights(settings["model"]).keys()
    modes = {path.stat().st_mode & 0o777 for path in (done.folder / "adapter").glob("adapter_*")}
    assert len(modes) == 1, "weights and config are there, for the same readers"
    trained, base = weights(done.folder), weights(settings["model"])
    changed = {name for name in trained if not torch.equal(trained[name], base[name])}
    assert "model.embed_tokens.weight" in changed
    assert "model.layers.0.self_attn.q_proj.weight" in changed
    assert not any("norm" in name for name in changed)


@dataclass(frozen=True)
class Stretched:
    """A sampler of one's own: every position as far from the next as the target allows."""

    uses_sentence_ends: ClassVar[bool] = False
    seen: ClassVar[list[int]] = []

    def sample(self, num_tokens: int, window: Window, rng: np.random.Generator) -> PositionSample:
        self.seen.append(num_tokens)
        every = np.arange(window.train)
        return PositionSample(token_index=every, position_ids=every * (window.target // window.train))


@pytest.mark.usefixtures("sound_model")
def test_a_sampler_of_ones_own(
    settings: dict[str, Any], stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stretched, "seen", [])
    settings["recipe"] = "paper"
    stop_after(2)
    run(settings, own_sampler=Stretched())
    assert Stretched.seen
    with pytest.raises(ConfigError, match="sampler"):
        run(settings, resume=True)
    done = run(settings, resume=True, own_sampler=Stretched())
    assert done.record["sampler"] == "Stretched()"
    card = (done.folder / "README.md").read_text()
    assert "Stretched()" in card
    assert "pose" not in card.lower()


class Tracker(TrainerCallback):
    """Stands for a service that is told of every metric."""

    told: ClassVar[list[dict[str, Any]]] = []
    closed: ClassVar[list[int]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.told.append(logs)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.closed.append(len(self.told))


@pytest.mark.usefixtures("sound_model")
def test_trackers_named_by_report_to_see_every_metric(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    run(settings, training={"report_to": "tensorboard"})
    perplexities = [logs["eval_perplexity_256"] for logs in Tracker.told if "eval_perplexity_256" in logs]
    assert len(perplexities) == 2
    assert sum("loss" in logs for logs in Tracker.told) == STEPS
    assert Tracker.closed == [len(Tracker.told)]  # All were told before the tracker was closed.


@pytest.mark.usefixtures("sound_model")
def test_no_validation_where_nothing_is_held_out(settings: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    done = run(settings, data={"held_out": 0.0})
    assert not any("eval" in name for entry in done.log for name in entry)
    assert "data.held_out is 0" in caplog.text


@pytest.mark.usefixtures("sound_model")
def test_lengths_that_no_held_out_document_has_are_left_out_and_told(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"text {i:02d} " * 20)  # 160 tokens each.
    assert [path.name for path in folder.iterdir() if is_held_out(path.read_text().strip(), 0.2)] == ["1.txt"]
    done = run(settings, data={"source": str(folder)})
    measured = [names for entry in done.log if (names := {name for name in entry if "perplexity" in name})]
    assert measured == [{"eval_perplexity_64", "eval_perplexity_128"}] * 2
    (line,) = [message for message in caplog.messages if message.startswith("no validation")]
    assert line.startswith("no validation at 256 tokens, only up to 128: held-out documents are shorter, even joined")


LONG, SHORT = ["a long text " * 10, "another one " * 10], "short"


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize(
    ("texts", "line", "empty"),
    [
        ([*LONG, SHORT, "", "  ", ""], "not used of 6: 1 shorter than 32 tokens, 3 empty", "3.txt, 5.txt"),
        (
            [*LONG, *([SHORT] * 3), *[""] * 5],
            "not used of 10: 3 shorter than 32 tokens, 5 empty",
            "5.txt, 6.txt, 7.txt and 2 more",
        ),
        (LONG, "all are used", None),
    ],
)
def test_what_is_not_trained_on_is_told_with_the_reason(
    texts: list[str], line: str, empty: str | None, settings: dict[str, Any], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "texts").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    (tmp_path / "texts" / "picture.png").write_bytes(b"no text")
    with caplog.at_level("INFO", logger="skipwise"):
        data = {"source": str(tmp_path / "texts"), "held_out": 0.0}
        run(settings, recipe="paper", data=data, training={"max_steps": 1})
    (told,) = [message for message in caplog.messages if message.startswith("training on")]
    joins = "; most are too short, --set data.join=true joins them" if "3 shorter" in line else ""
    assert told == f"training on 2 documents, 240 tokens; {line}; files of unsupported kinds: 1 .png{joins}"
    said = [message for message in caplog.messages if message.startswith("empty files")]
    assert said == [f"empty files give nothing to train on: {empty}"] * (empty is not None)

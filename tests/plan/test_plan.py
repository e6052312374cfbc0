"""The plan and its verb: recommendations that hold, runs that `extend` accepts, refusals in one line."""

import inspect
import json
import re
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from quantized_checkpoints import set_config, write_fp8
from refusals import lines_of
from safetensors.torch import load_file
from tiny_models import PLANNED, SHAPE, tiny_config
from transformers import AutoConfig

from skipwise import cli
from skipwise.config import LoraTuning, RunConfig
from skipwise.errors import ConfigError
from skipwise.launch import deepspeed_settings
from skipwise.model import scaled_by
from skipwise.model.extend import extended_config
from skipwise.plan import Job, Plan, PlanConfig, check_plan, plan
from skipwise.plan.as_json import plan_json
from skipwise.plan.cards import MODEL_CARDS
from skipwise.plan.machines import MACHINES, Utilisation
from skipwise.plan.pages import MARK
from skipwise.plan.shape import shape_of
from skipwise.report.quantities import bytes_text
from skipwise.rope import interpolation_from
from skipwise.train.arguments import training_settings

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SHAPE, **PLANNED}


def config_folder(folder: Path, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return str(folder)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A config alone."""
    return config_folder(tmp_path / "small")


def paragraph(found: Plan, part: str) -> str:
    """The one paragraph of advice that has this part."""
    (words,) = (words for words in found.advice.words if part in words)
    return words


def test_a_plan_says_what_to_do_and_writes_a_run(model: str, tmp_path: Path, capsys, monkeypatch) -> None:
    run, page = tmp_path / "run.yaml", tmp_path / "plan.html"
    command = ["plan", model, "--target", "2k", "--machine", "l4", "--price", "1", "--global-batch", "1", "--json"]
    module, made = sys.modules["skipwise.plan"], list[Plan]()
    monkeypatch.setattr(module, "plan", lambda *args, **options: made.append(plan(*args, **options)) or made[0])
    assert cli.main([*command, "--write-config", str(run), "--out", str(page)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["approach"] for one in told["training"]] == [
        *("skip-wise", "skip-wise, LoRA", "skip-wise, QLoRA"),
        *("full length", "full length, LoRA", "full length, QLoRA"),
    ]
    assert all(one["fits"] and one["smallest"]["count"] == 1 for one in told["training"])
    short, full = told["training"][0], told["training"][3]
    assert short["activation_bytes"] < full["activation_bytes"]
    assert full["total_bytes"] == sum(
        full[f"{part}_bytes"] for part in ("parameter", "gradient", "optimizer", "in_transit", "activation", "other")
    )
    assert [one["length_tokens"] for one in told["serving"]] == [256, 512, 1024, 2048]
    assert told["config"]["window"] == "256"
    config = RunConfig.from_yaml(run)
    assert (config.target, config.window, config.training["bf16"]) == (2048, 256, True)
    text = page.read_text()
    assert "from 256 to 2k tokens: a plan" in text
    assert text.count("<svg") == 5
    # Serving room for short requests of a sixteenth of the length: a server takes as many more of them.
    assert 7.9 < made[0].short_gain < 8.1

    monkeypatch.setattr(module, "plan", lambda *_, **__: made[0])
    assert cli.main(command[:-1]) == 0
    out = capsys.readouterr().out
    # The words and the marked rows of the tables are about the same run.
    advised = re.search(
        "Train skip-wise, with the recipe growing. It takes (.*?) of the .*? usable on one L4 24 GB, and 1000 steps "
        "take (.*?)[.] ",
        " ".join(out.split()),
    )
    assert advised is not None
    rows = [line.split("skip-wise, growing")[1] for line in out.splitlines() if line.startswith(MARK)]
    assert [advised[1] in rows[0], advised[2].split(", ")[0] in rows[1], len(rows)] == [True, True, 2]
    assert "vllm serve CHECKPOINT --max-model-len 2048 --gpu-memory-utilization 0.92" in out
    shown, tables = out[: out.index("commands to serve it")], out[out.index("Training memory of") :]
    tables = tables[: tables.index("commands to serve it")]
    assert max(map(len, shown.splitlines())) <= 80, "for terminals of 80 columns"
    assert "\N{HORIZONTAL ELLIPSIS}" not in tables


def test_plan_shows_the_fields_of_its_config() -> None:
    assert inspect.signature(plan).parameters == inspect.signature(PlanConfig).parameters


@pytest.mark.slow
def test_a_model_that_is_too_large_names_the_nearest_machines() -> None:
    found = plan("llama-3-70b", target=32768, machine="l4", count=2)
    words = found.advice.words[0]
    assert "fits on 2 x L4 24 GB by fsdp" in words
    assert re.search(r"The nearest that fits: skip-wise on .*skip-wise, LoRA on \d+ x L4 24 GB by fsdp", words)
    assert "Nothing is to be run yet" in found.advice.words[-1]
    machine, estimate = found.smallest[0] or pytest.fail("a thousand accelerators hold it")
    assert estimate.fits
    assert estimate.sharding.processes * machine.memory_gib > 70e9 * 16 / 2**30


@pytest.mark.slow
def test_a_model_that_is_too_large_to_serve_gets_settings_for_enough_machines() -> None:
    found = plan("mistral-7b", target=131072, machine="rtx-4090", job=Job(global_batch=1), lora=LoraTuning(rank=1))
    assert "-bit weights with a" in paragraph(found, "Serving one request of 128k does not fit on one RTX 4090")
    assert "--tensor-parallel-size 2" in found.advice.engines["vLLM, the extended checkpoint"]


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "count", "served"), [(9, 2, 1), (16, 16, 8)])
def test_serving_uses_accelerators_that_share_the_heads_within_a_node(
    heads: int, count: int, served: int, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 8 * heads, "num_attention_heads": heads, "num_key_value_heads": heads}
    model = config_folder(tmp_path, **sizes)
    found = plan(model, target=512, machine="h100", count=count, job=Job(global_batch=count))
    assert found.deployment.count == served
    assert paragraph(found, f"Serving is planned on {served} of the {count} x H100")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"machine": "v100-32"}, {"fp16": True}),
        ({"machine": "h100", "count": 8, "sharding": "ddp"}, {"bf16": True}),
        ({"machine": "h100", "count": 8, "sharding": "fsdp"}, {"bf16": True, "shard": True}),
        ({"machine": "h100", "count": 8, "sharding": "zero3"}, {"bf16": True, "deepspeed": deepspeed_settings(3)}),
    ],
)
def test_a_written_run_is_as_it_was_planned(options: dict[str, Any], expected: dict[str, Any]) -> None:
    found = plan("smollm2-135m", target=16384, window=256, job=Job(global_batch=8), **options)
    written = found.advice.config
    assert written["model"] == "HuggingFaceTB/SmolLM2-135M"
    said = {**written["training"], **written.get("parallel", {})}
    engines = {"fp16", "bf16", "shard", "deepspeed"}
    assert {name: value for name, value in said.items() if name in engines} == expected
    config = RunConfig.from_mapping({**written, "output": "nowhere"})
    assert training_settings(config)["per_device_train_batch_size"] == found.training[0].micro_batch


@pytest.mark.parametrize(("card", "recipe"), [("llama-3-8b", "growing"), ("gemma-3-27b", "paper")])
def test_models_with_local_layers_are_not_diluted(card: str, recipe: str) -> None:
    found = plan(card, target=262144, machine="h100", count=64)
    assert found.advice.config["recipe"] == recipe
    assert paragraph(found, f"Recipe: {recipe}.")


def test_a_mixture_of_experts_is_planned_by_formula_and_says_so() -> None:
    found = plan("deepseek-v3", target=327680, machine="h200", count=512, job=Job(global_batch=512))
    assert all(one.formula for one in found.training)
    assert paragraph(found, "estimated by a formula")


def test_windows_of_full_length_are_split_by_context() -> None:
    asked: dict[str, Any] = {"target": 131072, "machine": "h100", "count": 8, "job": Job(micro_batch=1)}
    alone, found = plan("llama-3-8b", **asked), plan("llama-3-8b", **asked, context=4)
    assert [found.training[i].approach.name for i in (0, 3)] == ["skip-wise", "full length over 4"]
    assert found.training[0] == alone.training[0]
    assert found.training[3].activation_bytes < 0.4 * alone.training[3].activation_bytes
    with pytest.raises(ConfigError, match="context"):
        plan("gemma-3-27b", target=262144, machine="h100", count=8, context=2)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        # Llama 3.1: 8 for 16 times the window; twice as far, twice as much.
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            {"kind": "llama3", "factor": 16.0},
        ),
        ({"rope_type": "yarn", "factor": 16.0}, {"kind": "yarn"}),
        ({"rope_type": "yarn", "factor": 16.0, "mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale": 1.0}),
        ({"rope_type": "linear", "factor": 16.0}, {"kind": "linear"}),
    ],
)
def test_a_scaled_model_is_planned_with_more_of_the_same(rope: dict[str, Any], expected: dict[str, Any]) -> None:
    lengths = {"max_position_embeddings": 4096, "original_max_position_embeddings": 256}
    rope = {"rope_theta": 1e4, "original_max_position_embeddings": 256, **rope}
    shape = shape_of(tiny_config("llama", **lengths, rope_parameters=rope))
    asked = scaled_by(shape.config, 8192)
    assert asked is not None
    assert asked.items() >= expected.items()
    extension = check_plan(PlanConfig("m", target=8192, machine=MACHINES["l4"]), shape)
    written = extended_config(shape.config, interpolation_from(asked), extension.window)
    assert written.to_dict() == extension.extended.to_dict()
    assert written.max_position_embeddings == 8192


def test_quantized_checkpoints_are_planned_dequantized(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_fp8(tiny_checkpoint, tmp_path / "fp8")
    real = sum(tensor.nbytes for tensor in load_file(tmp_path / "fp8" / "model.safetensors").values())
    plain, packed = (plan(str(folder), target=256) for folder in (tiny_checkpoint, tmp_path / "fp8"))
    assert packed.training == plain.training
    assert [one.weight_bytes for one in packed.serving] == [one.weight_bytes for one in plain.serving]
    assert plan_json(packed)["stored"] == {"method": "fp8", "is_trainable": True, "weight_bytes": real}
    assert plan_json(plain)["stored"] is None
    assert bytes_text(real) in paragraph(packed, "stored as fp8")


@pytest.mark.parametrize("method", ["gptq", "mxfp4"])
def test_a_config_alone_says_no_stored_bytes(method: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_checkpoint / "config.json", tmp_path)
    set_config(tmp_path, {"quant_method": method})
    made = plan(str(tmp_path), target=256)
    stored = made.shape.stored
    assert stored is not None
    assert (stored.method, stored.is_trainable, stored.weight_bytes) == (method, method == "mxfp4", None)
    assert ("cannot be trained" in paragraph(made, f"stored as {method}. No")) == (method == "gptq")


LONG = "x" * 300


@pytest.mark.parametrize(
    ("source", "options", "named"),
    [
        ("MODEL", ["--target", "128"], "the target is 128 tokens and the original window of"),
        ("MODEL", ["--machine", "A100"], "'A100'; did you mean 'a100-40' or 'a100-80'? give one of v100-32"),
        ("MODEL", ["--machine", "rtx4090"], "did you mean 'rtx-4090'?"),
        ("MODEL", ["--window", "8k"], "window is 8192 tokens and the target 4096"),
        ("MODEL", ["--sharding", "zero3"], "zero3"),
        ("MODEL", ["--count", "2", "--sharding", "zero5"], "'zero5'; did you mean 'zero3'?"),
        ("MODEL", ["--share", "speed=1"], "--share is 'speed=1'"),
        ("MODEL", ["--share", "training=2"], "utilisation.training is 2.0"),
        ("MODEL", ["--share", "memory=0"], "utilisation.memory is 0"),
        ("MODEL", ["--count", "65"], "65 accelerators"),
        ("MODEL", ["--machine", "cpu", "--count", "2"], "the count 2"),
        ("MODEL", ["--window", "1"], "train=1, original=256, target=4096"),
        ("MODEL", ["--target", "128", "--machine", "cpu", "--calibrate"], "the target is 128 tokens"),
        ("MODEL", ["--price", "nan"], "--price"),
        ("MODEL", ["--length", "1k,"], "length is ''"),
        ("MODEL", ["--micro-batch", "65"], "65 windows at a time for 64"),
        ("MODEL", ["--kv-bits", "5"], "kv_bits is 5"),
        ("MODEL", ["--count", "8", "--context", "3"], "the context is 3, with 8 accelerators"),
        ("MODEL", ["--context", "2"], "the context is 2, with 1 accelerators"),
        ("MODEL", ["--write-config", "."], "'.', which cannot be written"),
        ("MODEL", ["--out", "no/such/plan.html"], "'no/such'"),
        ("MODEL", ["--write-config", LONG], f"'{LONG}', which cannot be written: File name too long"),
        ("MODEL", ["--machine", "h100", "--calibrate"], "H100 80 GB"),
        ("llama-2-7b", ["--target", "32k", "--machine", "cpu", "--calibrate"], "'llama-2-7b'"),
        ("llama-3-9b", [], "did you mean 'llama-3-8b'? give a built-in card: llama-7b, llama-2-7b, llama-3-8b"),
        *((kind, ["--target", "32k"], kind) for kind in ("gpt2", "mamba", "bert")),
    ],
)
def test_bad_input_gets_one_line(source: str, options: list[str], named: str, model: str, tmp_path, capsys) -> None:
    if source in ("gpt2", "mamba", "bert"):  # Models without rotary positions.
        AutoConfig.for_model(source).save_pretrained(tmp_path / source)
        source = str(tmp_path / source)
    target = [] if "--target" in options else ["--target", "4k"]
    assert cli.main(["plan", model if source == "MODEL" else source, *target, *options]) == 2
    out, err = capsys.readouterr()
    assert (out, len(lines_of(err))) == ("", 1)
    assert named in err


@pytest.mark.parametrize(("name", "cards"), [("lama-3-8b", True), ("owner/lama-3-8b", False)])
def test_a_hub_that_cannot_be_reached_is_asked_once(
    name: str, cards: bool, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        hub = f"http://127.0.0.1:{one.getsockname()[1]}"
    # By now nobody listens there.
    for setting, value in {
        "HF_HUB_OFFLINE": False,
        "ENDPOINT": hub,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, setting, value)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert cli.main(["plan", name, "--target", "32k"]) == 2
    err = capfd.readouterr().err
    assert pauses == [], "no second attempt"
    assert len(lines_of(err)) == 1
    assert "the hub cannot be reached" in err
    assert ("did you mean 'llama-3-8b'?" in err) == cards


@pytest.mark.slow
def test_real_steps_correct_what_was_assumed(tiny_checkpoint: Path, capsys) -> None:
    command = ["plan", str(tiny_checkpoint), "--target", "256", "--machine", "cpu", "--calibrate", "--json"]
    assert cli.main([*command, "--global-batch", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    step, *prefills = told["calibration"]
    assert step["name"] == "step, full, checkpointing, 64 tokens"
    assert [one["name"] for one in prefills] == ["prefill, 32 tokens", "prefill, 64 tokens"]
    assert all(one["measured_seconds"] > 0 and abs(one["memory_error"]) < 0.3 for one in told["calibration"])
    assert told["training"][0]["step_seconds"] == pytest.approx(step["measured_seconds"]), "the plan uses them"
    assert told["utilisation"]["decode"] == Utilisation().decode


def test_help_names_every_card_and_machine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(cli.main(["plan", "--help"]))
    assert ended.value.code == 0
    words = set(re.split(r"[\s,.:│]+", capsys.readouterr().out.replace("qwen2.5", "qwen2_5")))
    missing = [name for name in (*MODEL_CARDS, *MACHINES, "cpu") if name.replace("qwen2.5", "qwen2_5") not in words]
    assert not missing

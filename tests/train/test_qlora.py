"""Training over a base in 4 bits: what is in 4 bits meanwhile, what is trained, what the plain model at the end is."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bitsandbytes", reason="4-bit weights are the package bitsandbytes' (extra: qlora)")

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel, get_peft_model_state_dict
from refusals import refused
from safetensors.torch import load_file
from tiny_models import family_config, save_tiny
from tiny_runs import STEPS, assert_equal_weights, losses, run, weights
from torch import nn
from transformers import AutoModelForCausalLM

import skipwise.train.delivery
from skipwise import doctor as preflight
from skipwise.config import QloraTuning, RunConfig
from skipwise.errors import ConfigError
from skipwise.loss import training_inputs
from skipwise.model import check_read_as_stored, dequantized, four_bit_layers, four_bits, load_model
from skipwise.train.checkpoints import load_checkpoint, run_checkpoints
from skipwise.train.trainer import SkipwiseTrainer

QLORA: dict[str, Any] = {"kind": "qlora", "rank": 4, "train_norms": True, "train_embeddings": True}
CPU = torch.device("cpu")
# Half of the widest gap between neighbours among the 16 values, -1 and -0.696 (QLoRA, appendix E); fp4's -1 and -0.667.
HALF_GAP = {"nf4": (1 - 0.6961928) / 2, "fp4": (1 - 2 / 3) / 2}


@pytest.fixture(scope="module")
def tiny_checkpoint(checkpoint_of_blocks: Path) -> Path:
    return checkpoint_of_blocks


def ids_and_positions() -> tuple[torch.Tensor, torch.Tensor]:
    """A window of two chunks, the second one far from the first."""
    ids = torch.randint(0, 256, (1, 32), generator=torch.Generator().manual_seed(5))
    positions = torch.arange(32)[None] + 200 * (torch.arange(32)[None] >= 16)
    return ids, positions


def is_packed(module: nn.Module) -> bool:
    """Whether it is a 4-bit layer with two weights in each byte."""
    if not isinstance(module, Linear4bit):
        return False
    return (module.weight.dtype, 2 * module.weight.nbytes) == (torch.uint8, module.in_features * module.out_features)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What runs say of the model that they train: its modules, what has gradients, and its logits in the end."""
    said: dict[str, Any] = {"steps": []}
    own_step, own_merge = SkipwiseTrainer.training_step, skipwise.train.delivery.merged_in_full

    def training_step(trainer: SkipwiseTrainer, model: Any, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss = own_step(trainer, model, *arguments, **keywords)
        said["steps"].append(
            {
                "four_bit": {name for name, module in model.named_modules() if is_packed(module)},
                "gradients": {n: p.grad.dtype for n, p in model.named_parameters() if p.grad is not None},
                "base": [dequantized(m) for m in model.modules() if isinstance(m, Linear4bit)],
            }
        )
        return loss

    def merged_in_full(tuned: PeftModel, *arguments: Any) -> Any:
        said["logits"] = tuned.get_base_model().eval()(**training_inputs(*ids_and_positions())).logits
        said["adapter"] = {name: each.clone() for name, each in get_peft_model_state_dict(tuned).items()}
        return own_merge(tuned, *arguments)

    monkeypatch.setattr(SkipwiseTrainer, "training_step", training_step)
    monkeypatch.setattr("skipwise.train.delivery.merged_in_full", merged_in_full)
    return said


@pytest.mark.parametrize("quant", ["nf4", "fp4"])
def test_the_base_is_in_four_bits_and_the_plain_model_computes_what_was_trained(
    quant: str, settings: dict[str, Any], trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[Any] = []

    def doctor(model: Any, *arguments: Any, **keywords: Any) -> Any:
        probed.append([type(layer.self_attn.q_proj) for layer in model.base_model.layers])
        return preflight(model, *arguments, **keywords)

    monkeypatch.setattr("skipwise.train.preparation.doctor", doctor)
    steps = {"max_steps": 16, "learning_rate": 5e-3}
    result = run(settings, tuning={**QLORA, "quant": quant}, training=steps)
    assert result.finished
    # The preflight was of the model that was trained, with weights in 4 bits saved and loaded again.
    assert probed == [[Linear4bit, Linear4bit]]
    assert any("whole checkpoint saved and loaded" in verdict.detail for verdict in result.verdicts)

    skeleton = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(settings["model"]).config)
    layers = {f"base_model.model.{name}.base_layer" for name in four_bit_layers(skeleton)}
    assert len(layers) == 14
    for step in trained["steps"]:
        assert step["four_bit"] == layers
        gradients = step["gradients"]
        counts = {"lora_A": 14, "lora_B": 14, "norm.modules_to_save": 5, "embed_tokens": 1, "lm_head": 1}
        for word, count in counts.items():
            assert sum(word in name for name in gradients) == count, word
        assert len(gradients) == 35
        assert set(gradients.values()) == {torch.float32}
    for before, after in zip(trained["steps"][0]["base"], trained["steps"][-1]["base"], strict=True):
        assert torch.equal(before, after)
    assert sum(losses(result.folder)[-4:]) < 0.9 * sum(losses(result.folder)[:4])

    plain = AutoModelForCausalLM.from_pretrained(result.folder)
    assert plain.dtype == torch.float32
    assert not hasattr(plain.config, "quantization_config")
    assert all(type(module) is nn.Linear for module in plain.modules() if isinstance(module, nn.Linear))
    logits = plain.eval()(**training_inputs(*ids_and_positions())).logits
    assert torch.allclose(logits, trained["logits"], rtol=1e-4, atol=1e-4)
    # With the weights that were not trained over it would be another model.
    base = load_model(settings["model"], interpolation=RunConfig.from_mapping({**settings}).build_interpolation(),
                      window=RunConfig.from_mapping({**settings}).resolve_window(64), dtype="float32")  # fmt: skip
    onto = PeftModel.from_pretrained(base.model, str(result.folder / "adapter")).merge_and_unload()  # type: ignore
    other = onto.eval()(**training_inputs(*ids_and_positions())).logits
    assert (other - trained["logits"]).abs().max() > 100 * (logits - trained["logits"]).abs().max()

    record = json.loads((result.folder / "skipwise.json").read_text())
    assert record["merge"]["into"].endswith("dequantized")
    assert (record["merge"]["quant"], record["merge"]["saved_in"]) == (quant, "float32")
    assert "bitsandbytes" in record["versions"]
    adapter = load_file(result.folder / "adapter" / "adapter_model.safetensors")
    assert adapter.keys() == trained["adapter"].keys()
    assert all(torch.equal(adapter[name], each) for name, each in trained["adapter"].items())


@pytest.mark.parametrize("width", [32, 64])
def test_rows_of_no_whole_blocks_are_refused_where_they_are_misread(width: int) -> None:
    torch.manual_seed(0)
    layer = Linear4bit(width, 96, bias=False, compress_statistics=False, quant_type="nf4").to(CPU)
    weight: Any = layer.weight
    packed, state = weight.detach().flatten(), weight.quant_state
    codes = torch.stack([packed >> 4, packed & 15], dim=1).flatten().long()
    stored = (state.code[codes].reshape(-1, 64) * state.absmax[:, None]).view(96, width)
    torch.testing.assert_close(dequantized(layer), stored)
    multiplied = dequantize_4bit(packed.view(-1, 1), state)
    if torch.allclose(multiplied, stored):
        check_read_as_stored(nn.ModuleDict({"layer": layer}))
        return
    assert width == 32, "bitsandbytes misreads whole blocks, too"
    with pytest.raises(ConfigError, match=r"'layer'.* 32 "):
        check_read_as_stored(nn.ModuleDict({"layer": layer}))


@pytest.mark.parametrize("quant", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_dequantized_weights_are_the_original_ones_within_the_error_of_four_bits(
    quant: str, double_quant: bool, tiny_checkpoint: Path
) -> None:
    tuning = QloraTuning(quant=quant, double_quant=double_quant)  # type: ignore[arg-type]
    quantization = four_bits(tuning, CPU, compute=torch.float32)
    model = load_model(tiny_checkpoint, dtype="float32", quantization=quantization).model
    plain = load_model(tiny_checkpoint, dtype="float32").model
    layers = four_bit_layers(plain)
    assert layers
    for name, layer in layers.items():
        weight: Any = layer.weight
        blocks, found = weight.reshape(-1, 64), dequantized(model.get_submodule(name)).reshape(-1, 64)
        most = blocks.abs().amax(dim=1, keepdim=True)
        # A scale of 8 bits is off by a little of the largest difference from their mean, which is less than itself.
        scales = 0.02 if double_quant else 1e-3
        assert ((found - blocks).abs() <= (HALF_GAP[quant] + scales) * most).all(), name
        assert not torch.equal(found, blocks)


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize(
    ("training", "dtype"),
    [
        ({}, "float32"),
        ({"bf16": True, "use_cpu": True, "gradient_checkpointing": True}, "float32"),
        ({"bf16": True, "use_cpu": True, "gradient_checkpointing": True}, "bfloat16"),
    ],
    ids=["plain", "autocast, checkpointed", "in 16 bits"],
)
def test_stopped_and_resumed_is_bit_equal_to_uninterrupted(
    training: dict[str, Any], dtype: str, settings: dict[str, Any], stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    how: dict[str, Any] = {"tuning": {**QLORA, "dropout": 0.2}, "training": training, "dtype": dtype}
    whole = run(settings, **how, output=str(tmp_path / "whole"))
    stop_after(2)
    stopped = run(settings, **how)
    assert (stopped.finished, stopped.steps) == (False, 2)
    # The checkpoint has what was trained, and none of what was not.
    checkpoint = stopped.folder / "checkpoint-2"
    assert {file.name for file in checkpoint.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert not any("base_layer" in name for name in load_file(checkpoint / "adapter_model.safetensors"))
    torch.manual_seed(99)
    resumed = run(settings, **how, resume=True)
    assert losses(resumed.folder) == losses(whole.folder)
    assert_equal_weights(resumed.folder, whole.folder)
    assert {weight.dtype for weight in weights(whole.folder).values()} == {getattr(torch, dtype)}
    assert whole.record["merge"]["saved_in"] == dtype
    base = weights(settings["model"])
    assert not any(torch.equal(weight.float(), base[name]) for name, weight in weights(whole.folder).items())
    adapters = [load_file(each.folder / "adapter" / "adapter_model.safetensors") for each in (whole, resumed)]
    assert {weight.dtype for weight in adapters[0].values()} == {torch.float32}
    assert all(torch.equal(weight, adapters[1][name]) for name, weight in adapters[0].items())


@pytest.mark.usefixtures("sound_model")
def test_a_checkpoint_on_the_way_is_merged_as_the_finished_model_is(settings: dict[str, Any]) -> None:
    result = run(settings, tuning=QLORA, training={"save_strategy": "steps", "save_steps": STEPS // 2})
    on_the_way, finished = run_checkpoints(result.folder)
    assert (on_the_way.step, finished.step) == (STEPS // 2, STEPS)
    last = on_the_way._replace(step=STEPS, folder=result.folder / f"checkpoint-{STEPS}")
    found = load_checkpoint(last, result.folder, dtype="float32").model.state_dict()
    written = load_file(result.folder / "model.safetensors")
    assert all(torch.equal(found[name], weight) for name, weight in written.items())
    before = load_checkpoint(on_the_way, result.folder, dtype="bfloat16").model
    assert before.dtype == torch.bfloat16
    assert not torch.equal(before.state_dict()["model.layers.0.mlp.up_proj.weight"].float(),
                           written["model.layers.0.mlp.up_proj.weight"].bfloat16().float())  # fmt: skip


def test_weights_stay_as_they_are_through_an_evaluation_on_any_cpu(tiny_checkpoint: Path) -> None:
    quantization = four_bits(QloraTuning(), CPU, compute=torch.float32)
    model = load_model(tiny_checkpoint, quantization=quantization).model
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert layers
    # Of a CPU that has such instructions bitsandbytes sets it True, whatever this one has.
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


# --- refusals --------------------------------------------------------------------------------------------------------


def refusal(settings: dict[str, Any], named: str, **changes: Any) -> str:
    with refused(ConfigError, named) as caught:
        run(settings, **{"tuning": QLORA, **changes})
    assert not Path(settings["output"]).exists()
    return str(caught.value)


def test_a_model_that_is_quantized_already_is_refused(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    quantized = tmp_path / "quantized"
    four = four_bits(QloraTuning(), CPU, compute=torch.float32)
    load_model(settings["model"], quantization=four).model.save_pretrained(quantized)
    shutil.copy(Path(settings["model"]) / "tokenizer.json", quantized)
    message = refusal(settings, "quantized.*lora", model=str(quantized))
    # What it says to run makes a model that can be trained so.
    monkeypatch.chdir(tmp_path)
    exec(message.split('python -c "')[1].rstrip('"'), {})
    assert load_model(tmp_path / "NEW", quantization=four).model.is_quantized


def test_a_gguf_file_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="GGUF files are the package gguf's")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for add, value in (
        (writer.add_context_length, 64), (writer.add_embedding_length, 32), (writer.add_block_count, 2),
        (writer.add_feed_forward_length, 64), (writer.add_head_count, 4), (writer.add_vocab_size, 256),
        (writer.add_rope_freq_base, 1e4), (writer.add_layer_norm_rms_eps, 1e-6),
    ):  # fmt: skip
        add(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    refusal(settings, "GGUF.*lora", model=str(tmp_path / "m.gguf"))


def test_the_way_around_is_named(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal(settings, "'nf4' or 'fp4'", tuning={"kind": "qlora", "quant": "int4"})
    save_tiny(tmp_path / "gptj", family_config("gptj"))
    refusal(settings, "save_model", model=str(tmp_path / "gptj"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    refusal(settings, r"skipwise\[qlora\]")


@pytest.mark.slow
def test_full_and_lora_need_no_bitsandbytes(settings: dict[str, Any], fresh_python: Callable[[str], None]) -> None:
    runs = [
        {**settings, "tuning": {"kind": kind}, "output": f"{settings['output']}-{kind}"} for kind in ("full", "lora")
    ]
    fresh_python(
        "import sys; sys.modules['bitsandbytes'] = None\n"
        "from skipwise import RunConfig, extend\n"
        f"assert all(extend(RunConfig.from_mapping(run)).finished for run in {runs!r})"
    )

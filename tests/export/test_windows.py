"""The window that each engine takes from what is written, by its own rule, and from the commands that go with it.

The rules are facts from the engines' sources, in the versions that `ENGINE_VERSIONS` names:

- vLLM 0.33.0: vllm/config/model.py, `_get_and_verify_max_len`; transformers_utils/model_arch_config_convertor.py
- vLLM before (seen at commit 0052a5b81898): the same function, in which YaRN's window is original times factor
- SGLang 0.5.23: srt/utils/hf_transformers/common.py, `get_context_length`; srt/configs/model_config.py,
  `_derive_context_length`
- Ollama 0.30.0 and 0.32.15: llm/server.go, `NewLlamaServer`, llm/llama_server.go
- llama.cpp is asked itself.
"""

import importlib
import json
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from modelfiles import read_modelfile
from tiny_models import tiny_config
from transformers import AutoConfig

from skipwise.export import card, export, gguf
from skipwise.model import load_model, rope_state, save_config
from skipwise.model.extend import extended_config
from skipwise.plan.engines import ENGINE_VERSIONS
from skipwise.rope import INTERPOLATIONS
from skipwise.window import Window

WINDOW = Window(train=256, original=256, target=1024)


class RefusedError(Exception):
    """An engine does not start with the window asked for."""


def vllm(config: Any, asked: int | None = None, *, yarn_scales: bool = False) -> int:
    rope, derived = config.rope_parameters, config.max_position_embeddings
    kind = rope["rope_type"]
    if kind not in ("longrope", "llama3", "yarn"):
        derived *= rope.get("factor", 1.0)
    if kind == "yarn" and yarn_scales:
        derived = rope["original_max_position_embeddings"] * rope["factor"]
    if asked is None:
        return int(config.original_max_position_embeddings if kind == "longrope" else derived)
    if asked > derived:
        raise RefusedError(f"{asked} is greater than the derived max_model_len {derived}")
    return asked


def vllm_before(config: Any, asked: int | None = None) -> int:
    return vllm(config, asked, yarn_scales=True)


def sglang(config: Any, asked: int | None = None) -> int:
    rope = config.rope_scaling or {}
    scaled = "original_max_position_embeddings" not in rope and rope.get("rope_type") != "llama3"
    derived = int((rope.get("factor", 1) if scaled else 1) * config.max_position_embeddings)
    if asked is None:
        return derived
    if asked > derived:
        raise RefusedError(f"{asked} is greater than the derived context_length {derived}")
    return asked


def ollama(context_length: int, num_ctx: int) -> int:
    return min(num_ctx, context_length)


ENGINES = {"vLLM": vllm, "vLLM before": vllm_before, "SGLang": sglang}
# What each derives from the written config alone, where the right window is 1024.
DERIVED = {
    "linear": {"vLLM": 4096, "vLLM before": 4096, "SGLang": 4096},
    "ntk": {"vLLM": 1024, "vLLM before": 1024, "SGLang": 1024},
    "dynamic": {"vLLM": 1024, "vLLM before": 1024, "SGLang": 1024},
    "yarn": {"vLLM": 1024, "vLLM before": 1024, "SGLang": 1024},
    "llama3": {"vLLM": 1024, "vLLM before": 1024, "SGLang": 1024},
    "longrope": {"vLLM": 256, "vLLM before": 256, "SGLang": 1024},
}


def written(kind: str, folder: Path, **changes: Any) -> Any:
    """The config of a model extended by an interpolation, as engines read it from its folder."""
    base = tiny_config("llama", max_position_embeddings=256)
    save_config(extended_config(base, INTERPOLATIONS[kind](), WINDOW), folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return AutoConfig.from_pretrained(folder)


def launched(engine: str, command: str, folder: Path) -> int:
    """The window that an engine takes when it is started by a command."""
    words, config = shlex.split(command), AutoConfig.from_pretrained(folder)
    name, flag = ("vLLM", "--hf-overrides") if "vllm" in words else ("SGLang", "--json-model-override-args")
    for key, value in json.loads(words[words.index(flag) + 1] if flag in words else "{}").items():
        setattr(config, key, value)
    asked = words[words.index("--max-model-len" if name == "vLLM" else "--context-length") + 1]
    return ENGINES[engine](config, int(asked))


@pytest.mark.parametrize("kind", DERIVED)
def test_engines_get_the_window_from_the_commands_whatever_they_derive(kind: str, tmp_path: Path) -> None:
    config = written(kind, tmp_path)
    assert {name: derive(config) for name, derive in ENGINES.items()} == DERIVED[kind]
    commands = card.hf_commands("OWNER/NAME", config)
    assert [name.partition(",")[0] for name in commands] == ["vLLM", "SGLang", "vLLM", "SGLang"]
    for name, command in commands.items():
        by = name.partition(",")[0]
        assert {launched(engine, command, tmp_path) for engine in ENGINES if engine.startswith(by)} == {1024}, name
    wrong = {name.partition(" ")[0] for name, window in DERIVED[kind].items() if window != 1024}
    notes = card.window_notes(rope_state(config))
    assert {engine for engine in ("vLLM", "SGLang") if any(engine in note for note in notes)} == wrong
    assert {"vLLM", "SGLang", "llama.cpp", "Ollama"} == {*ENGINE_VERSIONS}


def test_a_maximum_left_at_the_original_window_is_overridden(tmp_path: Path) -> None:
    config = written("yarn", tmp_path, max_position_embeddings=256)
    assert (vllm(config), vllm_before(config), sglang(config)) == (256, 1024, 256)
    commands = card.hf_commands("OWNER/NAME", config)
    assert [*commands] == ["vLLM, with the rope said in full", "SGLang, with the rope said in full"]
    for name, command in commands.items():
        by = name.partition(",")[0]
        assert {launched(engine, command, tmp_path) for engine in ENGINES if engine.startswith(by)} == {1024}, name


needs_llama_cpp = pytest.mark.skipif(
    find_spec("gguf") is None or find_spec("llama_cpp") is None, reason="llama.cpp is not built here"
)


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["yarn", "linear", "ntk", "llama3", "longrope"])
def test_llama_cpp_reads_a_file_and_its_modelfile_with_the_right_window(
    kind: str, embedded: Callable[..., Path], tmp_path: Path
) -> None:
    llama_cpp: Any = importlib.import_module("llama_cpp")

    source = embedded(kind)
    export(source, to="gguf", dtype="f32", output=tmp_path / "out", engine="transformers", long_tokens=320)
    said = read_modelfile(tmp_path / "out" / "Modelfile")
    file = tmp_path / "out" / said["FROM"][0]
    num_ctx = int(said["num_ctx"][0])
    context_length = gguf.read_gguf(file).entries["context_length"]
    assert (num_ctx, context_length, ollama(context_length, num_ctx)) == (1024, 1024, 1024)
    # As Ollama starts llama-server: -c is num_ctx.
    model = llama_cpp.Llama(str(file), n_ctx=num_ctx, logits_all=True, verbose=False, n_batch=512)
    assert (model.n_ctx(), model._model.n_ctx_train()) == (1024, 1024)
    ids = torch.randint(3, 1000, (900,), generator=torch.Generator().manual_seed(0))
    model.eval(ids.tolist())
    trained = load_model(source, dtype="float32").model
    with torch.no_grad():
        wanted = trained(input_ids=ids[None]).logits[0, -16:].numpy()
    difference = np.asarray(model.scores)[884:900] - wanted
    model.close()
    assert np.sqrt((difference**2).mean()) < 0.01 * wanted.std()

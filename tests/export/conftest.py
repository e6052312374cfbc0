"""Extended models to export: the embedded one, and random ones of the families that GGUF files are written of."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import LOCAL_AND_GLOBAL, NO_SPECIAL, tiny_config, tiny_model
from tiny_runs import preflight_taken_for_granted, run, settings_of, write_documents
from transformers import AutoTokenizer

from skipwise.demo.run import BASE
from skipwise.export import exporting, gguf
from skipwise.model import load_model, save_model, with_scaled_attention
from skipwise.rope import INTERPOLATIONS
from skipwise.window import Window

WINDOW = Window(train=64, original=64, target=256)
# 1024 of the embedded tokenizer, and rows without a token.
VOCABULARY = 1056

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}, "attention_bias": True},
    "mistral": {"sliding_window": None, "tie_word_embeddings": True},
    "qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen3": {"head_dim": 32, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32, **LOCAL_AND_GLOBAL},
}


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of a random model of a family, extended from 64 to 256 tokens; made anew for every interpolation."""
    made: dict[str, Path] = {}

    def make(name: str, kind: str = "yarn", scale: float = 1.0, **changes: Any) -> Path:
        key = f"{name}-{kind}-{scale}-{'-'.join(map(str, changes.values()))}"
        if key not in made:
            base = tmp_path_factory.mktemp("base") / name
            settings = {"intermediate_size": 96, "vocab_size": VOCABULARY, **NO_SPECIAL, **FAMILIES[name], **changes}
            # Attention far from uniform, so that a wrong table or order of rows shows in the logits.
            model = tiny_model(tiny_config(name, **settings), noise=0.15)
            save_model(model, AutoTokenizer.from_pretrained(BASE), base)
            made[key] = extended(base, kind, WINDOW, tmp_path_factory.mktemp("extended") / key, scale)
        return made[key]

    return make


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folder of the embedded model, extended from 256 to 1024 tokens by an interpolation and not trained."""
    made: dict[str, Path] = {}

    def make(kind: str = "yarn", scale: float = 1.0) -> Path:
        if (key := f"{kind}-{scale}") not in made:
            window = Window(train=256, original=256, target=1024)
            made[key] = extended("embedded", kind, window, tmp_path_factory.mktemp("embedded") / key, scale)
        return made[key]

    return make


# Settings that are wrong in a GGUF file and in a config.json.
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "factor": ({"rope.scaling.factor": 2.0}, {"factor": 2.0}),
    "attn_factor": ({"rope.scaling.attn_factor": 1.0}, {"attention_factor": 1.0}),
    "order": ({}, {}),
}


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes every export have one of `FAULTS`; `order` is that of the rows of queries and keys in a GGUF file."""

    def make(fault: str) -> None:
        write, order, save = gguf.write_gguf, gguf._in_gguf_order, exporting.save_model
        in_file, in_config = FAULTS[fault]

        def faulty(path: Path, model: Any, plan: Any, dtype: str, name: str) -> None:
            write(path, model, replace(plan, metadata={**plan.metadata, **in_file}), dtype, name)

        def not_permuted(name: str, weight: Any, model: Any, family: Any) -> Any:
            return order(name, weight, model, family._replace(permuted=False))

        def save_faulty(model: Any, tokenizer: Any, folder: Path, **settings: Any) -> None:
            save(model, tokenizer, folder, **settings)
            config = json.loads((folder / "config.json").read_text())
            for name in ("rope_parameters", "rope_scaling"):
                config[name] |= in_config
            (folder / "config.json").write_text(json.dumps(config))

        monkeypatch.setattr(exporting, "write_gguf", faulty)
        monkeypatch.setattr(exporting, "save_model", save_faulty)
        if fault == "order":
            monkeypatch.setattr(gguf, "_in_gguf_order", not_permuted)

    return make


def extended(base: str | Path, kind: str, window: Window, folder: Path, scale: float) -> Path:
    loaded = load_model(base, interpolation=INTERPOLATIONS[kind](), window=window)
    model = loaded.model if scale == 1.0 else with_scaled_attention(loaded.model, scale)
    save_model(model, loaded.tokenizer, folder)
    return folder


def trained_run(folder: Path, model: Path, tuning: dict[str, Any]) -> Path:
    """A finished run of a few steps, kept in bfloat16."""
    (folder / "docs").mkdir()
    settings = settings_of(model, write_documents(folder / "docs"), folder / "run")
    settings |= {"dtype": "bfloat16", "tuning": tuning}
    with pytest.MonkeyPatch.context() as patch, preflight_taken_for_granted():
        patch.setenv("SKIPWISE_CACHE", str(folder / "cache"))
        return run(settings, training={"max_steps": 3, "learning_rate": 5e-2}).folder


@pytest.fixture(scope="session")
def lora_run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(
        tmp_path_factory.mktemp("lora"), tiny_checkpoint, {"kind": "lora", "rank": 4, "train_norms": True}
    )


@pytest.fixture(scope="session")
def full_run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("full"), tiny_checkpoint, {"kind": "full"})


@pytest.fixture(scope="session")
def qlora_run(checkpoint_of_blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("bitsandbytes", reason="4-bit weights are the package bitsandbytes' (extra: qlora)")
    return trained_run(tmp_path_factory.mktemp("qlora"), checkpoint_of_blocks, {"kind": "qlora", "rank": 4})

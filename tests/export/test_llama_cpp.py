"""llama.cpp itself runs the files that are written: the same tokens, the same logits beyond the window, the passkey."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from skipwise.config import RunConfig
from skipwise.demo.run import BASE
from skipwise.errors import CheckpointError
from skipwise.evals.tasks.passkey_prompt import PasskeyBuilder
from skipwise.export import comparison, export
from skipwise.export.runners import LlamaCppRunner, TransformersRunner, gguf_runner
from skipwise.model import load_model, save_model
from skipwise.train import extend

pytestmark = pytest.mark.slow
pytest.importorskip("gguf", reason="files are written by the gguf package")
pytest.importorskip("llama_cpp", reason="llama.cpp is not built here: pip install 'skipwise[llama-cpp]'")

LONG = 700


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize(
    ("kind", "scale"), [("yarn", 1.0), ("yarn", 1.2), ("linear", 1.0), ("ntk", 1.0), ("llama3", 1.0)]
)
def test_the_embedded_model_is_the_same_in_llama_cpp(
    kind: str, scale: float, dtype: str, embedded: Callable[..., Path], tmp_path: Path
) -> None:
    made = export(embedded(kind, scale), to="gguf", dtype=dtype, output=tmp_path / "out", long_tokens=LONG)
    assert made.engine.startswith("llama.cpp")
    assert [verdict.status for verdict in made.verdicts] == ["pass"] * 7, [verdict.line for verdict in made.verdicts]


@pytest.mark.parametrize(
    ("name", "kind", "scale"),
    [
        (name, kind, scale)
        for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
        for kind, scale in (("yarn", 1.0), ("yarn", 1.2), ("linear", 1.0), ("ntk", 1.0))
        # llama.cpp would scale its local layers too.
        if (name, scale) != ("gemma3_text", 1.2)
    ],
)
def test_families_are_the_same_in_llama_cpp(
    name: str, kind: str, scale: float, family: Callable[..., Path], tmp_path: Path
) -> None:
    made = export(family(name, kind, scale), to="gguf", dtype="f32", output=tmp_path / "out")
    assert made.engine.startswith("llama.cpp")
    assert {verdict.status for verdict in made.verdicts} == {"pass"}, [verdict.line for verdict in made.verdicts]


@pytest.mark.parametrize("scale", [1.0, 1.1])
def test_longrope_is_the_same_in_llama_cpp(scale: float, embedded: Callable[..., Path], tmp_path: Path) -> None:
    # A context of llama.cpp has 256 tokens at the least: the short list needs a window of as many.
    made = export(embedded("longrope", scale), to="gguf", dtype="f32", output=tmp_path / "out", long_tokens=LONG)
    assert {verdict.status for verdict in made.verdicts} == {"pass"}, [verdict.line for verdict in made.verdicts]


@pytest.mark.parametrize("fault", ["factor", "attn_factor", "order"])
def test_llama_cpp_shows_planted_faults_in_its_logits(
    fault: str,
    plant: Callable[[str], None],
    family: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(fault)
    # The file's tables are compared as well; here only what llama.cpp computes is to tell.
    monkeypatch.setattr(comparison, "compare_tables", lambda *_: [])
    with pytest.raises(CheckpointError, match="long: logits"):
        export(family("llama", scale=1.2), to="gguf", dtype="f32", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def sentence_piece() -> PreTrainedTokenizerFast:
    """A tokenizer of SentencePiece's kind, as Llama 2 has: bytes for what is unknown, a space before the text."""
    inner: Any = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer: Any = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    text = (BASE.parents[1] / "coverage.py").read_text(encoding="utf-8")
    inner.train_from_iterator(text.splitlines(keepends=True), trainer)
    described = Tokenizer.from_str(_only_three_special(inner.to_str()))
    described.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=described,
        unk_token="<unk>",
        bos_token=AddedToken("<s>", normalized=False, special=True),
        eos_token=AddedToken("</s>", normalized=False, special=True),
    )


def _only_three_special(described: str) -> str:
    import json

    content = json.loads(described)
    content["added_tokens"] = content["added_tokens"][:3]
    return json.dumps(content)


def test_a_tokenizer_of_sentence_pieces_is_the_same_in_llama_cpp(family: Callable[..., Path], tmp_path: Path) -> None:
    model, _ = load_model(family("llama"))
    source = tmp_path / "source"
    save_model(model, sentence_piece(), source)
    assert AutoTokenizer.from_pretrained(source)("Hi 数")["input_ids"]
    made = export(source, to="gguf", dtype="f32", output=tmp_path / "out")
    (tokens,) = [verdict for verdict in made.verdicts if verdict.name == "tokens"]
    assert tokens.status == "pass", tokens.line


def test_the_passkey_is_found_at_the_target_from_a_gguf_file(tmp_path: Path) -> None:
    run = RunConfig.from_mapping(
        {
            "model": str(BASE),
            "target": 1280,
            "recipe": "growing",
            "output": str(tmp_path / "run"),
            "data": {"retrieval": 0.12},
            "validation": {"num_documents": 1, "every_steps": 0},
            "training": {
                "max_steps": 40,
                "learning_rate": 2e-3,
                "per_device_train_batch_size": 16,
                "save_strategy": "no",
                "disable_tqdm": True,
            },
        }
    )
    folder = extend(run).folder
    made = export(folder, to="gguf", dtype="q8_0", output=tmp_path / "out")
    assert made.engine.startswith("llama.cpp")
    loaded = load_model(folder, dtype="float32")
    reference = TransformersRunner(loaded.model, loaded.tokenizer)
    builder, rng = PasskeyBuilder(loaded.tokenizer), np.random.default_rng(0)  # pyright: ignore[reportArgumentType]
    prompts = [builder.build(1024, (trial + 0.5) / 10, rng) for trial in range(10)]
    with closing(LlamaCppRunner(next((tmp_path / "out").glob("*.gguf")))) as runner:
        found = {
            each.name: [
                # Given the answer so far, each token of it is the likeliest: greedy text would be the answer.
                (each.logits([*prompt.prompt_ids, *prompt.answer_ids[:-1]], len(prompt.answer_ids)).argmax(-1)
                 == prompt.answer_ids).all()
                for prompt in prompts
            ]
            for each in (runner, reference)
        }  # fmt: skip
    by_llama_cpp, by_transformers = found.values()
    assert sum(by_llama_cpp) >= 8, found
    assert abs(sum(by_llama_cpp) - sum(by_transformers)) <= 1, found


def test_both_runners_of_a_file_agree(embedded: Callable[..., Path], tmp_path: Path) -> None:
    source = embedded("yarn")
    export(source, to="gguf", dtype="f32", output=tmp_path / "out")
    path = next((tmp_path / "out").glob("*.gguf"))
    model = load_model(source, dtype="float32").model
    read = gguf_runner(path, model, "transformers")
    ids = torch.randint(3, 1000, (900,), generator=torch.Generator().manual_seed(0)).tolist()
    with closing(gguf_runner(path, model, "llama.cpp")) as runner:
        np.testing.assert_allclose(runner.logits(ids, 8), read.logits(ids, 8), atol=1e-3)

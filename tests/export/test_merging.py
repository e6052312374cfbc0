"""The weighted mean of base and extended weights, beside a plain loop over both state dicts."""

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import lines_of
from safetensors.torch import load_file
from tiny_models import NO_SPECIAL, save_tiny, tiny_config, tiny_model
from torch import Tensor
from transformers import AutoTokenizer

from skipwise import cli
from skipwise.demo.run import BASE
from skipwise.export import export
from skipwise.inference.modes import TwoModes
from skipwise.model import load_model, read_config, rope_state, save_model, with_scaled_attention
from skipwise.rope import YaRN
from skipwise.window import Window


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def mean(extended: Mapping[str, Tensor], base: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
    """What is expected, computed in float64; rows that the base lacks are the extended model's."""
    expected = {}
    for name, tensor in extended.items():
        expected[name] = tensor.double().clone()
        rows = slice(0, len(base[name]))
        expected[name][rows] = (1 - weight) * tensor.double()[rows] + weight * base[name].double()
    return expected


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_mean_of_a_full_run(weight: float, full_run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = export(full_run, to="hf", dtype="float32", output=tmp_path / "out", base_weight=weight)
    assert {verdict.status for verdict in made.verdicts} == {"pass"}
    extended, base, found = (weights_of(folder) for folder in (full_run, tiny_checkpoint, tmp_path / "out"))
    assert_close(found, mean(extended, base, weight))
    if weight in (0, 1):
        ends = base if weight else extended
        assert all(torch.equal(found[name], ends[name].float()) for name in found)
    assert rope_state(read_config(tmp_path / "out")) == rope_state(read_config(full_run))
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (record["base_weight"], record["base"]) == (weight, str(tiny_checkpoint))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"The weights are {weight:g} of {tiny_checkpoint}'s and {1 - weight:g} of the extended" in card
    assert "compared with the weighted mean" in card


def test_it_is_cast_once(full_run: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        export(full_run, to="hf", dtype=dtype, output=tmp_path / dtype, base_weight=0.3)
    exact, cast = (weights_of(tmp_path / dtype) for dtype in ("float32", "bfloat16"))
    assert all(torch.equal(cast[name], tensor.bfloat16()) for name, tensor in exact.items())


def test_the_mean_of_a_lora_run_is_its_adapter_scaled(lora_run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(lora_run, to="hf", dtype="float32", output=tmp_path / "whole")
    export(lora_run, to="hf", dtype="float32", output=tmp_path / "mean", base_weight=0.75)
    expected = mean(weights_of(tmp_path / "whole"), weights_of(tiny_checkpoint), 0.75)
    assert_close(weights_of(tmp_path / "mean"), expected)
    # Norms were trained in full, so that not all of the adapter is a product that could be scaled.
    norm = "model.norm.weight"
    assert not torch.equal(weights_of(tmp_path / "whole")[norm], weights_of(tiny_checkpoint)[norm])
    made = export(lora_run, to="adapter", output=tmp_path / "adapter", base_weight=0.75)
    assert {verdict.status for verdict in made.verdicts} == {"pass"}
    two, ids = TwoModes.load(lora_run, adapter=tmp_path / "adapter", dtype="float32"), torch.arange(200)[None]
    with torch.no_grad():
        whole = load_model(tmp_path / "mean", dtype="float32").model(ids).logits
        torch.testing.assert_close(two(ids).logits, whole, rtol=1e-4, atol=1e-5)


def test_a_run_on_4_bits_is_averaged_with_the_base_in_full(
    qlora_run: Path, checkpoint_of_blocks: Path, tmp_path: Path
) -> None:
    export(qlora_run, to="hf", dtype="float32", output=tmp_path / "out", base_weight=0.5)
    assert_close(weights_of(tmp_path / "out"), mean(weights_of(qlora_run), weights_of(checkpoint_of_blocks), 0.5))


def test_a_cut_difference_is_that_of_the_mean(full_run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    # At full rank of matrices of 32 rows nothing is lost.
    export(full_run, to="adapter", rank=32, output=tmp_path / "out", base_weight=0.5)
    export(full_run, to="hf", dtype="float32", output=tmp_path / "mean", base_weight=0.5)
    two, ids = TwoModes.load(full_run, adapter=tmp_path / "out", dtype="float32"), torch.arange(200)[None]
    with torch.no_grad():
        whole = load_model(tmp_path / "mean", dtype="float32").model(ids).logits
        torch.testing.assert_close(two(ids).logits, whole, rtol=1e-3, atol=1e-4)


def changed_pair(folder: Path, more_rows: int = 0, **settings: Any) -> tuple[Path, Path]:
    """A base, and a model extended from it with every weight changed, rows of its vocabulary added, and calibrated."""
    base, extended = folder / "base", folder / "extended"
    settings = {"intermediate_size": 96, "vocab_size": 1056, "attention_bias": True, **NO_SPECIAL, **settings}
    config = tiny_config("llama", **settings)
    save_model(tiny_model(config, noise=0.15), AutoTokenizer.from_pretrained(BASE), base)
    window = Window(train=64, original=64, target=256)
    model, tokenizer = load_model(base, interpolation=YaRN(), window=window, dtype="float32")
    model = with_scaled_attention(model, 1.2)
    if more_rows:
        model.resize_token_embeddings(1056 + more_rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_model(model, tokenizer, extended)
    return base, extended


@pytest.mark.parametrize(("tied", "more_rows"), [(True, 0), (True, 8), (False, 8)])
def test_biases_tied_heads_added_rows_and_a_calibrated_factor(tied: bool, more_rows: int, tmp_path: Path) -> None:
    base, extended = changed_pair(tmp_path, more_rows, tie_word_embeddings=tied)
    export(extended, to="hf", base=str(base), output=tmp_path / "out", base_weight=0.25)
    found = weights_of(tmp_path / "out")
    assert ("lm_head.weight" in found) == (not tied)
    assert len(found["model.embed_tokens.weight"]) == 1056 + more_rows
    assert_close(found, mean(weights_of(extended), weights_of(base), 0.25))
    state = rope_state(read_config(tmp_path / "out"))
    assert state == rope_state(read_config(extended))
    assert state.attention_scale == pytest.approx(1.2)


@pytest.mark.skipif(find_spec("gguf") is None, reason="files are written by the gguf package")
def test_a_gguf_file_of_the_mean(tmp_path: Path) -> None:
    base, extended = changed_pair(tmp_path, attention_bias=False)
    made = export(
        extended,
        to="gguf",
        dtype="f32",
        engine="transformers",
        base=str(base),
        output=tmp_path / "out",
        base_weight=0.5,
    )
    assert {verdict.status for verdict in made.verdicts} == {"pass"}
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert file.name == "extended-base-0.5-F32.gguf"
    read: dict[str, Tensor] = dict(load_model(file, dtype="float32").model.named_parameters())
    expected = mean(weights_of(extended), weights_of(base), 0.5)
    assert_close({name: tensor.detach() for name, tensor in read.items()}, expected)


def test_two_modes_keep_the_base_as_it_is(full_run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(full_run, to="hf", dtype="float32", output=tmp_path / "out", base_weight=0.5)
    # The export is no run: by itself it serves everything.
    assert TwoModes.load(tmp_path / "out").modes == ("long",)
    two, ids = TwoModes.load(tmp_path / "out", base=tiny_checkpoint, dtype="float32"), torch.arange(60)[None]
    with torch.no_grad():
        assert torch.equal(two(ids).logits, load_model(tiny_checkpoint, dtype="float32").model(ids).logits)
        longer = torch.arange(200)[None]
        merged = load_model(tmp_path / "out", dtype="float32").model(longer).logits
        assert torch.equal(two(longer).logits, merged)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that no run of these tests extended: of another width, and of the same shape from another seed."""
    folder = tmp_path_factory.mktemp("others")
    for name, width, seed in (("wider", 64, 0), ("apart", 32, 7)):
        config = tiny_config("llama", vocab_size=256, hidden_size=width, intermediate_size=64, **NO_SPECIAL)
        save_tiny(folder / name, config, seed=seed)
    return folder


@pytest.mark.parametrize(
    ("run", "arguments", "words"),
    [
        ("full", ["-0.1"], ["--merge-with-base is -0.1", "0 to 1"]),
        ("full", ["1.5"], ["--merge-with-base is 1.5", "0 to 1"]),
        ("full", ["nan"], ["--merge-with-base is nan", "0 to 1"]),
        ("full", ["half"], ["--merge-with-base"]),
        ("plain", ["0.5"], ["not a run", "--base"]),
        ("full", ["0.5", "--base", "wider"], ["wider", "(256, 64)", "--base"]),
        ("full", ["0.5", "--base", "apart"], ["apart", "cosine", "--base"]),
        ("lora", ["0.5", "--base", "apart"], ["apart", "adapter", "--base"]),
        ("moved", ["0.5"], ["gone", "--base"]),
    ],
)
def test_mistakes_get_one_line(
    run: str,
    arguments: list[str],
    words: list[str],
    full_run: Path,
    lora_run: Path,
    tiny_checkpoint: Path,
    others: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    moved = tmp_path / "moved"
    if run == "moved":
        shutil.copytree(full_run, moved)
        (moved / "run.yaml").write_text((moved / "run.yaml").read_text().replace(str(tiny_checkpoint), "/gone"))
    source = {"full": full_run, "lora": lora_run, "plain": tiny_checkpoint, "moved": moved}[run]
    given = [str(others / each) if (others / each).is_dir() else each for each in arguments]
    out = tmp_path / "out"
    command = ["export", str(source), "--to", "hf", "--out", str(out), "--merge-with-base", *given]
    assert cli.main(command) == cli.BAD_INPUT
    message = capsys.readouterr().err
    assert len(lines_of(message)) == 1, message
    assert all(word in message for word in words), message
    assert not out.exists()


def test_without_out_the_folder_says_the_weight(
    full_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(full_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "run", "--to", "hf", "--merge-with-base", "0.5"]) == 0
    assert "run-base-0.5-hf: loaded again by transformers, compared with the weighted mean" in capsys.readouterr().out

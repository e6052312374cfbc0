"""Exports of adapters: merged, alone, over 4 bits, and cut from what full tuning changed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import skipwise.export.exporting as exports
from skipwise import cli
from skipwise.errors import CheckpointError, ConfigError
from skipwise.export import export, source
from skipwise.inference.modes import TwoModes
from skipwise.model import load_model


def test_an_adapter_on_4_bits_is_what_that_the_run_has_merged(
    qlora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = qlora_run
    made = export(folder, to="hf", dtype="float32", output=tmp_path / "out")
    assert {verdict.status for verdict in made.verdicts} == {"pass"}
    trained, exported = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "out"))
    assert all(torch.equal(tensor.float(), exported[name]) for name, tensor in trained.items())
    # Over the base in full precision they would be another model, which an adapter alone would be loaded as.
    assert cli.main(["export", str(folder), "--to", "adapter", "--out", str(tmp_path / "adapter")]) == cli.BAD_INPUT
    assert "4-bit weights" in capsys.readouterr().err
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_is_merged_in_float32(lora_run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(lora_run, to="hf", dtype="float32", output=tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    base, added = (
        load_file(tiny_checkpoint / "model.safetensors"),
        load_file(lora_run / "adapter/adapter_model.safetensors"),
    )
    settings = json.loads((lora_run / "adapter/adapter_config.json").read_text())
    name = "model.layers.0.self_attn.q_proj"
    down, up = (added[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    wanted = base[f"{name}.weight"].double() + settings["lora_alpha"] / settings["r"] * up @ down
    assert not torch.allclose(wanted, base[f"{name}.weight"].double())
    torch.testing.assert_close(merged[f"{name}.weight"].double(), wanted, rtol=1e-6, atol=1e-7)
    # The run's own folder has the sum in bfloat16.
    assert not torch.equal(
        load_file(lora_run / "model.safetensors")[f"{name}.weight"].float(), merged[f"{name}.weight"]
    )


def test_an_adapter_has_the_window_with_it(lora_run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = export(lora_run, to="adapter", output=tmp_path / "out")
    assert {verdict.status for verdict in made.verdicts} == {"pass"}
    assert not list((tmp_path / "out").glob("model*.safetensors"))
    from peft import PeftModel

    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.max_position_embeddings == 256
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, config=config)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    export(lora_run, to="hf", dtype="float32", output=tmp_path / "hf")
    ids = torch.arange(200)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            adapted(ids).logits, load_model(tmp_path / "hf", dtype="float32").model(ids).logits, rtol=1e-4, atol=1e-5
        )
    assert any("trained norms" in command for command in made.commands.values())
    with pytest.raises(CheckpointError, match=str(tmp_path / "out")):
        load_model(tmp_path / "out")


def test_an_adapter_without_its_extension_is_refused(
    lora_run: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = AutoConfig.from_pretrained(tiny_checkpoint)
    monkeypatch.setattr(exports, "save_config", lambda _config, folder: short.save_pretrained(folder))
    with pytest.raises(CheckpointError, match=r"integers: .*tables: "):
        export(lora_run, to="adapter", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_does_not_fit_is_named_even_by_an_error_without_words(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(source, "load_additions", fail)
    with pytest.raises(CheckpointError, match="RuntimeError"):
        export(lora_run, to="hf", output=tmp_path / "out")


def test_what_full_tuning_changed_is_cut_to_a_rank_and_the_loss_said(
    full_run: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def off(made: dict[str, Any]) -> list[float]:
        found = {verdict["name"]: verdict for verdict in made["verdicts"]}
        assert [name for name, each in found.items() if each["status"] == "note"] == ["short", "long"]
        assert {found[name]["status"] for name in ("integers", "tables", "factor", "tokens", "weights")} == {"pass"}
        numbers = (found[name]["detail"].split(" by ")[1].split()[0] for name in ("weights", "short", "long"))
        return [float(number) for number in numbers]

    lost = []
    for rank in (1, 8, 32):
        arguments = ["--to", "adapter", "--rank", str(rank), "--out", str(tmp_path / str(rank)), "--json"]
        assert cli.main(["export", str(full_run), *arguments]) == 0
        made = json.loads(capsys.readouterr().out)
        lost.append(off(made))
        assert any(f"--adapter {tmp_path / str(rank)}" in note for note in made["notes"])
        settings = json.loads((tmp_path / str(rank) / "adapter_config.json").read_text())
        assert (settings["r"], settings["base_model_name_or_path"]) == (rank, str(tiny_checkpoint))
    assert all(first > second > third for first, second, third in zip(*lost, strict=True))
    # Of matrices of 32 rows rank 32 loses nothing.
    assert max(lost[2]) < 1e-3 < min(lost[1])
    ids = torch.arange(200)[None]
    modes = TwoModes.load(full_run, adapter=tmp_path / "32", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(
            modes(ids).logits, load_model(full_run, dtype="float32").model(ids).logits, rtol=1e-3, atol=1e-4
        )


def test_a_cut_adapter_that_does_not_load_as_it_was_cut_is_refused(
    full_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = exports.write_difference

    def write(before: Any, after: Any, rank: int, folder: Path) -> float:
        stated = right(before, after, rank, folder)
        settings = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 2 * rank}))
        return stated

    monkeypatch.setattr(exports, "write_difference", write)
    with pytest.raises(CheckpointError, match="weights: "):
        export(full_run, to="adapter", rank=8, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_rank_is_for_what_has_no_adapter(lora_run: Path, full_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora.*--rank"):
        export(lora_run, to="adapter", rank=4, output=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"full.*--rank"):
        export(full_run, to="adapter", output=tmp_path / "out")

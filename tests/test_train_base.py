"""The script that trains base models: every family has the stated size; skipwise loads and extends what is saved."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_base
from muon import Muon
from train_base import FAMILIES, VOCABULARY, WINDOW, main, optimizers
from transformers import PreTrainedModel

from skipwise import Window, load_model
from skipwise.demo import BASE
from skipwise.loss import training_inputs
from skipwise.model import original_window, read_config, rotary_tables
from skipwise.rope import RopeSpec, YaRN

EXTENDED = Window(train=WINDOW, original=WINDOW, target=4096)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> PreTrainedModel:
    """A new model, with attention so far from uniform that a wrong table shows in the logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family]().eval()
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture
def saved(model: Any, tmp_path: Path) -> Path:
    """The model as the script leaves it, in half precision."""
    model.half().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / name, tmp_path)
    return tmp_path


@torch.no_grad()
def logits(model: PreTrainedModel, positions: torch.Tensor) -> torch.Tensor:
    ids = torch.arange(len(positions))[None] * 7 % VOCABULARY
    return model(**training_inputs(ids, positions[None])).logits


def test_sizes(model: PreTrainedModel) -> None:
    assert 2e6 <= model.num_parameters() <= 4e6
    assert (model.config.max_position_embeddings, model.config.vocab_size) == (WINDOW, VOCABULARY) == (256, 1024)


def test_matrices_of_the_blocks_are_muons_and_the_rest_is_adams(model: PreTrainedModel) -> None:
    inner, outer = ([p for group in o.param_groups for p in group["params"]] for o in optimizers(model))
    assert sorted(map(id, inner + outer)) == sorted(map(id, model.parameters()))
    assert all(p.ndim == 2 and VOCABULARY not in p.shape for p in inner)
    assert all(p.ndim == 1 or VOCABULARY in p.shape for p in outer)


def test_skipwise_computes_what_the_trained_class_does(model: PreTrainedModel, saved: Path) -> None:
    positions = torch.arange(WINDOW)
    own: Any = type(model).from_pretrained(saved, dtype=torch.float32)
    loaded = load_model(saved, dtype="float32").model
    # Only a GPT-J differs, by the order of summing in the Phi that it is now: 2e-6 where logits have deviation 0.75.
    torch.testing.assert_close(logits(loaded, positions), logits(own, positions), rtol=0, atol=1e-5)


def test_yarn_to_4096(family: str, saved: Path) -> None:
    config = read_config(saved)
    assert original_window(config) == WINDOW
    extended = load_model(saved, interpolation=YaRN(), window=EXTENDED, dtype="float32").model
    assert extended.config.max_position_embeddings == EXTENDED.target

    expected = YaRN().table(RopeSpec(rotary_dim=16 if family == "gptj" else 32, theta=1e4), EXTENDED)
    (table,) = rotary_tables(extended).values()
    np.testing.assert_allclose(table.inv_freq, expected.inv_freq, rtol=1e-6)
    assert table.attention_factor == pytest.approx(expected.attention_factor)
    far = torch.cat([torch.arange(16), torch.arange(EXTENDED.target - 16, EXTENDED.target)])
    assert logits(extended, far).isfinite().all()


def test_a_start_has_its_family_already(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train_base", "--out", "x", "--start", "y", "--family", "gptj"])
    with pytest.raises(SystemExit):
        main()
    assert "--family: not allowed with argument --start" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(48, 48), (32, 96), (96, 32)])
def test_muon_goes_where_torchs_does(shape: tuple[int, int]) -> None:
    settings: Any = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.5}
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=rng)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optims = Muon([ours], **settings), torch.optim.Muon([theirs], **settings, adjust_lr_fn="original")
    for _ in range(3):
        ours.grad = torch.randn(shape, generator=rng)
        theirs.grad = ours.grad.clone()
        for optim in optims:
            optim.step()
    # Torch's directions are rounded to bfloat16, which has three digits.
    moved, expected = ours.detach() - start, theirs.detach() - start
    assert (moved - expected).norm() < 0.01 * expected.norm()


def test_the_commands_told_are_those_that_made_the_embedded_model() -> None:
    record = json.loads((BASE / "training.json").read_text())
    told = [line.strip() for line in str(train_base.__doc__).splitlines() if "--compile" in line]
    in_record = (Path(__file__).parents[1] / "docs" / "results" / "demo.md").read_text()
    assert len(told) == 2
    assert all(command in in_record for command in told)
    words = shlex.split(told[-1])
    for name in ("out", "minutes", "start", "rate_scale", "seed"):
        value = words[words.index("--" + name.replace("_", "-")) + 1]
        assert type(record[name])(value) == record[name], name
    assert all((f"--{switch}" in words) == record[switch] for switch in ("compile", "bf16"))
    assert f"--out {record['start']} " in told[0]

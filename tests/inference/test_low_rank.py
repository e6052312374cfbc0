from pathlib import Path

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from skipwise.errors import ConfigError
from skipwise.inference.low_rank import low_rank_difference, write_difference
from skipwise.inference.modes import TwoModes

from .conftest import Run, random_ids, tensor_bytes


@torch.no_grad()
def test_the_error_falls_with_the_rank_and_is_none_at_full_rank(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["full"]
    ids = torch.tensor([random_ids(200)])
    exact = TwoModes.load(run.folder)
    errors, off = [], []
    for rank in (1, 8, 32):
        folder = tmp_path / str(rank)
        errors.append(low_rank_difference(run.base, run.folder, rank, folder))
        modes = TwoModes.load(run.folder, adapter=folder)
        off.append(float((modes(ids).logits - exact(ids).logits).abs().max()))
        # Whatever is lost, short mode loses nothing.
        assert torch.equal(modes(ids[:, :60]).logits, exact(ids[:, :60]).logits)
        assert tensor_bytes(modes) < tensor_bytes(exact) or rank > 1
    assert errors[0] > errors[1] > 0.01
    assert off[0] > off[1] > 10 * off[2]
    assert errors[2] < 1e-5
    assert off[2] < 1e-4


@torch.no_grad()
def test_the_stated_error_is_that_of_the_weights(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["full"]
    stated = low_rank_difference(run.base, run.folder, 4, tmp_path / "4")
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (run.base, run.folder))
    lost = total = 0.0
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        if "proj" in name:
            sizes = torch.linalg.svdvals(new - old)
            lost, total = lost + float((sizes[4:] ** 2).sum()), total + float((sizes**2).sum())
    assert stated == pytest.approx((lost / total) ** 0.5, rel=1e-4)


@torch.no_grad()
def test_biases_that_no_addition_reaches_count_as_lost(tmp_path: Path) -> None:
    config = tiny_config("qwen2", hidden_size=16, intermediate_size=24, num_hidden_layers=1, vocab_size=32)
    before, after = (tiny_model(config) for _ in range(2))
    after.model.layers[0].self_attn.q_proj.bias += 3.0
    assert write_difference(before, after, 16, tmp_path / "bias") == pytest.approx(1.0)
    after.model.layers[0].mlp.up_proj.weight[0, 0] += 4.0 * 4
    # Of 16 biases 3 above and one weight 16 above, the biases are lost.
    assert write_difference(before, after, 16, tmp_path / "both") == pytest.approx(12 / 20, rel=1e-4)


def test_what_cannot_be_compared_is_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    for base, rank, named in ((runs["full"].base, 0, "rank is 0"), ("embedded", 4, "other parameters")):
        with pytest.raises(ConfigError, match=named):
            low_rank_difference(base, runs["full"].folder, rank, tmp_path)

"""Norms and embeddings that are trained in a model in 16 bits: small steps are not lost, and the rest is as it was."""

from typing import Any

import pytest
import torch
from tiny_models import tiny_config, tiny_model
from torch import nn

from skipwise.config import LoraTuning
from skipwise.train.tuning import apply_tuning, merged
from skipwise.train.widening import _Widened

# The paper's.
RATE = 2e-5


def tuned(family: str, tied: bool, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model = tiny_model(tiny_config(family, tie_word_embeddings=tied), dtype=dtype).train()
    return apply_tuning(model, LoraTuning(rank=2, train_norms=True, train_embeddings=True))


def hooks(model: nn.Module) -> int:
    found = [(*m._forward_hooks.values(), *m._forward_pre_hooks.values()) for m in model.modules()]
    return sum(isinstance(getattr(hook, "__self__", None), _Widened) for each in found for hook in each)


def step(model: Any, autocast: bool) -> Any:
    ids = torch.randint(3, 90, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(input_ids=ids, labels=ids)


# Norms with a weight, with one more than it, and with a bias.
@pytest.mark.parametrize("family", ["llama", "gemma", "stablelm"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_steps_of_the_papers_rate_are_kept(family: str, tied: bool, autocast: bool) -> None:
    model = tuned(family, tied, torch.bfloat16)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    out = step(model, autocast)
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    optimizer.step()
    norms = [name for name in trained if "norm" in name and name.endswith("weight")]
    assert len(norms) == 5
    for name in norms:
        # Adam's first step is the rate, wherever there is a gradient.
        moved = (trained[name] - before[name]).abs()
        assert moved.median().item() == pytest.approx(RATE, rel=0.05), name


@pytest.mark.parametrize("autocast", [True, False])
def test_it_computes_what_a_model_in_32_bits_does_but_for_rounding(autocast: bool) -> None:
    narrow, wide = tuned("llama", False, torch.bfloat16), tuned("llama", False, torch.float32)
    assert hooks(wide) == 0
    wide.load_state_dict({name: value.float() for name, value in narrow.state_dict().items()})
    losses = []
    for model in (narrow, wide):
        out = step(model, autocast)
        out.loss.backward()
        losses.append(out.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    others = dict(wide.named_parameters())
    for name, p in narrow.named_parameters():
        if p.requires_grad and others[name].grad.norm() > 1e-4:
            assert nn.functional.cosine_similarity(p.grad.flatten(), others[name].grad.flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize("tied", [True, False])
def test_the_plain_model_is_in_16_bits_without_hooks(tied: bool) -> None:
    model = tuned("llama", tied, torch.bfloat16)
    assert hooks(model) == 2 * (5 + 2)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.01 * torch.randn_like(p))
    norm = model.base_model.model.model.norm.modules_to_save["default"].weight.detach().clone()
    before = step(model, autocast=False).logits
    plain: Any = merged(model)
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert hooks(plain) == 0
    assert torch.equal(plain.model.norm.weight, norm.bfloat16())
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tied
    assert torch.allclose(step(plain, autocast=False).logits.float(), before.float(), atol=0.02)

"""What is trained: only what makes text, by names that exist; and how much of it low-rank additions reach."""

import logging
from typing import Any

import pytest
import torch
from refusals import refused
from tiny_models import FAMILIES, family_config
from transformers import AutoModelForCausalLM

from skipwise.config import FullTuning, LoraTuning
from skipwise.errors import ConfigError
from skipwise.train.tuning import apply_tuning, check_tuning


def build(family: str, device: str = "cpu", **changes: Any) -> Any:
    with torch.device(device):
        return AutoModelForCausalLM.from_config(family_config(family, **changes))


def trained(model: Any) -> set[str]:
    return {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}


def is_text(name: str) -> bool:
    return name.startswith(("model.language_model.", "lm_head."))


def test_full_tuning_trains_all_that_makes_text_and_nothing_else() -> None:
    assert trained(apply_tuning(build("llama"), FullTuning())) == dict(build("llama").named_parameters()).keys()
    seeing = apply_tuning(build("gemma3"), FullTuning())
    names = dict(seeing.named_parameters()).keys()
    assert any("vision_tower" in name for name in names)
    assert any("multi_modal_projector" in name for name in names)
    assert trained(seeing) == {name for name in names if is_text(name)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"]])
def test_low_rank_additions_norms_and_embeddings_are_of_the_decoder(targets: list[str] | None, tied: bool) -> None:
    tuning = LoraTuning(rank=2, target_modules=targets, train_norms=True, train_embeddings=True)
    text = {**FAMILIES["gemma3"]["text_config"], "tie_word_embeddings": tied}
    names = trained(apply_tuning(build("gemma3", text_config=text, tie_word_embeddings=tied), tuning))
    assert all(is_text(name) for name in names)
    for word in ("q_proj.lora_A", "q_norm.modules_to_save", "embed_tokens.modules_to_save", "language_model.norm."):
        assert any(word in name for name in names), word
    assert any("lm_head" in name for name in names) == (not tied)
    assert any("o_proj.lora_A" in name for name in names) == (targets is None)


@pytest.mark.parametrize(
    ("family", "settings", "named"),
    [
        ("llama", {"target_modules": ["q_prj"]}, "tuning.target_modules.*'q_prj'.*'q_proj'.*o_proj"),
        ("llama", {"target_modules": ["q_proj", "down"]}, "tuning.target_modules.*'down'.*down_proj"),
        ("gemma3", {"target_modules": ["fc1"]}, "tuning.target_modules.*'fc1'.*gate_proj"),
        ("gemma3", {"target_modules": ["q_proj", "fc1"]}, "tuning.target_modules.*'fc1'.*gate_proj"),
        ("mixtral", {"target_modules": ["q_proj", "w7"]}, "tuning.target_modules.*'w7'.*k_proj"),
        ("mixtral", {"dropout": 0.1}, "'tuning'.*dropout"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_cannot_be_tuned_is_one_line(family: str, settings: dict[str, Any], named: str, device: str) -> None:
    with refused(ConfigError, named):
        apply_tuning(build(family, device), LoraTuning(rank=2, **settings))


@pytest.mark.parametrize(
    ("family", "targets", "share"),
    [
        ("llama", None, 1.0),
        # Queries are 64 x 64, keys and values 32 x 64, outputs 64 x 64, the three of the network 48 x 64.
        ("llama", ["q_proj"], 64 / (64 + 32 + 32 + 64 + 3 * 48)),
        ("gemma3", None, 1.0),
        ("mixtral", ["q_proj"], 64 / (64 + 32 + 32 + 64 + 4 + 4 * 3 * 48)),
        ("mixtral", ["w1", "w2", "w3"], 4 * 3 * 48 / (64 + 32 + 32 + 64 + 4 + 4 * 3 * 48)),
    ],
)
def test_the_share_of_the_weights_that_additions_reach_is_told(
    family: str, targets: list[str] | None, share: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="skipwise"):
        check_tuning(build(family, "meta"), LoraTuning(rank=2, target_modules=targets))
    assert f"LoRA of rank 2 covers {share:.0%} of the weights" in caplog.text

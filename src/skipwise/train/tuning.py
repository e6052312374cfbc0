"""Which parameters are trained: all, or low-rank additions with norms and embeddings as an option.

In a model that also sees or hears, only what makes text is trained. Its towers get no input here, so no gradient would
reach additions to them, for which every process of a parallel run would wait.
"""

import contextlib
import logging
import re
import sys
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import nn
from transformers import PreTrainedModel

from skipwise.config import FullTuning, LoraTuning, QloraTuning, Tuning
from skipwise.errors import ConfigError
from skipwise.imports import without_four_bits
from skipwise.names import did_you_mean
from skipwise.train.widening import narrow_again, widen_trained

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

logger = logging.getLogger("skipwise")


def is_adapted(model: Any) -> "TypeGuard[PeftModel]":
    """Whether a model has low-rank additions; False if peft is not loaded."""
    return "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel)


def is_lora_layer(module: nn.Module) -> "TypeGuard[LoraLayer]":
    """Whether a module is a layer with low-rank additions."""
    return "peft" in sys.modules and isinstance(module, sys.modules["peft"].tuners.lora.LoraLayer)


def apply_tuning(model: PreTrainedModel, tuning: Tuning) -> "PreTrainedModel | PeftModel":
    """Prepares a model for training.

    Args:
        model: a causal language model, quantized or not; low-rank additions change it in place (`merged` undoes that).
        tuning: what is trained.

    Returns:
        The model itself, or peft's model around it, whose additions are in float32 whatever its dtype.

    Raises:
        ConfigError: the model has no linear layer of a given name, or takes no such additions.
    """
    model.requires_grad_(False)
    if isinstance(tuning, FullTuning):
        for part in _text_parts(model):
            part.requires_grad_(True)
        return model
    in_full = []
    if tuning.train_norms:
        in_full += [name for name, module in _text_modules(model) if "Norm" in type(module).__name__]
    if tuning.train_embeddings:
        ends = _embeddings(model)
        in_full += [name for name, module in _text_modules(model) if any(module is end for end in ends)]
    towers = [re.escape(name) for name in _tower_names(model)]
    linear = [name for name, module in _text_modules(model) if isinstance(module, nn.Linear)]
    with _quiet_peft():
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=tuning.rank,
            lora_alpha=tuning.alpha or 2 * tuning.rank,  # pyright: ignore[reportArgumentType]
            lora_dropout=tuning.dropout,
            target_modules=tuning.target_modules or "all-linear",
            exclude_modules=rf"({'|'.join(towers)})(\..*)?" if towers else None,
            modules_to_save=in_full or None,
            ensure_weight_tying=tuning.train_embeddings and model.config.get_text_config().tie_word_embeddings,
        )
        # A warning about ranks that peft itself sets for experts joined into one tensor.
        warnings.filterwarnings("ignore", message=r".*(rank|alpha)_pattern keys did not match", category=RuntimeWarning)
        try:
            tuned: Any = get_peft_model(model, lora)
        except ValueError as error:
            _require_found(tuning.target_modules or [], linear, linear)
            reason = " ".join(str(error).split())
            raise ConfigError(f"setting 'tuning' cannot be used on this model: {reason}") from error
    if tuning.target_modules:
        # peft translates the names of experts that transformers joins into one tensor.
        _require_found(tuned.peft_config["default"].target_modules, tuned.base_model.targeted_module_names, linear)
    widen_trained(tuned)
    return tuned


def load_additions(model: PreTrainedModel, folder: str | Path) -> "PeftModel":
    """Adds saved low-rank additions to a model, which is changed in place.

    Raises:
        OSError, ValueError, RuntimeError, KeyError: the additions cannot be read, or belong to another model.
    """
    with _quiet_peft():
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(folder))


def restore_additions(model: Any, folder: str | Path) -> None:
    """Gives the low-rank additions of a model the values that were saved, in place.

    Raises:
        OSError, ValueError, RuntimeError, KeyError: the additions cannot be read, or belong to another model.
    """
    with _quiet_peft():
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


@contextlib.contextmanager
def _quiet_peft() -> Iterator[None]:
    """peft without bitsandbytes, and without the warning about a property that transformers 5 renamed."""
    with without_four_bits(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def check_tuning(skeleton: PreTrainedModel, tuning: LoraTuning | QloraTuning) -> None:
    """Tries low-rank additions on a model without weights, and logs the share of the weights that they reach.

    Args:
        skeleton: the model on the meta device; it is changed in place.
        tuning: what is trained.

    Raises:
        ConfigError: as `apply_tuning`.
    """
    # By parameter, because a tied head is a module of its own.
    embeddings = {parameter for end in _embeddings(skeleton) for parameter in end.parameters()}
    sizes = {
        f"{module_name}.{name}": parameter.numel()
        for module_name, module in _text_modules(skeleton)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1 and parameter not in embeddings
    }
    tuned: Any = apply_tuning(skeleton, tuning)
    reached = {f"{name}.weight" for name in tuned.base_model.targeted_module_names}
    reached.update(tuned.base_model.targeted_parameter_names)
    share = sum(size for name, size in sizes.items() if name in reached) / sum(sizes.values())
    logger.info(f"LoRA of rank {tuning.rank} covers {share:.0%} of the weights outside the embeddings")


def merged(model: Any) -> PreTrainedModel:
    """The plain model, with low-rank additions, if it has any, merged into its weights."""
    if is_adapted(model):
        inner: Any = model.merge_and_unload()
        narrow_again(inner)
        return inner
    return model


def _embeddings(model: PreTrainedModel) -> list[nn.Module]:
    """Embeddings and head; only the embeddings if the head shares their weights."""
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    return [inputs] if head is None or model.config.get_text_config().tie_word_embeddings else [inputs, head]


def _text_parts(model: PreTrainedModel) -> list[nn.Module]:
    """What makes text: the whole model, or decoder, embeddings and head of one that also sees or hears."""
    decoder: nn.Module = model.get_decoder()
    return [model] if decoder is model.base_model else [decoder, *_embeddings(model)]


def _text_modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """All modules of `_text_parts` by their names in the model."""
    inside = {module for part in _text_parts(model) for module in part.modules()}
    return [(name, module) for name, module in model.named_modules() if module in inside]


def _tower_names(model: PreTrainedModel) -> list[str]:
    """The outermost modules without any part that makes text."""
    text = {module for _, module in _text_modules(model)}
    towers: list[str] = []
    for name, module in model.named_modules():
        if text.isdisjoint(module.modules()) and not name.startswith(tuple(f"{tower}." for tower in towers)):
            towers.append(name)
    return towers


def _require_found(targets: Collection[str], names: Collection[str], linear: Collection[str]) -> None:
    """Refuses targets that no name ends with, and lists the linear layers there are."""
    ends = {f".{name}"[-len(target) - 1 :] for name in names for target in targets}
    if absent := sorted(target for target in targets if f".{target}" not in ends):
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise ConfigError(
            f"setting 'tuning.target_modules' has {absent[0]!r}, and no linear layer of the model's decoder has that "
            f"name; {did_you_mean(absent[0], known)}known: {', '.join(known)}"
        )

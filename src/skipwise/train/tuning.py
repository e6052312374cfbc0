"""Which parameters are trained: all, or low-rank additions with norms and embeddings as an option."""

import warnings
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from skipwise.config import FullTuning, LoraTuning


def apply_tuning(model: PreTrainedModel, tuning: FullTuning | LoraTuning) -> PreTrainedModel | PeftModel:
    """Readies a model for training.

    Args:
        model: a causal language model; with LoRA it is changed in place, and `merged` changes it back.
        tuning: what is to be trained.

    Returns:
        The model itself, or the model with low-rank additions around it.
    """
    model.requires_grad_(isinstance(tuning, FullTuning))
    if isinstance(tuning, FullTuning):
        return model
    in_full = _norm_names(model) if tuning.train_norms else []
    if tuning.train_embeddings:
        in_full += _embedding_names(model)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.rank,
        lora_alpha=tuning.alpha or 2 * tuning.rank,  # pyright: ignore[reportArgumentType]
        lora_dropout=tuning.dropout,
        target_modules=tuning.target_modules or "all-linear",
        modules_to_save=in_full or None,
        ensure_weight_tying=tuning.train_embeddings and model.config.get_text_config().tie_word_embeddings,
    )
    with warnings.catch_warnings():
        # peft reads a property that later releases of transformers 5 renamed.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, lora)


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The plain model, with low-rank additions added to the weights they belong to."""
    if isinstance(model, PeftModel):
        inner: Any = model.merge_and_unload()
        return inner
    return model


def _norm_names(model: PreTrainedModel) -> list[str]:
    """Last names of the modules that normalize: `input_layernorm`, `norm`, `ln_f`, whatever this model calls them."""
    return sorted(
        {name.rpartition(".")[2] for name, module in model.named_modules() if "Norm" in type(module).__name__}
    )


def _embedding_names(model: PreTrainedModel) -> list[str]:
    ends: list[Any] = [model.get_input_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings:
        ends.append(model.get_output_embeddings())
    return [name.rpartition(".")[2] for name, module in model.named_modules() if any(module is end for end in ends)]

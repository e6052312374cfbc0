"""Models: load them with an interpolation, read the rotary tables they use, and save them so that every reader works.

This is the only package of skipwise that uses the model classes of the transformers library. It works with every family
that keeps its rotary settings in the config. Only GPT-J and Baichuan are named: they are converted to other families.

The interpolation goes into the config *before* the model is built. A built model keeps its rotary tables whatever its
config says later. Some attention modules (DeepSeek) also read their scale from the rope config only when they are
built. `with_rope` therefore builds a new model around the same parameters.
"""

from typing import TYPE_CHECKING

from skipwise.imports import lazily

if TYPE_CHECKING:
    from skipwise.model._transformers import attention_of, set_attention
    from skipwise.model.extend import (
        built_around,
        longest_input,
        original_window,
        rope_state,
        scaled_by,
        with_rope,
        with_scaled_attention,
    )
    from skipwise.model.load import (
        LoadedModel,
        check_loads_in_four_bits,
        load_model,
        read_config,
        without_weights,
    )
    from skipwise.model.place import named_path, path_beside
    from skipwise.model.quantized import (
        FourBits,
        check_read_as_stored,
        dequantized,
        four_bit_layers,
        four_bits,
        is_four_bit,
    )
    from skipwise.model.rotary import rotary_tables
    from skipwise.model.save import save_attention_scale, save_config, save_model, share_weights
    from skipwise.model.saved import check_saved
    from skipwise.model.source import portability_note
    from skipwise.model.stored import StoredWeights, check_trainable, stored_weights
    from skipwise.model.tokenizer import embedding_rows, read_tokenizer
    from skipwise.model.unpack import unpack_checkpoint

_HOMES = {
    "FourBits": "quantized",
    "LoadedModel": "load",
    "StoredWeights": "stored",
    "attention_of": "_transformers",
    "built_around": "extend",
    "check_loads_in_four_bits": "load",
    "check_read_as_stored": "quantized",
    "check_saved": "saved",
    "check_trainable": "stored",
    "dequantized": "quantized",
    "embedding_rows": "tokenizer",
    "four_bit_layers": "quantized",
    "four_bits": "quantized",
    "is_four_bit": "quantized",
    "load_model": "load",
    "longest_input": "extend",
    "named_path": "place",
    "original_window": "extend",
    "path_beside": "place",
    "portability_note": "source",
    "read_config": "load",
    "read_tokenizer": "tokenizer",
    "rope_state": "extend",
    "rotary_tables": "rotary",
    "scaled_by": "extend",
    "save_attention_scale": "save",
    "save_config": "save",
    "save_model": "save",
    "set_attention": "_transformers",
    "share_weights": "save",
    "stored_weights": "stored",
    "unpack_checkpoint": "unpack",
    "with_rope": "extend",
    "with_scaled_attention": "extend",
    "without_weights": "load",
}

__all__ = [
    "FourBits",
    "LoadedModel",
    "StoredWeights",
    "attention_of",
    "built_around",
    "check_loads_in_four_bits",
    "check_read_as_stored",
    "check_saved",
    "check_trainable",
    "dequantized",
    "embedding_rows",
    "four_bit_layers",
    "four_bits",
    "is_four_bit",
    "load_model",
    "longest_input",
    "named_path",
    "original_window",
    "path_beside",
    "portability_note",
    "read_config",
    "read_tokenizer",
    "rope_state",
    "rotary_tables",
    "save_attention_scale",
    "save_config",
    "save_model",
    "scaled_by",
    "set_attention",
    "share_weights",
    "stored_weights",
    "unpack_checkpoint",
    "with_rope",
    "with_scaled_attention",
    "without_weights",
]

__getattr__ = lazily(__name__, _HOMES)

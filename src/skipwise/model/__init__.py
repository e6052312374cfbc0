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
    from skipwise.model.eight_bits import Weights, check_weights, hold_in_eight_bits
    from skipwise.model.extend import (
        built_around,
        longest_input,
        original_window,
        put_tensor,
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
    from skipwise.model.save import save_attention_scale, save_config, save_in_parts, save_model, share_weights
    from skipwise.model.saved import check_saved, first_layers
    from skipwise.model.shards import apart, empty_twin, reads_rows
    from skipwise.model.slice import Slice, extent_of_slice, load_slice
    from skipwise.model.source import portability_note
    from skipwise.model.stored import StoredWeights, check_trainable, stored_weights
    from skipwise.model.tokenizer import embedding_rows, read_tokenizer
    from skipwise.model.unpack import unpack_checkpoint

_NAMES_OF_MODULES = {
    "_transformers": "attention_of set_attention",
    "eight_bits": "check_weights hold_in_eight_bits Weights",
    "extend": "built_around longest_input original_window put_tensor rope_state scaled_by with_rope "
    "with_scaled_attention",
    "load": "check_loads_in_four_bits load_model LoadedModel read_config without_weights",
    "place": "named_path path_beside",
    "quantized": "check_read_as_stored dequantized four_bit_layers four_bits FourBits is_four_bit",
    "rotary": "rotary_tables",
    "save": "save_attention_scale save_config save_in_parts save_model share_weights",
    "saved": "check_saved first_layers",
    "shards": "apart empty_twin reads_rows",
    "slice": "extent_of_slice load_slice Slice",
    "source": "portability_note",
    "stored": "check_trainable stored_weights StoredWeights",
    "tokenizer": "embedding_rows read_tokenizer",
    "unpack": "unpack_checkpoint",
}

__all__ = [
    "FourBits",
    "LoadedModel",
    "Slice",
    "StoredWeights",
    "Weights",
    "apart",
    "attention_of",
    "built_around",
    "check_loads_in_four_bits",
    "check_read_as_stored",
    "check_saved",
    "check_trainable",
    "check_weights",
    "dequantized",
    "embedding_rows",
    "empty_twin",
    "extent_of_slice",
    "first_layers",
    "four_bit_layers",
    "four_bits",
    "hold_in_eight_bits",
    "is_four_bit",
    "load_model",
    "load_slice",
    "longest_input",
    "named_path",
    "original_window",
    "path_beside",
    "portability_note",
    "put_tensor",
    "read_config",
    "read_tokenizer",
    "reads_rows",
    "rope_state",
    "rotary_tables",
    "save_attention_scale",
    "save_config",
    "save_in_parts",
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

__getattr__ = lazily(__name__, {name: module for module, names in _NAMES_OF_MODULES.items() for name in names.split()})

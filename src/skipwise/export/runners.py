"""Run models for the comparison: with transformers, llama.cpp, or a GGUF file with transformers' GGUF reader."""

import ctypes
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from skipwise.doctor.bench import LOCAL_LAYERS
from skipwise.errors import CheckpointError, ConfigError
from skipwise.export.gguf import GgufContent, read_gguf
from skipwise.export.gguf_rope import llama_cpp_table
from skipwise.export.gguf_tokenizer import set_splits
from skipwise.model import rotary_tables
from skipwise.model.rotary import text_config
from skipwise.model.source import quiet_transformers
from skipwise.rope import RopeTable
from skipwise.runtime.forward import logit_pieces

ENGINES = ("llama.cpp", "transformers")
"""Engines that can run a GGUF file."""

_BATCH = 512


class Runner(Protocol):
    """A model and tokenizer that can be compared: logits, rotary tables and token ids."""

    name: str

    def logits(self, ids: Sequence[int], last: int) -> np.ndarray:
        """Logits of the last tokens of a prompt: float32 (last, vocabulary). The prompt begins at position 0."""
        ...

    def tables(self, context: int) -> dict[str, RopeTable]:
        """Rotary tables for an input of `context` tokens: `global`, and `local` for layers with their own base."""
        ...

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a text, including the special tokens that the tokenizer adds."""
        ...

    def close(self) -> None:
        """Frees what only llama.cpp holds."""
        ...


class TransformersRunner:
    """A model of the transformers library, in float32.

    Args:
        model: in evaluation mode; it may have an adapter.
        tokenizer: the model's tokenizer.
        name: name of the runner in the output.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "transformers") -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name

    def logits(self, ids: Sequence[int], last: int) -> np.ndarray:
        """See `Runner`. The prompt is processed in pieces, as llama.cpp does."""
        first = len(ids) - last
        pieces = logit_pieces(self.model, torch.tensor([list(ids)]), first, chunk_tokens=_BATCH, where=self.name)
        return torch.cat([logits[0].cpu() for _, logits in pieces]).numpy()

    @torch.no_grad()
    def tables(self, context: int) -> dict[str, RopeTable]:
        """See `Runner`. A token at the last position is run first, to set tables that depend on the length."""
        last = torch.tensor([[context - 1]], device=self.model.device)
        self.model(input_ids=torch.zeros_like(last), position_ids=last)
        found = rotary_tables(self.model)
        return {"local" if path.endswith(LOCAL_LAYERS) else "global": table for path, table in found.items()}

    def token_ids(self, text: str) -> list[int]:
        """See `Runner`."""
        return self.tokenizer(text, verbose=False)["input_ids"]

    def close(self) -> None:
        """See `Runner`."""


class ImitatedRunner(TransformersRunner):
    """A model that imitates llama.cpp's rounding: of the inputs of linear layers, and of GELU, which is a lookup table.

    Args:
        model: in evaluation mode.
        tokenizer: the model's tokenizer.
        dtype: key of `gguf.DTYPES`, the format of the matrices.
    """

    def __init__(self, model: Any, tokenizer: Any, dtype: str) -> None:
        super().__init__(model, tokenizer, f"transformers, rounding as llama.cpp in {dtype}")
        self._round = _ROUNDINGS[dtype]

    def logits(self, ids: Sequence[int], last: int) -> np.ndarray:
        """See `Runner`."""
        hooks = []
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                hooks.append(module.register_forward_pre_hook(lambda _, given: (self._round(given[0]), *given[1:])))
            if "GELU" in type(module).__name__:
                hooks.append(module.register_forward_pre_hook(lambda _, given: (_half(given[0]), *given[1:])))
                hooks.append(module.register_forward_hook(lambda *made: _half(made[-1])))
        try:
            return super().logits(ids, last)
        finally:
            for hook in hooks:
                hook.remove()


def _half(numbers: Tensor) -> Tensor:
    return numbers.half().float()


def _in_blocks(numbers: Tensor) -> Tensor:
    """Rounds to Q8_0: blocks of 32 with 8 bits per value and a 16-bit scale. Rows not divisible by 32 become F16."""
    if numbers.shape[-1] % 32:
        return _half(numbers)
    blocks = numbers.unflatten(-1, (-1, 32))
    scale = _half(blocks.abs().amax(-1, keepdim=True) / 127)
    return (torch.round(blocks / scale.clamp(min=1e-30)) * scale).flatten(-2)


_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "f32": lambda numbers: numbers,
    "f16": _half,
    "bf16": lambda numbers: numbers.bfloat16().float(),
    "q8_0": _in_blocks,
}


@functools.cache
def _silence_llama_cpp() -> Any:
    """Gives llama.cpp a log callback that prints nothing. It is cached, because llama.cpp may call it at any time."""
    import llama_cpp  # pyright: ignore[reportMissingImports]

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    return quiet


class LlamaCppRunner:
    """A GGUF file run by llama.cpp, with a float32 KV cache.

    Args:
        path: the file.

    Raises:
        CheckpointError: llama.cpp does not load the file.
    """

    def __init__(self, path: Path) -> None:
        import llama_cpp  # pyright: ignore[reportMissingImports]

        self._api: Any = llama_cpp
        self.name = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
        _silence_llama_cpp()
        llama_cpp.llama_backend_init()
        model_settings = llama_cpp.llama_model_default_params()
        model_settings.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_settings)
        if not self._model:
            raise CheckpointError(f"llama.cpp cannot load {path.name!r}; see why with: llama-cli -m {path.name}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._content = read_gguf(path)

    def _new_context(self, tokens: int) -> Any:
        settings = self._api.llama_context_default_params()
        settings.n_ctx = tokens
        settings.n_batch = settings.n_ubatch = min(_BATCH, tokens)
        settings.type_k = settings.type_v = self._api.GGML_TYPE_F32
        settings.flash_attn_type = self._api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.swa_full = True
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        made = self._api.llama_init_from_model(self._model, settings)
        if not made:
            raise CheckpointError(
                f"llama.cpp cannot create a context of {tokens} tokens; it may be out of memory", page="out-of-memory"
            )
        return made

    def close(self) -> None:
        """See `Runner`."""
        self._api.llama_model_free(self._model)

    def tables(self, context: int) -> dict[str, RopeTable]:
        """See `Runner`. llama.cpp does not expose its tables, so they are computed from the file with its formulas."""
        return tables_of(self._content, context)

    def logits(self, ids: Sequence[int], last: int) -> np.ndarray:
        """See `Runner`."""
        # The context has the prompt's length, because the context size decides between LongRoPE's lists.
        context = self._new_context(len(ids))
        try:
            return self._decode(context, ids, last)
        finally:
            self._api.llama_free(context)

    def _decode(self, context: Any, ids: Sequence[int], last: int) -> np.ndarray:
        api, size = self._api, self._api.llama_vocab_n_tokens(self._vocab)
        found = []
        for start in range(0, len(ids), _BATCH):
            piece = ids[start : start + _BATCH]
            batch = api.llama_batch_init(len(piece), 0, 1)
            try:
                batch.n_tokens = len(piece)
                for i, token in enumerate(piece):
                    batch.token[i], batch.pos[i] = int(token), start + i
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                    batch.logits[i] = start + i >= len(ids) - last
                if (status := api.llama_decode(context, batch)) != 0:
                    raise CheckpointError(f"llama.cpp cannot run a prompt of {len(ids)} tokens (status {status})")
                for i in range(len(piece)):
                    if batch.logits[i]:
                        row = api.llama_get_logits_ith(context, i)
                        found.append(np.ctypeslib.as_array(row, shape=(size,)).copy())
            finally:
                api.llama_batch_free(batch)
        return np.stack(found)

    def token_ids(self, text: str) -> list[int]:
        """See `Runner`."""
        given = text.encode()
        room = len(given) + 8
        out = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocab, given, len(given), out, room, True, True)
        return list(out[:count])


def gguf_runner(path: Path, like: PreTrainedModel, engine: str | None = None) -> Runner:
    """A runner for a GGUF file.

    Args:
        path: the file.
        like: the model that it was written from, for settings that transformers' GGUF reader does not read.
        engine: `llama.cpp` or `transformers`; None for llama.cpp if it is installed, else transformers.

    Raises:
        ConfigError: llama.cpp is requested but not installed, or neither engine can run the file.
        CheckpointError: llama.cpp cannot load the file.
    """
    installed = importlib.util.find_spec("llama_cpp") is not None
    if engine == "llama.cpp" and not installed:
        raise ConfigError(
            "llama-cpp-python is not installed; run: pip install 'skipwise[llama-cpp]' (it compiles for minutes)",
            page="missing-extra",
        )
    if installed and engine != "transformers":
        return LlamaCppRunner(path)
    return _by_transformers(path, like)


class _GgufByTransformers(TransformersRunner):
    """A GGUF file, with weights and tokenizer loaded by transformers' GGUF reader.

    The reader ignores rope scaling, so the rotary tables are computed from the metadata with llama.cpp's formulas.
    """

    def __init__(self, model: Any, tokenizer: Any, content: GgufContent) -> None:
        super().__init__(model, tokenizer, "transformers' GGUF reader, with rotary tables by llama.cpp's formulas")
        self._content = content

    def tables(self, context: int) -> dict[str, RopeTable]:
        """See `Runner`."""
        return tables_of(self._content, context)

    def logits(self, ids: Sequence[int], last: int) -> np.ndarray:
        """See `Runner`."""
        install_tables(self.model, self.tables(len(ids)))
        return super().logits(ids, last)


def _by_transformers(path: Path, like: PreTrainedModel) -> TransformersRunner:
    content = read_gguf(path)
    place = {"gguf_file": path.name}
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(str(path.parent), **place)
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"transformers' GGUF reader does not support {content.architecture!r}; install llama.cpp, which does: "
                "pip install 'skipwise[llama-cpp]'",
                page="missing-extra",
            ) from error
        read = config.to_dict()
        # Keep the reader's config class: it reads Mistral's files as Llama's, which is equivalent.
        settings = {name: value for name, value in text_config(like.config).to_dict().items() if name not in _OWN}
        settings |= {name: read[name] for name in _READ if name in read}
        config = type(config).from_dict(settings)
        plain = GgufConfig(dequantize=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(path.parent), config=config, dtype=torch.float32, quantization_config=plain, **place
        )
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **place)
    set_splits(tokenizer, path)
    return _GgufByTransformers(model.eval(), tokenizer, content)


# Settings of the reader's own config class, and those that it takes from the file.
_OWN = ("model_type", "architectures", "transformers_version")
_READ = (
    *("max_position_embeddings", "num_hidden_layers", "intermediate_size", "hidden_size", "num_attention_heads"),
    *("num_key_value_heads", "rms_norm_eps", "vocab_size", "tie_word_embeddings", "sliding_window"),
)


def install_tables(model: Any, tables: Mapping[str, RopeTable]) -> None:
    """Replaces the rotary tables of a transformers model by the given `global` and `local` tables."""
    for path in rotary_tables(model):
        module_path, _, kind = path.rpartition(".") if path.endswith("_attention") else (path, "", "")
        module, prefix = model.get_submodule(module_path), f"{kind}_" if kind else ""
        table = tables["local" if kind == LOCAL_LAYERS[0] else "global"]
        for name in ("inv_freq", "original_inv_freq"):
            if hasattr(module, prefix + name):
                setattr(module, prefix + name, torch.from_numpy(table.inv_freq).float())
        setattr(module, f"{prefix}attention_scaling", table.attention_factor)
        # Types whose table depends on the length would recompute it from the config.
        types = getattr(module, "rope_type", None)
        module.rope_type = dict.fromkeys(types, "default") if isinstance(types, dict) else "default"


def tables_of(content: GgufContent, context: int) -> dict[str, RopeTable]:
    """Rotary tables of a file by llama.cpp's formulas: `global`, and `local` for layers with their own base."""
    entries, rotary_dim = content.entries, content.entries["rope.dimension_count"]
    found = {"global": llama_cpp_table(entries, content.divisors, rotary_dim, context)}
    if (base := entries.get("rope.freq_base_swa")) is not None:
        shared = {key: value for key, value in entries.items() if key == "rope.scaling.attn_factor"}
        local = {"rope.freq_base": base, "rope.scaling.type": "none", **shared}
        found["local"] = llama_cpp_table(local, {}, rotary_dim)
    return found

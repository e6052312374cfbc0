"""Kinds of KV cache: the model's own type, 8 or 4 bits, on the host, or of a fixed size.

Layers with a limited reach (sliding windows) hold their window in every kind. The kinds differ in how layers that see
everything are kept.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache, DynamicLayer

from skipwise.errors import ConfigError
from skipwise.names import did_you_mean
from skipwise.runtime.attention import sees_everything
from skipwise.runtime.room_cache import RoomCache, RoomLayer

BLOCK_TOKENS = 64
"""Tokens that are rounded together in caches of few bits."""


def cache_name(model: Any) -> str:
    """Name of the argument of a model's forward that takes the cache: `cache` from transformers 5.24 on.

    An earlier library and a checkpoint's own code call it `past_key_values`.
    """
    return "cache" if "cache" in _forward_arguments(type(model)) else "past_key_values"


@lru_cache
def _forward_arguments(of: type) -> frozenset[str]:
    return frozenset(inspect.signature(of.forward).parameters)


def empty_cache(model: Any, num_rows: int, num_columns: int) -> Cache:
    """An empty cache for `num_rows` of at most `num_columns` tokens, allocated at once if the layers allow it."""
    return RoomCache(model, num_rows, num_columns) if sees_everything(model) else DynamicCache(config=model.config)


def make_cache(kind: str, model: Any, total_tokens: int) -> Cache:
    """An empty cache for one request of at most `total_tokens`; `kind` is one of `CACHES`.

    Raises:
        ConfigError: the kind is unknown, or not for this model or machine.
    """
    if kind not in CACHES:
        raise ConfigError(f"cache is {kind!r}; {did_you_mean(kind, CACHES)}give one of {', '.join(CACHES)}")
    return CACHES[kind](model, total_tokens)


def _dynamic(model: Any, total_tokens: int) -> Cache:
    # On an accelerator, memory that is not used yet may be missing elsewhere.
    has_room = model.device.type == "cpu" and sees_everything(model)
    return RoomCache(model, 1, None) if has_room else DynamicCache(config=model.config)


def _offloaded(model: Any, total_tokens: int) -> Cache:
    if model.device.type == "cpu":
        raise ConfigError(
            "cache is 'offloaded', which keeps it in the host's memory beside an accelerator, and this model runs on "
            "the CPU, where it is anyway; give dynamic, or quantized-8"
        )
    return DynamicCache(config=model.config, offloading=True)


def _quantized(bits: int) -> Callable[[Any, int], Cache]:
    def build(model: Any, total_tokens: int) -> Cache:
        layers: list[Any] = DynamicCache(config=model.config).layers
        layers = [GroupQuantizedLayer(bits) if type(layer) is DynamicLayer else layer for layer in layers]
        if not any(isinstance(layer, GroupQuantizedLayer) for layer in layers):
            raise ConfigError("this model has no layer whose cache grows with the prompt; give dynamic")
        return Cache(layers=layers)

    return build


class _Packed(NamedTuple):
    """Blocks of 64 tokens, each group of numbers rounded to steps above its smallest.

    Attributes:
        codes: uint8 (batch, heads, blocks, 64, parts, channels); of 4 bits, two to a byte, the even channel low.
        smallest, step: of each group, with 1 along the group.
        bits: 8 or 4.
    """

    codes: Tensor
    smallest: Tensor
    step: Tensor
    bits: int

    @classmethod
    def of(cls, tensor: Tensor, dim: int, bits: int) -> "_Packed":
        """Rounds whole blocks of (batch, heads, tokens, width), in groups along `dim` of the shape of `codes`."""
        width = tensor.shape[-1]
        numbers = tensor.unflatten(2, (-1, BLOCK_TOKENS)).unflatten(-1, (-1, 64 if width % 64 == 0 else width))
        smallest, largest = numbers.aminmax(dim=dim, keepdim=True)
        step = (largest - smallest) / (2**bits - 1)
        # In float32: a 16-bit type would round the difference itself to few bits.
        steps = (numbers.float() - smallest.float()) / step.float().clamp(min=torch.finfo(step.dtype).tiny)
        codes = steps.round().clamp(max=2**bits - 1).to(torch.uint8)
        if bits == 4:
            codes = codes[..., 0::2] | codes[..., 1::2] << 4
        return cls(codes, smallest, step, bits)

    def unpacked(self) -> Tensor:
        """The rounded numbers (batch, heads, tokens, width)."""
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
        return (codes * self.step + self.smallest).flatten(-2).flatten(2, 3)

    def followed_by(self, other: "_Packed") -> "_Packed":
        """These blocks and then those."""
        codes, smallest, step = (torch.cat(pair, dim=2) for pair in zip(self[:3], other[:3], strict=True))
        return _Packed(codes, smallest, step, self.bits)

    def first(self, blocks: int) -> "_Packed":
        """A copy of the first blocks, so that the others leave memory."""
        codes, smallest, step = (part[:, :, :blocks].clone() for part in self[:3])
        return _Packed(codes, smallest, step, self.bits)


class GroupQuantizedLayer(DynamicLayer):
    """Keys and values in integers of few bits, each token rounded once.

    Keys are grouped along the tokens, 64 of one channel, since channels differ in size far more than tokens do; values
    along the channels of a token, 64 or all. Each group has a smallest value and a step. The last tokens, fewer than
    64, stay as they are until their block is full. Rounded tokens are never rounded again, and more tokens are only
    appended; the transformers library's own layers (quanto, HQQ) round everything anew at each chunk of a prompt.

    Args:
        bits: 8 or 4.

    Source: KIVI (arXiv 2402.02750), section 3.2, for the grouping; with 8 and 4 bits here, not 2.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self._rounded_keys: _Packed | None = None
        self._rounded_values: _Packed | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values (batch, heads, n, width) and returns all of them, the last ones not rounded."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        rounded = self._rounded_tokens
        keys = _joined(self._rounded_keys, self.keys, key_states)
        values = _joined(self._rounded_values, self.values, value_states)
        self._rounded_keys, self.keys = self._kept(self._rounded_keys, keys[:, :, rounded:], 3)
        self._rounded_values, self.values = self._kept(self._rounded_values, values[:, :, rounded:], 5)
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens that it holds."""
        return self._rounded_tokens + (0 if self.keys is None else self.keys.shape[-2])

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens.

        Raises:
            ValueError: some of them share a block with tokens that stay, whose own numbers are gone.
        """
        keep = self.get_seq_length() + tokens_to_remove
        if keep < self._rounded_tokens:
            if keep % BLOCK_TOKENS:
                raise ValueError(f"a cache of {self.bits} bits is cropped to whole blocks of {BLOCK_TOKENS} tokens")
            self._rounded_keys, self._rounded_values = (
                packed.first(keep // BLOCK_TOKENS) if packed is not None and keep else None
                for packed in (self._rounded_keys, self._rounded_values)
            )
        recent = keep - self._rounded_tokens
        self.keys, self.values = self.keys[:, :, :recent], self.values[:, :, :recent]  # pyright: ignore[reportOptionalSubscript]

    def reset(self) -> None:
        """Forgets all tokens."""
        super().reset()
        self._rounded_keys = self._rounded_values = None

    @property
    def _rounded_tokens(self) -> int:
        return 0 if self._rounded_keys is None else self._rounded_keys.codes.shape[2] * BLOCK_TOKENS

    def _kept(self, packed: _Packed | None, recent: Tensor, dim: int) -> tuple[_Packed | None, Tensor]:
        """Rounds the full blocks among the recent tokens."""
        full = recent.shape[-2] // BLOCK_TOKENS * BLOCK_TOKENS
        if full:
            new = _Packed.of(recent[:, :, :full], dim, self.bits)
            packed = new if packed is None else packed.followed_by(new)
        # A copy: a slice would keep all that it is cut from in memory.
        return packed, recent[:, :, full:].clone()


def _joined(packed: _Packed | None, recent: Tensor | None, new: Tensor) -> Tensor:
    assert recent is not None
    return torch.cat([*([] if packed is None else [packed.unpacked()]), recent, new], dim=-2)


CACHES: dict[str, Callable[[Any, int], Cache]] = {
    "dynamic": _dynamic,
    "static": lambda model, total_tokens: StaticCache(config=model.config, max_cache_len=total_tokens),
    "quantized-8": _quantized(8),
    "quantized-4": _quantized(4),
    "offloaded": _offloaded,
}
"""By kind, a function that makes a cache for a model and a number of tokens."""


def can_rewind(cache: Cache) -> bool:
    """Whether a cache can be cut back to its first tokens: each layer holds all of them, in order."""
    return all(type(layer) in (DynamicLayer, GroupQuantizedLayer, RoomLayer) for layer in cache.layers)


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors that a cache of the transformers library holds, each counted once.

    A slice that a sliding layer keeps counts as its own size: the tensor it was cut from is gone two tokens later. Room
    for tokens to come does not count; on a CPU it takes no memory before it is written.
    """
    tensors = {id(tensor): tensor for layer in cache.layers for tensor in _tensors_in(vars(layer))}
    return sum(tensor.nbytes for tensor in tensors.values())


def _tensors_in(value: Any) -> Iterator[Tensor]:
    # Not a nested function that calls itself: that cycle would keep the cache until the garbage collector runs.
    if isinstance(value, Tensor):
        # Scalars are a layer's settings, such as the size of its window.
        if value.ndim > 1:
            yield value
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors_in(part)

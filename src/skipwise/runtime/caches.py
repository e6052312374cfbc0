"""Kinds of KV cache: numbers of the model's own type, 8 or 4 bit, on the host, or of a size made beforehand.

Layers of a limited reach (sliding windows) hold their window and no more in every kind; the kinds differ in how layers
that see everything are kept.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import BaseQuantizedLayer, Cache, DynamicLayer

from skipwise.errors import ConfigError
from skipwise.names import did_you_mean
from skipwise.runtime.attention import sees_everything
from skipwise.runtime.room_cache import RoomCache

BLOCK_TOKENS = 64
"""Tokens that are rounded together in caches of few bits."""


def empty_cache(model: Any, num_rows: int, num_columns: int) -> Cache:
    """An empty cache for `num_rows` of at most `num_columns` tokens: with room for all of them, where layers allow."""
    return RoomCache(model, num_rows, num_columns) if sees_everything(model) else DynamicCache(config=model.config)


def make_cache(kind: str, model: Any, total_tokens: int) -> Cache:
    """An empty cache for one request.

    Args:
        kind: one of `CACHES`.
        model: that will fill it.
        total_tokens: that it must hold at most.

    Raises:
        ConfigError: no such kind, or not for this model or machine.
    """
    if kind not in CACHES:
        raise ConfigError(f"cache is {kind!r}; {did_you_mean(kind, CACHES)}give one of {', '.join(CACHES)}")
    return CACHES[kind](model, total_tokens)


def _dynamic(model: Any, total_tokens: int) -> Cache:
    return DynamicCache(config=model.config)


def _static(model: Any, total_tokens: int) -> Cache:
    return StaticCache(config=model.config, max_cache_len=total_tokens)


def _offloaded(model: Any, total_tokens: int) -> Cache:
    if model.device.type == "cpu":
        raise ConfigError(
            "cache is 'offloaded', which keeps it in the host's memory beside an accelerator, and this model "
            "computes on the CPU, where it is there already; give dynamic, or quantized-8"
        )
    return DynamicCache(config=model.config, offloading=True)


def _quantized(bits: int) -> Callable[[Any, int], Cache]:
    """A kind whose layers that see everything hold integers."""

    def build(model: Any, total_tokens: int) -> Cache:
        layers: list[Any] = DynamicCache(config=model.config).layers
        layers = [GroupQuantizedLayer(bits) if type(layer) is DynamicLayer else layer for layer in layers]
        if not any(isinstance(layer, GroupQuantizedLayer) for layer in layers):
            raise ConfigError("this model has no layer whose cache grows with the prompt; give dynamic")
        return Cache(layers=layers)

    return build


class _Packed(NamedTuple):
    """Numbers in groups, each group rounded to steps above its smallest.

    Attributes:
        codes: uint8, of 4 bits two in one, the even one below; (batch, heads, blocks, ...).
        smallest: of each group, 1 long where the group is.
        step: likewise.
        bits: 8 or 4.
    """

    codes: Tensor
    smallest: Tensor
    step: Tensor
    bits: int

    @classmethod
    def of(cls, numbers: Tensor, dim: int, bits: int) -> "_Packed":
        """Rounds `numbers`, whose groups lie along `dim`; the last dimension is even."""
        smallest, largest = numbers.aminmax(dim=dim, keepdim=True)
        step = (largest - smallest) / (2**bits - 1)
        # In float32, as the difference itself would be rounded to few bits in a type of half the size.
        steps = (numbers.float() - smallest.float()) / step.float().clamp(min=torch.finfo(step.dtype).tiny)
        codes = steps.round().clamp(max=2**bits - 1).to(torch.uint8)
        if bits == 4:
            codes = codes[..., 0::2] | codes[..., 1::2] << 4
        return cls(codes, smallest, step, bits)

    def unpacked(self) -> Tensor:
        """The numbers, as far as they are known."""
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
        return codes * self.step + self.smallest

    def followed_by(self, other: "_Packed") -> "_Packed":
        """These blocks and then those."""
        codes, smallest, step = (torch.cat(pair, dim=2) for pair in zip(self[:3], other[:3], strict=True))
        return _Packed(codes, smallest, step, self.bits)

    def first(self, blocks: int) -> "_Packed":
        """The first blocks, without keeping the others in memory."""
        codes, smallest, step = (part[:, :, :blocks].clone() for part in self[:3])
        return _Packed(codes, smallest, step, self.bits)


class GroupQuantizedLayer(BaseQuantizedLayer):
    """Keys and values in integers of few bits, each token rounded once.

    Keys are grouped along the tokens, 64 of one channel, as channels differ in size far more than tokens do; values
    along the channels of a token, 64 or all. Each group has a smallest value and a step. The last tokens, fewer than
    64, stay as they are until their block is full. What is rounded is never rounded again, and more tokens are only
    appended: the transformers library's own layers (quanto, HQQ) round everything anew at each chunk of a prompt.

    Args:
        bits: 8 or 4.

    Source: KIVI (arXiv 2402.02750), section 3.2, for what is grouped by which; with 8 and 4 bits here, not 2.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self._quantized_keys: _Packed | None
        self._quantized_values: _Packed | None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends keys and values (batch, heads, n, width) and returns all of them, the last as they came."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.cumulative_length += key_states.shape[-2]
        keys = self._all(self._quantized_keys, self.keys, key_states)
        values = self._all(self._quantized_values, self.values, value_states)
        self._keep(keys[:, :, self._rounded_tokens :], values[:, :, self._rounded_tokens :])
        return keys, values

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens.

        Raises:
            ValueError: some of them share a block with tokens that stay, whose own numbers are gone.
        """
        keep = self.cumulative_length + tokens_to_remove
        if keep < self._rounded_tokens:
            if keep % BLOCK_TOKENS:
                raise ValueError(f"a cache of {self.bits} bit is cropped to whole blocks of {BLOCK_TOKENS} tokens")
            self._quantized_keys, self._quantized_values = (
                packed.first(keep // BLOCK_TOKENS) if packed is not None and keep else None
                for packed in (self._quantized_keys, self._quantized_values)
            )
        recent = keep - self._rounded_tokens
        self.keys, self.values = self.keys[:, :, :recent], self.values[:, :, :recent]  # pyright: ignore[reportOptionalSubscript]
        self.cumulative_length = keep

    @property
    def _rounded_tokens(self) -> int:
        return 0 if self._quantized_keys is None else self._quantized_keys.codes.shape[2] * BLOCK_TOKENS

    def _all(self, packed: "_Packed | None", recent: Tensor | None, new: Tensor) -> Tensor:
        assert recent is not None
        rounded = [] if packed is None else [self._dequantize(packed)]
        return torch.cat([*rounded, recent, new], dim=-2)

    def _keep(self, keys: Tensor, values: Tensor) -> None:
        """Rounds the full blocks among the recent tokens, and keeps the rest as they are."""
        full = keys.shape[-2] // BLOCK_TOKENS * BLOCK_TOKENS
        if full:
            for name, tensor, dim in (("_quantized_keys", keys, 3), ("_quantized_values", values, 5)):
                packed, before = self._quantize(tensor[:, :, :full], dim), getattr(self, name)
                setattr(self, name, packed if before is None else before.followed_by(packed))
        # Copies: slices would hold all that they are cut from.
        self.keys, self.values = keys[:, :, full:].clone(), values[:, :, full:].clone()

    def _quantize(self, tensor: Tensor, dim: int = 3) -> Any:
        """Rounds whole blocks of (batch, heads, tokens, width), seen as (batch, heads, blocks, 64, parts, channels)."""
        width = tensor.shape[-1]
        blocks = tensor.unflatten(2, (-1, BLOCK_TOKENS))
        return _Packed.of(blocks.unflatten(-1, (-1, 64 if width % 64 == 0 else width)), dim, self.bits)

    def _dequantize(self, q_tensor: _Packed) -> Any:
        return q_tensor.unpacked().flatten(-2).flatten(2, 3)


CACHES: dict[str, Callable[[Any, int], Cache]] = {
    "dynamic": _dynamic,
    "static": _static,
    "quantized-8": _quantized(8),
    "quantized-4": _quantized(4),
    "offloaded": _offloaded,
}
"""What makes a cache for a model and a number of tokens, by kind."""


def can_rewind(cache: Cache) -> bool:
    """Whether a cache can be cut back to its first tokens: each layer holds all of them, and in order."""
    return all(type(layer) in (DynamicLayer, GroupQuantizedLayer) for layer in cache.layers)


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors that a cache of the transformers library holds, each counted once.

    What a sliding layer keeps of a larger tensor counts, not that tensor, which is gone at the next token but one.
    """
    tensors = {id(tensor): tensor for layer in cache.layers for tensor in _tensors_in(vars(layer))}
    return sum(tensor.nbytes for tensor in tensors.values())


def _tensors_in(value: Any) -> Iterator[Tensor]:
    # No function inside another that calls itself: such a cycle would keep the cache until Python looks for garbage.
    if isinstance(value, Tensor):
        # Scalars are a layer's settings, as the size of its window.
        if value.ndim > 1:
            yield value
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors_in(part)

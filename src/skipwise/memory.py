"""Memory in bytes and compute in floating-point operations, from shapes alone.

Plain arithmetic over what `skipwise.plan` derives from a model. Hardware speeds and utilization are not part of it.

Symbols: T = tokens read, W = sliding window, n_q and n_kv = number of query heads and of key-value heads, d_k and
d_v = size of a key and of a value in one head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from skipwise.errors import ConfigError
from skipwise.names import did_you_mean

FLOAT32_BYTES = 4

SHARDINGS = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp": 3}
"""Ways to train on several processes, with the ZeRO stage of each."""

# bitsandbytes: block size of the weights, and of the scales in double quantization.
_BLOCK, _SCALES_BLOCK = 64, 256

# DeepSpeed's defaults (reduce_bucket_size, allgather_bucket_size, stage3_max_live_parameters), in 16-bit values.
_BUCKET, _LIVE_PARAMETERS = 5 * 10**8, 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Number of a model's parameters by kind; tied parameters count once.

    Attributes:
        embedding: token embeddings, including a tied head.
        head: output projection to logits; 0 if tied.
        attention: query, key, value and output projections.
        mlp: dense feed-forward layers, and shared experts, which process every token.
        experts: all routed experts.
        active_experts: the routed experts that process one token.
        norms: weights and biases of norms.
        other: routers and everything else.
    """

    embedding: int = 0
    head: int = 0
    attention: int = 0
    mlp: int = 0
    experts: int = 0
    active_experts: int = 0
    norms: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """All stored parameters."""
        return sum(getattr(self, field.name) for field in fields(self)) - self.active_experts

    @property
    def active_in_layers(self) -> int:
        """Parameters that process one token between the embedding and the head."""
        return self.total - self.embedding - self.head - self.experts + self.active_experts

    @property
    def head_multiplied(self) -> int:
        """Parameters of the product that turns a hidden state into logits."""
        return self.head or self.embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """Shape of one decoder layer's attention and cache.

    Attributes:
        query_heads: n_q.
        kv_heads: n_kv.
        key_dim: d_k, including the rotary part.
        value_dim: d_v.
        window_tokens: W, number of tokens that a query attends to, including its own; None for all earlier ones.
        latent_dim: values per token in the compressed cache of latent attention, including the rotary part; None if
            attention has no latent state.
        owns_cache: False for a layer that uses the cache of an earlier one.
    """

    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window_tokens: int | None = None
    latent_dim: int | None = None
    owns_cache: bool = True

    def cached_tokens(self, length_tokens: int) -> int:
        """Tokens in the cache after `length_tokens`; with a window W the next query attends to W - 1 earlier ones."""
        if self.window_tokens is None:
            return length_tokens
        return min(self.window_tokens - 1, length_tokens)

    def cached_values(self, *, latent: bool) -> int:
        """Cached values per token: `n_kv (d_k + d_v)`, or with `latent` the compressed state if there is one."""
        if not self.owns_cache:
            return 0
        if latent and self.latent_dim is not None:
            return self.latent_dim
        return self.kv_heads * (self.key_dim + self.value_dim)

    def attended_pairs(self, length_tokens: int) -> int:
        """Number of attended query-key pairs over `length_tokens` queries: `T (T + 1) / 2` without a window."""
        full = min(length_tokens, self.window_tokens or length_tokens)
        return full * (full + 1) // 2 + (length_tokens - full) * full


def four_bit_bytes(numbers: int, *, double_quant: bool = True) -> int:
    """Bytes of one weight tensor in 4 bits, in the layout of bitsandbytes.

        ceil(n / 2)                  two parameters per byte
        4 ceil(n / 64)               a float32 scale for each of the B blocks of 64; or, with double_quant,
        B + 4 ceil(B / 256) + 4      8-bit scales, a float32 scale for each 256 of these, and their mean
        64 (+ 1024)                  the code book of 16 float32 values (and that of the scales, 256), for each tensor

    Source: QLoRA (arXiv 2305.14314, section 3): 4.127 bits per parameter of a large tensor, 4.5 without double
        quantization.
    """
    blocks = -(-numbers // _BLOCK)
    scales = FLOAT32_BYTES * blocks
    if double_quant:
        scales = blocks + FLOAT32_BYTES * (-(-blocks // _SCALES_BLOCK) + 1 + 256)
    return -(-numbers // 2) + scales + 16 * FLOAT32_BYTES


def kv_cache_bytes(layers: Sequence[LayerShape], length_tokens: int, *, bits: float = 16, latent: bool = True) -> int:
    """Bytes of the KV cache after `length_tokens`.

        sum over layers of  min(W - 1, T) * n_kv * (d_k + d_v) * bits / 8

    With `latent`, the engine caches the compressed state of latent attention, as vLLM and transformers do.

    Source: DeepSeek-V2 (arXiv 2405.04434, section 2.1, table 1) compares the plain and the latent case.
    """
    values = sum(layer.cached_tokens(length_tokens) * layer.cached_values(latent=latent) for layer in layers)
    return round(values * bits / 8)


def prefill_flops(counts: ParameterCounts, layers: Sequence[LayerShape], length_tokens: int) -> int:
    """Operations to prefill `length_tokens` and to compute the logits of the last token.

        2 P T + sum over layers of  2 pairs n_q (d_k + d_v), and 2 operations per parameter of the head

    P is the number of active parameters in the layers. Without windows the sum is `2 T^2 n_q d L` for L layers with
    `d_k = d_v = d`: half of full, non-causal attention.
    """
    return (
        2 * counts.active_in_layers * length_tokens
        + 2 * counts.head_multiplied
        + sum(2 * layer.attended_pairs(length_tokens) * _per_pair(layer) for layer in layers)
    )


def training_flops(
    counts: ParameterCounts,
    layers: Sequence[LayerShape],
    window_tokens: int,
    *,
    checkpointing: bool,
    frozen: bool = False,
) -> int:
    """Operations of one window, forward and backward: those of three forward passes, or four with recomputation.

    Logits of every position are counted. The head is never recomputed; skipwise computes its gradient in the forward
    pass.
    `frozen` weights save the pass for their gradients; attention has no weights, so it saves nothing. Low-rank adapters
    are not counted.
    """
    weights = 2 * counts.active_in_layers * window_tokens
    attention = sum(2 * layer.attended_pairs(window_tokens) * _per_pair(layer) for layer in layers)
    head = 2 * counts.head_multiplied * window_tokens
    passes, again = (2 if frozen else 3), (1 if checkpointing else 0)
    return (passes + again) * weights + (3 + again) * attention + passes * head


def decode_bytes(
    counts: ParameterCounts,
    layers: Sequence[LayerShape],
    length_tokens: int,
    *,
    requests: int = 1,
    weight_bits: float = 16,
    kv_bits: float = 16,
    latent: bool = True,
    cache_copies: float = 1.0,
) -> int:
    """Bytes read in one decoding step for `requests` requests: the active weights once, and every cache.

    Requests are assumed to use different experts, so `requests` times the active experts are read, up to all of them. A
    layer that uses an earlier layer's cache reads it again.
    `cache_copies` is the number of copies of a cache over the accelerators that share the model; each reads its own.
    Below 16 `weight_bits`, head, norms and routers stay in 16, as in `skipwise.plan.serving.weight_bytes`.
    """
    experts = min(counts.experts, counts.active_experts * requests)
    products = counts.attention + counts.mlp + experts
    others = counts.head_multiplied + counts.norms + counts.other
    read = [replace(layer, owns_cache=True) for layer in layers]
    cache = cache_copies * kv_cache_bytes(read, length_tokens, bits=kv_bits, latent=latent)
    return round(products * weight_bits / 8 + 2 * others + requests * cache)


def decode_flops(
    counts: ParameterCounts, layers: Sequence[LayerShape], length_tokens: int, *, latent: bool = True
) -> int:
    """Operations to decode one token after `length_tokens`: products with the weights and with all keys and values.

    With `latent`, every head computes with the compressed state of latent attention instead.
    """
    attention = 0
    for layer in layers:
        each = layer.query_heads * 2 * layer.latent_dim if latent and layer.latent_dim else _per_pair(layer)
        attention += 2 * layer.cached_tokens(length_tokens) * each
    return 2 * (counts.active_in_layers + counts.head_multiplied) + attention


class Moment(NamedTuple):
    """Bytes in use at one moment of a training step; linear in the number of layers.

    Attributes:
        per_layer: bytes per layer.
        outside: bytes of embeddings, final norm and loss, and temporaries of the layer being computed.
    """

    per_layer: int
    outside: int

    def held(self, num_layers: int) -> int:
        """Bytes in use for a model with `num_layers` layers."""
        return self.outside + num_layers * self.per_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProfile:
    """Memory of one micro-batch, as traced on the model itself.

    The peak is at one of a few moments, each linear in the number of layers: the end of the forward pass, the backward
    pass of the last layer, and, as the last entry, the backward pass of the first layer with the embedding.

    Attributes:
        moments: bytes at each moment, without parameters and optimizer state, and without gradients if
            `gradients_held`.
        gradients_held: whether all gradients exist already, from an earlier micro-batch of the step. Otherwise this
            micro-batch creates them, and they are included in its moments.
        loss_bytes: the part of the first moment that the loss needs: logits, and the gradient of a trained head.
    """

    moments: tuple[Moment, ...]
    gradients_held: bool
    loss_bytes: int = 0

    def with_more(self, num_bytes: int) -> "StepProfile":
        """A profile with more bytes, such as fragmentation, in all moments but the last, which has few activations."""
        *until, after = self.moments
        heavier = (moment._replace(outside=moment.outside + num_bytes) for moment in until)
        return replace(self, moments=(*heavier, after))

    def peak(self, num_layers: int, gradients: int) -> int:
        """Peak bytes of a step's activations, temporaries and gradients; all `gradients` exist in the end."""
        most = max(moment.held(num_layers) for moment in self.moments)
        return gradients + most if self.gradients_held else max(gradients, most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How the training state is sharded over data-parallel processes.

    Attributes:
        processes: number of processes, each training on its own windows.
        kind: what is sharded: `ddp` nothing, `zero1` the optimizer state, `zero2` also gradients, `zero3` (DeepSpeed)
            and `fsdp` (full shard) also parameters.

    Source: ZeRO, arXiv 1910.02054, section 5.
    """

    processes: int = 1
    kind: str = "ddp"

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ConfigError(f"the number of processes is {self.processes}; give 1 or more")
        if self.kind not in SHARDINGS:
            hint = did_you_mean(self.kind, SHARDINGS)
            raise ConfigError(f"the sharding is {self.kind!r}; {hint}give one of {', '.join(SHARDINGS)}")
        if self.processes == 1 and self.kind != "ddp":
            raise ConfigError(
                f"{self.kind} shards over several accelerators, but there is 1; give a larger --count",
                page="parallel-run",
            )

    def share(self, stage: int) -> int:
        """Divisor for the size of state that is sharded from ZeRO stage `stage` on."""
        return self.processes if SHARDINGS[self.kind] >= stage else 1

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed trains, with 16-bit weights and gradients and float32 copies in its optimizer."""
        return self.kind.startswith("zero")

    def moved_bytes(self, *, gathered_bytes: int, trained: int, micro_batches: int) -> int:
        """Bytes that each process sends in a step; it receives as many.

            ddp         one all-reduce of float32 gradients per step, which sends each twice
            zero1       in 16 bits, gradients are reduced and the new parameters gathered, once per step
            zero2       like zero1, but gradients are reduced after every micro-batch, as each process keeps its shard
            zero3, fsdp every micro-batch gathers the parameters in the forward and backward pass, and reduces gradients

        Args:
            gathered_bytes: bytes of all parameters as they are gathered: 2 each, or fewer if quantized.
            trained: number of trained parameters.
            micro_batches: micro-batches per step in each process.

        Source: ZeRO, arXiv 1910.02054, section 7.
        """
        each = {
            "ddp": 2 * FLOAT32_BYTES * trained,
            "zero1": 4 * trained,
            "zero2": 2 * trained * (micro_batches + 1),
        }.get(self.kind, micro_batches * (2 * gathered_bytes + 2 * trained))
        return each * (self.processes - 1) // self.processes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Bytes of the training state in one process; unsharded unless made by `sharded`.

    Attributes:
        parameters: parameters of the model.
        gradients: gradients of the trained parameters.
        optimizer: optimizer state, with a float32 copy of the trained parameters if those are 16-bit.
        in_transit: communication buffers: the sharded parameters gathered at one time, or the buckets of gradient
            reduction.
    """

    parameters: int
    gradients: int
    optimizer: int
    in_transit: int = 0

    @property
    def total(self) -> int:
        """Sum of all four."""
        return self.parameters + self.gradients + self.optimizer + self.in_transit

    def sharded(
        self, sharding: Sharding, *, numbers: int, trained: int, whole_bytes: int, unsplit: int = 0
    ) -> "TrainingState":
        """The state in one of several processes.

        Args:
            sharding: number of processes, and what is sharded.
            numbers: parameters of the model.
            trained: trained parameters.
            whole_bytes: bytes of parameters that FSDP gathers at one time.
            unsplit: bytes of parameters that are never sharded, such as scales of 4-bit weights.

        Source for buckets: torch's DistributedDataParallel, which keeps a copy of all gradients unless
            `gradient_as_bucket_view` is set (the Trainer does not set it); and DeepSpeed's defaults.
        """
        in_transit = 0
        if sharding.processes > 1:
            reduced, whole = 2 * min(_BUCKET, trained), 2 * min(_LIVE_PARAMETERS, numbers)
            in_transit = {
                "ddp": self.gradients,
                "zero1": 2 * reduced,
                "zero2": 2 * reduced,
                "zero3": reduced + whole,
                "fsdp": whole_bytes,
            }[sharding.kind]
        return TrainingState(
            parameters=unsplit - (-(self.parameters - unsplit) // sharding.share(3)),
            gradients=-(-self.gradients // sharding.share(2)),
            optimizer=-(-self.optimizer // sharding.share(1)),
            in_transit=in_transit,
        )


def _per_pair(layer: LayerShape) -> int:
    """Multiplications for one query-key pair over all heads, including the product with the value."""
    return layer.query_heads * (layer.key_dim + layer.value_dim)

"""Bytes and floating-point operations, from shapes alone.

What a model holds and computes, as plain arithmetic over three values that `skipwise.plan` reads off a model:

    ParameterCounts   how many numbers, by kind
    LayerShape        what attention of one layer reads, and what its cache keeps of a token
    StepProfile       what one training step holds beside parameters and the optimizer's state

and, with `Sharding`, over how many processes which of them is split. Nothing here is rounded or assumed: speeds and
the share of them that is reached belong to `skipwise.plan`.

Symbols: T = tokens read, W = a sliding window, n_q and n_kv = heads of queries and of keys, d_k and d_v = numbers of a
key and of a value in one head, s = the training window, b = windows at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from skipwise.errors import ConfigError
from skipwise.names import did_you_mean

FLOAT32_BYTES = 4

SHARDINGS = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp": 3}
"""Ways to train on several processes, and from which stage of ZeRO on each splits."""

# Of bitsandbytes: numbers with one scale, and scales with one of their own.
_BLOCK, _SCALES_BLOCK = 64, 256

# DeepSpeed's defaults (reduce_bucket_size, allgather_bucket_size, stage3_max_live_parameters), in numbers of 16 bits.
_BUCKET, _LIVE_PARAMETERS = 5 * 10**8, 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCounts:
    """Numbers of a model's parameters by kind; what is tied counts once.

    Attributes:
        embedding: of tokens, 0-d positions none; a tied head is this one.
        head: from hidden states to logits; 0 where it is tied.
        attention: projections of queries, keys, values and outputs.
        mlp: dense feed-forward layers, and experts that see every token.
        experts: of which each token sees some.
        active_experts: what one token sees of them.
        norms: scales of norms, biases of them.
        other: routers, and what fits nowhere else.
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
        """All that is stored."""
        return sum(getattr(self, field.name) for field in fields(self)) - self.active_experts

    @property
    def active_in_layers(self) -> int:
        """What one token is multiplied with between the embedding and the head."""
        return self.total - self.embedding - self.head - self.experts + self.active_experts

    @property
    def head_multiplied(self) -> int:
        """What one hidden state is multiplied with to become logits."""
        return self.head or self.embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """One decoder layer as its attention and its cache see it.

    Attributes:
        query_heads: n_q.
        kv_heads: n_kv, heads that keys and values are kept for.
        key_dim: d_k, the rotary part included.
        value_dim: d_v.
        window_tokens: W, how many tokens a query sees, itself included; None for all before it.
        latent_dim: numbers kept of a token by an engine that caches the compressed state of latent attention, rotary
            part included; None where attention has no such state.
        owns_cache: False for a layer that reads the cache of an earlier one.
    """

    query_heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window_tokens: int | None = None
    latent_dim: int | None = None
    owns_cache: bool = True

    def cached_tokens(self, length_tokens: int) -> int:
        """Tokens whose keys and values are kept after `length_tokens`: a query of a window W sees W - 1 before it."""
        if self.window_tokens is None:
            return length_tokens
        return min(self.window_tokens - 1, length_tokens)

    def cached_values(self, *, latent: bool) -> int:
        """Numbers kept of one token: `n_kv (d_k + d_v)`, or the compressed state where there is one and it is asked."""
        if not self.owns_cache:
            return 0
        if latent and self.latent_dim is not None:
            return self.latent_dim
        return self.kv_heads * (self.key_dim + self.value_dim)

    def attended_pairs(self, length_tokens: int) -> int:
        """Pairs of a query and a key that it sees, over `length_tokens` queries: `T (T + 1) / 2` without a window."""
        full = min(length_tokens, self.window_tokens or length_tokens)
        return full * (full + 1) // 2 + (length_tokens - full) * full


def four_bit_bytes(numbers: int, *, double_quant: bool = True) -> int:
    """Bytes of one weight in 4 bits, as bitsandbytes lays it out.

        ceil(n / 2)                  two numbers in a byte
        4 ceil(n / 64)               a float32 scale for each block of 64 (B of them), or with double_quant
        B + 4 ceil(B / 256) + 4      scales in 8 bits, a float32 scale for each 256 of these, and their mean
        64 (+ 1024)                  the 16 values that four bits stand for (and the 256 of the scales), in each weight

    Args:
        numbers: n, of the weight.
        double_quant: whether scales are in 8 bits.

    Source: QLoRA (arXiv 2305.14314, section 3): 4.127 bits a number of a large weight, 4.5 without double quantization.
    """
    blocks = -(-numbers // _BLOCK)
    scales = (
        blocks + FLOAT32_BYTES * (-(-blocks // _SCALES_BLOCK) + 1 + 256) if double_quant else FLOAT32_BYTES * blocks
    )
    return -(-numbers // 2) + scales + 16 * FLOAT32_BYTES


def kv_cache_bytes(layers: Sequence[LayerShape], length_tokens: int, *, bits: float = 16, latent: bool = True) -> int:
    """Bytes of the cache after `length_tokens`.

        sum over layers of  min(W - 1, T) * n_kv * (d_k + d_v) * bits / 8

    Args:
        layers: of the model.
        length_tokens: T.
        bits: of one number; 4.5 for 4 bits with a 16-bit scale for every 32 numbers.
        latent: whether the engine keeps the compressed state of latent attention, where there is one; vLLM does, and
            transformers since it no longer expands it.

    Source: DeepSeek-V2 (arXiv 2405.04434, section 2.1, table 1) compares the plain and the latent case.
    """
    values = sum(layer.cached_tokens(length_tokens) * layer.cached_values(latent=latent) for layer in layers)
    return round(values * bits / 8)


def prefill_flops(counts: ParameterCounts, layers: Sequence[LayerShape], length_tokens: int) -> int:
    """Operations to read `length_tokens` and to make the logits of the last one.

        2 P T + sum over layers of  2 pairs n_q (d_k + d_v)

    with P parameters that a token meets inside the layers. Without windows the sum is `2 T^2 n_q d L` for heads of
    `d_k = d_v = d`: the causal half of what full attention would be.
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
    """Operations of one window, forward and backward: three forward passes, four where layers are computed again.

    Every position makes logits here. The head is never computed again; skipwise makes its gradient in the forward pass.

    Args:
        counts: parameters of the model.
        layers: of the model.
        window_tokens: length of a training example.
        checkpointing: layers are computed again in the backward pass.
        frozen: the weights are not trained, so that no pass makes their gradients; attention has none to spare. What
            low-rank additions compute is not counted.
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
    """Bytes that are read to make one more token for each of `requests`: all weights that are met once, every cache.

    Of experts, different requests meet different ones: as many as that, up to all of them, are read. A layer that
    shares an earlier one's cache reads it once more.

    Args:
        counts: parameters of the model.
        layers: of the model.
        length_tokens: of each request so far.
        requests: at once.
        weight_bits: of a number in the layers.
        kv_bits: of a number in the cache.
        latent: as for `kv_cache_bytes`.
        cache_copies: how often accelerators that share the model hold a cache; each reads its own.
    """
    experts = min(counts.experts, counts.active_experts * requests)
    products = counts.attention + counts.mlp + experts
    # Head, norms and routers stay in 16 bits, as in `skipwise.plan.serving.weight_bytes`.
    others = counts.head_multiplied + counts.norms + counts.other
    read = [replace(layer, owns_cache=True) for layer in layers]
    cache = cache_copies * kv_cache_bytes(read, length_tokens, bits=kv_bits, latent=latent)
    return round(products * weight_bits / 8 + 2 * others + requests * cache)


def decode_flops(
    counts: ParameterCounts, layers: Sequence[LayerShape], length_tokens: int, *, latent: bool = True
) -> int:
    """Operations to make one more token after `length_tokens`: products with weights, and with all keys and values.

    An engine that keeps the compressed state of latent attention computes with it, for every head.
    """
    attention = 0
    for layer in layers:
        each = layer.query_heads * 2 * layer.latent_dim if latent and layer.latent_dim else _per_pair(layer)
        attention += 2 * layer.cached_tokens(length_tokens) * each
    return 2 * (counts.active_in_layers + counts.head_multiplied) + attention


class Moment(NamedTuple):
    """What is held at one moment of a step, in bytes, which grows evenly with the number of layers.

    Attributes:
        per_layer: of each layer.
        outside: of embeddings, final norm and loss, and of the layer at work.
    """

    per_layer: int
    outside: int

    def held(self, num_layers: int) -> int:
        """Of a model of `num_layers`."""
        return self.outside + num_layers * self.per_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProfile:
    """What one micro-batch holds, as a step of the model itself shows it.

    The peak is at one of few moments, each of which grows evenly with the number of layers: the end of the forward
    pass, the backward pass of the last layer, and, given last, that of the first layer with the embedding.

    Attributes:
        moments: each beside parameters and the optimizer's state, and beside gradients where those are held.
        gradients_held: all gradients were there before, from another micro-batch of the step; else they come to be in
            this one, and count in its moments.
        loss_bytes: of the first moment, what the loss takes: its logits, and the gradient of a head that is trained.
    """

    moments: tuple[Moment, ...]
    gradients_held: bool
    loss_bytes: int = 0

    def with_more(self, num_bytes: int) -> "StepProfile":
        """With so much more while activations are kept: from the end of the forward pass until the last layer is done.

        Args:
            num_bytes: of holes that an allocator leaves, say.
        """
        *until, after = self.moments
        heavier = (moment._replace(outside=moment.outside + num_bytes) for moment in until)
        return replace(self, moments=(*heavier, after))

    def peak(self, num_layers: int, gradients: int) -> int:
        """The most that is held at once of gradients, activations and all else that a step makes, in bytes.

        Args:
            num_layers: of the model.
            gradients: bytes of all gradients.
        """
        most = max(moment.held(num_layers) for moment in self.moments)
        return gradients + most if self.gradients_held else max(gradients, most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """Over how many processes the state of training is split, and how.

    Attributes:
        processes: that train together, each on windows of its own.
        kind: what is split: `ddp` nothing, `zero1` the optimizer's state, `zero2` gradients too, `zero3` (DeepSpeed)
            and `fsdp` (full shard) parameters too.

    Source: ZeRO, arXiv 1910.02054, section 5.
    """

    processes: int = 1
    kind: str = "ddp"

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ConfigError(f"processes are {self.processes}; give 1 or more")
        if self.kind not in SHARDINGS:
            hint = did_you_mean(self.kind, SHARDINGS)
            raise ConfigError(f"the sharding is {self.kind!r}; {hint}give one of {', '.join(SHARDINGS)}")
        if self.processes == 1 and self.kind != "ddp":
            raise ConfigError(f"{self.kind} splits over several accelerators and there is 1; give a larger --count")

    def share(self, stage: int) -> int:
        """By how much something is divided that is split from `stage` on."""
        return self.processes if SHARDINGS[self.kind] >= stage else 1

    @property
    def splits_parameters(self) -> bool:
        """Whether each process holds a part of the parameters only."""
        return self.share(3) > 1

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed's engine trains: it has 16-bit weights and gradients, and float32 ones in its optimizer."""
        return self.kind.startswith("zero")

    def moved_bytes(self, *, gathered_bytes: int, trained: int, micro_batches: int) -> int:
        """Bytes that each process sends in a step, and as many that it receives.

            ddp         gradients are summed once a step, in float32: each sent twice
            zero1       likewise in 16 bits: summed, then the new parameters are handed out
            zero2       summed after every micro-batch, as each keeps its part alone
            zero3, fsdp every micro-batch gathers the parameters forward and again backward, and sums gradients

        Args:
            gathered_bytes: of all parameters, as they are gathered: 2 each, or fewer where they are quantized.
            trained: how many of them are trained; gradients are summed in 16 bits where parameters are split.
            micro_batches: of a step, in each process.

        Source: ZeRO, arXiv 1910.02054, section 7.
        """
        each = {
            "ddp": 2 * FLOAT32_BYTES * trained,
            "zero1": 4 * trained,
            "zero2": 2 * trained * (micro_batches + 1),
            "zero3": micro_batches * (2 * gathered_bytes + 2 * trained),
            "fsdp": micro_batches * (2 * gathered_bytes + 2 * trained),
        }[self.kind]
        return each * (self.processes - 1) // self.processes


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Bytes of the state of training in one process, whole models where nothing is split.

    Attributes:
        parameters: of the model.
        gradients: of what is trained.
        optimizer: the optimizer's state, with a float32 copy of what is trained where parameters are 16-bit.
        in_transit: what is between processes: the largest part of split parameters that is whole at once, or the
            buckets in which data parallel training sums gradients.
    """

    parameters: int
    gradients: int
    optimizer: int
    in_transit: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.in_transit

    def sharded(
        self, sharding: Sharding, *, numbers: int, trained: int, whole_bytes: int, unsplit: int = 0
    ) -> "TrainingState":
        """What one process of several holds of it.

        Args:
            sharding: over how many, and how.
            numbers: parameters of the model.
            trained: how many of them are.
            whole_bytes: what FSDP has whole at once.
            unsplit: bytes of parameters that each process holds whatever the sharding: scales of weights in 4 bits.

        Source: of buckets, torch's DistributedDataParallel, which keeps a copy of all gradients unless
            `gradient_as_bucket_view` is set, which the Trainer does not; and DeepSpeed's defaults.
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
    """Multiplications of one query with one key, and with its value."""
    return layer.query_heads * (layer.key_dim + layer.value_dim)

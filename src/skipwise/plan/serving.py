"""Serving: memory by length and number of requests, latency of the first and of each further token, cost."""

from dataclasses import dataclass, replace

from skipwise.memory import decode_bytes, decode_flops, kv_cache_bytes, prefill_flops
from skipwise.plan.machines import GIGA, TERA, Machine, Utilisation
from skipwise.plan.profiles import Profiles
from skipwise.plan.shape import ModelShape

# Bits per number: 8 and 4 with a 16-bit scale for every 32 numbers, as llama.cpp stores Q8_0 and Q4_0.
BITS = {16: 16.0, 8: 8.5, 4: 4.5}
_CHUNK_TOKENS = 2048
ANSWER_TOKENS = 256
REDUCE_SECONDS = 1e-5
"""Latency of an all-reduce over direct links."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """How a model is served.

    Attributes:
        machine: one accelerator.
        count: accelerators that share the model (tensor parallelism).
        weight_bits: 16, 8 or 4.
        kv_bits: 16, 8 or 4.
        latent: the engine caches the compressed state of latent attention.
    """

    machine: Machine
    count: int = 1
    weight_bits: int = 16
    kv_bits: int = 16
    latent: bool = True

    def reduce_seconds(self, shape: ModelShape, utilisation: Utilisation, tokens: int) -> float:
        """Seconds of the all-reduces in one pass over `tokens`, two per layer.

            2 L (latency + 2 (N - 1) / N * tokens * hidden * 2 bytes / link)

        Source: Megatron-LM, arXiv 1909.08053, section 3, for all-reduces in a ring.
        """
        if self.count == 1:
            return 0.0
        link = self.machine.link_between(self.count) * GIGA * utilisation.network
        each = 2 * (self.count - 1) / self.count * shape.text.hidden_size * 2 / link
        return 2 * len(shape.layers) * (REDUCE_SECONDS + tokens * each)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingEstimate:
    """What requests of one length take; bytes are of all accelerators that share the model.

    Attributes:
        length_tokens: prompt and answer.
        requests: concurrent requests.
        weight_bytes: the weights.
        kv_bytes: caches of all requests.
        work_bytes: one chunk of a prompt during prefill, and memory of the processes beside tensors.
        limit_bytes: what may be filled.
        first_token_seconds: from the arrival of a prompt at an idle machine.
        token_seconds: from one token to the next, for each request.
        most_requests: requests that fit at once.
        cost_per_million: of tokens read and generated, with `most_requests`; None without a price or if none fits.
    """

    length_tokens: int
    requests: int
    weight_bytes: int
    kv_bytes: int
    work_bytes: int
    limit_bytes: int
    first_token_seconds: float
    token_seconds: float
    most_requests: int
    cost_per_million: float | None

    @property
    def total_bytes(self) -> int:
        """Sum of weights, caches and work."""
        return self.weight_bytes + self.kv_bytes + self.work_bytes

    @property
    def fits(self) -> bool:
        """Whether the sum is within the limit."""
        return self.total_bytes <= self.limit_bytes


def serving_estimate(
    profiles: Profiles,
    deployment: Deployment,
    utilisation: Utilisation,
    length_tokens: int,
    *,
    requests: int = 1,
    price: float | None = None,
) -> ServingEstimate:
    """What concurrent requests of one length take.

    Args:
        profiles: profiles of the model.
        deployment: how it is served.
        utilisation: fractions of speed, bandwidth and memory that are reached.
        length_tokens: prompt and answer; the answer is the last `ANSWER_TOKENS`.
        requests: concurrent requests.
        price: of an hour of one accelerator.
    """
    shape, machine, count = profiles.shape, deployment.machine, deployment.count
    weight_bits, kv_bits, latent = BITS[deployment.weight_bits], BITS[deployment.kv_bits], deployment.latent
    copies = cache_copies(shape, deployment)
    weights = weight_bytes(shape, deployment.weight_bits)
    one_cache = round(kv_cache_bytes(shape.layers, length_tokens, bits=kv_bits, latent=latent) * copies)
    work = profiles.prefill_work(_chunk(length_tokens)) + count * machine.inference_process_bytes
    limit = round(count * machine.memory_bytes * utilisation.memory)
    most = max(0, int((limit - weights - work) // one_cache)) if one_cache else 0
    speed = count * machine.tflops * TERA * utilisation.prefill
    bandwidth = count * machine.bandwidth_gb * 1e9 * utilisation.decode
    answer = min(ANSWER_TOKENS, length_tokens - 1)
    prompt = length_tokens - answer
    first = prefill_flops(shape.counts, shape.layers, prompt) / speed
    first += deployment.reduce_seconds(shape, utilisation, prompt)

    def token_seconds(at_once: int) -> float:
        bits = {"weight_bits": weight_bits, "kv_bits": kv_bits}
        read = decode_bytes(
            shape.counts, shape.layers, length_tokens, requests=at_once, latent=latent, cache_copies=copies, **bits
        )
        flops = at_once * decode_flops(shape.counts, shape.layers, length_tokens, latent=latent)
        return max(read / bandwidth, flops / speed) + deployment.reduce_seconds(shape, utilisation, at_once)

    cost = None
    if price is not None and most:
        # A full batch: prompts are read one after the other, then all answers are generated together.
        seconds = most * first + answer * token_seconds(most)
        cost = price * count * seconds / 3600 / (most * length_tokens) * 1e6
    return ServingEstimate(
        length_tokens=length_tokens,
        requests=requests,
        weight_bytes=weights,
        kv_bytes=requests * one_cache,
        work_bytes=work,
        limit_bytes=limit,
        first_token_seconds=first,
        token_seconds=token_seconds(requests),
        most_requests=most,
        cost_per_million=cost,
    )


def cache_copies(shape: ModelShape, deployment: Deployment) -> float:
    """How many copies of a cache all accelerators hold together.

    Heads are distributed and never split, so with more accelerators than heads some hold the same one. A compressed
    state belongs to all heads, so each accelerator holds it.
    """
    if deployment.latent and any(layer.latent_dim is not None for layer in shape.layers):
        return deployment.count
    return max(1.0, deployment.count / max(layer.kv_heads for layer in shape.layers))


def weight_bytes(shape: ModelShape, bits: int) -> int:
    """Bytes of the weights; below 16 bits embeddings, head and norms stay in 16."""
    counts = shape.counts
    in_layers = counts.attention + counts.mlp + counts.experts
    return round(in_layers * BITS[bits] / 8) + 2 * (counts.total - in_layers)


def _chunk(length_tokens: int) -> int:
    """Tokens of a prompt that are read at a time; for short prompts the next power of two, so that few are traced."""
    return min(_CHUNK_TOKENS, 1 << (length_tokens - 1).bit_length())


def sharing_count(shape: ModelShape, count: int) -> int:
    """The largest number of accelerators, at most `count`, that can share the model.

    Engines give each the same number of query heads and of feed-forward rows, and split or copy key-value heads evenly.
    """

    def can_share(n: int) -> bool:
        heads = ((layer.query_heads, layer.kv_heads) for layer in shape.layers)
        return shape.intermediate_size % n == 0 and all(q % n == 0 and (kv % n == 0 or n % kv == 0) for q, kv in heads)

    return next(n for n in range(count, 0, -1) if can_share(n))


def longest_context(profiles: Profiles, deployment: Deployment, utilisation: Utilisation) -> int:
    """The longest request that fits, in tokens, regardless of the model's window; 0 if not even the weights fit."""

    def fits(length: int) -> bool:
        return serving_estimate(profiles, deployment, utilisation, length).fits

    low, high = (0, _CHUNK_TOKENS) if not fits(_CHUNK_TOKENS) else (_CHUNK_TOKENS, 2 * _CHUNK_TOKENS)
    if not low and not fits(2):
        return 0
    while low and fits(high):
        low, high = high, 2 * high
        if high > 2**40:
            return high
    while high - low > max(1, low // 1024):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fewest_accelerators(
    profiles: Profiles, utilisation: Utilisation, length_tokens: int, deployment: Deployment
) -> int | None:
    """How many accelerators must share the model to fit one request of this length; None if 64 are too few."""
    for count in range(1, 65):
        if sharing_count(profiles.shape, count) < count:
            continue
        if serving_estimate(profiles, replace(deployment, count=count), utilisation, length_tokens).fits:
            return count
    return None

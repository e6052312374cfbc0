"""What serving takes: memory by length and requests, time to the first token and from token to token, and money."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from skipwise.memory import decode_bytes, decode_flops, kv_cache_bytes, prefill_flops
from skipwise.plan.machines import GIGA, TERA, Machine, Utilisation
from skipwise.plan.profiles import Profiles
from skipwise.plan.shape import ModelShape
from skipwise.plan.training import CONTEXT_BYTES, PROCESS_BYTES

# Bits a number: 8 and 4 with a 16-bit scale for every 32 numbers, as llama.cpp's Q8_0 and Q4_0 store them.
BITS = {16: 16.0, 8: 8.5, 4: 4.5}
SERVED_BITS = tuple(BITS)
_CHUNK_TOKENS = 2048
ANSWER_TOKENS = 256
# Until a short sum over several accelerators has gone round; with direct links.
REDUCE_SECONDS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """How a model is served.

    Attributes:
        machine: one accelerator.
        count: of them that share the model (tensor parallel).
        weight_bits: 16, 8 or 4.
        kv_bits: 16, 8 or 4, of the cache.
        latent: the engine keeps the compressed state of latent attention.
    """

    machine: Machine
    count: int = 1
    weight_bits: int = 16
    kv_bits: int = 16
    latent: bool = True

    def passing_seconds(self, shape: ModelShape, utilisation: Utilisation) -> Callable[[int], float]:
        """Seconds, by tokens in one pass, in which the accelerators add up what each has computed: twice a layer.

            2 L (latency + 2 (N - 1) / N * tokens * hidden * 2 bytes / link)

        Source: Megatron-LM, arXiv 1909.08053, section 3, of all-reduces in a ring.
        """
        if self.count == 1:
            return lambda _: 0.0
        link = self.machine.link_between(self.count) * GIGA * utilisation.network
        each = 2 * (self.count - 1) / self.count * shape.text.hidden_size * 2 / link
        return lambda tokens: 2 * len(shape.layers) * (REDUCE_SECONDS + tokens * each)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingEstimate:
    """What requests of one length take.

    Attributes:
        length_tokens: prompt and answer.
        requests: at once.
        weight_bytes: of all accelerators that share the model together, as everything here.
        kv_bytes: of all requests.
        work_bytes: of one chunk of a prompt while it is read, and of drivers and libraries.
        limit_bytes: what may be filled.
        first_token_seconds: from a prompt's arrival at an idle machine.
        token_seconds: from one token to the next, of each request.
        most_requests: that fit at once.
        cost_per_million: tokens read and made, at `most_requests` at once; None without a price, or where none fits.
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
        """All of it."""
        return self.weight_bytes + self.kv_bytes + self.work_bytes

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.total_bytes <= self.limit_bytes


def serving_estimate(
    profiles: Profiles,
    deployment: Deployment,
    utilisation: Utilisation,
    length_tokens: int,
    *,
    requests: int = 1,
    answer_tokens: int = ANSWER_TOKENS,
    price: float | None = None,
) -> ServingEstimate:
    """What `requests` of `length_tokens`, answers counted in, take at once.

    Args:
        profiles: of the model.
        deployment: how it is served.
        utilisation: shares of speed, bandwidth and memory that are reached.
        length_tokens: of prompt and answer.
        requests: at once.
        answer_tokens: of them, that are made.
        price: of an hour of one accelerator.
    """
    shape, machine, kv_bits = profiles.shape, deployment.machine, BITS[deployment.kv_bits]
    weights = weight_bytes(shape, deployment.weight_bits)
    one_cache = kv_cache_bytes(shape.layers, length_tokens, bits=kv_bits, latent=deployment.latent)
    one_cache = round(one_cache * cache_copies(shape, deployment))
    own = PROCESS_BYTES if machine.bits == 32 else CONTEXT_BYTES
    work = profiles.prefill_work(_chunk(length_tokens)) + deployment.count * own
    limit = round(deployment.count * machine.memory_bytes * utilisation.memory)
    most = max(0, int((limit - weights - work) // one_cache)) if one_cache else 0
    speed = deployment.count * machine.tflops * TERA * utilisation.prefill
    bandwidth = deployment.count * machine.bandwidth_gb * 1e9 * utilisation.decode
    answer_tokens = min(answer_tokens, length_tokens - 1)
    prompt = length_tokens - answer_tokens
    first = prefill_flops(shape.counts, shape.layers, prompt) / speed

    passing = deployment.passing_seconds(shape, utilisation)
    first += passing(prompt)

    def token_seconds(at_once: int) -> float:
        read = decode_bytes(
            shape.counts,
            shape.layers,
            length_tokens,
            requests=at_once,
            weight_bits=BITS[deployment.weight_bits],
            kv_bits=kv_bits,
            latent=deployment.latent,
            cache_copies=cache_copies(shape, deployment),
        )
        computed = at_once * decode_flops(shape.counts, shape.layers, length_tokens, latent=deployment.latent)
        return max(read / bandwidth, computed / speed) + passing(at_once)

    cost = None
    if price is not None and most:
        # A batch of the most that fit: every prompt is read one after the other, then all answers are made together.
        seconds = most * first + answer_tokens * token_seconds(most)
        cost = price * deployment.count * seconds / 3600 / (most * length_tokens) * 1e6
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
    """How often all accelerators together hold a cache: heads are shared out, and no head is split.

    A compressed state belongs to all heads, so each accelerator has it whole.
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
    """Tokens of a prompt that are read at a time; of short prompts the next power of two, so that few are traced."""
    return min(_CHUNK_TOKENS, 1 << (length_tokens - 1).bit_length())


def sharing_count(shape: ModelShape, count: int) -> int:
    """The most of so many accelerators that can share the model.

    Engines give each of them as many heads of queries and as many rows of the feed-forward, and split or copy heads of
    keys evenly.
    """
    inside = getattr(shape.text, "intermediate_size", None) or 4 * shape.text.hidden_size

    def shares(n: int) -> bool:
        heads = ((layer.query_heads, layer.kv_heads) for layer in shape.layers)
        return inside % n == 0 and all(q % n == 0 and (kv % n == 0 or n % kv == 0) for q, kv in heads)

    return next(n for n in range(count, 0, -1) if shares(n))


def longest_context(profiles: Profiles, deployment: Deployment, utilisation: Utilisation) -> int:
    """Tokens of the longest text of one request that fits, whatever the model's window; 0 where not even weights do."""

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
    """How many accelerators must share the model for one request of this length: 64 at most, and heads for each."""
    for count in range(1, 65):
        if sharing_count(profiles.shape, count) < count:
            continue
        if serving_estimate(profiles, replace(deployment, count=count), utilisation, length_tokens).fits:
            return count
    return None


def routing_length(
    profiles: Profiles, deployment: Deployment, utilisation: Utilisation, own_tokens: int, target_tokens: int
) -> tuple[int, float]:
    """From which length on a request belongs to the long mode, and what it costs a short one to share its server.

    Up to the base model's own window the short mode answers as that does, so the long one is never better there: what
    a request costs has no say in it. A server that holds room for the target has room for fewer requests at once.

    Returns:
        The length in tokens, and how many times as many short requests fit at once where room is held for the base's
        window rather than for the target.
    """
    at_short = serving_estimate(profiles, deployment, utilisation, own_tokens).most_requests
    at_long = serving_estimate(profiles, deployment, utilisation, target_tokens).most_requests
    return own_tokens + 1, at_short / at_long if at_long else math.inf

"""The preflight: a few tiny forward passes that prove, or disprove, that skip-wise training works on this very model.

Skip-wise training fails silently: where the chunks cannot see each other, or the positions are ignored, or the scaling
never reached the rotary tables, the loss looks normal and nothing is learnt. Whether that happens depends on the model
class, the attention backend and the installed versions, so it is measured on the user's own, never assumed.

Each probe is a short window of random tokens in two chunks with a skip between them, run exactly as training runs it:
`skipwise.loss.training_inputs`, training mode, gradient checkpointing when asked. Every pass starts from the same random
numbers, so dropout drops the same units in passes that are compared.
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from skipwise.errors import UnsupportedModelError
from skipwise.loss import IGNORED, NextTokenLoss, training_inputs, training_logits
from skipwise.model import load_model, rotary_tables, save_model
from skipwise.model.extend import built_around
from skipwise.model.rotary import text_config
from skipwise.model.source import quiet_transformers
from skipwise.rope import Interpolation, RopeSpec, RopeTable, float32_angle_error, read_rope
from skipwise.rope.tables import unscaled_frequencies
from skipwise.window import Window

_PROBE_TOKENS = 32
_SHIFT_TOKENS = 1000
_GLOBAL_LAYERS = "full_attention"
_LOCAL_LAYERS = ("sliding_attention", "chunked_attention")
# Above this a save and reload would take minutes, and the weights are not what can go wrong.
_RELOAD_LIMIT_BYTES = 2 * 10**9
# Attention that is masked out gives a gradient of exactly zero; attention thinned by a far distance stays well above this.
_SMALLEST_SHARE = 1e-7
# Frequencies are powers taken in float32; one kept in 16 bits would be off by 4e-3.
_TABLE_TOLERANCE = 1e-5
_WORRYING_RADIANS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one probe found.

    Attributes:
        name: of the probe, one word.
        status: `pass`, `fail` (do not train), or `note` (worth knowing, never in the way).
        detail: what was measured, with the numbers.
        cure: what to do about it; empty where there is nothing to do.
    """

    name: str
    status: Literal["pass", "fail", "note"]
    detail: str
    cure: str = ""

    @property
    def line(self) -> str:
        """The verdict as one line of text."""
        return f"{self.status}  {self.name:<9} {self.detail}" + (f"; {self.cure}" if self.cure else "")


def doctor(
    model: PreTrainedModel,
    window: Window,
    interpolation: Interpolation,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    gradient_checkpointing: bool = False,
    check_reload: bool = True,
    seed: int = 0,
) -> list[Verdict]:
    """Probes whether skip-wise training can work on a model that is already extended.

    Modes, gradients, checkpointing, rotary tables and random state are afterwards as they were.

    Args:
        model: built with the interpolation in its config, on the device and in the dtype that training uses.
        window: lengths of the extension, in tokens.
        interpolation: what the model was extended by.
        tokenizer: names the special tokens to avoid, and is saved and reloaded with the model.
        gradient_checkpointing: probe with it, as training will run.
        check_reload: also save to a temporary folder and load again.
        seed: of the random tokens.

    Returns:
        One verdict a probe.
    """
    with _undisturbed(model, seed):
        model.train().requires_grad_(False)
        if gradient_checkpointing:
            with warnings.catch_warnings(
                category=FutureWarning, action="ignore"
            ):  # Its newer name is not in every 5.x.
                model.gradient_checkpointing_enable({"use_reentrant": False})
        bench = _Bench(model, window, interpolation, tokenizer, seed)
        probes = [_reach, _mask, _causal, _shift, _positions, _local, _tables, _precision, _loss]
        return [verdict for probe in probes + [_reload] * check_reload if (verdict := _run(probe, bench)) is not None]


def require_healthy(verdicts: Sequence[Verdict]) -> None:
    """Refuses to go on after a failed preflight.

    Raises:
        UnsupportedModelError: a verdict failed; names all that did, with their cures.
    """
    failed = [f"{verdict.name}: {verdict.detail}; {verdict.cure}" for verdict in verdicts if verdict.status == "fail"]
    if failed:
        raise UnsupportedModelError(
            f"preflight failed ({len(failed)} of {len(verdicts)} verdicts): {' | '.join(failed)}"
        )


class _Bench:
    """The model under test, with random tokens for it and the passes that the probes are made of.

    Attributes:
        n: tokens of a probe; short enough that no local attention layer hides its first token from its last.
        half: tokens of the first chunk.
        ids: (1, n) token ids, none of them special.
        longest_skip: in tokens; puts the last token at the last position of the target.
        middle_skip: in tokens; leaves room for a shift of `shift` below the target.
        shift: constant added to positions, in tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        window: Window,
        interpolation: Interpolation,
        tokenizer: PreTrainedTokenizerBase | None,
        seed: int,
    ) -> None:
        self.model, self.window, self.interpolation, self.tokenizer = model, window, interpolation, tokenizer
        self.seed = seed
        self.config = text_config(model.config)
        self.n = max(2, min(_PROBE_TOKENS, window.train, window.target // 2, _local_span(self.config) or _PROBE_TOKENS))
        self.half = self.n // 2
        self.longest_skip = window.target - self.n
        self.middle_skip = self.longest_skip // 2
        self.shift = max(1, min(_SHIFT_TOKENS, self.longest_skip - self.middle_skip))
        rng = np.random.default_rng(seed)
        allowed = np.setdiff1d(np.arange(self.config.vocab_size), self._special_ids())
        self._spare, *ids = rng.permutation(allowed)[np.arange(self.n + 1) % len(allowed)].tolist()
        self.ids = torch.tensor([ids], device=model.device)
        # A fixed random direction: a plain sum of logits could cancel.
        self._direction = torch.from_numpy(rng.standard_normal(self.config.vocab_size)).float().to(model.device)

    def _special_ids(self) -> list[int]:
        if self.tokenizer is not None:
            return self.tokenizer.all_special_ids
        ids = (getattr(self.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id"))
        return [one for value in ids if value is not None for one in (value if isinstance(value, list) else [value])]

    def positions(self, skip: int, start: int = 0) -> Tensor:
        """(1, n): two runs of positions from `start`, the second `skip` further on."""
        positions = torch.arange(start, start + self.n, device=self.model.device)
        positions[self.half :] += skip
        return positions[None]

    def changed(self, index: int) -> Tensor:
        """The tokens with the one at `index` exchanged for one that occurs nowhere else."""
        ids = self.ids.clone()
        ids[0, index] = self._spare
        return ids

    def logits(
        self, positions: Tensor, ids: Tensor | None = None, *, mask: bool = True, model: PreTrainedModel | None = None
    ) -> Tensor:
        """Float32 logits (n, vocabulary) of one pass as training makes it, without its explicit mask only when asked."""
        inputs = training_inputs(self.ids if ids is None else ids, positions)
        if not mask:
            del inputs["attention_mask"]
        torch.manual_seed(self.seed)
        with torch.no_grad():
            return (model or self.model)(**inputs).logits[0].float()

    def effect(self, skip: int, *, mask: bool = True) -> float:
        """How far the last token of chunk one moves the logits of chunk two, at most."""
        positions = self.positions(skip)
        before = self.logits(positions, mask=mask)
        after = self.logits(positions, self.changed(self.half - 1), mask=mask)
        return _largest((after - before)[self.half :])

    def sensitivity(self, skip: int, index: int) -> Tensor:
        """(n,): length of the gradient of the logits at `index` with respect to each token's embedding."""
        leaves: list[Tensor] = []

        def take_leaf(_module: nn.Module, _inputs: Any, embeddings: Tensor) -> Tensor:
            leaves.append(embeddings.detach().requires_grad_())
            return leaves[-1]

        torch.manual_seed(self.seed)
        hook = self.model.get_input_embeddings().register_forward_hook(take_leaf)
        try:
            with torch.enable_grad():
                logits = training_logits(self.model, self.ids, self.positions(skip))[0, index].float()
                (gradient,) = torch.autograd.grad(logits @ self._direction, leaves[:1], allow_unused=True)
        finally:
            hook.remove()
        return torch.zeros(self.n) if gradient is None else gradient[0].float().norm(dim=-1).cpu()

    def noise(self) -> float:
        """How far the logits move when the very same pass is made again; zero on a CPU."""
        positions = self.positions(self.middle_skip)
        return _largest(self.logits(positions) - self.logits(positions))

    def rounding(self, logits: Tensor, dtype: torch.dtype | None = None) -> float:
        """What the arithmetic of a dtype, the model's own unless said, may move logits by."""
        return 8 * torch.finfo(dtype or self.model.dtype).eps * max(1.0, _largest(logits))


def _reach(bench: _Bench) -> Verdict:
    """A token of chunk one moves the logits of chunk two, forwards and through the backward pass."""
    skips = sorted({1, max(1, bench.middle_skip), bench.longest_skip})
    smallest = min(bench.effect(skip) for skip in skips)
    share = 1.0
    for skip in skips:
        gradient = bench.sensitivity(skip, bench.n - 1)
        share = min(share, _ratio(gradient[: bench.half].max(), gradient[bench.half :].max()))
    noise = bench.noise()
    detail = (
        f"over skips of {', '.join(map(str, skips))} a token of chunk one moves chunk two's logits by {smallest:.2g} or more "
        f"(without a skip {bench.effect(0):.2g}, repeated pass {noise:.2g}), with {share:.2g} of its own chunk's gradient"
    )
    cure = (
        "the chunks do not see each other, so training would learn nothing: load the model with another attention "
        "(--attention eager or sdpa), update transformers, or, for a model with its own code, make it honour attention_mask"
    )
    return _judge("reach", smallest > 2 * noise and share > _SMALLEST_SHARE, detail, cure)


def _mask(bench: _Bench) -> Verdict:
    """What would happen without skipwise's mask; nothing depends on it."""
    effect = bench.effect(bench.middle_skip, mask=False)
    if effect > 2 * bench.noise():
        detail = (
            f"this model and version do not isolate the chunks without skipwise's explicit mask (effect {effect:.2g})"
        )
    else:
        detail = "this model and version isolate the chunks when no mask is given; skipwise always gives one"
    return Verdict(name="mask", status="note", detail=detail)


def _causal(bench: _Bench) -> Verdict:
    """A later token leaves earlier logits alone."""
    positions = bench.positions(bench.middle_skip)
    before = bench.logits(positions)
    leak = _largest((bench.logits(positions, bench.changed(bench.half)) - before)[: bench.half])
    allowed = bench.rounding(before) + 2 * bench.noise()
    gradient = bench.sensitivity(bench.middle_skip, bench.half - 1)
    share = _ratio(gradient[bench.half :].max(), gradient[: bench.half].max())
    detail = f"a token of chunk two moves chunk one's logits by {leak:.2g} (rounding allows {allowed:.2g}), gradient {share:.2g}"
    cure = "the model sees the future: set is_causal / is_decoder in its config, or use another attention"
    return _judge("causal", leak <= allowed and share <= _SMALLEST_SHARE, detail, cure)


def _shift(bench: _Bench) -> Verdict:
    """Only relative positions count: moving all of them changes nothing beyond the rounding of the angles."""
    base, tables = bench.logits(bench.positions(bench.middle_skip)), rotary_tables(bench.model)
    moved = _rms(bench.logits(bench.positions(bench.middle_skip, bench.shift)) - base)
    if any(_deviation(table, tables[path]) > 0 for path, table in rotary_tables(bench.model).items()):
        detail = f"the rotary table follows the largest position, so all positions + {bench.shift} move the logits by {moved:.2g} (rms)"
        return Verdict(name="shift", status="note", detail=detail)
    stretched = _rms(bench.logits(bench.positions(bench.middle_skip + bench.shift)) - base)
    last = bench.n - 1 + bench.middle_skip + bench.shift
    radians = 2 * max(float32_angle_error(table, last) for table in tables.values())
    # cos and sin are rounded to the model's dtype as well. Moving chunk two alone turns angles by about a radian, so it
    # tells how much logits a radian is worth; 16 because that response saturates, a quarter so that the probe can fail.
    radians += 2 * torch.finfo(bench.model.dtype).eps
    allowed = min(16 * radians, 0.25) * stretched + bench.rounding(base) + 2 * bench.noise()
    detail = (
        f"all positions + {bench.shift} move the logits by {moved:.2g} (rms; angles rounded by {radians:.1g} rad allow {allowed:.2g}; "
        f"the second chunk alone + {bench.shift} moves them by {stretched:.2g})"
    )
    cure = "the model has absolute positions beside the rotary ones, or rounds positions to 16 bits: extend another model, or load it as float32"
    return _judge("shift", moved <= allowed, detail, cure)


def _positions(bench: _Bench) -> Verdict:
    """Another skip gives other logits, also by one position at the far end, where 16-bit positions would collide."""
    end = bench.logits(bench.positions(bench.longest_skip))
    by_one = _rms(bench.logits(bench.positions(bench.longest_skip - 1)) - end)
    by_many = _rms(bench.logits(bench.positions(bench.middle_skip)) - end)
    # In 16 bits whatever is smaller than rounding does not show at all.
    unseen = bench.rounding(end, torch.float32) + 2 * bench.noise()
    detail = (
        f"at a skip of {bench.longest_skip}, one position less moves the logits by {by_one:.2g} (rms), "
        f"{bench.longest_skip - bench.middle_skip} less by {by_many:.2g} (rounding makes up to {unseen:.2g})"
    )
    if by_many > unseen:
        cure = "far positions fall together, which 16-bit position arithmetic does: load the model as float32"
    else:
        cure = "the model ignores position_ids, or its chunks do not see each other (reach): extend a model that takes position_ids"
    return _judge("positions", min(by_one, by_many) > unseen, detail, cure)


def _local(bench: _Bench) -> Verdict | None:
    """Layers of local attention; a model of nothing else cannot use a longer window."""
    span = _local_span(bench.config)
    if span is None:
        return None
    kinds = getattr(bench.config, "layer_types", None) or ["sliding_attention"] * bench.config.num_hidden_layers
    num_local = sum(kind in _LOCAL_LAYERS for kind in kinds)
    detail = f"{num_local} of {len(kinds)} layers attend to the last {span} tokens only"
    if num_local < len(kinds) or span >= bench.window.target:
        return Verdict(name="local", status="note", detail=detail)
    cure = f"no layer ever looks further back: choose a target of at most {span}, or set sliding_window to null in its config.json"
    return Verdict(name="local", status="fail", detail=detail, cure=cure)


def _tables(bench: _Bench) -> Verdict:
    """The rotary tables in use at the target are the interpolation's, attention factor too; local layers keep theirs."""
    bench.logits(bench.positions(bench.longest_skip))  # A table that follows the length is now the target's.
    found, expected = rotary_tables(bench.model), _expected_tables(bench)
    off = {path: _deviation(found[path], table) for path, table in expected.items()}
    faults = [
        f"{path} is off by {off[path]:.2g} (attention factor {found[path].attention_factor:.6g}, should be {table.attention_factor:.6g})"
        for path, table in expected.items()
        if off[path] > _TABLE_TOLERANCE
    ]
    maximum = bench.config.max_position_embeddings
    if maximum != bench.window.target:
        faults.append(f"config has max_position_embeddings {maximum} instead of {bench.window.target}")
    kind = bench.interpolation.kind
    detail = (
        "; ".join(faults)
        or f"all rotary tables are {kind}'s at {bench.window.target}, to {max(off.values()):.1g}, attention factors too"
    )
    cure = (
        "the scaling did not reach the built model: load it again with load_model(..., interpolation=, window=), which puts it "
        "into the config before building, and do not cast the model's buffers to 16 bits (model.half(), model.to(bfloat16))"
    )
    return _judge("tables", not faults, detail, cure)


def _precision(bench: _Bench) -> Verdict:
    """How far float32 angles are off at the last position of the target."""
    error = max(float32_angle_error(table, bench.window.target - 1) for table in rotary_tables(bench.model).values())
    detail = f"float32 angles are off by up to {error:.2g} rad at position {bench.window.target - 1}"
    cure = (
        "neighbouring positions blur there: expect weaker retrieval at the far end" if error > _WORRYING_RADIANS else ""
    )
    return Verdict(name="precision", status="note", detail=detail, cure=cure)


def _loss(bench: _Bench) -> Verdict:
    """The loss that training minimises is the model's own."""
    positions, labels = bench.positions(bench.middle_skip), bench.ids.clone()
    labels[0, bench.half] = IGNORED
    wanted = nn.functional.cross_entropy(bench.logits(positions)[:-1], labels[0, 1:], ignore_index=IGNORED).item()
    torch.manual_seed(bench.seed)
    with torch.no_grad():
        # So few bytes that the head runs over many slices.
        found = NextTokenLoss(bench.model, chunk_bytes=16 * bench.config.vocab_size)(
            bench.ids, positions, labels
        ).item()
    allowed = max(1e-5, torch.finfo(bench.model.dtype).eps) * abs(wanted)
    detail = f"loss in slices {found:.6f}, from the model's own logits {wanted:.6f} (rounding allows {allowed:.1g})"
    cure = "the head of this class cannot run on slices of hidden states: report the model class, and train another one meanwhile"
    return _judge("loss", abs(found - wanted) <= allowed, detail, cure)


def _reload(bench: _Bench) -> Verdict:
    """What is saved and loaded again has the same tables and gives the same logits beyond the original window."""
    model = bench.model
    model.eval()
    positions = bench.positions(bench.longest_skip)
    before, tables = bench.logits(positions), rotary_tables(model)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with tempfile.TemporaryDirectory(prefix="skipwise-doctor-") as folder:
        if bench.tokenizer is None:
            how, reload = "config only, no tokenizer given", _reload_config
        elif size > _RELOAD_LIMIT_BYTES:
            how, reload = f"config only, as the weights are {size / 1e9:.1f} GB", _reload_config
        elif 1.2 * size > (free := shutil.disk_usage(folder).free):
            how, reload = (
                f"config only, as {folder} has {free / 1e9:.1f} GB free and the weights are {size / 1e9:.1f} GB",
                _reload_config,
            )
        else:
            how, reload = "whole checkpoint", _reload_checkpoint
        after, reloaded = reload(bench, positions, folder)
    off = max(_deviation(reloaded.get(path), table) for path, table in tables.items())
    moved, allowed = _largest(after - before), bench.rounding(before) + 2 * bench.noise()
    detail = f"saved and loaded again ({how}): tables differ by {off:.2g}, logits by {moved:.2g} (rounding allows {allowed:.2g})"
    cure = "what is saved is not what was trained: update transformers, and see that config.json keeps rope_parameters with rope_theta"
    return _judge("reload", off <= _TABLE_TOLERANCE and moved <= allowed, detail, cure)


def _reload_checkpoint(bench: _Bench, positions: Tensor, folder: str) -> tuple[Tensor, dict[str, RopeTable]]:
    """Logits and tables of the model after a save and a load, weights and all."""
    model = bench.model
    save_model(model, bench.tokenizer, folder)  # pyright: ignore[reportArgumentType]
    again = load_model(
        folder,
        dtype=model.dtype,
        attention=model.config._attn_implementation,
        trust_remote_code=_brings_own_code(model),
    ).model.to(model.device)
    return bench.logits(positions, model=again), rotary_tables(again)


def _reload_config(bench: _Bench, positions: Tensor, folder: str) -> tuple[Tensor, dict[str, RopeTable]]:
    """The same from the saved config alone, built around the weights in memory; costs nothing at any size."""
    model = bench.model
    with quiet_transformers():
        model.config.save_pretrained(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=_brings_own_code(model))
        config._attn_implementation = model.config._attn_implementation
        again = built_around(type(model), config, dict(model.named_parameters(remove_duplicate=False)), model)
    return bench.logits(positions, model=again), rotary_tables(again)


def _brings_own_code(model: PreTrainedModel) -> bool:
    """Whether the class came with the checkpoint; its code runs already, so loading it again asks no new trust."""
    return type(model).__module__.startswith("transformers_modules")


def _run(probe: Callable[[_Bench], Verdict | None], bench: _Bench) -> Verdict | None:
    """A pass that cannot even be made is a verdict as well: training would meet the same error."""
    try:
        return probe(bench)
    except Exception as error:  # The model's code is anyone's and may raise anything.
        message = next(iter(str(error).strip().splitlines()), "no message")
        return Verdict(
            name=probe.__name__.strip("_"),
            status="fail",
            detail=f"the probe stopped with {type(error).__name__}: {message[:200]}",
            cure="training would stop alike: try --attention eager, train without gradient checkpointing, or update transformers",
        )


def _judge(name: str, good: bool, detail: str, cure: str) -> Verdict:
    return (
        Verdict(name=name, status="pass", detail=detail)
        if good
        else Verdict(name=name, status="fail", detail=detail, cure=cure)
    )


def _expected_tables(bench: _Bench) -> dict[str, RopeTable]:
    """By path as in `rotary_tables`: the interpolation's table, and for kinds of layers with an entry of their own, theirs."""
    config = bench.config.to_dict()
    spec = read_rope(
        {**config, **{common: config[own] for common, own in bench.config.attribute_map.items() if own in config}}
    ).spec
    expected = {}
    for path, table in rotary_tables(bench.model).items():
        entry = (bench.config.rope_parameters or {}).get(path.rpartition(".")[2])
        if entry is None or path.endswith(f".{_GLOBAL_LAYERS}"):
            expected[path] = bench.interpolation.table(spec, bench.window)
        else:
            local = RopeSpec(rotary_dim=2 * len(table.inv_freq), theta=entry["rope_theta"])
            expected[path] = RopeTable(
                inv_freq=unscaled_frequencies(local) / entry.get("factor", 1.0), attention_factor=1.0
            )
    return expected


def _local_span(config: Any) -> int | None:
    """Tokens that layers of local attention see, or None where there are none."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and not set(kinds) & set(_LOCAL_LAYERS):
        return None
    return getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)


def _deviation(found: RopeTable | None, expected: RopeTable) -> float:
    """Largest relative difference of frequencies and attention factor; infinite where the shapes differ."""
    if found is None or found.inv_freq.shape != expected.inv_freq.shape:
        return float("inf")
    frequencies = np.max(np.abs(found.inv_freq / expected.inv_freq - 1))
    return max(float(frequencies), abs(found.attention_factor / expected.attention_factor - 1))


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def _rms(difference: Tensor) -> float:
    return difference.square().mean().sqrt().item()


def _ratio(part: Tensor, whole: Tensor) -> float:
    return (part / whole).item() if whole > 0 else 0.0


@contextmanager
def _undisturbed(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Puts back, afterwards, all that probing changes: modes, checkpointing, length-dependent tables, gradients, RNG."""
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    accelerator = model.device.index is not None and model.device.type != "cpu"
    with torch.random.fork_rng(
        devices=[model.device] if accelerator else [], device_type=model.device.type if accelerator else "cuda"
    ):
        try:
            yield
        finally:
            for module, saved in attributes:
                vars(module).clear()
                vars(module).update(saved)
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)
            for parameter in trained:
                parameter.requires_grad_(True)

"""Probes of attention between the chunks, and of the effect of positions."""

import torch
from torch import Tensor

from skipwise.doctor.bench import Bench, angle_error, largest, local_span, rms
from skipwise.loss import IGNORED, NextTokenLoss
from skipwise.model import rotary_tables
from skipwise.records.verdict import Verdict, judge

# Masked attention gives a gradient of exactly zero. Tokens that are far away but visible give far more than this.
_SMALLEST_SHARE = 1e-7
# Share of a token's effect without a skip; smaller effects are rounding.
_ROUNDING_SHARE = 1e-4
# Training scales its float16 loss so that small gradients do not underflow.
_FLOAT16_SCALE = 2.0**10


def reach(bench: Bench) -> Verdict:
    """Checks that a token of chunk one affects the logits of chunk two, in the forward and in the backward pass."""
    skips = sorted({1, max(1, bench.middle_skip), bench.longest_skip})
    smallest = min(bench.effect(skip) for skip in skips)
    share = min(_share(bench.sensitivity(skip, bench.n - 1), of=slice(bench.half)) for skip in skips)
    detail = (
        f"over skips of {', '.join(map(str, skips))} a token of chunk one moves chunk two's logits by at least "
        f"{smallest:.2g} (without a skip {bench.effect(0):.2g}, the same pass repeated {bench.noise / 2:.2g}), and "
        f"chunk one has {share:.2g} of chunk two's gradient"
    )
    cure = (
        "the chunks do not see each other, so training would learn nothing: load the model with another attention "
        "(eager, sdpa), with another transformers version, or without its own code if that ignores attention_mask"
    )
    return judge("reach", smallest > bench.noise and share > _SMALLEST_SHARE, detail, cure)


def mask(bench: Bench) -> Verdict:
    """Reports whether the model would isolate the chunks without skipwise's attention mask. It never fails."""
    effect = bench.effect(bench.middle_skip, mask=False)
    # Experts that process other tokens round differently, which moves even isolated logits a little.
    if effect > max(bench.noise, _ROUNDING_SHARE * bench.effect(0)):
        detail = f"without skipwise's explicit attention mask, this model would not isolate the chunks ({effect:.2g})"
    else:
        detail = "without skipwise's explicit attention mask, this model would isolate the chunks"
    return Verdict(name="mask", status="note", detail=detail)


def causal(bench: Bench) -> Verdict:
    """Checks that a token does not affect earlier logits."""
    positions = bench.positions(bench.middle_skip)
    before = bench.logits(positions)
    leak = largest((bench.logits(positions, bench.changed(bench.half)) - before)[:, : bench.half])
    allowed = bench.rounding(before)
    share = _share(bench.sensitivity(bench.middle_skip, bench.half - 1), of=slice(bench.half, None))
    detail = (
        f"a token of chunk two moves chunk one's logits by {leak:.2g} (rounding allows {allowed:.2g}), and chunk two "
        f"has {share:.2g} of chunk one's gradient"
    )
    cure = "the model sees the future: load it as a decoder (is_decoder) or with another attention (eager, sdpa)"
    return judge("causal", leak <= allowed and share <= _SMALLEST_SHARE, detail, cure)


def shift(bench: Bench) -> Verdict:
    """Checks that only relative positions matter: shifting all positions changes logits only by rounding of angles."""
    base, before = bench.logits(bench.positions(bench.middle_skip)), rotary_tables(bench.model)
    moved = rms(bench.logits(bench.positions(bench.middle_skip, bench.shift)) - base)
    after = rotary_tables(bench.model)
    detail = f"all positions + {bench.shift} move the logits by {moved:.2g} (rms)"
    if any((table.inv_freq != before[path].inv_freq).any() for path, table in after.items()):
        detail += ", because this rotary table follows the largest position"
        return Verdict(name="shift", status="note", detail=detail)

    # Shifting only chunk two turns angles by about a radian, so it measures the effect of a radian on the logits. The
    # effect saturates, hence the factor of 16. At most a quarter of the effect is allowed, so that the probe can fail.
    stretched = rms(bench.logits(bench.positions(bench.middle_skip + bench.shift)) - base)
    last = bench.n - 1 + bench.middle_skip + bench.shift
    radians = 2 * (
        angle_error(before.values(), last) + torch.finfo(bench.dtype).eps
    )  # cos and sin, or the vectors that they rotate, are rounded to the dtype of the pass
    allowed = min(16 * radians, 0.25) * stretched + bench.rounding(base)
    detail += (
        f"; {radians:.1g} rad of rounding allow {allowed:.2g}; shifting only chunk two by {bench.shift} moves them by "
        f"{stretched:.2g}"
    )
    cure = (
        "the model has absolute positions in addition to rotary ones, or computes positions in 16 bits: load it as "
        "float32, or extend another model"
    )
    return judge("shift", moved <= allowed, detail, cure)


def positions(bench: Bench) -> Verdict:
    """Checks that the skip affects the logits, even by one position at the far end, where 16-bit positions collide."""
    end = bench.logits(bench.positions(bench.longest_skip))
    by_one = rms(bench.logits(bench.positions(bench.longest_skip - 1)) - end)
    by_many = rms(bench.logits(bench.positions(bench.middle_skip)) - end)
    unseen = _unseen(bench, end)
    detail = (
        f"at a skip of {bench.longest_skip}, one position less moves the logits by {by_one:.2g} (rms), "
        f"{bench.longest_skip - bench.middle_skip} less by {by_many:.2g} (rounding causes up to {unseen:.2g})"
    )
    if by_many > unseen:
        cure = "far positions collide, as they do when computed in 16 bits: load the model as float32"
    else:
        cure = (
            "the model ignores position_ids, or its chunks do not see each other (reach): extend a model whose forward "
            "uses position_ids"
        )
    return judge("positions", min(by_one, by_many) > unseen, detail, cure)


def rows(bench: Bench) -> Verdict:
    """Checks that every row of a batch uses its own positions."""
    apart = torch.cat([bench.positions(bench.longest_skip), bench.positions(bench.longest_skip - 1)])
    bench.model.eval()  # Dropout would differ between rows.
    alone = torch.cat([bench.logits(row[None]) for row in apart])
    together = bench.logits(apart)
    bench.model.train()
    own = [rms(one - other) for one, other in zip(together, alone, strict=True)]
    swapped = [rms(one - other) for one, other in zip(together, alone.flip(0), strict=True)]
    detail = (
        f"in a batch of two skips each row's logits differ by up to {max(own):.2g} (rms) from those of the row alone, "
        f"and by at least {min(swapped):.2g} from the other row's"
    )
    cure = "rows of a batch share positions: train with per_device_train_batch_size 1"
    unseen = _unseen(bench, alone)
    return judge("rows", all(o <= max(s, unseen) for o, s in zip(own, swapped, strict=True)), detail, cure)


def _unseen(bench: Bench, logits: Tensor) -> float:
    """The rms change in logits below which a change of positions counts as unseen.

    It is that of float32 in every dtype; in 16 bits, smaller changes disappear in rounding anyway.
    """
    return bench.rounding(logits, torch.float32)


def dilution(bench: Bench) -> Verdict:
    """Checks the mask of diluted attention.

    Without weights it must act as a causal mask; with weights it must change only chunk two; and gradients must flow
    from the loss of chunk two to chunk one.
    """
    positions = bench.positions(bench.middle_skip)
    plain, unweighted = bench.logits(positions), bench.logits(positions, diluted=False)
    allowed = bench.rounding(plain)
    # With this mask, attention sums in another order in every layer.
    reordered = allowed + 7 * bench.rounding(plain, torch.float32)
    off = largest(unweighted - plain)
    moved = (bench.logits(positions, diluted=True) - unweighted).abs()
    early, late = largest(moved[:, : bench.half]), largest(moved[:, bench.half :])
    span = local_span(bench.config)
    detail = (
        f"its mask without weights moves the logits by {off:.2g} (rounding allows {reordered:.2g}); with weights chunk "
        f"two moves by {late:.2g} and chunk one by {early:.2g}"
    )
    gradient = _gradient_of_training(bench, positions)[:, : bench.half]
    learns = bool(gradient.isfinite().all()) and bool(gradient.any())
    detail += f", and the loss of chunk two has a gradient of {largest(gradient):.2g} at chunk one"
    if span is not None:
        # All layers get the same mask, which would let layers of local attention attend to all tokens.
        detail += f"; layers that attend only to the last {span} tokens would attend to all"
    passed = off <= reordered and early <= allowed < late and learns and span is None
    cure = (
        "attention does not apply this mask correctly: train with attention sdpa or eager, or without dilution "
        "(--recipe paper)"
    )
    if span is not None:
        cure = "train this model without dilution (--recipe paper)"
    return judge("dilution", passed, detail, cure)


def _gradient_of_training(bench: Bench, positions: Tensor) -> Tensor:
    """Gradient (1, n, width) of training's loss on chunk two with the diluted mask, at the embeddings."""
    labels = bench.ids.clone()
    labels[:, : bench.half + 1] = IGNORED  # The last token of chunk one predicts the first token of chunk two.
    diluted = torch.ones(1, dtype=torch.bool, device=labels.device)
    bench.seed()
    with bench.embeddings_as_leaves() as leaves, torch.enable_grad():
        with bench.autocast():
            loss = NextTokenLoss(bench.model)(bench.ids, positions, labels, diluted=diluted)
        if bench.dtype == torch.float16:
            loss = loss * _FLOAT16_SCALE
        if not loss.requires_grad:
            return torch.zeros_like(leaves[0])
        (gradient,) = torch.autograd.grad(loss, leaves[:1], allow_unused=True)
    return torch.zeros_like(leaves[0]) if gradient is None else gradient.float()


def _share(sensitivity: Tensor, *, of: slice) -> float:
    """The largest gradient inside `of`, divided by the largest gradient outside; zero if that is zero."""
    inside = torch.zeros_like(sensitivity, dtype=torch.bool)
    inside[of] = True
    whole = sensitivity[~inside].max().item()
    return sensitivity[inside].max().item() / whole if whole else 0.0

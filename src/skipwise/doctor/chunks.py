"""Probes of what the chunks see of each other, and of what positions do."""

import torch
from torch import Tensor

from skipwise.doctor.bench import Bench, angle_error, largest, local_span, rms
from skipwise.loss import IGNORED, NextTokenLoss
from skipwise.model import rotary_tables
from skipwise.records.verdict import Verdict, judge

# Attention that is masked out gives a gradient of exactly zero; what is far away, and seen, gives far more than this.
_SMALLEST_SHARE = 1e-7
# Of what a token does without a skip; less is rounding.
_ROUNDING_SHARE = 1e-4
# Training scales its loss in float16, lest small gradients vanish.
_FLOAT16_SCALE = 2.0**10


def reach(bench: Bench) -> Verdict:
    """A token of chunk one moves the logits of chunk two, forwards and through the backward pass."""
    skips = sorted({1, max(1, bench.middle_skip), bench.longest_skip})
    smallest = min(bench.effect(skip) for skip in skips)
    share = min(_share(bench.sensitivity(skip, bench.n - 1), of=slice(bench.half)) for skip in skips)
    detail = (
        f"over skips of {', '.join(map(str, skips))} a token of chunk one moves chunk two's logits by {smallest:.2g} "
        f"or more (without a skip {bench.effect(0):.2g}, the same pass repeated {bench.noise / 2:.2g}), and chunk one "
        f"has {share:.2g} of chunk two's gradient"
    )
    cure = (
        "the chunks do not see each other, so training would learn nothing: load the model with another attention "
        "(eager, sdpa), with another transformers version, or without its own code where that ignores attention_mask"
    )
    return judge("reach", smallest > bench.noise and share > _SMALLEST_SHARE, detail, cure)


def mask(bench: Bench) -> Verdict:
    """What would happen without skipwise's mask; nothing depends on it."""
    effect = bench.effect(bench.middle_skip, mask=False)
    # Experts that see other tokens round differently, which moves even isolated logits a little.
    if effect > max(bench.noise, _ROUNDING_SHARE * bench.effect(0)):
        detail = (
            f"without the explicit mask that skipwise gives, this model would not isolate the chunks ({effect:.2g})"
        )
    else:
        detail = "without the explicit mask that skipwise gives, this model would isolate the chunks"
    return Verdict(name="mask", status="note", detail=detail)


def causal(bench: Bench) -> Verdict:
    """A later token leaves earlier logits alone."""
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
    """Only relative positions count: moving all of them changes nothing beyond the rounding of the angles."""
    base, before = bench.logits(bench.positions(bench.middle_skip)), rotary_tables(bench.model)
    moved = rms(bench.logits(bench.positions(bench.middle_skip, bench.shift)) - base)
    after = rotary_tables(bench.model)
    detail = f"all positions + {bench.shift} move the logits by {moved:.2g} (rms)"
    if any((table.inv_freq != before[path].inv_freq).any() for path, table in after.items()):
        detail += ", because the rotary table follows the largest position here"
        return Verdict(name="shift", status="note", detail=detail)

    # Moving chunk two alone turns angles by about a radian, so it tells what a radian is worth in logits. That response
    # saturates, hence 16 times; and at most a quarter of it, so that the probe can fail.
    stretched = rms(bench.logits(bench.positions(bench.middle_skip + bench.shift)) - base)
    last = bench.n - 1 + bench.middle_skip + bench.shift
    radians = 2 * (
        angle_error(before.values(), last) + torch.finfo(bench.dtype).eps
    )  # cos and sin, or what they turn, are rounded to the dtype of the pass
    allowed = min(16 * radians, 0.25) * stretched + bench.rounding(base)
    detail += (
        f"; {radians:.1g} rad of rounding allow {allowed:.2g}, chunk two alone + {bench.shift} moves them by "
        f"{stretched:.2g}"
    )
    cure = (
        "the model has absolute positions beside the rotary ones, or computes positions in 16 bits: load it as "
        "float32, else extend another model"
    )
    return judge("shift", moved <= allowed, detail, cure)


def positions(bench: Bench) -> Verdict:
    """Another skip gives other logits, also by one position at the far end, where 16-bit positions would collide."""
    end = bench.logits(bench.positions(bench.longest_skip))
    by_one = rms(bench.logits(bench.positions(bench.longest_skip - 1)) - end)
    by_many = rms(bench.logits(bench.positions(bench.middle_skip)) - end)
    unseen = _unseen(bench, end)
    detail = (
        f"at a skip of {bench.longest_skip}, one position less moves the logits by {by_one:.2g} (rms), "
        f"{bench.longest_skip - bench.middle_skip} less by {by_many:.2g} (rounding makes up to {unseen:.2g})"
    )
    if by_many > unseen:
        cure = "far positions fall together, as they do when computed in 16 bits: load the model as float32"
    else:
        cure = (
            "the model ignores position_ids, or its chunks do not see each other (reach): extend a model whose forward "
            "uses position_ids"
        )
    return judge("positions", min(by_one, by_many) > unseen, detail, cure)


def rows(bench: Bench) -> Verdict:
    """In a batch every row keeps its own positions."""
    apart = torch.cat([bench.positions(bench.longest_skip), bench.positions(bench.longest_skip - 1)])
    bench.model.eval()  # Dropout would differ between rows.
    alone = torch.cat([bench.logits(row[None]) for row in apart])
    together = bench.logits(apart)
    bench.model.train()
    own = [rms(one - other) for one, other in zip(together, alone, strict=True)]
    swapped = [rms(one - other) for one, other in zip(together, alone.flip(0), strict=True)]
    detail = (
        f"in a batch of two skips the rows' logits differ by {max(own):.2g} (rms) from those of each row alone, and by "
        f"{min(swapped):.2g} from the other row's"
    )
    cure = "rows of a batch share positions: train with per_device_train_batch_size 1"
    unseen = _unseen(bench, alone)
    return judge("rows", all(o <= max(s, unseen) for o, s in zip(own, swapped, strict=True)), detail, cure)


def _unseen(bench: Bench, logits: Tensor) -> float:
    """What counts as no change (rms) when positions change; in 16 bits rounding swallows whatever is smaller anyway."""
    return bench.rounding(logits, torch.float32)


def dilution(bench: Bench) -> Verdict:
    """The mask of diluted attention counts keys, is a causal mask where nothing is left out, and lets gradients by."""
    positions = bench.positions(bench.middle_skip)
    plain, unweighted = bench.logits(positions), bench.logits(positions, diluted=False)
    allowed = bench.rounding(plain)
    # Under this mask attention sums in another order, at every layer.
    reordered = allowed + 7 * bench.rounding(plain, torch.float32)
    off = largest(unweighted - plain)
    moved = (bench.logits(positions, diluted=True) - unweighted).abs()
    early, late = largest(moved[:, : bench.half]), largest(moved[:, bench.half :])
    span = local_span(bench.config)
    detail = (
        f"its mask without weights moves the logits by {off:.2g} (rounding allows {reordered:.2g}); with them chunk "
        f"two moves by {late:.2g} and chunk one by {early:.2g}"
    )
    gradient = _gradient_of_training(bench, positions)[:, : bench.half]
    learns = bool(gradient.isfinite().all()) and bool(gradient.any())
    detail += f", and the loss of chunk two has a gradient of {largest(gradient):.2g} at chunk one"
    if span is not None:
        # Its one mask goes to every layer, and would show the local ones what they never look at.
        detail += f"; layers that attend to the last {span} tokens only would attend to all"
    passed = off <= reordered and early <= allowed < late and learns and span is None
    cure = (
        "attention does not take such a mask as it should: train with --attention sdpa or eager, or without dilution "
        "(--recipe paper)"
    )
    if span is not None:
        cure = "train this model without dilution (--recipe paper)"
    return judge("dilution", passed, detail, cure)


def _gradient_of_training(bench: Bench, positions: Tensor) -> Tensor:
    """Gradient (1, n, width) of training's own loss of chunk two, under the diluted mask, at the embeddings."""
    labels = bench.ids.clone()
    labels[:, : bench.half + 1] = IGNORED  # The first token of chunk two is told by the last of chunk one.
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
    """The largest gradient within `of`, as a share of the largest one outside."""
    inside = torch.zeros_like(sensitivity, dtype=torch.bool)
    inside[of] = True
    whole = sensitivity[~inside].max().item()
    return sensitivity[inside].max().item() / whole if whole else 0.0

"""Bad steps: found, left out of training, recorded with their items; too many of them end the run."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback

from skipwise.config import GuardConfig
from skipwise.errors import CheckpointError
from skipwise.files import replace_file
from skipwise.names import first_line

BAD_ITEMS_FILE = "bad-items.json"

# A loss is compared with the median of this many logged losses.
_REMEMBERED = 20

Describe = Callable[[int], dict[str, Any]]
"""Describes the item at a place in the run, ready for JSON."""


class BadItems:
    """The file of a run's bad steps with their items, and of the items that are skipped.

    Raises:
        CheckpointError: the file is there and cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / BAD_ITEMS_FILE
        self.bad_steps: dict[str, dict[str, Any]] = {}
        self.skipped: list[int] = []
        if self.path.exists():
            try:
                known = json.loads(self.path.read_text(encoding="utf-8"))
                self.bad_steps, self.skipped = dict(known["bad_steps"]), list(map(int, known["skipped"]))
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise CheckpointError(
                    f"{str(self.path)!r} cannot be read ({first_line(error)}); it names the items of bad "
                    "steps, and without it the run continues with all of them: bring it back, or delete it"
                ) from error

    def skip(self) -> list[int]:
        """Skips the items of all bad steps so far, and resets their count; returns the places of the items."""
        places = {item["place"] for step in self.bad_steps.values() for item in step["items"]}
        self.skipped, self.bad_steps = sorted(places.union(self.skipped)), {}
        self.write()
        return sorted(places)

    def add(self, step: int, loss: float, items: Sequence[dict[str, Any]]) -> None:
        """Adds a bad step; one that is repeated after a resume counts once."""
        self.bad_steps[str(step)] = {"loss": loss if math.isfinite(loss) else str(loss), "items": list(items)}
        self.write()

    def write(self) -> None:
        """Writes the file, in the first process.

        Raises:
            CheckpointError: it cannot be written.
        """
        if not PartialState().is_main_process:
            return
        text = json.dumps({"bad_steps": self.bad_steps, "skipped": self.skipped}, indent=2)
        try:
            replace_file(self.path, text + "\n")
        except OSError as error:
            raise CheckpointError(
                f"{str(self.path)!r} cannot be written: {error.strerror}", page="cannot-write"
            ) from error


class StepGuard(TrainerCallback):
    """Skips the update of a step whose loss is not finite or has exploded; ends the run after too many.

    All processes decide alike, since they decide on sums over all of them.

    Args:
        config: how many bad steps end the run, and how far a loss may rise.
        bad_items: where their items are recorded.
        describe: describes an item.
        say: prints a line for people.
    """

    def __init__(
        self, config: GuardConfig, bad_items: BadItems, describe: Describe, say: Callable[[str], None]
    ) -> None:
        self._config, self._bad_items, self._describe, self._say = config, bad_items, describe, say
        self._losses: list[torch.Tensor] = []
        self._each: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._gradient_norm: float | None = None
        self._bad_losses: list[float] = []

    def count(self, loss: torch.Tensor, mean: torch.Tensor, places: torch.Tensor) -> None:
        """Notes a batch of the step, without synchronizing with the accelerator.

        Args:
            loss: its share of the step's loss, a scalar.
            mean: its own loss per token, a scalar.
            places: of its items in the run, int64 (n,).
        """
        self._losses.append(loss)
        self._each.append((mean, places))

    def count_gradient_norm(self, norm: float | None) -> None:
        """Notes the norm of the step's gradient; None if it need not be finite."""
        self._gradient_norm = norm

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forgets the step before."""
        self._losses, self._each, self._gradient_norm = [], [], None

    def take_bad_losses(self) -> list[float]:
        """The losses of bad steps since the last call."""
        taken, self._bad_losses = self._bad_losses, []
        return taken

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Judges the step; drops the gradient of a bad one, so that the optimizer changes nothing.

        Raises:
            CheckpointError: it is one bad step too many; with DeepSpeed, the first one is.
        """
        loss = self._step_loss(args)
        good = (entry["loss"] for entry in reversed(state.log_history) if "loss" in entry and "bad" not in entry)
        highest = math.inf
        if finite := [each for each in islice(good, _REMEMBERED) if math.isfinite(each)]:
            highest = statistics.median(finite) + self._config.rise
        wrong_gradient = self._gradient_norm is not None and not math.isfinite(self._gradient_norm)
        # NaN compares as False.
        if loss <= highest and math.isfinite(loss) and not wrong_gradient:
            return
        given["model"].zero_grad(set_to_none=True)
        self._bad_losses.append(loss)
        step, what = state.global_step + 1, f"the loss is {loss:.4g}"
        if math.isfinite(loss):
            usually = f", where {highest - self._config.rise:.4g} was usual"
            what += usually if loss > highest else ", and its gradient is not finite"
        items = self._items_to_blame(highest, args)
        self._bad_items.add(step, loss, items)
        bad = sorted(map(int, self._bad_items.bad_steps))
        told, where = f"{what} at step {step}", repr(str(self._bad_items.path))
        # DeepSpeed takes the step within the backward pass, before it can be judged.
        taken = bool(args.deepspeed)
        if len(bad) < self._config.bad_steps and not taken:
            self._say(
                f"{told}, and the optimizer skips it; its items are in {where} "
                f"({len(bad)} of {self._config.bad_steps} bad steps that end the run)"
            )
            return
        others = "" if len(bad) == 1 else f"; {len(bad)} steps have gone wrong ({', '.join(map(str, bad))})"
        skipped = "DeepSpeed took the step" if taken else f"the optimizer skipped {'it' if len(bad) == 1 else 'them'}"
        raise CheckpointError(
            f"{told}{others}, and {skipped}: the items are in {where}; continue from the last checkpoint without them "
            "by --resume --skip-bad-items, or start again with another --output and a lower training.learning_rate, "
            "in float32 or bfloat16",
            page="loss-exploded",
        )

    def _items_to_blame(self, highest: float, args: Any) -> list[dict[str, Any]]:
        """The items of batches whose own loss is bad, over all processes; all items of the step if there are none."""
        found: list[tuple[bool, dict[str, Any]]] = []
        for tensor, places in self._each:
            mean = tensor.item()
            told = {"loss": mean if math.isfinite(mean) else str(mean)}
            blamed = not math.isfinite(mean) or mean > highest
            found += [(blamed, {"place": place, **self._describe(place), **told}) for place in places.tolist()]
        if args.world_size > 1:
            found = gather_object(found)
        return [item for blamed, item in found if blamed] or [item for _, item in found]

    def _step_loss(self, args: Any) -> float:
        """The step's mean loss over all processes."""
        total = torch.stack([loss.detach().float() for loss in self._losses]).sum()
        if args.world_size > 1:
            torch.distributed.all_reduce(total)
            total = total / args.world_size
        return total.item()

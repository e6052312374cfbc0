"""What training takes from the private parts of its libraries: whether it is there and does what we take it to do.

A new release that fails here says which of `train/_trainer.py` and `train/ring.py` to change. Those of `loss.py` and
`attention.py` are asked for in their own tests.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import tiny_config, tiny_model
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainingArguments

from skipwise.errors import ConfigError
from skipwise.train._trainer import OpenTrainer, use_one_accelerator
from skipwise.train.ring import use_ring_on_cpu

RING = "torch.distributed.tensor.experimental._context_parallel._attention"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("get_train_dataloader", []),
        ("get_batch_samples", ["epoch_iterator", "num_batches", "device"]),
        ("_get_grad_norm", ["model", "grad_norm"]),
        ("_save_checkpoint", ["model", "trial"]),
        ("_get_output_dir", ["trial"]),
        ("_save", ["output_dir", "state_dict"]),
        ("_save_optimizer_and_scheduler", ["output_dir"]),
        ("_load_optimizer_and_scheduler", ["checkpoint"]),
        ("_defer_fsdp_gradient_reduction", []),
        ("_load_from_checkpoint", ["resume_from_checkpoint", "model"]),
    ],
)
def test_the_trainer_has_each_method(name: str, parameters: list[str]) -> None:
    assert [*inspect.signature(getattr(transformers.Trainer, name)).parameters] == ["self", *parameters]
    assert name in vars(OpenTrainer)


class Told(OpenTrainer):
    """Notes when the Trainer calls each of its methods."""

    def __init__(self, calls: list[Any], **how: Any) -> None:
        self.calls = calls
        super().__init__(**how)
        self.add_callback(Judge(calls))

    def batch_places(self, begin: int) -> Sampler[list[int]]:
        return Batches(self.calls, range(begin, 4))

    def on_gradient_norm(self, norm: Any) -> None:
        model: Any = self.model
        gradients = [parameter.grad for parameter in model.parameters()]
        assert float(norm) == pytest.approx(torch.nn.utils.get_total_norm(gradients).item(), rel=1e-4)
        self.calls.append("norm")

    @contextmanager
    def saving(self) -> Iterator[Path]:
        self.calls.append("saving")
        yield (side := Path(str(self.args.output_dir)) / "side")
        assert {"optimizer.pt", "scheduler.pt", "trainer_state.json"} <= {
            file.name for file in (side / "checkpoint-1").iterdir()
        }
        self.calls.append("saved")

    def save_weights(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        assert folder == Path(str(self.args.output_dir)) / "side" / "checkpoint-1"
        folder.mkdir(parents=True)
        self.calls.append("weights")

    def loads_weights(self) -> bool:
        self.calls.append("loads")
        return False

    def saves_optimizer(self, checkpoint: Path) -> bool:
        assert checkpoint.name == "checkpoint-1"
        self.calls.append("optimizer")
        return False

    def loads_optimizer(self, checkpoint: Path) -> bool:
        self.calls.append("reads the optimizer")
        return False


class Batches(Sampler[list[int]]):
    """Batches of one place; notes when one is taken."""

    def __init__(self, calls: list[Any], places: range) -> None:
        self.calls, self.places = calls, places

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[list[int]]:
        for place in self.places:
            self.calls.append(place)
            yield [place]


class Judge(TrainerCallback):
    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.calls.append("judged")


def test_the_trainer_calls_each_when_we_take_it_to(tmp_path: Path) -> None:
    model = tiny_model(tiny_config("llama"))
    items = [{"input_ids": torch.arange(4), "labels": torch.arange(4)}] * 4

    def calls_of(steps: int, **resume: Any) -> list[Any]:
        args = TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True,
            per_device_train_batch_size=1, save_strategy="no" if resume else "steps", max_grad_norm=1e9,
        )  # fmt: skip
        calls: list[Any] = []
        Told(calls, model=model, args=args, train_dataset=items).train(**resume)
        return calls

    # One batch is taken ahead.
    assert calls_of(1) == [0, 1, "norm", "judged", "saving", "weights", "optimizer", "saved"]
    # Weights are asked for; nothing of them is in the checkpoint, which the library itself would refuse. The batch that
    # is done is not taken again.
    resumed = calls_of(2, resume_from_checkpoint=str(tmp_path / "side" / "checkpoint-1"))
    assert resumed == ["loads", "reads the optimizer", 1, 2, "norm", "judged"]


def test_the_trainer_copies_a_model_to_as_many_accelerators_as_arguments_say(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    arguments._n_gpu = 2
    assert arguments.n_gpu == 2
    use_one_accelerator(arguments)
    assert arguments.n_gpu == 1


def test_torch_has_the_ring_and_the_cpu_kernel_that_it_is_given() -> None:
    from torch.distributed.tensor import DTensor

    ring: Any = pytest.importorskip(RING)

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    gradient = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    assert [*inspect.signature(ring._templated_ring_attention).parameters][:6] == [
        "group", "seq_dim", "op", "query", "key", "value"
    ]  # fmt: skip
    backward = [*inspect.signature(ring._templated_ring_attention_backward).parameters]
    assert backward[:5] == ["group", "seq_dim", "op", "grad_out", "grad_out_name"]
    assert {"query", "key", "value"} <= {argument.name for argument in attention._schema.arguments}
    assert {"grad_out", "query", "key", "value", *backward[5:7]} <= {each.name for each in gradient._schema.arguments}
    assert callable(DTensor._op_dispatcher.unwrap_to_op_info)
    use_ring_on_cpu()
    assert {attention, gradient} <= ring.custom_ops.keys(), "the handlers that `context_parallel` puts into use"


def test_torch_of_another_ring_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    ring: Any = pytest.importorskip(RING)

    monkeypatch.delattr(ring, "_templated_ring_attention")
    with pytest.raises(ConfigError, match=r"parallel\.context"):
        use_ring_on_cpu()

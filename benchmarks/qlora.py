"""Full tuning, LoRA and QLoRA of one model: memory, validation perplexity, and two ways to merge.

    python benchmarks/qlora.py [--model embedded] [--target 1k] [--steps 40] [--windows 16]

Each tuning is a run of `skipwise extend` in its own process. For QLoRA the validation perplexity is measured three
times: of the trained model with weights in 4 bits; of the adapter merged into the dequantized weights, which is what
`extend` saves; and of the same adapter merged into the original weights.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

LOW_RANK = {"rank": 16, "train_norms": True, "train_embeddings": True}
TUNINGS: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({"kind": "full"}, 1e-3),
    "lora": ({"kind": "lora", **LOW_RANK}, 2e-3),
    "qlora": ({"kind": "qlora", **LOW_RANK}, 2e-3),
    "qlora, fp4": ({"kind": "qlora", "quant": "fp4", **LOW_RANK}, 2e-3),
}
KIB = 2**10


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """Runs one tuning in this process; returns perplexities by length, and bytes of the weights during training."""
    import skipwise.train.steps
    from skipwise.config import RunConfig
    from skipwise.data.corpus import open_corpus
    from skipwise.model import load_model, original_window, read_config
    from skipwise.train import extend
    from skipwise.train.data import check_sources
    from skipwise.train.tuning import apply_tuning
    from skipwise.train.validation import build_validation, validation_lengths

    said: dict[str, Any] = {}

    def tuned(model: Any, tuning: Any) -> Any:
        found = apply_tuning(model, tuning)
        said.setdefault("weights", bytes_of(found))
        said.setdefault("trained", sum(p.numel() for p in found.parameters() if p.requires_grad))
        return found

    skipwise.train.steps.apply_tuning = tuned
    config = RunConfig.from_mapping(settings)
    result = extend(config)
    measured = [entry for entry in result.log if any("perplexity" in name for name in entry)]
    said |= {"before": perplexities(measured[0]), "after": perplexities(measured[-1])}
    said |= {"seconds": result.record["training_seconds"], "peak": result.record["peak_bytes"]}
    window = config.resolve_window(original_window(read_config(config.model)))

    def validated(model: Any) -> dict[str, float]:
        corpus = open_corpus(config.data, model.tokenizer, check_sources(config))
        validate = build_validation(config, corpus, model, validation_lengths(config, window))
        assert validate is not None
        return perplexities(validate())

    if config.tuning.kind == "qlora":
        from peft import PeftModel

        said["into the dequantized"] = validated(load_model(result.folder, dtype="float32"))
        base = load_model(config.model, interpolation=config.build_interpolation(), window=window, dtype="float32")
        onto: Any = PeftModel.from_pretrained(base.model, str(result.folder / "adapter"))
        said["into the original"] = validated(base._replace(model=onto.merge_and_unload().eval()))
    return said


def bytes_of(model: Any) -> int:
    """Bytes of all parameters, and of the scales of 4-bit ones."""
    tensors = list(model.parameters())
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            tensors += [value for value in vars(each).values() if isinstance(value, torch.Tensor)] if each else []
    return sum({each.data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


def perplexities(entry: dict[str, float]) -> dict[str, float]:
    """Perplexities of a log entry, by length."""
    return {name.rpartition("_")[2]: value for name, value in entry.items() if "perplexity" in name}


def main() -> None:
    """Trains and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--target", default="1k")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--windows", type=int, default=16, help="windows of a step")
    parser.add_argument("--documents", type=int, default=16, help="documents of validation")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(train(json.loads(args.run))))
        return
    found = {}
    for name, (tuning, rate) in TUNINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            settings = {
                "model": args.model,
                "recipe": "paper",
                "target": args.target,
                "tuning": tuning,
                "output": str(Path(folder) / "run"),
                "validation": {"num_documents": args.documents, "every_steps": 0},
                "training": {
                    "max_steps": args.steps,
                    "gradient_accumulation_steps": args.windows,
                    "learning_rate": rate,
                    "save_strategy": "no",
                    "disable_tqdm": True,
                },
            }
            command = [sys.executable, __file__, "--run", json.dumps(settings)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
    lengths = list(next(iter(found.values()))["after"])
    print(
        "| tuning | weights KiB | trained numbers | peak of the process MiB | seconds | " + " | ".join(lengths) + " |"
    )
    print("|---" * (5 + len(lengths)) + "|")
    before = found["full"]["before"]
    print("| (before) | | | | | " + " | ".join(f"{before[n]:.3f}" for n in lengths) + " |")
    for name, one in found.items():
        memory = (
            f"{one['weights'] / KIB:,.0f} | {one['trained']:,} | {one['peak'] / KIB**2:,.0f} | {one['seconds']:.0f}"
        )
        print(f"| {name} | {memory} | " + " | ".join(f"{one['after'][n]:.3f}" for n in lengths) + " |")
    print("\n| the model | " + " | ".join(lengths) + " |")
    print("|---" * (1 + len(lengths)) + "|")
    for name, one in found.items():
        for what in ("before", "after", "into the dequantized", "into the original"):
            if "into the original" in one:
                print(f"| {name}, {what} | " + " | ".join(f"{one[what][n]:.5f}" for n in lengths) + " |")


if __name__ == "__main__":
    main()

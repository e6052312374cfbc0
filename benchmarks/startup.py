"""Start-up time of each verb, relative to the bare import of its libraries.

    python benchmarks/startup.py [--source src] [--before OTHER_TREE/src] [--rounds 5] [--skip NAME ...]

A ratio is the command's best time over the best time of `python -c "import torch, transformers"`, in processor time
(including child processes) and in wall time. Rounds run all commands in turn, so that a busy machine slows all of them.
The model is a random Llama of two layers, with one token for each byte. `extend` ends when the optimizer takes its
first step. `exit` is the wall time from the last line that a command prints to its end.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

BARE = "import torch, transformers"
LIBRARY = "import torch; from transformers import LlamaForCausalLM"
COMMAND = "import sys; from skipwise.cli import main; sys.exit(main())"
FIRST_STEP = (
    "import os; from torch.optim.optimizer import register_optimizer_step_pre_hook as hook; "
    f"hook(lambda *_: os._exit(0)); {COMMAND}"
)
# Run in a separate process, so that this one imports none of these libraries.
TINY = """
import sys, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(sys.argv[1])
sizes = dict(vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
torch.manual_seed(0)
LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=64)).save_pretrained(sys.argv[1])
"""


class Times(NamedTuple):
    """Seconds of one run: processor time, wall time, and wall time from the last line to the end."""

    processor: float
    wall: float
    exit: float


def commands(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Code and arguments of each row of the table, by name."""
    model, documents = str(folder / "model"), str(folder / "documents")
    training = [f"--set=training.{name}" for name in ("max_steps=2", "use_cpu=true", "gradient_accumulation_steps=1")]
    run = ["--recipe", "paper", "--set=validation.num_documents=1", *training, "--output", str(folder / "run")]
    one_sample = ["--task", "passkey", "--length", "256", "--set=trials=1", "--set=num_depths=1", "--allow-beyond"]
    return {
        "a model class": (LIBRARY, []),
        "--help": (COMMAND, ["--help"]),
        "plan --machine nonsense": (COMMAND, ["plan", model, "--target", "128", "--machine", "nonsense"]),
        "export --to nonsense": (COMMAND, ["export", model, "--to", "nonsense"]),
        "eval --task nonsense": (COMMAND, ["eval", model, "--length", "64", "--task", "nonsense"]),
        "extend, no such model": (COMMAND, ["extend", f"{model}/none", "--target", "128", "--data", documents]),
        "extend, no such documents": (COMMAND, ["extend", model, "--target", "128", "--data", f"{documents}/none"]),
        "doctor": (COMMAND, ["doctor", model, "--target", "128"]),
        "eval, one sample": (COMMAND, ["eval", model, *one_sample, "--no-cache"]),
        "generate, one token": (COMMAND, ["generate", model, "--prompt", "a", "--max-new-tokens", "1"]),
        "extend, to its first step": (FIRST_STEP, ["extend", model, "--target", "128", "--data", documents, *run]),
        "plan llama-3-8b": (COMMAND, ["plan", "llama-3-8b", "--target", "32k"]),
        "import of extend": ("from skipwise.train import extend", []),
        "import of plan": ("from skipwise.plan import plan", []),
    }


def run(code: str, arguments: list[str], source: Path, folder: Path) -> tuple[Times, int]:
    """Times of one process, and its exit code."""
    subprocess.run(["rm", "-rf", str(folder / "run")], check=True)
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(
        command, env=environment, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        last = begin
        assert process.stdout is not None
        while process.stdout.read(2**16):
            last = time.perf_counter()
    end, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Times(processor, end - begin, 0.0 if last == begin else end - last), process.returncode


def best(runs: list[Times]) -> Times:
    """The minimum of each time."""
    return Times(*map(min, zip(*runs, strict=True)))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[1] / "src")
    parser.add_argument("--before", type=Path, help="another source tree to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip", nargs="*", default=[], help="names of rows to leave out")
    asked = parser.parse_args()
    trees = {"before": asked.before, "now": asked.source} if asked.before else {"now": asked.source}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "documents").mkdir()
        for number in range(8):
            (folder / "documents" / f"{number}.txt").write_text(f"The river {number} is wide and low. " * 40)
        subprocess.run([sys.executable, "-c", TINY, str(folder / "model")], check=True)
        rows = {row: it for row, it in commands(folder).items() if row not in asked.skip}
        bare, found, ended = list[Times](), dict[tuple[str, str], list[Times]](), dict[tuple[str, str], int]()
        for _ in range(asked.rounds):
            bare.append(run(BARE, [], asked.source, folder)[0])
            for row, (code, arguments) in rows.items():
                for tree, source in trees.items():
                    times, ended[row, tree] = run(code, arguments, source, folder)
                    found.setdefault((row, tree), []).append(times)
    unit = best(bare)
    print(f"`{BARE}`: {unit.processor:.2f} s of processor time, {unit.wall:.2f} s; the best of {asked.rounds}\n")
    print(f"| command | exit code |{''.join(f' {tree}: processor | wall | exit, s |' for tree in trees)}")
    print(f"|---|--:|{'--:|' * 3 * len(trees)}")
    for row in rows:
        cells = [str(ended[row, next(reversed(trees))])]
        for tree in trees:
            least = best(found[row, tree])
            cells += [f"{least.processor / unit.processor:.2f} ({least.processor:.2f} s)"]
            cells += [f"{least.wall / unit.wall:.2f} ({least.wall:.2f} s)", f"{least.exit:.2f}"]
        print(f"| {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

"""docs/reference/support.md: which model, interpolation, engine, device and version works, and where that was tested."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reference_pages.text import code, sentence, table
from skipwise.config.run import LoraTuning, QloraTuning
from skipwise.errors import ConfigError
from skipwise.export.gguf import FAMILIES
from skipwise.export.gguf_rope import to_gguf
from skipwise.launch import ENGINES
from skipwise.plan import engines
from skipwise.plan.engines import LLAMA_CPP_MODELS
from skipwise.rope import INTERPOLATIONS, read_rope, write_rope
from skipwise.window import Window

_ROOT = Path(__file__).parents[2]
_RECORDS = "../results"
# Versions of engines that commands were checked for.
_VERSIONS: Mapping[str, str] = getattr(engines, "ENGINE_VERSIONS", {"vLLM": ""})
_WINDOW = Window(train=4096, original=4096, target=32768)
_PACKAGES = (
    *("torch", "transformers", "accelerate", "peft", "numpy", "tokenizers", "datasets", "safetensors"),
    *("bitsandbytes", "deepspeed", "gguf", "llama-cpp-python"),
)


def page() -> str:
    """The page."""
    return "# Support\n\n" + _interpolations() + _families() + _training() + _versions()


def _interpolations() -> str:
    readers = {name: version for name, version in _VERSIONS.items() if name in ("vLLM", "SGLang")}
    rows = []
    for kind in INTERPOLATIONS:
        rows.append(
            [code(kind), "yes", *["written, not run"] * len(readers), _in_gguf(kind, True), _in_gguf(kind, False)]
        )
    columns = [f"{name} {version}".strip() for name, version in readers.items()]
    return (
        "## Interpolation by engine\n\nAn extended checkpoint has its scaling in its config, and a GGUF file in its metadata. `skipwise "
        "export` refuses what an engine cannot compute, and names the nearest setting that works.\n\n"
        + table(
            ["interpolation", "transformers", *columns, "llama.cpp, Llama and Mistral", "llama.cpp, other families"],
            rows,
        )
        + "- **transformers**: every interpolation is compared with the tables that the library computes "
        f"([forms of configs]({_RECORDS}/config-forms.md)). Folders are written so that releases 4 and 5 read them.\n"
        f"- **{' and '.join(readers)}**: the config has the entries that the engine reads, and skipwise writes the command. "
        f"Neither engine was run, since neither could be installed on the machines of the records ([the server]({_RECORDS}/serving.md), [exports]({_RECORDS}/export.md)).\n"
        f"- **llama.cpp**{_held('llama.cpp')}: exports are run by llama.cpp and compared ([exports]({_RECORDS}/export.md)). An attention "
        "factor that was chosen by `calibrate` is refused in Gemma 3. `serve --engine llama-cpp` was run with `llama-server` of "
        f"build 11434 ([llama.cpp behind the server]({_RECORDS}/llama-cpp.md)).\n"
        + (
            f"- **Ollama**{_held('Ollama')}: a Modelfile beside a GGUF file sets its window. It was not run here.\n"
            if "Ollama" in _VERSIONS
            else ""
        )
        + "\n"
    )


def _held(engine: str) -> str:
    return f" ({_VERSIONS[engine]})" if engine in _VERSIONS else ""


def _in_gguf(kind: str, has_divisors: bool) -> str:
    """Whether `export --to gguf` can write it, as the exporter itself says."""
    base = {"model_type": "llama", "head_dim": 64, "rope_theta": 10_000.0, "max_position_embeddings": _WINDOW.original}
    config = base if kind == "none" else write_rope(base, INTERPOLATIONS[kind](), _WINDOW)
    try:
        to_gguf(read_rope(config), has_divisors=has_divisors, local_layers=False)
    except ConfigError:
        return "refused"
    return "yes"


def _families() -> str:
    works = _works()
    everywhere = [name for name, kinds in works.items() if kinds["yarn"] == kinds["linear"] == "yes"]
    text = (
        f"## Model families\n\n{len(works)} model types of transformers work, tried with tiny random models "
        f"([which, and why others are refused]({_RECORDS}/model-families.md)). Baichuan-7B and Baichuan2-7B are loaded as Llama "
        "models. `skipwise doctor` tries your own model with a few tiny passes.\n\n"
        f"With every interpolation that transformers has for them, YaRN and linear among them: {', '.join(map(code, everywhere))}.\n\n"
        "With some interpolations only:\n\n"
    )
    rows = []
    for name, kinds in works.items():
        if name not in everywhere:
            told = next(
                (re.search(r"takes only ([\w, ]+)", said) for said in kinds.values() if "takes only" in said), None
            )
            rows.append(
                [code(name), told[1] if told else ", ".join(kind for kind, said in kinds.items() if said == "yes")]
            )
    return (
        text
        + table(["model type", "interpolations"], rows)
        + f"`export --to gguf` writes {', '.join(map(code, FAMILIES))}. llama.cpp itself also runs "
        + ", ".join(code(name) for name in LLAMA_CPP_MODELS if name not in FAMILIES)
        + ": export with `--to hf` and convert that with llama.cpp's own script.\n\n"
    )


def _works() -> dict[str, dict[str, str]]:
    """The families that work, by interpolation, as the record has them."""
    record = (_ROOT / "docs/results/model-families.md").read_text(encoding="utf-8")
    lines = record.split("## Work")[1].split("\n## ")[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(cells[0][1:], row[1:], strict=True)) for row in cells[2:]}


_TRAINED: Mapping[str, tuple[str, str, str]] = {
    "one process": (
        "yes",
        "yes, one H100: [SmolLM2 to 128k](../results/smollm2-128k.md), [interpolations](../results/interpolations.md)",
        "The whole model on one device.",
    ),
    "ddp": ("yes, 2 and 4 processes", "not run", "Each process holds the whole model."),
    "fsdp2": (
        "yes, 2 and 4 processes",
        "not run",
        "Parameters, gradients and optimizer state are sharded by PyTorch; no process holds the whole model, with exceptions ([engines](../results/engines.md)).",
    ),
    "zero2": ("yes, 2 processes", "not run", "Gradients and optimizer state are sharded by DeepSpeed."),
    "zero3": ("yes, 2 processes", "not run", "Parameters too are sharded by DeepSpeed."),
}


def _training() -> str:
    assert {*_TRAINED} == {"one process", *ENGINES}
    rows = [[code(name) if name in ENGINES else name, *told] for name, told in _TRAINED.items()]
    text = (
        "## Training engines by device\n\n`extend --launch ENGINE` starts the processes. *Yes* means that a run trained what one "
        f"process trains ([engines]({_RECORDS}/engines.md)).\n\n"
        + table(["engine", "CPUs", "NVIDIA GPUs", "what it does"], rows)
    )
    kinds = [kind.model_fields["kind"].default for kind in (LoraTuning, QloraTuning)]
    return text + (
        f"- **Tuning**: `full`, `{kinds[0]}` and `{kinds[1]}` were run with every engine above on CPUs. 4-bit training was not run "
        f"on an accelerator ([QLoRA]({_RECORDS}/qlora.md)).\n"
        "- **Context parallelism** (`parallel.context`) was run with 2 and 4 processes, and with 2 under ZeRO-3, on CPUs, with "
        f"the CPU attention kernel in PyTorch's ring attention ([context parallelism]({_RECORDS}/context-parallel.md)).\n"
        "- **Other accelerators**, such as AMD's and Apple's, were not tried.\n\n"
    )


def _versions() -> str:
    project: Any = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    least = {one.split(">=")[0].split("[")[0]: one.split(">=")[1] for one in needed}
    pins = (_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in pins if "==" in line)
    rows = [["Python", project["requires-python"].removeprefix(">="), "3.11"]]
    rows += [[name, least.get(name, ""), tested.get(name, "")] for name in _PACKAGES]
    return (
        "## Versions\n\nThe tests run with the versions of `constraints.txt`. Linux only; macOS and Windows were not tried.\n\n"
        + table(["package", "at least", "tested"], rows)
        + sentence("optional packages are installed with extras: `pip install 'skipwise[gguf]'`")
        + "\n"
    )

"""docs/reference/environment.md: the environment variables that the code reads or sets."""

import ast
from collections.abc import Iterator
from pathlib import Path

import skipwise
from reference_pages.text import code, table

OWN = {
    "SKIPWISE_CACHE": "Folder of cached token ids, converted documents, samples and tokenizers. Default `~/.cache/skipwise`. "
    "Processes on several machines need a folder that all of them can reach.",
    "SKIPWISE_DEBUG": "Shows the traceback of a refusal, as the flag `--debug` does.",
    "SKIPWISE_KEYS": "File of API keys for `keys` and `serve`, as the flag `--keys` does.",
    "SKIPWISE_LAUNCHED": "Set by `extend --launch` for its processes: the flags of the launch, which the message about resuming "
    "repeats.",
}
READ = {
    "ACCELERATE_DEEPSPEED_*": "Set by `accelerate launch`: settings of DeepSpeed. skipwise uses them, or reports that it leaves them out.",
    "ACCELERATE_MIXED_PRECISION": "Set by `accelerate launch`: `bf16` or `fp16`, like `training.bf16` and `training.fp16`.",
    "ACCELERATE_USE_*": "Set by `accelerate launch`: whether FSDP or DeepSpeed is used.",
    "LOCAL_WORLD_SIZE": "Set by torchrun: number of processes on this machine, which share its cores.",
    "RANK": "Set by torchrun: number of the process. Only the first one prints and writes.",
    "TORCHELASTIC_RESTART_COUNT": "Set by torchrun: number of restarts so far. A restarted run resumes.",
    "WORLD_SIZE": "Set by torchrun: number of processes.",
}
SET = {
    "DISABLE_SAFETENSORS_CONVERSION": "Set to 1 while a model is loaded, so that transformers does not ask the hub to convert it.",
    "DO_NOT_TRACK": "Set to 1 for vLLM's process.",
    "LLAMA_API_KEY": "Set for llama.cpp's process: a token that only `serve` knows.",
    "PYTHONWARNINGS": "Set for the processes of `--launch` unless you set it. Hides a warning of torch.",
    "THP_MEM_ALLOC_ENABLE": "Set to 1 unless you set it. torch then allocates memory in huge pages, which saves time on CPUs.",
    "TOKENIZERS_PARALLELISM": "Set to false while documents are tokenized, since skipwise uses its own threads.",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "Set to 1 for the processes of `--launch`, unless you set it. Otherwise restarted "
    "processes may find the addresses of dead ones.",
    "VLLM_API_KEY": "Set for vLLM's process: a token that only `serve` knows.",
    "VLLM_DO_NOT_TRACK": "Set to 1 for vLLM's process.",
    "VLLM_NO_USAGE_STATS": "Set to 1 for vLLM's process.",
}
LIBRARIES = {
    "CUDA_VISIBLE_DEVICES": "torch: the GPUs that torch may use.",
    "HF_HOME": "huggingface_hub: folder of downloaded models and data sets.",
    "HF_HUB_OFFLINE": "huggingface_hub: 1 reads only what was downloaded before.",
    "HF_TOKEN": "huggingface_hub: token for private and gated models.",
    "OMP_NUM_THREADS": "torch: threads of a process on CPUs.",
}


def page() -> str:
    """The page."""
    return (
        "# Environment variables\n\nAll of these are optional.\n\n## Of skipwise\n\n" + _table(OWN)
        + "## Read from other programs\n\n" + _table(READ)
        + "## Set for other programs\n\n" + _table(SET)
        + "## Of libraries\n\nLibraries that skipwise uses read their own variables. These are often useful:\n\n" + _table(LIBRARIES)
    )  # fmt: skip


def _table(variables: dict[str, str]) -> str:
    return table(["variable", "meaning"], [[code(name), meaning] for name, meaning in variables.items()])


def used() -> set[str]:
    """Names of all variables in the source: where `environ` or `environment` is asked, `envvar` arguments, and dicts of them.

    What is put together, such as `f"ACCELERATE_USE_{name}"`, ends with `*`.
    """
    paths = Path(skipwise.__file__).parent.rglob("*.py")
    texts = [text for path in paths if "environ" in (text := path.read_text(encoding="utf-8")) or "envvar" in text]
    trees = [ast.parse(text) for text in texts]
    constants = {name: value for tree in trees for name, value in _constants(tree)}
    return {name for tree in trees for name in _names(tree, constants)}


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from ((target.id, node.value.value) for target in node.targets if isinstance(target, ast.Name))


def _names(tree: ast.Module, constants: dict[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        asked: list[ast.expr | None] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            asked = list(node.args[:1]) if "environ" in ast.unparse(node.func.value) else []
        elif isinstance(node, ast.Subscript) and "environ" in ast.unparse(node.value):
            asked = [node.slice]
        elif isinstance(node, ast.Compare) and "environ" in ast.unparse(node.comparators[0]):
            asked = [node.left]
        elif isinstance(node, ast.keyword) and node.arg == "envvar":
            asked = [node.value]
        elif isinstance(node, ast.Dict):
            asked = [key for key in node.keys if isinstance(key, ast.Constant) and str(key.value).isupper()]
        yield from (name for one in asked if (name := _name(one, constants)) and name.strip("_*").isupper())


def _name(node: ast.expr | None, constants: dict[str, str]) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
        return f"{node.values[0].value}*"
    return None

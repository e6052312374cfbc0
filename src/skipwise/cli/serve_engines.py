"""The engines of `skipwise serve`: in this process, or vLLM's or llama.cpp's servers behind it."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipwise.cli.loading import load_tokenizer, loading
from skipwise.errors import ConfigError
from skipwise.model.place import path_beside

if TYPE_CHECKING:
    from skipwise.export.gguf_files import GgufWindows
    from skipwise.inference.engine import Mode
    from skipwise.model import Weights
    from skipwise.serve.backends import Backend, Prompts
    from skipwise.serve.scheduler import Turns

SLOTS = {"embedded": (16, 2), "vllm": (16, 2), "llama-cpp": (4, 1)}
"""For each engine, how many requests of short and of long mode run at once by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says of the model and of how it is served.

    Attributes:
        name: for clients.
        template: text of the chat template; None for the tokenizer's own.
    """

    model: str
    base: str | None
    name: str
    turns: "Turns"
    template: str | None = None
    dtype: str | None = None
    attention: str | None = None
    trust_remote_code: bool = False

    def prompts(self, tokenizer: Any) -> "Prompts":
        """Token ids of texts and chats."""
        from skipwise.serve.backends import Prompts

        prompts = Prompts(tokenizer, self.template)
        if not prompts.has_template:
            print("skipwise: the tokenizer has no chat template; chats are written as plain lines", file=sys.stderr)
        return prompts


def embedded(asked: Asked, cache: str, weights: "Weights") -> "Backend":
    """The engine in this process."""
    with loading(f"reading the model {asked.model}"):
        from accelerate import PartialState

        from skipwise.inference.generate import LocalEngine
        from skipwise.inference.modes import TwoModes
        from skipwise.runtime.thread import in_own_thread
        from skipwise.serve.backends import Embedded

    modes = in_own_thread(
        lambda: TwoModes.load(
            asked.model,
            base=asked.base,
            device=PartialState().device,
            dtype=asked.dtype,
            attention=asked.attention,
            trust_remote_code=asked.trust_remote_code,
            weights=weights,
        )
    )
    # No prefix is kept: what one key sent never serves another, and memory is free when a request is done.
    engine = LocalEngine(modes, name=asked.name, cache=cache, prefixes=0)
    return Embedded(engine, asked.prompts(modes.tokenizer), asked.turns)


def vllm(asked: Asked, arguments: str, memory: str) -> "Backend":
    """vLLM's servers."""
    from skipwise.inference.origin import read_origin
    from skipwise.model import read_config, rope_state
    from skipwise.serve.front import Front, find_program
    from skipwise.serve.vllm import Vllm

    shares, flags = _shares(memory), _split("--vllm-args", arguments)
    origin = read_origin(asked.model, base=asked.base)
    state = rope_state(read_config(asked.model, trust_remote_code=asked.trust_remote_code))
    if state.maximum > state.original and origin is None:
        raise _no_base(asked.model)
    if asked.attention is not None:
        raise ConfigError("--attention is of the embedded engine; give vLLM its own by --vllm-args")
    flags += ["--dtype", asked.dtype] if asked.dtype else []
    flags += ["--trust-remote-code"] if asked.trust_remote_code else []
    program = Vllm(
        base=origin.base if origin else asked.model,
        extended=asked.model,
        original_window=state.original,
        target=state.maximum,
        memory_shares=shares,
        arguments=tuple(flags),
        command_words=(find_program("vllm", "vLLM"),),
    )
    tokenizer = load_tokenizer(asked.model, trust_remote_code=asked.trust_remote_code)
    return Front(asked.name, program, asked.prompts(tokenizer), asked.turns)


def llama_cpp(asked: Asked, arguments: str) -> "Backend":
    """llama.cpp's servers, with GGUF files that are made if they are not there."""
    from skipwise.serve.front import Front, find_program
    from skipwise.serve.llama_cpp import COMMAND, INSTALL, LlamaCpp

    flags, command = _split("--llama-cpp-args", arguments), find_program(COMMAND, "llama.cpp", INSTALL)
    if asked.attention is not None:
        raise ConfigError("--attention is of the embedded engine; llama.cpp has its own")
    with loading(f"reading the model {asked.model}"):
        from skipwise.export.gguf_files import read_tokenizer, read_windows

    extended, base = _gguf_files(asked)
    windows = read_windows(extended)
    slots: dict[Mode, int] = {mode: asked.turns.slots(mode) for mode in ("short", "long")}
    _tell_caches(windows, slots)
    program = LlamaCpp(
        base=str(base),
        extended=str(extended),
        original_window=windows.original,
        target=windows.target,
        places=slots,
        arguments=tuple(flags),
        command_words=(command,),
    )
    is_file = asked.model.endswith(".gguf")
    trust = asked.trust_remote_code
    tokenizer = read_tokenizer(extended) if is_file else load_tokenizer(asked.model, trust_remote_code=trust)
    return Front(asked.name, program, asked.prompts(tokenizer), asked.turns)


def _gguf_files(asked: Asked) -> tuple[Path, Path]:
    """The extended model's file and the base's; a model that was never extended is its own base."""
    from skipwise.export.gguf_files import gguf_file, read_windows
    from skipwise.inference.origin import read_origin

    def told(line: str) -> None:
        print(f"skipwise: {line}", file=sys.stderr, flush=True)

    origin = read_origin(asked.model, base=asked.base)
    base = origin.base if origin else None
    how: dict[str, Any] = {"dtype": asked.dtype, "trust_remote_code": asked.trust_remote_code}
    extended = gguf_file(asked.model, path_beside(asked.model, "gguf"), told, base=base, **how)
    windows = read_windows(extended)
    if windows.target == windows.original:
        return extended, extended
    if base is None:
        raise _no_base(asked.model)
    how["dtype"] = None if base.endswith(".gguf") else asked.dtype
    return extended, gguf_file(base, path_beside(asked.model, "base-gguf"), told, **how)


def _tell_caches(windows: "GgufWindows", slots: Mapping["Mode", int]) -> None:
    """Says what llama.cpp allocates at its start, if it is more than is free."""
    import psutil

    from skipwise.report.quantities import bytes_text

    if windows.cache_bytes is None:
        return
    tokens = slots["short"] * windows.original
    tokens += slots["long"] * windows.target if windows.target > windows.original else 0
    needed, free = tokens * windows.cache_bytes, psutil.virtual_memory().available
    if needed > free:
        print(
            f"skipwise: the caches of {slots['short']} short and {slots['long']} long requests take "
            f"{bytes_text(needed)} in 16 bits, and {bytes_text(free)} of memory are free; give fewer by --short-slots "
            "and --long-slots, or --llama-cpp-args '-ctk q8_0 -ctv q8_0'",
            file=sys.stderr,
        )


def _no_base(model: str) -> ConfigError:
    return ConfigError(f"model {model!r} does not say what its base model is; give it by --base", page="wrong-base")


def _split(flag: str, arguments: str) -> list[str]:
    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise ConfigError(f"{flag} is {arguments!r}, which cannot be read ({error}); close its quotes") from error


def _shares(text: str) -> tuple[float, float]:
    try:
        short, long = map(float, text.split(","))
        if not (0 < short < 1 and 0 < long < 1 and short + long <= 1):
            raise ValueError
    except ValueError:
        raise ConfigError(f"--vllm-memory is {text!r}; give two shares of 1 in all, such as 0.3,0.6") from None
    return short, long


def check_flags(engine: str, given: Mapping[str, tuple[str, str]]) -> None:
    """Raises if a flag is of another engine.

    Args:
        engine: the one that serves.
        given: by flag, its engine and its value; an empty value was not given.

    Raises:
        ConfigError: with the flag.
    """
    for flag, (owner, value) in given.items():
        if value and owner != engine:
            raise ConfigError(f"{flag} is {value!r}; it goes with --engine {owner}")

"""llama.cpp's servers behind the front: `llama-server`, which computes several requests at once in places of its own.

llama-cpp-python has a server, too. It takes no token ids, computes one request at a time, and by default breaks off the
one that runs when another comes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from skipwise.inference.engine import GenerationRequest, Mode
from skipwise.serve.front import Program

COMMAND = "llama-server"
INSTALL = "brew install llama.cpp, conda install -c conda-forge llama.cpp, or a release of its project"

# llama.cpp rounds the context of each place up to this.
_CONTEXT_BLOCK = 256
_GREEDY_BELOW = 1e-5
_SEEDS = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCpp(Program):
    """How llama.cpp's server is started and asked; `base` and `extended` are GGUF files.

    Attributes:
        places: requests that the server of each mode computes at once. Each place has a cache for the whole window,
            which is allocated at the start.
    """

    name: ClassVar[str] = "llama.cpp"
    unmeasured: ClassVar[str] = "llama.cpp computes requests together; its own 'llama-batched-bench' measures that"

    command_words: tuple[str, ...] = (COMMAND,)
    places: Mapping[Mode, int]

    def command(self, mode: Mode, port: int) -> list[str]:
        """The command of one mode's server. The rope scaling is the file's own."""
        file, window = self.loaded(mode)
        context = self.places[mode] * math.ceil(window / _CONTEXT_BLOCK) * _CONTEXT_BLOCK
        return [
            *self.command_words,
            *("--model", file, "--alias", mode, "--offline"),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--ctx-size", str(context), "--parallel", str(self.places[mode]), "--no-kv-unified"),
            # Nothing that one key sent may speed up an answer to another, or be seen.
            *("--no-cache-prompt", "--cache-ram", "0", "--slot-prompt-similarity", "0", "--no-slots", "--no-ui"),
            # Errors alone, which hold no prompts.
            *("--log-verbosity", "1"),
            *self.arguments,
        ]

    def environment(self, token: str) -> Mapping[str, str]:
        """The token."""
        return {"LLAMA_API_KEY": token}

    def fields(self, request: GenerationRequest, salt: str) -> dict[str, Any]:
        """Sampling as the embedded engine does it, no reuse of prompts, and counts in each chunk."""
        temperature = 0.0 if request.temperature < _GREEDY_BELOW else request.temperature
        seed = {} if request.seed is None else {"seed": request.seed % _SEEDS}
        return {
            "temperature": temperature,
            "samplers": ["temperature", "top_p"],
            "cache_prompt": False,
            "timings_per_token": True,
            **seed,
        }

    def written(self, chunk: Mapping[str, Any]) -> int | None:
        """Tokens of the answer so far."""
        return (chunk.get("timings") or {}).get("predicted_n")

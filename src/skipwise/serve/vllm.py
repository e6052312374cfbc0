"""vLLM's servers behind the front."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from skipwise.inference.engine import GenerationRequest, Mode
from skipwise.serve.front import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm(Program):
    """How vLLM is started and asked.

    Attributes:
        memory_shares: of each accelerator's memory, for the base and for the extended model.
    """

    name: ClassVar[str] = "vLLM"
    unmeasured: ClassVar[str] = "vLLM computes many requests together; its own 'vllm bench serve' measures that"

    command_words: tuple[str, ...] = ("vllm",)
    memory_shares: tuple[float, float] = (0.3, 0.6)

    def command(self, mode: Mode, port: int) -> list[str]:
        """The command of one mode's server."""
        model, window = self.loaded(mode)
        share = self.memory_shares[0 if mode == "short" else 1]
        return [
            *self.command_words,
            *("serve", model, "--served-model-name", mode),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--max-model-len", str(window), "--gpu-memory-utilization", f"{share:g}"),
            # The model's own defaults (top_k, penalties) would change what was asked for.
            *("--generation-config", "vllm"),
            *("--no-enable-log-requests", "--disable-uvicorn-access-log"),
            *self.arguments,
        ]

    def environment(self, token: str) -> Mapping[str, str]:
        """The token, and no usage reports to anybody."""
        quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_DO_NOT_TRACK": "1"}
        return {**quiet, "VLLM_API_KEY": token}

    def fields(self, request: GenerationRequest, salt: str) -> dict[str, Any]:
        """Counts in each chunk, so that an answer that is broken off is counted, and the salt of the prefix cache."""
        seed = {} if request.seed is None else {"seed": request.seed}
        options = {"include_usage": True, "continuous_usage_stats": True}
        return {"stream_options": options, "cache_salt": salt, **seed}

    def written(self, chunk: Mapping[str, Any]) -> int | None:
        """Tokens of the answer so far."""
        return (chunk.get("usage") or {}).get("completion_tokens")

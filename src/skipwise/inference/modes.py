"""Two modes in one set of weights: the base model for what fits its window, the extended one for what does not.

Both modes are a model of their own around the *same* parameter tensors, so that nothing is switched while a model
runs. The short one is the base model, built under its own config; its logits are the base's to the bit because it is
the base. The long one is built under the extended config, which gives it its own rotary tables and attention factor,
and carries the adapter, unmerged. Taking a mode is taking one of the two: it costs nothing, an exception leaves nothing
behind, and threads can be in different modes.
"""

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skipwise.errors import CheckpointError, ConfigError
from skipwise.inference.engine import MODES, Mode
from skipwise.inference.origin import Origin, check_base, read_origin
from skipwise.model import attention_of, built_around, load_model, read_config, rope_state, set_attention
from skipwise.runtime.length_rope import (
    held_length,
    recompute_at_switches,
    rope_follows_length,
    rope_of_length,
    tables_at,
)
from skipwise.train.tuning import load_additions

# Arguments of the library's `generate` by which a pass does not end where the tokens so far end.
_READ_IN_PARTS = ("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_model")


class TwoModes:
    """A model in two modes, and the choice between them by the exact count of tokens.

        modes = TwoModes.load("runs/long")
        modes.generate(ids, max_new_tokens=100)        # chooses by prompt and new tokens
        with modes.mode("short") as model:             # the base model, for this thread
            logits = modes(input_ids=ids).logits

    Args:
        short: the base model; None where nobody knows it, and then everything is served in long mode.
        long: the extended model.
        tokenizer: of both.
    """

    def __init__(
        self, short: PreTrainedModel | None, long: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._models: dict[Mode, PreTrainedModel] = {"long": long} if short is None else {"short": short, "long": long}
        for model in {id(model): model for model in self._models.values()}.values():
            recompute_at_switches(model)
        self.one_at_a_time = threading.RLock()
        """Held while a model runs whose rotary tables follow the length of an input, as they are kept in the model."""
        self._forced: ContextVar[Mode | None] = ContextVar("mode", default=None)
        self.tokenizer = tokenizer
        state = rope_state(long.config)
        self.target: int = state.maximum
        """Tokens that long mode holds."""
        self.original_window: int = state.original
        """Tokens up to which requests are served in short mode."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        base: str | Path | None = None,
        adapter: str | Path | None = None,
        dtype: str | torch.dtype | None = None,
        attention: str | None = None,
        device: torch.device | str | None = None,
        trust_remote_code: bool = False,
    ) -> "TwoModes":
        """Loads what `skipwise extend` left: both modes around one set of weights.

        Of a LoRA run the base's weights and the adapter are loaded, of a run with full tuning both sets of weights, or
        with `adapter` the base's and a low-rank difference (`skipwise.inference.low_rank`). A model that is no such
        run has one mode: `short` where it was never extended, else `long`.

        Args:
            source: the run's folder, or any model that `load_model` takes.
            base: the base model, where it is no longer where the run's record says.
            adapter: a folder with the difference between base and extended model, in place of the run's own.
            dtype: as for `load_model`, of both.
            attention: as for `load_model`, of both.
            device: where to; by default the CPU.
            trust_remote_code: run Python code that comes with the model.

        Raises:
            CheckpointError: a model, adapter or record cannot be read, or the base is not the one that was trained.
            UnsupportedModelError, ConfigError: as for `load_model`.
        """
        how: dict[str, Any] = {"dtype": dtype, "attention": attention, "trust_remote_code": trust_remote_code}
        origin = read_origin(source, base=base, adapter=adapter)
        if origin is None:
            model, tokenizer = load_model(source, **how)
            state = rope_state(model.config)
            model.to(device)  # pyright: ignore[reportArgumentType]
            return cls(model if state.original == state.maximum else None, model, tokenizer)
        try:
            short, tokenizer = load_model(origin.base, **how)
        except CheckpointError as error:
            raise CheckpointError(
                f"the base model of {str(source)!r}, which short mode is, could not be loaded: {error}; "
                "say where it is by base (--base), or ask for long mode alone (--mode long)"
            ) from error
        short.to(device)  # pyright: ignore[reportArgumentType]
        if origin.adapter is None:
            long, tokenizer = load_model(origin.folder, **how)
            long.to(device)  # pyright: ignore[reportArgumentType]
        else:
            long = with_adapter(short, origin, trust_remote_code)
            tokenizer.model_max_length = max(tokenizer.model_max_length, rope_state(long.config).maximum)
        check_base(short, long, origin)
        return cls(short, long, tokenizer)

    @classmethod
    def long_alone(cls, source: str | Path, *, device: torch.device | str | None = None, **how: Any) -> "TwoModes":
        """Loads the merged model alone, for long requests or where the base is gone; arguments as for `load`."""
        model, tokenizer = load_model(source, **how)
        model.to(device)  # pyright: ignore[reportArgumentType]
        return cls(None, model, tokenizer)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that there are."""
        return tuple(self._models)

    def model(self, mode: Mode) -> PreTrainedModel:
        """The model of a mode, plain: what the transformers library calls a causal language model.

        Raises:
            ConfigError: there is no such mode.
        """
        if mode not in self._models:
            raise ConfigError(
                f"mode is {mode!r}; this model has {' and '.join(self._models)}"
                + ("" if mode not in MODES else ": short mode needs the base model, and its run's record names none")
            )
        return self._models[mode]

    def choose(self, total_tokens: int, mode: Mode | None = None) -> Mode:
        """The mode of a request by its exact length.

        Args:
            total_tokens: the prompt's tokens and all that may be generated.
            mode: asked for by name; None takes `short` up to the original window and `long` beyond.

        Raises:
            ConfigError: the mode is not there, or does not hold so many tokens.
        """
        fits_short = total_tokens <= self.original_window
        chosen = mode or ("short" if fits_short and "short" in self._models else "long")
        self.model(chosen)
        held = self.original_window if chosen == "short" else self.target
        if total_tokens > held:
            raise ConfigError(
                f"the request may come to {total_tokens} tokens, prompt and new ones, and {chosen} mode holds {held}; "
                "shorten the prompt or generate fewer"
                + (", or let the length choose the mode" if total_tokens <= self.target else "")
            )
        return chosen

    @contextlib.contextmanager
    def mode(self, mode: Mode) -> Iterator[PreTrainedModel]:
        """Within, and in this thread alone, `self(...)` and `generate` use this mode, whatever the length.

        Yields:
            The model of that mode.
        """
        model = self.model(mode)
        token = self._forced.set(mode)
        try:
            yield model
        finally:
            self._forced.reset(token)

    def __call__(self, input_ids: torch.Tensor, **arguments: Any) -> Any:
        """The forward pass, in the mode that is taken or that the input's length chooses.

        Args:
            input_ids: token ids (batch, n).
            **arguments: of the model's own forward.
        """
        if arguments.get("past_key_values") is not None and self._forced.get() is None:
            raise ConfigError("a cache goes with the mode that filled it; call the model within `with modes.mode(...)`")
        model = self._chosen(input_ids.shape[1])
        with self.one_at_a_time if rope_follows_length(model) else contextlib.nullcontext():
            return model(input_ids=input_ids, **arguments)

    def generate(self, input_ids: torch.Tensor, *, max_new_tokens: int, **arguments: Any) -> torch.Tensor:
        """The transformers library's `generate`, in the mode that is taken or that prompt and new tokens choose.

        Where a model's rotary tables follow the length of its input, the tokens are those of the engine's.

        Args:
            input_ids: token ids (batch, n).
            max_new_tokens: tokens to generate at most; they count.
            **arguments: of the library's `generate`.

        Returns:
            Token ids (batch, n + new), the prompt's first.

        Raises:
            ConfigError: as `choose`; and arguments by which LongRoPE's tokens would be others.
        """
        total = input_ids.shape[1] + max_new_tokens
        model: Any = self._chosen(total)
        if not rope_follows_length(model):
            return model.generate(input_ids, max_new_tokens=max_new_tokens, **arguments)
        own = arguments.get("generation_config") or model.generation_config
        parts = [name for name in _READ_IN_PARTS if arguments.get(name, getattr(own, name, None))]
        if parts and tables_at(model, 1) != tables_at(model, total):
            raise ConfigError(
                f"{parts[0]} is given, and beyond the original window LongRoPE rotates by all that there is, which the "
                "library does not see where it reads parts; leave it out"
            )
        # LongRoPE's follow by themselves (0).
        held = held_length(model, 0, total)
        with self.one_at_a_time, rope_of_length(model, held) if held else contextlib.nullcontext():
            return model.generate(input_ids, max_new_tokens=max_new_tokens, **arguments)

    def _chosen(self, total_tokens: int) -> Any:
        return self.model(self.choose(total_tokens, self._forced.get()))


def with_adapter(short: PreTrainedModel, origin: Origin, trust_remote_code: bool = False) -> PreTrainedModel:
    """The extended model around the parameters of the base, with the adapter in its layers, unmerged.

    Args:
        short: the base model; it stays as it is.
        origin: says where config and adapter are.
        trust_remote_code: run Python code that comes with the model.
    """
    config = read_config(origin.folder, trust_remote_code=trust_remote_code)
    set_attention(config, attention_of(short.config))
    parameters = dict(short.named_parameters(remove_duplicate=False))
    extended = built_around(type(short), config, parameters, short)
    assert origin.adapter is not None
    try:
        wrapped = load_additions(extended, origin.adapter)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"adapter {str(origin.adapter)!r} cannot be put into its base model ({str(error).splitlines()[0][:200]}); "
            "it must be the one that this run left"
        ) from error
    # Its layers stay in the model; parameters are the base's own, which nobody trains here.
    plain = cast(PreTrainedModel, wrapped.get_base_model())
    plain.requires_grad_(False)
    return plain.eval()

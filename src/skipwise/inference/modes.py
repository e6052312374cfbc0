"""Two modes in one set of weights: the base model for what fits its window, the extended one for what does not.

Each mode is a model of its own around the *same* parameter tensors, so nothing is switched while a model runs. The
short one is the base model under its own config, so its logits are the base's to the bit. The long one has the extended
config, with its own rotary tables and attention factor, and the adapter, unmerged. Choosing a mode is choosing one of
two models: it costs nothing, exceptions leave nothing behind, and threads can be in different modes.
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
from skipwise.model import (
    Weights,
    attention_of,
    built_around,
    check_weights,
    hold_in_eight_bits,
    load_model,
    read_config,
    rope_state,
    set_attention,
)
from skipwise.names import first_line
from skipwise.runtime.length_rope import (
    held_length,
    recompute_at_switches,
    rope_follows_length,
    rope_of_length,
    tables_at,
)
from skipwise.train.tuning import load_additions

# Arguments of the library's `generate` with which a pass may end before the last token so far.
_READ_IN_PARTS = ("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_model")


class TwoModes:
    """A model in two modes, and the choice between them by the exact token count.

        modes = TwoModes.load("runs/long")
        modes.generate(ids, max_new_tokens=100)        # chooses by prompt and new tokens
        with modes.mode("short") as model:             # the base model, for this thread
            logits = modes(input_ids=ids).logits

    Args:
        short: the base model; None if it is not known, and then everything is served in long mode.

    Attributes:
        original_window: most tokens of a request in short mode.
        target: most tokens of a request in long mode.
        one_at_a_time: a lock, held while a model runs whose rotary tables follow the input's length, since the model
            itself holds them.
    """

    def __init__(
        self, short: PreTrainedModel | None, long: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._models: dict[Mode, PreTrainedModel] = {"long": long} if short is None else {"short": short, "long": long}
        for model in {id(model): model for model in self._models.values()}.values():
            recompute_at_switches(model)
        self.one_at_a_time = threading.RLock()
        self._forced: ContextVar[Mode | None] = ContextVar("mode", default=None)
        self.tokenizer = tokenizer
        state = rope_state(long.config)
        self.target: int = state.maximum
        self.original_window: int = state.original

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
        weights: Weights = "full",
        trust_remote_code: bool = False,
    ) -> "TwoModes":
        """Loads what `skipwise extend` left: both modes around one set of weights.

        Of a LoRA run it loads the base's weights and the adapter; of a run with full tuning both sets of weights or,
        with `adapter`, the base's and a low-rank difference (`skipwise.inference.low_rank`). Any other model has one
        mode: `short` if it was never extended, else `long`.

        Args:
            source: the run's folder, or any model that `load_model` takes.
            base: the base model, if it is no longer where the run's record says.
            adapter: a folder with the difference between base and extended model, instead of the run's own.
            dtype: dtype of both models, as for `load_model`.
            attention: attention implementation of both models, as for `load_model`.
            device: by default the CPU.
            weights: `int8` holds the linear layers of both modes in 8 bits, on a CPU, once they are loaded: faster,
                and short mode is no longer the base model to the bit.
            trust_remote_code: run Python code that comes with the model.

        Raises:
            CheckpointError: a model, adapter or record cannot be read, or the base is not the one that was extended.
            UnsupportedModelError, ConfigError: as for `load_model`.
        """
        check_weights(weights, device)
        how: dict[str, Any] = {"dtype": dtype, "attention": attention, "trust_remote_code": trust_remote_code}
        origin = read_origin(source, base=base, adapter=adapter)
        if origin is None:
            modes = cls.long_alone(source, device=device, weights=weights, **how)
            is_extended = modes.target != modes.original_window
            return modes if is_extended else cls(modes.model("long"), modes.model("long"), modes.tokenizer)
        try:
            short, tokenizer = load_model(origin.base, **how)
        except CheckpointError as error:
            raise CheckpointError(
                f"the base model of {str(source)!r}, which short mode is, could not be loaded: {error}; say where it "
                "is by base (--base), or ask for long mode alone (--mode long)",
                page="wrong-base",
            ) from error
        short.to(device)  # pyright: ignore[reportArgumentType]
        if origin.adapter is None:
            long, tokenizer = load_model(origin.folder, **how)
            long.to(device)  # pyright: ignore[reportArgumentType]
        else:
            long = with_adapter(short, origin, trust_remote_code)
            tokenizer.model_max_length = max(tokenizer.model_max_length, rope_state(long.config).maximum)
        check_base(short, long, origin)
        if weights == "int8":
            hold_in_eight_bits([short, long])
        return cls(short, long, tokenizer)

    @classmethod
    def long_alone(
        cls, source: str | Path, *, device: torch.device | str | None = None, weights: Weights = "full", **how: Any
    ) -> "TwoModes":
        """Loads the merged model alone, for long mode or because the base is gone; arguments as for `load`."""
        check_weights(weights, device)
        model, tokenizer = load_model(source, **how)
        model.to(device)  # pyright: ignore[reportArgumentType]
        if weights == "int8":
            hold_in_eight_bits([model])
        return cls(None, model, tokenizer)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that it has."""
        return tuple(self._models)

    def model(self, mode: Mode) -> PreTrainedModel:
        """The model of a mode: a causal language model of the transformers library.

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
            mode: the mode that was asked for; None takes `short` up to the original window and `long` beyond.

        Raises:
            ConfigError: the mode does not exist, or does not hold so many tokens.
        """
        fits_short = total_tokens <= self.original_window
        chosen = mode or ("short" if fits_short and "short" in self._models else "long")
        self.model(chosen)
        held = self.original_window if chosen == "short" else self.target
        if total_tokens > held:
            raise ConfigError(
                f"prompt and new tokens are up to {total_tokens} tokens, and {chosen} mode holds {held} "
                f"({'the unchanged base' if chosen == 'short' else 'the extended model'}); shorten the prompt or "
                "generate fewer" + (", or let the length choose the mode" if total_tokens <= self.target else ""),
                page="length-does-not-fit",
            )
        return chosen

    @contextlib.contextmanager
    def mode(self, mode: Mode) -> Iterator[PreTrainedModel]:
        """Inside the context, in this thread alone, `self(...)` and `generate` use this mode, whatever the length."""
        model = self.model(mode)
        token = self._forced.set(mode)
        try:
            yield model
        finally:
            self._forced.reset(token)

    def __call__(self, input_ids: torch.Tensor, **arguments: Any) -> Any:
        """The forward pass over ids (batch, n), in the mode of an enclosing `with`, or else of the input's length."""
        kept = arguments.get("cache", arguments.get("past_key_values"))
        if kept is not None and self._forced.get() is None:
            raise ConfigError("a cache goes with the mode that filled it; call the model within `with modes.mode(...)`")
        model = self._chosen(input_ids.shape[1])
        with self.one_at_a_time if rope_follows_length(model) else contextlib.nullcontext():
            return model(input_ids=input_ids, **arguments)

    def generate(self, input_ids: torch.Tensor, *, max_new_tokens: int, **arguments: Any) -> torch.Tensor:
        """The library's `generate`, in the mode of an enclosing `with`, or else of prompt and new tokens.

        Takes token ids (batch, n) and returns (batch, n + new), the prompt's first. If a model's rotary tables follow
        the length of its input, the tokens are those of the engine.

        Raises:
            ConfigError: as `choose`; and for arguments that would change LongRoPE's tokens.
        """
        total = input_ids.shape[1] + max_new_tokens
        model: Any = self._chosen(total)
        if not rope_follows_length(model):
            return model.generate(input_ids, max_new_tokens=max_new_tokens, **arguments)
        own = arguments.get("generation_config") or model.generation_config
        parts = [name for name in _READ_IN_PARTS if arguments.get(name, getattr(own, name, None))]
        if parts and tables_at(model, 1) != tables_at(model, total):
            raise ConfigError(
                f"{parts[0]} is given, and beyond the original window LongRoPE rotates by the whole length, which the "
                "library does not see when it reads parts; leave it out"
            )
        # 0 for LongRoPE, whose tables follow by themselves.
        held = held_length(model, 0, total)
        with self.one_at_a_time, rope_of_length(model, held) if held else contextlib.nullcontext():
            return model.generate(input_ids, max_new_tokens=max_new_tokens, **arguments)

    def _chosen(self, total_tokens: int) -> Any:
        return self.model(self.choose(total_tokens, self._forced.get()))


def with_adapter(short: PreTrainedModel, origin: Origin, trust_remote_code: bool = False) -> PreTrainedModel:
    """The extended model around the base model's parameters, with the adapter of `origin` in its layers, unmerged."""
    config = read_config(origin.folder, trust_remote_code=trust_remote_code)
    set_attention(config, attention_of(short.config))
    parameters = dict(short.named_parameters(remove_duplicate=False))
    extended = built_around(type(short), config, parameters, short)
    assert origin.adapter is not None
    try:
        wrapped = load_additions(extended, origin.adapter)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"adapter {str(origin.adapter)!r} cannot be put into its base model ({first_line(error)}); "
            "it must be the one that this run left",
            page="wrong-base",
        ) from error
    # The adapter's layers stay in the model. Its parameters are the base's own, which nobody trains here.
    plain = cast(PreTrainedModel, wrapped.get_base_model())
    plain.requires_grad_(False)
    return plain.eval()

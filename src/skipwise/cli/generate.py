"""`skipwise generate`: text from a model after a prompt of any length that its window holds."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from skipwise.cli import options
from skipwise.cli.loading import loading
from skipwise.cli.options import option, print_json
from skipwise.errors import ConfigError, DataError
from skipwise.model.place import find_place

if TYPE_CHECKING:
    from skipwise.inference.engine import GenerationRequest
    from skipwise.inference.generate import LocalEngine


AskOption = Annotated[
    list[str] | None,
    option(
        "--ask TEXT",
        "A question after the prompt, in the model's chat template if it has one. Repeatable: the prompt is read once "
        "for all questions.",
    ),
]
ControlTokensOption = Annotated[
    Literal["text", "tokens"],
    option(
        "--control-tokens",
        "How a prompt is read that spells control tokens such as <|im_end|>: as this text, or as the tokens, for "
        "prompts in the model's own format. A question of --ask is always text.",
    ),
]
ModeOption = Annotated[
    Literal["auto", "short", "long"],
    option(
        "--mode",
        "short: the base model, bit for bit; long: the extended one; auto: short if prompt and new tokens fit the "
        "original window.",
    ),
]


def generate(
    model: options.Model,
    prompt: Annotated[str | None, option("--prompt TEXT", "The prompt itself.")] = None,
    file: Annotated[Path | None, option("--prompt-file,--file FILE", "A UTF-8 file with the prompt.")] = None,
    ask: AskOption = None,
    control_tokens: ControlTokensOption = "text",
    max_new_tokens: Annotated[int, option("--max-new-tokens N", "Tokens at most.", min=1)] = 128,
    temperature: Annotated[float, option("--temperature T", "0 always takes the likeliest token.", min=0.0)] = 0.0,
    top_p: Annotated[float, option("--top-p P", "Sample among the likeliest tokens with this probability.")] = 1.0,
    stop: Annotated[list[str] | None, option("--stop TEXT", "End before this text; repeatable.")] = None,
    seed: Annotated[int, option("--seed", "Seed of sampling.")] = 0,
    mode: ModeOption = "auto",
    base: options.Base = None,
    adapter: Annotated[Path | None, option("--adapter FOLDER", "Instead of the run's own adapter.")] = None,
    cache: options.KvCache = "dynamic",
    chunk: Annotated[
        int | None, option("--chunk TOKENS", "Prefill chunk, a multiple of 64.", shown="what suits the device")
    ] = None,
    stats: Annotated[bool, option("--stats", "Print time, speed and memory by length on stderr.")] = False,
    stream: Annotated[bool, option("--stream/--no-stream", "Print the text as it comes.")] = True,
    dtype: options.Dtype = None,
    attention: options.Attention = None,
    trust_remote_code: options.Trust = False,
    as_json: options.Json = False,
) -> None:
    """Continue a prompt, however long it is, up to the model's window.

    Example: skipwise generate runs/long --prompt-file report.txt --ask 'What was decided?' --stats
    """
    text = _prompt_text(prompt, file)

    find_place(model)
    with loading(f"reading the model {model}"):
        from accelerate import PartialState

        from skipwise.inference.engine import GenerationRequest
        from skipwise.inference.generate import LocalEngine
        from skipwise.inference.modes import TwoModes

    how: dict[str, Any] = {"dtype": dtype, "attention": attention, "trust_remote_code": trust_remote_code}
    how["device"] = PartialState().device
    if mode == "long" and base is None and adapter is None:
        modes = TwoModes.long_alone(model, **how)
    else:
        modes = TwoModes.load(model, base=base, adapter=adapter, **how)
    questions = ask or [None]
    engine = LocalEngine(modes, cache=cache, chunk_tokens=chunk, prefixes=1 if len(questions) > 1 else 0)
    for question in questions:
        request = GenerationRequest(
            prompt_ids=_prompt_ids(modes.tokenizer, text, question, control_tokens),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=tuple(stop or ()),
            mode=None if mode == "auto" else mode,
        )
        _answer(engine, request, question, stream=stream and not as_json, stats=stats, as_json=as_json)


def _prompt_text(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        given = "neither" if prompt is None else "both"
        raise ConfigError(
            f"the prompt comes from --prompt TEXT or --prompt-file FILE; {given} was given: give one of them"
        )
    if prompt is not None:
        return prompt
    assert file is not None
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}); convert it first") from error
    except OSError as error:
        raise ConfigError(
            f"--prompt-file is {str(file)!r}; it cannot be read ({error.strerror}); "
            "give the path of a text file, or the prompt itself with --prompt TEXT",
            page="not-found",
        ) from error


def _prompt_ids(
    tokenizer: Any, text: str, question: str | None, control_tokens: Literal["text", "tokens"] = "text"
) -> list[int]:
    """Token ids of the prompt followed by the question: a chat turn if the model has a chat template, else a line."""
    from skipwise.data.tokens import encoder_of

    encoder = encoder_of(tokenizer)
    if question is not None and getattr(tokenizer, "chat_template", None):
        return encoder.encode_chat([{"role": "user", "content": f"{text}\n\n{question}"}])
    if question is None and control_tokens == "tokens":
        # Not verbose, since a prompt that is too long is refused later.
        return list(tokenizer(text, verbose=False)["input_ids"])
    whole = text if question is None else f"{text}\n\n{question}\n"
    return encoder.encode(whole, add_special_tokens=True)


def _answer(
    engine: "LocalEngine",
    request: "GenerationRequest",
    question: str | None,
    *,
    stream: bool,
    stats: bool,
    as_json: bool,
) -> None:
    """Generates and prints the text: as it comes, at the end, or as JSON. Raises DataError when memory runs out."""
    from skipwise.cli.generate_stats import Progress
    from skipwise.train.process import ran_out_of_memory

    text = ""
    with engine.start(request) as generation:
        progress = Progress(engine, generation)
        while not generation.is_done:
            try:
                generation.step()
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
                raise DataError(
                    f"memory ran out when {generation.stats.read_tokens} of {len(request.prompt_ids)} tokens were "
                    f"read; give a smaller --chunk than {engine.chunk_tokens}, or --cache quantized-8, quantized-4, or "
                    "offloaded beside an accelerator",
                    page="out-of-memory",
                ) from error
            progress.look()
            piece = generation.take_text()
            text += piece
            if stream:
                print(piece, end="", flush=True)
    if as_json:
        print_json(
            {
                **({} if question is None else {"ask": question}),
                "prompt_tokens": len(request.prompt_ids),
                "new_tokens": generation.stats.new_tokens,
                "window_tokens": engine.target,
                "mode": generation.mode,
                "finish_reason": generation.finish_reason,
                "text": text,
                **({"stats": progress.record()} if stats else {}),
            }
        )
        return
    print("" if stream else text)
    if stats:
        print(progress.table(), file=sys.stderr)

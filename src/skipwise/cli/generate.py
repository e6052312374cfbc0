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


DECODING, MEMORY = "Decoding", "Memory and speed"

AskOption = Annotated[
    list[str] | None,
    option(
        "--ask TEXT",
        "Question after the prompt, in the model's chat template if it has one. Repeatable: the "
        "prompt is read once for all questions.",
    ),
]
ControlTokensOption = Annotated[
    Literal["text", "tokens"],
    option(
        "--control-tokens HOW",
        "How control tokens such as <|im_end|> in a prompt are read: as text, or as tokens (for prompts in the "
        "model's own chat format). --ask is always text.",
    ),
]
ModeOption = Annotated[
    Literal["auto", "short", "long"],
    option(
        "--mode MODE",
        "short: the base model, unchanged; long: the extended model; auto: short if prompt and answer fit the "
        "original window.",
    ),
]
ChunkOption = Annotated[
    int | None,
    option("--chunk TOKENS", "Prefill chunk, a multiple of 64.", shown="chosen for the device", group=MEMORY),
]
CacheOption = Annotated[
    Literal["dynamic", "static", "quantized-8", "quantized-4", "offloaded"],
    option("--cache KIND", options.KV_CACHE, group=MEMORY),
]


PROMPT_FILE = "File with the prompt: text (UTF-8), or the text of a document such as .html, .pdf or .docx."


def generate(
    model: options.Model,
    prompt: Annotated[str | None, option("--prompt TEXT", "The prompt.")] = None,
    file: Annotated[Path | None, option("--prompt-file,--file FILE", PROMPT_FILE)] = None,
    ask: AskOption = None,
    mode: ModeOption = "auto",
    control_tokens: ControlTokensOption = "text",
    max_new_tokens: Annotated[
        int, option("--max-new-tokens N", "Maximum number of new tokens.", min=1, group=DECODING)
    ] = 128,
    temperature: Annotated[
        float, option("--temperature T", "0 always takes the most likely token.", min=0.0, group=DECODING)
    ] = 0.0,
    top_p: Annotated[
        float, option("--top-p P", "Sample among the most likely tokens with this total probability.", group=DECODING)
    ] = 1.0,
    stop: Annotated[
        list[str] | None, option("--stop TEXT", "End before this text. Repeatable.", group=DECODING)
    ] = None,
    seed: Annotated[int, option("--seed N", "Random seed of sampling.", group=DECODING)] = 0,
    cache: CacheOption = "dynamic",
    chunk: ChunkOption = None,
    base: options.Base = None,
    adapter: Annotated[
        Path | None,
        option("--adapter FOLDER", "Use this LoRA adapter instead of the run's own.", group=options.LOADING),
    ] = None,
    dtype: options.Dtype = None,
    attention: options.Attention = None,
    weights: options.Weights = "full",
    trust_remote_code: options.Trust = False,
    stats: Annotated[
        bool, option("--stats", "Print time, speed and memory by length on stderr.", group=options.OUTPUT)
    ] = False,
    stream: Annotated[
        bool, option("--stream/--no-stream", "Print the text as it is generated.", group=options.OUTPUT)
    ] = True,
    as_json: options.Json = False,
) -> None:
    """Generate text after a prompt or a long file.

    Example: skipwise generate embedded --prompt 'def main' --max-new-tokens 16

    Example: skipwise generate ./my-model-32k --prompt-file long-document.txt --ask 'What was decided?' --stats
    """
    text = _prompt_text(prompt, file)

    find_place(model)
    with loading(f"reading the model {model}"):
        from accelerate import PartialState

        from skipwise.inference.engine import GenerationRequest
        from skipwise.inference.generate import LocalEngine
        from skipwise.inference.modes import TwoModes

    how: dict[str, Any] = {"dtype": dtype, "attention": attention, "trust_remote_code": trust_remote_code}
    how |= {"device": PartialState().device, "weights": weights}
    if mode == "long" and base is None and adapter is None:
        modes = TwoModes.long_alone(model, **how)
    else:
        modes = TwoModes.load(model, base=base, adapter=adapter, **how)
    questions = ask or [None]
    engine = LocalEngine(modes, cache=cache, chunk_tokens=chunk, prefixes=1 if len(questions) > 1 else 0)
    for question in questions:
        if len(questions) > 1 and not as_json:
            print(f"--- {question}", flush=True)
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
    from skipwise.data.formats import text_of_document

    try:
        text = text_of_document(file)
        return text if text is not None else file.read_text(encoding="utf-8")
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
    from skipwise.bars import Bar
    from skipwise.cli.generate_stats import Progress
    from skipwise.train.process import ran_out_of_memory

    text, length = "", len(request.prompt_ids)
    bar = Bar(total=length, desc="reading the prompt", unit="token", delay=2, leave=False, disable=as_json)
    with engine.start(request) as generation, bar:
        progress = Progress(engine, generation)
        while not generation.is_done:
            try:
                generation.step()
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
                raise DataError(
                    f"memory ran out after {generation.stats.read_tokens} of {length} tokens; give a smaller --chunk "
                    f"than {engine.chunk_tokens}, or --cache quantized-8, quantized-4 or, with a GPU, offloaded",
                    page="out-of-memory",
                ) from error
            bar.update(min(generation.stats.read_tokens, length) - bar.n)
            if bar.n >= length:
                bar.close()
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

"""`skipwise generate`: text from a model after a prompt of any length that its window holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skipwise.cli.options import AttentionOption, DtypeOption, JsonOption, ModelArgument, TrustOption, print_json
from skipwise.errors import ConfigError, DataError

if TYPE_CHECKING:
    from skipwise.model import LoadedModel


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(epilog="Example: skipwise generate runs/long --file report.txt --max-new-tokens 200")(generate)


def generate(
    model: ModelArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="The prompt itself.")] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="A UTF-8 file with the prompt.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, help="Stop after these.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="0 takes the likeliest token each time.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws above temperature 0.")] = 0,
    dtype: DtypeOption = None,
    attention: AttentionOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt, however long it is, up to the model's window."""
    text = _prompt_text(prompt, file)

    from accelerate import PartialState
    from transformers import set_seed

    from skipwise.model import load_model

    loaded = load_model(model, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code)
    loaded.model.to(PartialState().device)  # pyright: ignore[reportArgumentType]
    set_seed(seed)
    _continue_prompt(loaded, text, max_new_tokens, temperature, as_json)


def _prompt_text(prompt: str | None, file: Path | None) -> str:
    if (prompt is None) == (file is None):
        given = "neither" if prompt is None else "both"
        raise ConfigError(f"the prompt comes from --prompt TEXT or --file FILE; {given} was given: give one of them")
    if prompt is not None:
        return prompt
    assert file is not None
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text (byte {error.start}); convert it first") from error
    except OSError as error:
        raise ConfigError(
            f"--file is {str(file)!r}; it cannot be read ({error.strerror}); "
            "give the path of a text file, or the prompt itself with --prompt TEXT"
        ) from error


def _continue_prompt(loaded: "LoadedModel", text: str, max_new_tokens: int, temperature: float, as_json: bool) -> None:
    """Generates after `text` and prints: as it comes, or as one JSON object at the end.

    Raises:
        DataError: when the prompt is empty, or the prompt and the tokens to come do not fit the model's window.
    """
    from transformers import TextStreamer

    model, tokenizer = loaded
    # Too long a prompt is refused below, in our own words.
    inputs = tokenizer(text, return_tensors="pt", verbose=False).to(model.device)
    prompt_tokens = inputs["input_ids"].shape[1]
    window_tokens = model.config.get_text_config().max_position_embeddings
    if prompt_tokens == 0:
        raise DataError("the prompt is empty; give at least one token of text")
    if prompt_tokens + max_new_tokens > window_tokens:
        raise DataError(
            f"the prompt has {prompt_tokens} tokens and up to {max_new_tokens} are to follow, but the model's window is"
            f" {window_tokens} tokens; shorten the prompt or --max-new-tokens, or extend the model"
        )
    draws = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    streamer = None if as_json else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    sequences = model.generate(  # pyright: ignore[reportCallIssue]
        **inputs, **draws, max_new_tokens=max_new_tokens, streamer=streamer
    )
    new_ids = sequences[0, prompt_tokens:]
    if as_json:
        print_json(
            {
                "prompt_tokens": prompt_tokens,
                "new_tokens": len(new_ids),
                "window_tokens": window_tokens,
                "text": tokenizer.decode(new_ids, skip_special_tokens=True),
            }
        )

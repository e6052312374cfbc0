"""What a page finds in its folder: a model, documents, conversations, and more by `<!-- run: setup NAME -->`."""

import json
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

from chat_templates import CHATML
from tiny_models import NO_SPECIAL, byte_tokenizer, tiny_config, tiny_model

from docs.pages import ROOT

ORIGINAL = 4096


def make_common(folder: Path) -> None:
    """Writes `my-model` (a random Llama of window 4096, one token per byte), `docs` (24 long texts), `chats.jsonl`
    (40 conversations) and `long-document.txt`."""
    # One layer with one head: passes over 32k tokens take a second.
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = tiny_config("llama", vocab_size=260, max_position_embeddings=ORIGINAL, **shape, **NO_SPECIAL)
    tiny_model(config).save_pretrained(folder / "my-model")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})  # type: ignore[dict-item]
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "my-model")
    _write_documents(folder / "docs")
    longest = max((folder / "docs").iterdir(), key=lambda path: path.stat().st_size)
    (folder / "long-document.txt").write_bytes(longest.read_bytes()[:20_000])
    with (folder / "chats.jsonl").open("w") as file:
        for i in range(40):
            said = [
                ("user", f"What is {i} times {i}? Say it in a sentence."),
                ("assistant", f"{i} times {i} is {i * i}."),
            ]
            messages = [{"role": role, "content": content} for role, content in said * 8]
            file.write(json.dumps({"messages": messages}) + "\n")


def _write_documents(folder: Path) -> None:
    """The longest modules of the standard library, as Markdown: texts that are there without a network."""
    folder.mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    modules = sorted(library.glob("*.py"), key=lambda path: (-path.stat().st_size, path.name))[:24]
    for module in modules:
        (folder / f"{module.stem}.md").write_text(module.read_text(encoding="utf-8")[:120_000], encoding="utf-8")


def _examples(folder: Path, _made: Path) -> None:
    shutil.copytree(ROOT / "examples", folder / "examples")


def _extended(folder: Path, made: Path) -> None:
    """`my-model-32k`: what `extend` makes of `my-model` in one step. It is made once for all pages."""
    if not (made / "my-model-32k").exists():
        from forked import launched

        launched(_extend, str(made))
    shutil.copytree(made / "my-model-32k", folder / "my-model-32k")


def _extend(made: str) -> None:
    import os

    from skipwise import cli

    os.chdir(made)
    line = (
        "extend my-model --target 32k --data docs --output my-model-32k --recipe paper --set training.max_steps=1 "
        "--set training.gradient_accumulation_steps=1 --set validation.num_documents=1 --set training.disable_tqdm=true"
    )
    assert cli.main(line.split()) == 0


SETUPS: dict[str, Callable[[Path, Path], None]] = {"examples": _examples, "extended": _extended}
"""By name, what a page can ask for: called with the page's folder, and one with what pages share."""

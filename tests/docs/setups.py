"""What a page finds in its folder: a model, documents, conversations, and more by `<!-- run: setup NAME -->`."""

import json
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

from chat_templates import CHATML
from serve.made_audit import lines
from tiny_models import tiny_config, tiny_model
from transformers import AutoTokenizer

from docs.pages import ROOT
from skipwise.demo.run import BASE as EMBEDDED

ORIGINAL = 4096


def make_common(folder: Path) -> None:
    """Writes `my-model` (a random Llama of window 4096 with the embedded model's tokenizer and a chat template), `docs`
    (24 texts of over 32k tokens), `chats.jsonl` (400 conversations) and `long-document.txt` (over 4096 tokens)."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token, tokenizer.chat_template, tokenizer.model_max_length = "<|im_end|>", CHATML, ORIGINAL
    tokenizer.save_pretrained(folder / "my-model")
    # One layer with one head: passes over 32k tokens take a second.
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    ids = {"bos_token_id": 0, "pad_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"vocab_size": len(tokenizer), "intermediate_size": 64, "max_position_embeddings": ORIGINAL}
    tiny_model(tiny_config("llama", **shape, **sizes, **ids)).save_pretrained(folder / "my-model")
    texts = _long_texts()
    (folder / "docs").mkdir()
    for i, text in enumerate(texts):
        (folder / "docs" / f"{i:02d}.md").write_text(text, encoding="utf-8")
    (folder / "long-document.txt").write_text(texts[0][:20_000], encoding="utf-8")
    with (folder / "chats.jsonl").open("w") as file:
        for i in range(400):
            said = [("user", f"What is {i} times {i}?"), ("assistant", f"{i} times {i} is {i * i}.")]
            messages = [{"role": role, "content": content} for role, content in said * 8]
            file.write(json.dumps({"messages": messages}) + "\n")


def _long_texts() -> list[str]:
    """Modules of the standard library, several to a text of 130 kB: texts that are there without a network."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    whole = "\n\n".join(module.read_text(encoding="utf-8") for module in modules)
    return [whole[start : start + 130_000] for start in range(0, 24 * 130_000, 130_000)]


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


def _audit(folder: Path, _made: Path) -> None:
    """`audit.jsonl`: what a server would log of 200 requests."""
    (folder / "audit.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(200)))


SETUPS: dict[str, Callable[[Path, Path], None]] = {"examples": _examples, "extended": _extended, "audit": _audit}
"""By name, what a page can ask for: called with the page's folder, and one with what pages share."""

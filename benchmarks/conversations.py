"""Conversations end to end: what is learned of them, to read by eye, and whether a trained model still answers.

    python benchmarks/conversations.py chats chats.jsonl
    python benchmarks/conversations.py labels MODEL chats.jsonl
    python benchmarks/conversations.py coverage MODEL chats.jsonl
    python benchmarks/conversations.py answers MODEL

`chats` writes conversations about the standard library, made of its docstrings: short ones about two functions, long
ones about a module.
"""

import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

# Of the top level, and not what runs something when it is imported.
_LEFT_OUT = {"antigravity", "idlelib", "lib2to3", "test", "this", "turtledemo"}
_QUESTIONS = ("What is the capital of Italy?", "Write one sentence about the sea.", "What does str.strip do in Python?")
_NEW_TOKENS = 60
_DRAWS = 2000


def conversations() -> Iterator[list[dict[str, str]]]:
    """Conversations about the modules of the standard library."""
    for name in sorted(sys.stdlib_module_names - _LEFT_OUT):
        if name.startswith("_"):
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:  # of another system, or without tkinter
            continue
        asked = [
            (f"What does {name}.{member} do?", text)
            for member, value in sorted(vars(module).items())
            if not member.startswith("_") and callable(value) and (text := inspect.getdoc(value)) and len(text) > 40
        ]
        for begin in range(0, len(asked), 2):
            yield _turns(asked[begin : begin + 2])
        if asked:
            yield _turns(asked)


def _turns(asked: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for question, answer in asked
        for role, text in (("user", question), ("assistant", answer))
    ]


def write_chats(path: Path) -> None:
    """Writes all of them as JSON lines."""
    lines = [json.dumps({"messages": messages}) for messages in conversations()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines)} conversations, {sum(map(len, lines)):,} characters: {path}")


def show_labels(model: str, path: str) -> None:
    """Prints the first window of a run with what is learned in brackets."""
    from skipwise.config import DataConfig
    from skipwise.data.corpus import store_corpus
    from skipwise.data.items import IGNORED_LABEL, TrainingItems
    from skipwise.data.turns import Turns
    from skipwise.model import read_config, read_tokenizer
    from skipwise.positions import PoSE
    from skipwise.window import Window

    tokenizer: Any = read_tokenizer(model, read_config(model))
    corpus = store_corpus(DataConfig(source=path), tokenizer, progress=False)
    whole = corpus.documents("all", join=False)
    labels = sum(int(Turns.of(whole.entries(i)).is_label.sum()) for i in range(whole.num_documents))
    print(f"{whole.num_documents} conversations, {whole.counts.tokens:,} tokens, {labels:,} of them labels")
    window = Window(train=384, original=8192, target=32768)
    store = corpus.documents("train", min_tokens=window.train)
    print(f"joined to {store.num_documents} documents of at least {window.train} tokens\n")
    item = TrainingItems(store, PoSE(skips="flat"), window, seed=0).item(0, 0)
    shown = ""
    for place, (token, position, label) in enumerate(zip(*item[:3], strict=True)):
        if place and position != item.position_ids[place - 1] + 1:
            shown += f"\n---- skip of {position - item.position_ids[place - 1] - 1:,} positions ----\n"
        is_label, was_label = (
            bool(label != IGNORED_LABEL),
            place > 0 and bool(item.labels[place - 1] != IGNORED_LABEL),
        )
        shown += "[[" * (is_label and not was_label) + "]]" * (was_label and not is_label) + tokenizer.decode([token])
    print(shown)


def show_coverage(model: str, path: str) -> None:
    """Prints how many windows and skips fall at turns, as drawn and as moved, and what this does to coverage."""
    import numpy as np

    from skipwise.config import DataConfig
    from skipwise.coverage import _covered_by
    from skipwise.data.corpus import store_corpus
    from skipwise.data.turns import Turns, moved_to_turns
    from skipwise.model import read_config, read_tokenizer
    from skipwise.positions import sampler_from
    from skipwise.window import Window

    tokenizer: Any = read_tokenizer(model, read_config(model))
    window = Window(train=1024, original=8192, target=16384)
    store = store_corpus(DataConfig(source=path), tokenizer, progress=False).documents("train", min_tokens=window.train)
    print("sampler | windows at turns, % | skips at turns, % | coverage, % | largest change in an eighth of distances")
    aligned = {"kind": "pose", "skips": "flat", "text": "aligned", "start": "mixed"}
    for kind in (
        {"kind": "pose", "skips": "flat"},
        aligned,
        {"kind": "pose", "chunks": 3},
        "cream",
        "sentences",
        "randpos",
    ):
        sampler: Any = sampler_from(kind)
        counts, covered = np.zeros((2, 3), np.int64), np.zeros((2, window.target))
        for seed in range(_DRAWS):
            number = seed % store.num_documents
            ids, turns = store.document(number), Turns.of(store.entries(number))
            ends = {"sentence_ends": store.sentence_ends[ids]} if sampler.uses_sentence_ends else {}
            drawn = sampler.sample(len(ids), window, np.random.default_rng(seed), **ends)
            for i, sample in enumerate((drawn, moved_to_turns(drawn, turns.begins, num_tokens=len(ids)))):
                skips = sample.token_index[np.flatnonzero(np.diff(sample.position_ids) != 1) + 1]
                begins = int(sample.token_index[0] in turns.begins)
                counts[i] += (begins, int(np.isin(skips, turns.begins).sum()), len(skips))
                covered[i] += _covered_by(sample.position_ids, window.target)
        at_turns = [f"{100 * n / of:.0f}" for n, of in ((counts[i, 0], _DRAWS) for i in (0, 1))]
        skips_there = [f"{100 * counts[i, 1] / counts[i, 2]:.0f}" for i in (0, 1)]
        mean = [f"{100 * covered[i].mean() / _DRAWS:.2f}" for i in (0, 1)]
        bands = [100 * band.mean() / _DRAWS for band in np.array_split(covered[1] - covered[0], 8)]
        cells = (" to ".join(at_turns), " to ".join(skips_there), " to ".join(mean), f"{max(bands, key=abs):+.2f}")
        print(" | ".join((str(kind), *cells)))


def show_answers(model: str) -> None:
    """Prints greedy answers to a few questions, up to the model's end token."""
    import torch

    from skipwise.model import load_model

    loaded = load_model(model, dtype="float32")
    network, tokenizer = cast(Any, loaded.model), cast(Any, loaded.tokenizer)
    for question in _QUESTIONS:
        messages = [{"role": "user", "content": question}]
        inputs: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
        with torch.no_grad():
            ids: Any = network.generate(**inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)
        print(f"> {question}\n{tokenizer.decode(ids[0, inputs['input_ids'].shape[1] :])}\n")


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    match verb:
        case "chats":
            write_chats(Path(arguments[0]))
        case "labels":
            show_labels(*arguments)
        case "coverage":
            show_coverage(*arguments)
        case _:
            show_answers(*arguments)

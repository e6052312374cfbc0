"""Batched greedy answers are those of `generate` on each prompt alone, at less work."""

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from skipwise.errors import CheckpointError
from skipwise.evals.prompts import Prompt
from skipwise.runtime import decode as generate
from skipwise.runtime.attention import sees_everything
from skipwise.runtime.decode import end_token_ids, greedy_outputs
from skipwise.runtime.forward import logit_pieces

from .tiny import calls_of, make_family, make_llama, masked_entries, with_adapters

LENGTHS = [5, 40, 17, 64, 33]
KINDS = ["llama-eager", "yarn", "gpt_neox", "gemma2", "gemma3", "mistral"]


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest) -> tuple[Any, list[list[int]]]:
    """A model, and what it writes after each of `LENGTHS` alone, end tokens or not."""
    model = make_family(request.param)
    return model, [alone(model, prompt) for prompt in prompts_of(LENGTHS)]


def prompts_of(lengths: Sequence[int], max_new_tokens: int = 12, answers: Any = None) -> list[Prompt]:
    torch.manual_seed(1)
    return [
        Prompt(
            prompt_ids=torch.randint(3, 61, (length,)).tolist(),
            references=[],
            max_new_tokens=max_new_tokens,
            answer_ids=(answers[index] if answers else None) or [],
        )
        for index, length in enumerate(lengths)
    ]


def alone(model: Any, prompt: Prompt, eos: int | None = None) -> list[int]:
    """What transformers generates, up to the end token."""
    ids = torch.tensor([prompt.prompt_ids])
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id = eos
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=prompt.max_new_tokens,
        pad_token_id=0,
    )[0, ids.shape[1] :].tolist()
    return written[: written.index(eos)] if eos in written else written


def spoilt(answers: Sequence[list[int]], place: int) -> list[list[int]]:
    """Answers with another token at one place, each as long as it was."""
    return [[*ids[:place], (ids[place] + 1) % 61, *ids[place + 1 :]] for ids in answers]


def shapes(calls: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    """(rows, columns) of every forward call."""
    return [tuple(call["input_ids"].shape) for call in calls]


@pytest.mark.parametrize("chunk_tokens", [7, 512])
def test_unlike_prompts_in_a_batch_get_what_each_gets_alone(case, chunk_tokens: int) -> None:
    model, expected = case
    assert greedy_outputs(model, prompts_of(LENGTHS), chunk_tokens=chunk_tokens) == expected


@pytest.mark.parametrize("eos_ids", [{2}, {2, 9}, set()])
def test_an_end_token_ends_its_row_only(eos_ids: set[int]) -> None:
    model = make_family("llama")
    prompts = prompts_of(range(3, 60, 8), max_new_tokens=20)
    expected = []
    for prompt in prompts:
        ids = alone(model, prompt)
        end = next((place for place, token in enumerate(ids) if token in eos_ids), len(ids))
        expected.append(ids[:end])
    if eos_ids:
        assert len({len(ids) for ids in expected}) > 3, "the case should have rows that end at different times"
    assert greedy_outputs(model, prompts, eos_ids=eos_ids) == expected


def test_rows_generate_as_many_tokens_as_each_may(tiny_llama) -> None:
    prompts = [
        Prompt(prompt_ids=prompt.prompt_ids, references=[], max_new_tokens=count)
        for prompt, count in zip(prompts_of([9, 30, 12]), [1, 4, 11], strict=True)
    ]
    outputs = greedy_outputs(tiny_llama, prompts)
    assert outputs == [alone(tiny_llama, prompt) for prompt in prompts]
    assert [len(ids) for ids in outputs] == [1, 4, 11]


def test_answers_that_the_model_would_write_need_no_decoding(case) -> None:
    model, expected = case
    answers = [ids[: 3 + row] for row, ids in enumerate(expected)]
    calls = calls_of(model)
    assert greedy_outputs(model, prompts_of(LENGTHS, answers=answers), chunk_tokens=32) == answers
    # The prompts, of 64, 40, 33, 17 and 5 tokens, and one look at all answers but their last tokens.
    together = [(5, 32), (5, 32)]
    alone_each = [(1, 32), (1, 32), (1, 32), (1, 8), (1, 32), (1, 1), (1, 17), (1, 5)]
    assert shapes(calls) == [*(alone_each if sees_everything(model) else together), (5, 6)]


@pytest.mark.parametrize("place", [0, 1, 11])
def test_other_answers_are_generated_from_the_same_prefill(case, place: int) -> None:
    model, expected = case
    wrong = prompts_of(LENGTHS, answers=spoilt(expected, place))
    calls = calls_of(model)
    assert greedy_outputs(model, wrong, chunk_tokens=64) == expected
    look = [(5, 11)] if place else []
    assert shapes(calls) == [(5, 64), *look, *[(5, 1)] * 11]


def test_only_undecided_rows_are_decoded(case) -> None:
    model, expected = case
    answers: list[Any] = spoilt(expected, 3)
    answers[1], answers[2], answers[4] = expected[1][:5], None, expected[4]
    calls = calls_of(model)
    outputs = greedy_outputs(model, prompts_of(LENGTHS, answers=answers), chunk_tokens=64)
    assert outputs == [*expected[:1], expected[1][:5], *expected[2:]]
    assert shapes(calls) == [(5, 64), (5, 11), *[(3, 1)] * 11]


def test_the_look_at_answers_saves_the_decoding_loop(tiny_llama) -> None:
    answers = [alone(tiny_llama, prompt)[:6] for prompt in prompts_of([100] * 4, 40)]
    calls = calls_of(tiny_llama)
    greedy_outputs(tiny_llama, prompts_of([100] * 4, 40, answers))
    decided = len(calls), sum(rows * columns for rows, columns in shapes(calls))
    calls.clear()
    greedy_outputs(tiny_llama, prompts_of([100] * 4, 40))
    assert decided == (2, 4 * 105)
    assert (len(calls), sum(rows * columns for rows, columns in shapes(calls))) == (40, 4 * 139)


def test_answers_of_one_token_need_no_look(tiny_llama) -> None:
    answers = [alone(tiny_llama, prompt)[:1] for prompt in prompts_of(LENGTHS)]
    calls = calls_of(tiny_llama)
    assert greedy_outputs(tiny_llama, prompts_of(LENGTHS, answers=answers)) == answers
    assert shapes(calls) == [(5, 64)]


def test_a_row_ends_where_it_is_enough(tiny_llama) -> None:
    full = [alone(tiny_llama, prompt) for prompt in prompts_of(LENGTHS)]
    calls = calls_of(tiny_llama)
    outputs = greedy_outputs(tiny_llama, prompts_of(LENGTHS), enough=lambda row, ids: len(ids) == 2 * row + 1)
    assert outputs == [ids[: 2 * row + 1] for row, ids in enumerate(full)]
    assert [rows for rows, columns in shapes(calls)] == [5, 4, 4, 3, 3, 2, 2, 1, 1]


def test_positions_count_a_rows_own_tokens(tiny_llama) -> None:
    # RoPE does not tell a shifted row from another, but large angles are less exact.
    calls = calls_of(tiny_llama)
    greedy_outputs(tiny_llama, prompts_of([6, 4], 3), chunk_tokens=6)
    assert torch.cat([call["position_ids"] for call in calls], dim=1).tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 0, 0, 1, 2, 3, 4, 5],
    ]
    calls.clear()
    greedy_outputs(tiny_llama, prompts_of([6, 4], 3), chunk_tokens=4)
    assert [call["position_ids"].tolist() for call in calls] == [
        [[0, 1, 2, 3]],
        [[4, 5]],
        [[0, 1, 2, 3]],
        [[6], [4]],
        [[7], [5]],
    ]


def test_batches_hold_no_more_tokens_than_allowed(case, monkeypatch) -> None:
    model, expected = case
    monkeypatch.setattr(generate, "BATCH_TOKENS", 110)
    calls = calls_of(model)
    assert greedy_outputs(model, prompts_of(LENGTHS)) == expected
    prefills = [shape for shape in shapes(calls) if shape[1] > 1]
    # 64 and 12 tokens alone, then 40 and 33, then 17 and 5.
    assert prefills == [(1, 64), (2, 40), (2, 17)]


def test_logits_are_made_for_the_last_position_only(tiny_llama) -> None:
    made: list[int] = []
    tiny_llama.lm_head.register_forward_hook(lambda module, args, output: made.append(output.shape[1]))
    greedy_outputs(tiny_llama, prompts_of([300, 280], 3), chunk_tokens=32)
    # Each prompt's, and those of both after two more tokens.
    assert [count for count in made if count] == [1, 1, 1, 1]


def test_logits_of_answers_come_in_small_pieces(tiny_llama, monkeypatch) -> None:
    answers = [alone(tiny_llama, prompt) for prompt in prompts_of([30, 20])]
    monkeypatch.setattr(generate, "logit_columns", lambda model, rows: 3)
    made: list[int] = []
    tiny_llama.lm_head.register_forward_hook(lambda module, args, output: made.append(output.shape[1]))
    assert greedy_outputs(tiny_llama, prompts_of([30, 20], answers=answers)) == answers
    assert made == [1, 3, 3, 3, 2]


def test_attention_never_sees_a_square_of_the_length(tiny_llama) -> None:
    prompts = prompts_of([400, 300], 2)
    masks = masked_entries(tiny_llama, lambda: greedy_outputs(tiny_llama, prompts, chunk_tokens=16))
    assert 0 < max(masks) <= 2 * 16 * 400


@pytest.mark.parametrize("lengths", [[20, 11], [50, 64, 40], [28, 21, 31, 28, 32, 15, 60]])
def test_longrope_is_that_of_the_input_so_far(lengths: list[int]) -> None:
    # The original window is 32: answers stay within, or begin beyond, or grow past it, where Phi-3's own class reads
    # all anew.
    model = make_family("longrope")
    expected = [alone(model, prompt) for prompt in prompts_of(lengths)]
    assert greedy_outputs(model, prompts_of(lengths), chunk_tokens=16) == expected


def test_dynamic_rope_is_that_of_prompt_and_answer_for_every_token() -> None:
    model = make_family("dynamic")
    fresh = copy.deepcopy(model)
    prompts = prompts_of([45, 20, 45])
    outputs = greedy_outputs(model, prompts, chunk_tokens=16)
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = list(prompt.prompt_ids)
        for token in output:
            # Up to the whole length with any tokens, of which the logits asked for see none.
            padded = torch.tensor([ids + [3] * (prompt.num_tokens - len(ids))])
            logits = torch.cat([piece.logits for piece in logit_pieces(fresh, padded)], dim=1)
            assert logits[0, len(ids) - 1].argmax() == token
            ids.append(token)
    again = prompts_of([45, 20, 45], answers=[outputs[0][:6], spoilt(outputs, 2)[1], outputs[2]])
    assert greedy_outputs(model, again, chunk_tokens=16) == [outputs[0][:6], *outputs[1:]]


@pytest.mark.parametrize(("poison", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_logits_that_are_no_numbers_stop_with_the_prompt_and_its_own_tokens(tiny_llama, poison, kind: str) -> None:
    def spoil(module: Any, args: Any, logits: torch.Tensor) -> None:
        # Rows run from the longest down, so the shortest prompt is the last.
        logits[2] = poison

    prompts = prompts_of([30, 20, 40])
    tiny_llama.lm_head.register_forward_hook(spoil)
    with pytest.raises(CheckpointError, match=f"needles, item 11: .*{kind} at position 19"):
        greedy_outputs(tiny_llama, prompts, where=lambda row: f"needles, item {10 + row}", chunk_tokens=64)


def test_end_tokens_are_the_models_and_the_tokenizers() -> None:
    model = make_llama()
    model.generation_config.eos_token_id = [5, 6]
    assert end_token_ids(model, SimpleNamespace(eos_token_id=7)) == {5, 6, 7}
    model.generation_config.eos_token_id = 5
    assert end_token_ids(model, SimpleNamespace(eos_token_id=None)) == {5}
    assert end_token_ids(SimpleNamespace(), SimpleNamespace()) == frozenset()


@pytest.mark.parametrize("answered", [False, True])
def test_a_model_with_adapters_writes_what_the_merged_one_does(tiny_llama, answered: bool) -> None:
    wrapped = with_adapters(tiny_llama)
    merged: Any = copy.deepcopy(wrapped).merge_and_unload()
    expected = [alone(merged, prompt) for prompt in prompts_of([30, 20])]
    assert expected != [alone(make_llama(), prompt) for prompt in prompts_of([30, 20])], "adapters that do nothing"
    prompts = prompts_of([30, 20], answers=expected if answered else None)
    assert greedy_outputs(wrapped, prompts) == expected


def test_nothing_to_continue_is_nothing(tiny_llama) -> None:
    assert greedy_outputs(tiny_llama, []) == []

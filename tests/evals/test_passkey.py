"""Passkey prompts of exact lengths, and scores that agree with greedy decoding."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from skipwise.errors import CheckpointError
from skipwise.evals.languages import ENGLISH
from skipwise.evals.tasks.passkey import Passkey, greedy_answers
from skipwise.evals.tasks.passkey_prompt import PasskeyBuilder
from skipwise.records.results import hash_tokens

from .tiny import BOS, context_of, key_reader, make_llama


def test_the_prompts_wording_is_what_the_base_model_was_trained_with() -> None:
    assert [ENGLISH.passkey.instruction, ENGLISH.passkey.filler, ENGLISH.passkey.needle, ENGLISH.passkey.question] == [
        "A pass key is hidden in the long text below. Find it and remember it; it is asked for at the end.\n",
        "The river is wide. The hills are low. The road is long. On we go. Over there and home again.\n",
        "The pass key is {key}. Remember it. {key} is the pass key.\n",
        "What is the pass key? The pass key is",
    ]


@pytest.mark.parametrize("length", [230, 231, 4096])
@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0])
def test_prompt_and_answer_together_have_exactly_the_length(tokenizer, length: int, depth: float) -> None:
    prompt = PasskeyBuilder(tokenizer).build(length, depth, np.random.default_rng(0))
    assert prompt.num_tokens == len(prompt.prompt_ids) + len(prompt.answer_ids) == length
    text, (key,) = tokenizer.decode(prompt.prompt_ids + prompt.answer_ids), prompt.references
    needle = ENGLISH.passkey.needle.format(key=key)
    assert text.startswith(ENGLISH.passkey.instruction)
    assert text.endswith(f"{ENGLISH.passkey.question} {key}")
    assert text.count(needle) == 1
    room = len(text) - len(ENGLISH.passkey.instruction) - len(needle) - len(ENGLISH.passkey.question) - 6
    assert text.index(needle) - len(ENGLISH.passkey.instruction) == round(depth * room)


def test_a_model_that_reads_the_key_gets_everything(documents) -> None:
    for results, samples in Passkey(trials=10, num_depths=5).run(context_of(key_reader()), [300, 1200]):
        assert [result.value for result in results] == [1.0] * 6
        assert results[0].ci_low == pytest.approx(0.7225, abs=1e-4)
        assert results[0].num_samples == 10
        assert all(sample["output"] == f" {sample['answer']}" for sample in samples)
    task, context = Passkey(trials=4, num_depths=2, haystack="documents"), context_of(key_reader(), documents=documents)
    (measured,) = task.run(context, [600])
    assert measured.results[0].value == 1.0
    prompts = [task.prompt(context, 600, trial) for trial in range(4)]
    assert [hash_tokens(prompt.prompt_ids) for prompt in prompts] == [s["prompt_sha256"] for s in measured.samples]
    # Documents lose the token that begins them: the prompt's own is the only one.
    assert [prompt.prompt_ids.count(BOS) for prompt in prompts] == [1] * 4
    assert all(prompt.num_tokens == 600 for prompt in prompts)


@pytest.mark.parametrize("digit", [0, 4])
def test_one_wrong_digit_is_a_failure(digit: int) -> None:
    (measured,) = Passkey(trials=4, num_depths=2).run(context_of(key_reader(wrong_digit=digit)), [300])
    assert [result.value for result in measured.results] == [0.0, 0.0, 0.0]
    output = measured.samples[0]["output"]
    assert output[1 + digit] == "x"
    assert output.replace("x", measured.samples[0]["answer"][digit]) == f" {measured.samples[0]['answer']}"


def test_depths_are_stratified_and_cells_are_their_strata() -> None:
    task = Passkey(trials=12, num_depths=4)
    (measured,) = task.run(context_of(key_reader()), [400])
    assert sorted(int(4 * sample["depth"]) for sample in measured.samples) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    cells = measured.results[1:]
    assert [(cell.details["depth_from"], cell.details["depth_to"]) for cell in cells] == [
        (0.0, 0.25),
        (0.25, 0.5),
        (0.5, 0.75),
        (0.75, 1.0),
    ]
    assert [cell.num_samples for cell in cells] == [3] * 4


def test_samples_depend_on_the_seed_and_on_nothing_else(tiny_llama, monkeypatch) -> None:
    task = Passkey(trials=6, num_depths=3)
    first = next(iter(task.run(context_of(tiny_llama), [256])))
    assert first.results[0].value == 0.0
    # Other batches, and another length before it.
    monkeypatch.setattr("skipwise.evals.prompts.BATCH_TOKENS", 512)
    again = list(task.run(context_of(tiny_llama), [240, 256]))[1]
    assert again == first
    other = next(iter(task.run(context_of(tiny_llama, seed=1), [256])))
    hashes = [{sample["prompt_sha256"] for sample in measured.samples} for measured in (first, other)]
    assert len(hashes[0] | hashes[1]) == 12


def test_teacher_forced_argmax_matches_greedy_decoding_where_it_is_right(tokenizer) -> None:
    model: Any = make_llama(eos_token_id=None, bos_token_id=None)
    prompt = PasskeyBuilder(tokenizer).build(256, 0.5, np.random.default_rng(0))
    inputs = torch.tensor([prompt.prompt_ids])
    greedy = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=6, do_sample=False, pad_token_id=0
    )[0, 250:].tolist()
    # Were this the right answer, the teacher-forced pass would have to find it right, too.
    assert greedy_answers(model, [replace(prompt, answer_ids=greedy)], "test") == [greedy]
    # One changed token fails, at that token first.
    wrong = replace(prompt, answer_ids=[*greedy[:2], greedy[2] ^ 1, *greedy[3:]])
    assert greedy_answers(model, [wrong], "test")[0][:3] == greedy[:3]


def test_answers_of_unlike_lengths_share_a_batch(tiny_llama, tokenizer) -> None:
    rng = np.random.default_rng(0)
    first, second = (PasskeyBuilder(tokenizer).build(256, 0.5, rng) for _ in range(2))
    longer = [second.answer_ids[0], *second.answer_ids]
    prompts = [first, replace(second, prompt_ids=second.prompt_ids[:-1], max_new_tokens=7, answer_ids=longer)]
    together = greedy_answers(tiny_llama, prompts, "test")
    assert together == [greedy_answers(tiny_llama, [prompt], "test")[0] for prompt in prompts]
    assert [len(answer) for answer in together] == [6, 7]


def test_nan_logits_stop_with_the_trial(tiny_llama) -> None:
    task, context = Passkey(trials=2, num_depths=2), context_of(tiny_llama)
    keys = [set(task.prompt(context, 240, trial).references[0]) for trial in range(2)]
    with torch.no_grad():
        tiny_llama.model.embed_tokens.weight[ord(min(keys[1] - keys[0]))] = float("nan")
    with pytest.raises(CheckpointError, match=r"trial 1: .*NaN at position 233"):
        list(task.run(context, [240]))

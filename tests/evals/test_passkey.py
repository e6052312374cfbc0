"""Passkey prompts of exact lengths, and scores that agree with greedy decoding."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from skipwise.errors import CheckpointError, ConfigError, DataError
from skipwise.evals import EvalContext
from skipwise.evals.tasks.passkey import Passkey, greedy_answers
from skipwise.evals.tasks.passkey_prompt import FILLER, INSTRUCTION, NEEDLE, QUESTION, PasskeyBuilder
from skipwise.records.results import hash_tokens

from .conftest import BOS, ByteTokenizer, KeyReader, make_llama


def context_of(model, **more) -> EvalContext:
    return EvalContext(model=model, tokenizer=ByteTokenizer(), progress=False, **more)


def test_the_prompts_wording_is_what_the_base_model_was_trained_with() -> None:
    assert [INSTRUCTION, FILLER, NEEDLE, QUESTION] == [
        "A pass key is hidden in the long text below. Find it and remember it; it is asked for at the end.\n",
        "The river is wide. The hills are low. The road is long. On we go. Over there and home again.\n",
        "The pass key is {key}. Remember it. {key} is the pass key.\n",
        "What is the pass key? The pass key is",
    ]


@pytest.mark.parametrize("length", [230, 231, 500, 4096])
@pytest.mark.parametrize("depth", [0.0, 0.37, 1.0])
def test_prompt_and_answer_together_have_exactly_the_length(tokenizer, length: int, depth: float) -> None:
    prompt = PasskeyBuilder(tokenizer).build(length, depth, np.random.default_rng(0))
    assert prompt.num_tokens == len(prompt.prompt_ids) + len(prompt.answer_ids) == length
    text = tokenizer.decode(prompt.prompt_ids + prompt.answer_ids)
    needle = NEEDLE.format(key=prompt.key)
    assert text.startswith(INSTRUCTION)
    assert text.endswith(f"{QUESTION} {prompt.key}")
    assert text.count(needle) == 1
    filler_before = text.index(needle) - len(INSTRUCTION)
    room = len(text) - len(INSTRUCTION) - len(needle) - len(QUESTION) - 6
    assert filler_before == round(depth * room)


def test_a_length_without_room_is_an_error(tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"passkey length is 100 tokens; .* take 201"):
        PasskeyBuilder(tokenizer).build(100, 0.5, np.random.default_rng(0))


def test_a_model_that_reads_the_key_gets_everything() -> None:
    for results, samples in Passkey(trials=10, num_depths=5).run(context_of(KeyReader()), [300, 1200]):
        assert [result.value for result in results] == [1.0] * 6
        assert results[0].ci_low == pytest.approx(0.7225, abs=1e-4)
        assert results[0].num_samples == 10
        assert all(sample["output"] == f" {sample['answer']}" for sample in samples)


@pytest.mark.parametrize("digit", [0, 4])
def test_one_wrong_digit_is_a_failure(digit: int) -> None:
    (measured,) = Passkey(trials=4, num_depths=2).run(context_of(KeyReader(wrong_digit=digit)), [300])
    assert [result.value for result in measured.results] == [0.0, 0.0, 0.0]
    output = measured.samples[0]["output"]
    assert output[1 + digit] == "x"
    assert output.replace("x", measured.samples[0]["answer"][digit]) == f" {measured.samples[0]['answer']}"


def test_a_random_model_gets_nothing(tiny_llama) -> None:
    (measured,) = Passkey(trials=10, num_depths=2).run(context_of(tiny_llama), [256])
    assert measured.results[0].value == 0.0


def test_depths_are_stratified_and_cells_are_their_strata() -> None:
    (measured,) = Passkey(trials=12, num_depths=4).run(context_of(KeyReader()), [400])
    assert Counter(int(4 * sample["depth"]) for sample in measured.samples) == dict.fromkeys(range(4), 3)
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
    right = type(prompt)(prompt_ids=prompt.prompt_ids, answer_ids=greedy, key="", depth=0.5)
    assert greedy_answers(model, [right], "test") == [greedy]
    # One changed token fails, at that token first.
    wrong = type(prompt)(
        prompt_ids=prompt.prompt_ids, answer_ids=[*greedy[:2], greedy[2] ^ 1, *greedy[3:]], key="", depth=0
    )
    assert greedy_answers(model, [wrong], "test")[0][:3] == greedy[:3]


def test_answers_of_unlike_lengths_share_a_batch(tiny_llama) -> None:
    rng = np.random.default_rng(0)
    prompts = [PasskeyBuilder(ByteTokenizer()).build(256, 0.5, rng) for _ in range(2)]
    longer = prompts[1].answer_ids[0], *prompts[1].answer_ids
    prompts[1] = type(prompts[1])(
        prompt_ids=prompts[1].prompt_ids[:-1], answer_ids=list(longer), key=prompts[1].key, depth=0.5
    )
    together = greedy_answers(tiny_llama, prompts, "test")
    assert together == [greedy_answers(tiny_llama, [prompt], "test")[0] for prompt in prompts]
    assert [len(answer) for answer in together] == [6, 7]


@pytest.mark.parametrize("haystack", ["filler", "documents"])
def test_lengths_without_room_are_refused_before_the_model_runs(haystack, documents) -> None:
    context = EvalContext(model=None, tokenizer=ByteTokenizer(), documents=documents, progress=False)
    task = Passkey(trials=2, num_depths=2, haystack=haystack)
    task.check_lengths(context, [201, 300])
    with pytest.raises(ConfigError, match=r"passkey length is 200 tokens; .* take 201"):
        task.check_lengths(context, [300, 200])


def test_a_haystack_without_text_is_refused_before_the_model_runs() -> None:
    context = EvalContext(model=None, tokenizer=ByteTokenizer(), documents=[np.array([BOS])], progress=False)
    with pytest.raises(DataError, match="none of the 1 documents has a token"):
        Passkey(haystack="documents").check_lengths(context, [300])


def test_the_haystack_has_the_documents_text_and_no_token_that_begins_a_text(documents) -> None:
    context = context_of(KeyReader(), documents=documents)
    # The prompt's own first token is the only one.
    (measured,) = Passkey(trials=4, num_depths=2, haystack="documents").run(context, [600])
    task = Passkey(trials=4, num_depths=2, haystack="documents")
    prompts = [task._prompt(context, 600, trial) for trial in range(4)]
    assert [hash_tokens(prompt.prompt_ids) for prompt in prompts] == [s["prompt_sha256"] for s in measured.samples]
    assert [prompt.prompt_ids.count(BOS) for prompt in prompts] == [1] * 4
    assert all(prompt.num_tokens == 600 for prompt in prompts)


def test_nan_logits_stop_with_the_trial(tiny_llama) -> None:
    task = Passkey(trials=2, num_depths=2)
    context = context_of(tiny_llama)
    keys = [set(task._prompt(context, 240, trial).key) for trial in range(2)]
    digit = min(keys[1] - keys[0])
    with torch.no_grad():
        tiny_llama.model.embed_tokens.weight[ord(digit)] = float("nan")
    with pytest.raises(CheckpointError, match=r"passkey, length 240, trial 1: logits are NaN at position 233"):
        list(task.run(context, [240]))


def test_documents_can_hide_the_key(documents) -> None:
    context = context_of(KeyReader(), documents=documents)
    (measured,) = Passkey(trials=4, num_depths=2, haystack="documents").run(context, [600])
    assert measured.results[0].value == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "passkey.trials is 0"),
        ({"trials": "many"}, "passkey.trials is 'many'; give a whole number"),
        ({"num_depths": 2.0}, "passkey.num_depths is 2.0; give a whole number"),
        ({"haystack": ["filler"]}, r"passkey.haystack is \['filler'\]; "),
        ({"trials": 25, "num_depths": 10}, "25 trials for 10 depths; give a multiple of the depths, such as 20"),
        ({"haystack": "hay"}, "passkey.haystack is 'hay'; give 'filler' or 'documents'"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Passkey(**settings)

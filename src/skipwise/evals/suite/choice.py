"""How likely each of the answers on offer is."""

from itertools import permutations
from typing import Any

import torch

from skipwise.evals.context import as_input
from skipwise.evals.suite.item import EncodedItem, shared_length
from skipwise.runtime.forward import logit_pieces


def choice_log_likelihoods(model: Any, encoded: EncodedItem, where: str) -> list[float] | None:
    """Natural log-likelihood of each answer after the prompt, up to a summand that all share.

    All tokens of an answer count but those that all answers begin with. Answers are read off one pass where they differ
    in their last tokens alone, as single letters do, and also where some of them have a space of its own before.

    Args:
        model: a causal language model of the transformers library, in evaluation mode.
        encoded: prompt and answers.
        where: what is being measured, for an error's text.

    Returns:
        One value per answer; None where one is another, or the beginning of another, to the tokenizer.
    """
    answers = encoded.answers
    if any(one == other[: len(one)] for one, other in permutations(answers, 2)):
        return None
    common = min(shared_length(answers[0], answer) for answer in answers[1:])
    values: dict[int, float] = {}
    # What precedes the last token of an answer is read; one pass serves every answer whose reading it begins with.
    for head in sorted((answer[:-1] for answer in answers), key=len, reverse=True):
        served = [
            index
            for index, answer in enumerate(answers)
            if index not in values and answer[:-1] == head[: len(answer) - 1]
        ]
        if served:
            input_ids = as_input(encoded.prompt_ids, head)
            pieces = logit_pieces(model, input_ids, len(encoded.prompt_ids) + common - 1, where=where)
            log_probabilities = torch.cat([piece.logits[0] for piece in pieces]).log_softmax(-1)
            for index in served:
                scored = answers[index][common:]
                values[index] = log_probabilities[range(len(scored)), scored].sum().item()
    return [values[index] for index in range(len(answers))]

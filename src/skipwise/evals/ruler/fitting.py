"""The search for the haystack whose prompt fills the asked length."""

from collections.abc import Callable

from skipwise.errors import ConfigError
from skipwise.evals.ruler.draft import Drafter, EncodedDraft, PromptEncoder

TOLERANCE = 0.02
"""Share of the asked length that a prompt with its answer may fall short by."""

# A guess is at most so many times the largest haystack measured: tokens per unit change with size.
_MAX_GROWTH = 16
# Guesses by slope before the search halves; only a tokenizer that is far from linear gets there.
_MAX_GUESSES = 8


def smallest_prompt(
    draft: Drafter, encoder: PromptEncoder, length_tokens: int, *, max_new_tokens: int, task: str
) -> EncodedDraft:
    """The prompt without any haystack, which tells whether a length can be filled at all; arguments as below.

    Raises:
        ConfigError: when it is too long.
    """
    smallest = encoder.encode(draft(0, 0))
    if len(smallest.prompt_ids) > length_tokens - max_new_tokens:
        raise ConfigError(
            f"{task} length is {length_tokens} tokens; its smallest prompt takes {len(smallest.prompt_ids)} and the "
            f"answer {max_new_tokens} with this tokenizer: ask for at least "
            f"{len(smallest.prompt_ids) + max_new_tokens}, better twice that"
        )
    return smallest


def fit_length(
    draft: Drafter, encoder: PromptEncoder, length_tokens: int, *, max_new_tokens: int, task: str
) -> EncodedDraft:
    """The prompt whose tokens, with those to be generated, come to `length_tokens`: never above, short by 2% at most.

    The search stops at any prompt within the 2%, for every further tokenization of a long one costs. Where one more
    unit of haystack is more than the 2%, or there is no more of it, the largest that fits is topped up with filler
    words; the draft's details then say how many. Tokens grow with the haystack, if not strictly so: what is returned
    was itself measured, so that no assumption can overfill. Only a single filler word of more than 2% breaks the rule.

    Args:
        draft: makes the prompt of a haystack's size.
        encoder: its tokens.
        length_tokens: what prompt and generated tokens may come to.
        max_new_tokens: tokens to be generated.
        task: name for an error's text.

    Raises:
        ConfigError: when the prompt without any haystack is too long.
    """
    room = length_tokens - max_new_tokens
    smallest = smallest_prompt(draft, encoder, length_tokens, max_new_tokens=max_new_tokens, task=task)
    near = int(length_tokens * TOLERANCE)
    size, best = _largest(lambda units: encoder.encode(draft(units, 0)), smallest, room, near)
    if room - len(best.prompt_ids) > near:
        _, best = _largest(lambda words: encoder.encode(draft(size, words)), best, room, near)
    return best


def _largest(
    make: Callable[[int], EncodedDraft], smallest: EncodedDraft, room: int, near: int
) -> tuple[int, EncodedDraft]:
    """The largest size whose prompt has at most `room` tokens, or one that is within `near` tokens of it.

    Sizes are guessed by the tokens per unit between the last two measured, and bracketed: each step makes the bracket
    smaller, so the search ends whatever the tokens do.
    """
    low, fitting = 0, smallest
    high = high_tokens = None
    tokens_per_unit = 1.0
    guesses = 0
    while room - len(fitting.prompt_ids) > near and (high is None or high - low > 1):
        if high is not None and guesses > _MAX_GUESSES:
            guess = (low + high) // 2
        else:
            aim = room - near / 2 - len(fitting.prompt_ids)
            guess = min(low + int(aim / tokens_per_unit), _MAX_GROWTH * (low + 1))
            guess = max(guess, low + 1) if high is None else min(max(guess, low + 1), high - 1)
        guesses += 1
        made = make(guess)
        tokens = len(made.prompt_ids)
        if tokens > room:
            high, high_tokens = guess, tokens
        else:
            # No more of it: further units change nothing.
            if tokens == len(fitting.prompt_ids) and made.draft.request == fitting.draft.request:
                break
            tokens_per_unit = max((tokens - len(fitting.prompt_ids)) / (guess - low), 0.05)
            low, fitting = guess, made
        if high is not None and high_tokens is not None:
            tokens_per_unit = max((high_tokens - len(fitting.prompt_ids)) / (high - low), 0.05)
    return low, fitting

"""Finds how much text makes a prompt of the asked length."""

from collections.abc import Callable
from typing import NamedTuple

# A fit this close is not searched further; what is handed out must come within the second share.
_CLOSE_SHARE = 0.005
CLOSEST_SHARE = 0.02


class Fit(NamedTuple):
    """Characters of text, and the tokens of the prompt they make."""

    characters: int
    tokens: int


def fit_size(
    count_tokens: Callable[[int], int], limit_tokens: int, least: int, most: int, characters_per_token: float
) -> Fit | None:
    """The most characters whose prompt is not longer than the limit, to half a percent, by search.

    Each try goes where a straight line through what is known puts the limit, so that a prompt of 128k tokens is
    tokenized about three times.

    Args:
        count_tokens: tokens of the prompt with this many characters of text; never falling.
        limit_tokens: what the prompt may have.
        least: fewest characters allowed.
        most: characters that there are.
        characters_per_token: of such text, roughly.

    Returns:
        The fit, None where even the fewest make too long a prompt.
    """
    low, high = least, most + 1  # `low` fits, `high` does not or is more than there is
    low_tokens, high_tokens = count_tokens(low), None
    if low_tokens > limit_tokens:
        return None
    tries = 0
    while high - low > 1 and limit_tokens - low_tokens > limit_tokens * _CLOSE_SHARE:
        tries += 1
        if high_tokens is not None:
            characters_per_token = (high - low) / (high_tokens - low_tokens)
        tried = low + round((limit_tokens * (1 - _CLOSE_SHARE / 2) - low_tokens) * characters_per_token)
        # Where the text is uneven the line misleads: every third try is the middle.
        tried = (low + high) // 2 if tries % 3 == 0 else min(max(tried, low + 1), high - 1)
        tokens = count_tokens(tried)
        if tokens <= limit_tokens:
            low, low_tokens = tried, tokens
        else:
            high, high_tokens = tried, tokens
    return Fit(low, low_tokens)

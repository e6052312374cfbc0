"""Words in messages: suggestions for misspelled names, and what the errors of libraries say."""

import difflib
from collections.abc import Iterable


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """The hint `did you mean 'h100'? ` to put before the list of allowed names; empty if no known name is similar.

    Case is ignored. Names that begin with the given one are preferred: `A100` suggests both sizes of it.
    """
    by_lower, lower = {name.lower(): name for name in known}, str(given)[:64].lower()
    longer = [name for name in by_lower if lower and name.startswith(lower)][:3]
    near = longer or difflib.get_close_matches(lower, by_lower, n=1)
    return f"did you mean {' or '.join(repr(by_lower[name]) for name in near)}? " if near else ""


def first_line(error: Exception) -> str:
    """The first line of what an error says, at most 200 characters; the name of its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

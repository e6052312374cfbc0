"""Names that people misspell."""

import difflib
from collections.abc import Iterable


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """`did you mean 'h100'? `, in front of all that may be given; nothing where no known name is near.

    Capitals count for nothing, and names that begin with the one given come first: of `A100` both sizes.
    """
    by_lower, lower = {name.lower(): name for name in known}, str(given)[:64].lower()
    longer = [name for name in by_lower if lower and name.startswith(lower)][:3]
    near = longer or difflib.get_close_matches(lower, by_lower, n=1)
    return f"did you mean {' or '.join(repr(by_lower[name]) for name in near)}? " if near else ""

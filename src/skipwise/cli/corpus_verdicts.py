"""Verdicts about a corpus: what would stop a run fails, what makes it worse is a note."""

from collections.abc import Iterator, Mapping

from skipwise.data.documents import PassedOver, kinds_line
from skipwise.data.survey import Facts
from skipwise.data.survey.facts import COMPRESSES_BADLY, COMPRESSES_WELL, Some
from skipwise.data.survey.sketches import ALIKE
from skipwise.data.survey.taken import Taken
from skipwise.records.verdict import Verdict
from skipwise.window import length_label

_FEW = 0.01
_NAMED = 3


def percent(share: float) -> str:
    """A share with one or two digits that say something: `12%`, `0.4%`."""
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{share:.1%}" if 0 < share < 0.1 and round(share * 100, 1) % 1 else f"{share:.0%}"


def corpus_verdicts(facts: Facts, taken: list[Taken], *, skips_unreadable: bool) -> Iterator[Verdict]:
    """The verdicts, in the order of the report.

    Args:
        facts: about the corpus.
        taken: what windows of each length take of it.
        skips_unreadable: whether the run leaves out what cannot be read.
    """
    yield _reading(facts.unreadable, skips_unreadable)
    if facts.unsupported:
        yield _note("kinds", f"files of unsupported kinds are passed over: {kinds_line(facts.unsupported)}")
    if facts.empty:
        named = ", ".join(facts.empty_names)
        yield _note("empty", f"{_number(facts.empty)} without text: {named}{_more(facts.empty)}")
    if facts.languages:
        yield _languages(facts)
    yield _repeats("copies", "with the text of an earlier one", facts.copies)
    yield _repeats("alike", f"with {ALIKE:.0%} of its word sequences in common with an earlier one", facts.alike)
    yield _gzip(facts)
    yield from _held_out(facts)
    yield from _target(facts)
    for one in taken:
        yield _training(one, facts.is_estimate)


def _note(name: str, detail: str, cure: str = "") -> Verdict:
    return Verdict(name=name, status="note", detail=detail, cure=cure)


def _passed(name: str, detail: str) -> Verdict:
    return Verdict(name=name, status="pass", detail=detail)


def _reading(unreadable: Mapping[str, dict], skipped: bool) -> Verdict:
    if not unreadable:
        return _passed("reading", "all files can be read")
    passed_over = PassedOver()
    passed_over.update(unreadable)
    if skipped:
        return _note("reading", f"left out as unreadable: {passed_over.line()}")
    cure = "fix them, or leave them out by --set data.skip_unreadable=true"
    return Verdict(name="reading", status="fail", detail=passed_over.line(), cure=cure)


def _languages(facts: Facts) -> Verdict:
    shown = [(language, share) for language, share in facts.languages.items() if language and share >= _FEW]
    told = [f"{language} {percent(share)}" for language, share in shown]
    if unknown := facts.languages.get(None):
        told.append(f"not told {percent(unknown)}")
    if (
        rest := sum(share for language, share in facts.languages.items() if language) - sum(s for _, s in shown)
    ) > 1e-9:
        told.append(f"others {percent(rest)}")
    of = (
        f", by {facts.languages_sampled:,} documents" if facts.languages_sampled < facts.documents - facts.empty else ""
    )
    return _passed("language", f"{', '.join(told)} of the tokens{of}")


def _repeats(name: str, which: str, some: Some) -> Verdict:
    if not some.documents:
        return _passed(name, f"no document {which}")
    examples = "; ".join(" = ".join(names) for names in some.examples)
    detail = f"{_amount(some)} {which}, in {some.groups:,} group{_s(some.groups)}, such as {examples}"
    return _note(name, detail, "keep one of each, since repeated text is learnt by heart")


def _gzip(facts: Facts) -> Verdict:
    found = facts.compression
    if found.fifths is None:
        return _passed("gzip", "no document is long enough to tell")
    fifths = f"a fifth is below {found.fifths[0]:.0%} and a fifth above {found.fifths[1]:.0%}, which Olmo 3 drops"
    told = [
        f"{_amount(some)} compressing {how}, such as {', '.join(name for [name] in some.examples)}"
        for some, how in (
            (found.well, f"to less than {COMPRESSES_WELL:.0%}"),
            (found.badly, f"to more than {COMPRESSES_BADLY:.0%}"),
        )
        if some.documents
    ]
    if not told:
        rule = f"all documents compress to between {COMPRESSES_WELL:.0%} and {COMPRESSES_BADLY:.0%}"
        return _passed("gzip", f"{rule}; {fifths}")
    return _note("gzip", f"{'; '.join(told)}; {fifths}", "read some, and leave out what is no text")


def _held_out(facts: Facts) -> Iterator[Verdict]:
    found = facts.held_out
    held = (
        f"{_number(found.documents)} ({percent(found.share_of_documents)}, {percent(found.share_of_tokens)} of tokens)"
    )
    if not found.documents:
        yield _note("held-out", "no whole document is held out of training")
        return
    yield _passed("held-out", f"{held} are held out of training")
    if not found.leaks:
        yield _passed("leakage", "no held-out document is a near-duplicate of one that is trained on")
        return
    named = ", ".join(f"{leak.held_out} ({leak.likeness:.0%} of {leak.trained})" for leak in found.leaks[:_NAMED])
    yield _note(
        "leakage",
        f"{len(found.leaks):,} of {found.sampled:,} held-out documents have near-duplicates that are trained on: "
        f"{named}{_more(len(found.leaks))}; an evaluation on them comes out too good",
        "keep one of each, or evaluate on other texts",
    )


def _target(facts: Facts) -> Iterator[Verdict]:
    for length in facts.as_long[1:]:
        label = length_label(length.tokens)
        if not length.documents:
            cure = "give longer ones, since text is far apart only there"
            yield _note("target", f"no document has the {label} tokens of the target", cure)


def _training(taken: Taken, is_estimate: bool) -> Verdict:
    label, counts = length_label(taken.window), taken.counts
    name = "training"
    if taken.problem is not None:
        return Verdict(name=name, status="fail", detail=taken.problem)
    guess = " by the estimate" if is_estimate else ""
    if not counts.documents:
        cure = "give longer ones, a shorter window, or --set data.join=true"
        return Verdict(
            name=name, status="fail", detail=f"no document has {taken.min_tokens:,} tokens{guess}", cure=cure
        )
    joined = "joined " if taken.join else ""
    detail = (
        f"windows of {label} are taken from {counts.documents:,} {joined}documents of {counts.tokens:,} tokens{guess}"
    )
    if counts.dropped_short > counts.kept and not taken.join:
        return _note(name, f"{detail}; most documents are shorter", "--set data.join=true joins them")
    return _passed(name, detail)


def _amount(some: Some) -> str:
    shares = f"{percent(some.share_of_documents)}, {percent(some.share_of_tokens)} of tokens"
    return f"{_number(some.documents)} ({shares})"


def _number(documents: int) -> str:
    return f"{documents:,} document{_s(documents)}"


def _s(number: int) -> str:
    return "" if number == 1 else "s"


def _more(number: int) -> str:
    return f" and {number - _NAMED:,} more" if number > _NAMED else ""

"""Verdicts about a corpus: what would stop a run fails, what makes it worse is a note."""

from collections.abc import Iterator
from typing import NamedTuple

from skipwise.data.documents import PassedOver, kinds_line, unpackaged_line
from skipwise.data.survey import Facts
from skipwise.data.survey.facts import COMPRESSES_BADLY, COMPRESSES_WELL, CONTAINED, Some
from skipwise.data.survey.reading import MIN_COMPRESSED_BYTES
from skipwise.data.survey.sketches import ALIKE
from skipwise.data.survey.taken import Taken
from skipwise.records.verdict import Verdict, judge
from skipwise.window import length_label

_NAMED = 3


class Remark(NamedTuple):
    """A verdict about a corpus.

    Attributes:
        verdict: without names of documents.
        examples: names of documents that it is about, a line each.
    """

    verdict: Verdict
    examples: list[str]


def corpus_remarks(facts: Facts, taken: list[Taken], *, skips_unreadable: bool) -> Iterator[Remark]:
    """The verdicts, in the order of the report.

    Args:
        facts: about the corpus.
        taken: what windows of each length take of it.
        skips_unreadable: whether the run leaves out what cannot be read.
    """
    yield _reading(facts, skips_unreadable)
    if facts.unsupported:
        yield _note("kinds", f"files of unsupported kinds are skipped: {kinds_line(facts.unsupported)}")
    if facts.unpackaged:
        yield _note("package", unpackaged_line(facts.unpackaged))
    if facts.encodings:
        read = ", ".join(f"{number:,} as {name}" for name, number in facts.encodings.items())
        yield _note("encoding", f"files that are not UTF-8 are read {read}", "if this is wrong, convert them to UTF-8")
    if facts.conversations:
        yield _conversations(facts)
    if facts.empty:
        yield _note("empty", f"{_number(facts.empty)} without text", examples=facts.empty_names)
    if facts.sampled:
        yield from _content(facts)
    for one in taken:
        yield _training(one, facts.is_estimate)


def _content(facts: Facts) -> Iterator[Remark]:
    """What is said of the texts, if there are any."""
    if facts.languages:
        yield _languages(facts)
    yield _repeats("copies", "with the text of an earlier one", facts.copies)
    yield _repeats("alike", f"sharing {ALIKE:.0%} of word sequences with an earlier one", facts.alike)
    yield from _compression(facts)
    yield from _held_out(facts)
    for length in facts.as_long[1:]:
        if not length.documents:
            label = length_label(length.tokens)
            detail = (
                f"no document has the {label} tokens of the target, so positions skip farther than any text reaches"
            )
            yield _note("target", detail, "give longer ones")


def percent(share: float) -> str:
    """A share with one or two digits that say something: `12%`, `0.4%`."""
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{share:.1%}" if 0 < share < 0.1 and round(share * 100, 1) % 1 else f"{share:.0%}"


def _note(name: str, detail: str, cure: str = "", examples: list[str] | None = None) -> Remark:
    return Remark(Verdict(name=name, status="note", detail=detail, cure=cure), examples or [])


def _passed(name: str, detail: str) -> Remark:
    return Remark(Verdict(name=name, status="pass", detail=detail), [])


def _reading(facts: Facts, skipped: bool) -> Remark:
    if not facts.unreadable:
        return _passed("reading", "everything can be read")
    passed_over = PassedOver()
    passed_over.update(facts.unreadable)
    if not facts.documents:
        cure = passed_over.cure() if "field" in passed_over else "give documents that can be read"
        return Remark(judge("reading", False, passed_over.line(), cure), [])
    if skipped:
        return _note("reading", f"left out as unreadable: {passed_over.line()}")
    cure = f"{passed_over.cure()}, or leave them out by --set data.skip_unreadable=true"
    return Remark(judge("reading", False, passed_over.line(), cure), [])


def _conversations(facts: Facts) -> Remark:
    share = "" if facts.share_of_labels is None else f", {percent(facts.share_of_labels)} of their tokens"
    number = f"{facts.conversations:,} conversation{_s(facts.conversations)}"
    detail = f"{number}, written by the model's chat template; labels on the assistant's turns{share}"
    return _passed("chats", detail)


def _languages(facts: Facts) -> Remark:
    told = [
        f"{language or 'not told'} {percent(share)}" for language, share in facts.languages.items() if share >= 0.01
    ]
    rest = sum(share for share in facts.languages.values() if share < 0.01)
    if rest:
        told.append(f"others {percent(rest)}")
    of = "" if facts.languages_sampled == facts.sampled else f", by {_number(facts.languages_sampled)}"
    return _passed("language", f"{', '.join(told)} of the tokens{of}")


def _repeats(name: str, which: str, some: Some) -> Remark:
    if not some.documents:
        return _passed(name, f"no document {which}")
    detail = f"{_amount(some)} {which}, in {some.groups:,} group{_s(some.groups)}"
    examples = [f"{'= ' if number else ''}{name}" for names in some.examples for number, name in enumerate(names)]
    return _note(name, detail, "keep one of each, since repeated text is memorized", examples)


def _compression(facts: Facts) -> Iterator[Remark]:
    found = facts.compression
    if found.fifths is None:
        yield _passed("gzip", "no document is long enough to tell how far it compresses")
        return
    rule = f"the rule of Olmo 3 drops the fifth below {found.fifths[0]:.0%} and the fifth above {found.fifths[1]:.0%}"
    repeats = f"that gzip compresses to almost nothing (below {COMPRESSES_WELL:.0%})", "repetition"
    noise = f"that gzip hardly compresses (above {COMPRESSES_BADLY:.0%})", "no text"
    for some, (which, fault) in ((found.well, repeats), (found.badly, noise)):
        if some.documents:
            detail, cure = f"{_amount(some)} {which}", f"read some, since this may be {fault}"
            yield _note("gzip", detail, cure, [name for names in some.examples for name in names])
    yield _passed("gzip", f"{_number(found.documents)} of {MIN_COMPRESSED_BYTES // 1024} kB or more; {rule}")


def _held_out(facts: Facts) -> Iterator[Remark]:
    found = facts.held_out
    if not found.documents:
        yield _note("held-out", "no whole document is held out of training")
        return
    shares = f"{percent(found.share_of_documents)}, {percent(found.share_of_tokens)} of tokens"
    yield _passed("held-out", f"{_number(found.documents)} ({shares}) held out of training")
    if not found.leaks and not found.contained:
        yield _passed("leakage", "no held-out document stands in documents that are trained on")
    of, so = f"of {_number(found.sampled)} held out", "an evaluation on them looks too good"
    if found.leaks:
        named = [(leak.held_out, f"is {leak.likeness:.0%} like {leak.trained}") for leak in found.leaks[:_NAMED]]
        detail = f"{len(found.leaks):,} {of} have near-duplicates that are trained on: {so}"
        cure = "keep one of each, or evaluate on other texts"
        yield _note("leakage", detail, cure, [line for lines in named for line in lines])
    if found.contained:
        share = f"{CONTAINED:.0%} or more of their text in documents that are trained on"
        others = "others " if found.leaks else ""
        detail = f"{len(found.contained):,} {others}{of} have {share}: {so}"
        yield _note("leakage", detail, "leave out what repeats other documents", found.contained[:_NAMED])


def _training(taken: Taken, is_estimate: bool) -> Remark:
    label, counts = length_label(taken.window), taken.counts
    if taken.problem is not None:
        return Remark(Verdict(name="training", status="fail", detail=taken.problem), [])
    guess = " by the estimate" if is_estimate else ""
    source = f"{taken.source}: " if taken.source else ""
    joining = "join: true in its entry" if taken.source else "--set data.join=true"
    if not counts.documents:
        detail = f"{source}no document has {taken.min_tokens:,} tokens{guess}"
        cure = "give more, or a shorter window" if taken.join else f"give longer ones, a shorter window, or {joining}"
        return Remark(judge("training", False, detail, cure), [])
    taken_from = f"{counts.text}, {counts.tokens:,} tokens{guess}"
    detail = f"{source}windows of {label} from {taken_from}"
    if counts.dropped_short > counts.kept and not taken.join:
        return _note("training", f"{detail}; most documents are shorter", f"{joining} joins them")
    return _passed("training", detail)


def _amount(some: Some) -> str:
    shares = f"{percent(some.share_of_documents)}, {percent(some.share_of_tokens)} of tokens"
    return f"{_number(some.documents)} ({shares})"


def _number(documents: int) -> str:
    return f"{documents:,} document{_s(documents)}"


def _s(number: int) -> str:
    return "" if number == 1 else "s"

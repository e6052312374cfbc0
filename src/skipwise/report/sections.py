"""From records to the sections of a report, and to its verdict in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from skipwise.report.figures import passkey_grid, perplexity_by_length
from skipwise.report.page import Section, render_page
from skipwise.report.records import PASSKEY, PERPLEXITY, Arm, length_label, measures
from skipwise.report.tables import table_of


def write_report(
    path: Path,
    arms: Sequence[Arm],
    *,
    title: str,
    original_tokens: int,
    made: Mapping[str, str],
    verdict: Sequence[str] | None = None,
) -> None:
    """Writes the page on what an extension bought: the verdict, perplexity by length, passkeys by length and depth.

    What no arm was measured on is left out.

    Args:
        path: the HTML file to write.
        arms: models under comparison, the base first, the extended one last.
        title: of the page.
        original_tokens: window of the base model, in tokens.
        made: how the numbers came about, by name: the command, versions, seeds, time.
        verdict: sentences; by default what the numbers say of the first arm and the last.
    """
    made_of = {PERPLEXITY: perplexity_section, PASSKEY: passkey_section}
    sections = [make(arms, original_tokens) for measure, make in made_of.items() if measure in measures(arms)]
    words = verdict_words(arms[0], arms[-1], original_tokens) if verdict is None else verdict
    render_page(title, sections, path, verdict=words, made=made)


def perplexity_section(arms: Sequence[Arm], original_tokens: int) -> Section:
    """How well each arm predicts text, by length."""
    return Section(
        title="Perplexity by length",
        words=[
            "How well each model predicts the next token of text when it is given more and more of what stands before. "
            "A model that uses its context gets lower towards the right; one that is lost beyond its window shoots up."
        ],
        figures=[perplexity_by_length(arms, original_tokens=original_tokens)],
        tables=[table_of(arms, PERPLEXITY)],
    )


def passkey_section(arms: Sequence[Arm], original_tokens: int) -> Section:
    """Whether each arm finds a key hidden in its context, by length and depth."""
    return Section(
        title="Passkeys found by length and depth",
        words=[
            "Five digits are hidden in a long text and asked for at its end. Low perplexity alone does not show that a "
            "model can reach far back; finding the key does."
        ],
        figures=[passkey_grid(arms, original_tokens=original_tokens)],
        tables=[table_of(arms, PASSKEY)],
    )


def verdict_words(base: Arm, extended: Arm, original_tokens: int) -> list[str]:
    """What was measured on two arms, in a sentence each: at the longest length that both have, and
    at the longest within the original window.

    They state numbers with their intervals and pass no judgement.
    """
    sentences = []
    for measure in measures([base, extended]):
        before, after = base.by_length(measure), extended.by_length(measure)
        shared = sorted(before.keys() & after.keys())
        beyond = [length for length in shared if length > original_tokens][-1:]
        within = [length for length in shared if length <= original_tokens][-1:]
        sentences += [
            f"{measure.title} at {length_label(length)} tokens, {place}: {measure.text_with_interval(after[length])} "
            f"for {extended.name}, {measure.text_with_interval(before[length])} for {base.name}."
            for length, place in [
                *((n, f"{n / original_tokens:g} times the original window") for n in beyond),
                *((n, "within the original window") for n in within),
            ]
        ]
    return sentences

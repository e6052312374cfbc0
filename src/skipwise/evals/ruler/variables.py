"""Variable tracking: which variables hold a value, when most got it from another variable.

A chain assigns a number to a variable, then each variable to the next. Its statements keep their order and are
scattered over filler. The answer is all variables of one chain; further chains, if any, distract.

Source: RULER (arXiv 2404.06654), section 3 and appendix B, and its published settings. The wording is our own.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import ClassVar

import numpy as np

from skipwise.evals.context import EvalContext
from skipwise.evals.drafts import Draft
from skipwise.evals.languages import ENGLISH
from skipwise.evals.ruler.task import Drafter, RulerTask, filler_lines, insert_at_random, topped_up

_WORDS_PER_LINE = len(ENGLISH.passkey.filler.split())
# The worked example has shorter names than the question, so that neither is mistaken for the other.
_NAME_LETTERS, _EXAMPLE_NAME_LETTERS = 5, 3
# Below RULER's shortest length, the full worked example would take most of the prompt.
_SHORT_TOKENS, _EXAMPLE_LINES, _SHORT_EXAMPLE_LINES = 4096, 10, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Variables that all hold one value.

    Attributes:
        value: the number assigned to the first variable.
        variables: names in the order of assignment.
    """

    value: str
    variables: list[str]

    @property
    def statements(self) -> list[str]:
        """The assignments in order."""
        sources = [self.value, *self.variables[:-1]]
        return [f"LET {name} = {source}" for name, source in zip(self.variables, sources, strict=True)]


def draw_chains(
    rng: np.random.Generator, num_chains: int, num_hops: int, name_letters: int, taken: Collection[str] = ()
) -> list[Chain]:
    """Chains of `num_hops + 1` variables each. Names and values are distinct, and no value is in `taken`."""
    names: list[str] = []
    while len(names) < num_chains * (num_hops + 1):
        name = "".join(ascii_uppercase[letter] for letter in rng.integers(0, 26, size=name_letters))
        if name not in names:
            names.append(name)
    values: list[str] = []
    while len(values) < num_chains:
        value = str(rng.integers(10000, 100000))
        if value not in values and value not in taken:
            values.append(value)
    size = num_hops + 1
    return [
        Chain(value=value, variables=names[place * size : (place + 1) * size]) for place, value in enumerate(values)
    ]


def variable_draft(
    seed: int,
    num_words: int,
    num_filler_words: int,
    *,
    num_chains: int,
    num_hops: int,
    example_lines: int,
) -> Draft:
    """A worked example, then one question over filler of a given size.

    Args:
        seed: seed of all draws; chains do not depend on the filler's size.
        num_words: number of filler words around the statements.
        num_filler_words: number of filler words after them.
        num_chains: number of chains in the text, one of which is asked for.
        num_hops: number of variables of a chain that get their value from another.
        example_lines: number of filler lines in the worked example.
    """
    rng = np.random.default_rng(seed)
    chains = draw_chains(rng, num_chains, num_hops, _NAME_LETTERS)
    shown = draw_chains(rng, num_chains, num_hops, _EXAMPLE_NAME_LETTERS, taken=[chain.value for chain in chains])
    example = _question(shown, _scatter(shown, example_lines * _WORDS_PER_LINE, rng))
    request, prefix = _question(chains, topped_up(_scatter(chains, num_words, rng), num_filler_words))
    return Draft(
        request=f"{' '.join(example)} {' '.join(shown[0].variables)}\n\n{request}",
        answer_prefix=prefix,
        references=chains[0].variables,
        details={"value": chains[0].value, "filler_words": num_filler_words},
    )


def _question(chains: Sequence[Chain], text: str) -> tuple[str, str]:
    asked = chains[0]
    return (
        "The text below hides assignments to variables, some from other variables. Follow every chain of them.\n\n"
        f"{text}\nQuestion: Which variables hold the value {asked.value} after the text above?",
        f"Answer: By the assignments in the text above, {len(asked.variables)} variables hold the value {asked.value}:",
    )


def _scatter(chains: Sequence[Chain], num_words: int, rng: np.random.Generator) -> str:
    """Filler with each chain's statements in order before random lines, or random sentences if lines are too few."""
    pieces = [line + "\n" for line in filler_lines(num_words)]
    statements = len(chains[0].statements)
    if len(pieces) <= statements:
        pieces = [sentence + "." for line in filler_lines(num_words) for sentence in line.rstrip(".").split(". ")]
    for chain in chains:
        pieces = insert_at_random(pieces, chain.statements, rng)
    return " ".join(pieces).rstrip().replace("\n ", "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableTracking(RulerTask):
    """All five variables of one chain of four hops; 30 tokens of answer."""

    name: ClassVar[str] = "ruler_vt"
    max_new_tokens: ClassVar[int] = 30
    num_chains: ClassVar[int] = 1
    num_hops: ClassVar[int] = 4

    def drafter(self, context: EvalContext, length_tokens: int, index: int) -> Drafter:
        """The prompts of one trial by words of filler."""
        seed = self.seed(context, length_tokens, index)
        example_lines = _EXAMPLE_LINES if length_tokens >= _SHORT_TOKENS else _SHORT_EXAMPLE_LINES
        return lambda words, filler: variable_draft(
            seed,
            words,
            filler,
            num_chains=self.num_chains,
            num_hops=self.num_hops,
            example_lines=example_lines,
        )

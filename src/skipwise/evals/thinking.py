"""Chat templates of reasoning models: the answer follows the thought and is never inside it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# As models write them: <think>, <thinking>, <seed:think>, <reasoning>, [THINK].
_NAME = r"(?:\w+:)?(?:think\w*|thought|reasoning)"
_OPENED = re.compile(rf"[<\[](?P<name>{_NAME})[>\]]\s*$", re.IGNORECASE)
_OPENS = re.compile(rf"\s*[<\[]{_NAME}[>\]]", re.IGNORECASE)
_CLOSED = re.compile(rf"[<\[]/{_NAME}[>\]]", re.IGNORECASE)
# Of Qwen, GLM, SmolLM and others; of DeepSeek and Granite.
_SWITCHES = ("enable_thinking", "thinking")


def thinking_switches(tokenizer: Any, *, on: bool) -> dict[str, bool]:
    """Arguments by which a tokenizer's chat template turns thinking on or off; empty if it has none."""
    template = tokenizer.chat_template
    text = " ".join(template.values()) if isinstance(template, dict) else str(template)
    return {name: on for name in _SWITCHES if re.search(rf"\b{name}\b", text)}


def opens_thought(opening: str) -> bool:
    """Whether a prompt ends at the beginning of a thought."""
    return _OPENED.search(opening[-64:]) is not None


def without_thought(opening: str) -> str:
    """A prompt that its answer follows: a thought that it opens at its end is closed as an empty one."""
    opened = _OPENED.search(opening[-64:])
    if opened is None:
        return opening
    tag = opened[0].strip()
    return f"{opening.rstrip()}\n\n{tag[0]}/{tag[1:]}\n\n"


def answer_of(output: str, *, opened: bool) -> str:
    """The part of an output after its thought; empty if the thought does not end.

    Args:
        output: the model's output.
        opened: whether the prompt has opened the thought.
    """
    if not opened and not _OPENS.match(output):
        return output
    closed = _CLOSED.search(output)
    return "" if closed is None else output[closed.end() :]


@dataclass(frozen=True, slots=True)
class AfterThought:
    """A score of the answer after the thought; what the thought mentions does not count.

    Attributes:
        score: the score of the answer.
        opened: whether prompts have opened the thought.
    """

    score: Callable[[str, Sequence[str]], float | None]
    opened: bool

    def __call__(self, output: str, references: Sequence[str]) -> float | None:
        """The score of an output."""
        return self.score(answer_of(output, opened=self.opened), references)

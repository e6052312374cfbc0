"""Write the Modelfile with which Ollama serves a GGUF file: its window, stop texts and chat template.

A chat template in a GGUF file is Jinja, one in a Modelfile is Go. The Go template is not guessed from a name: the
Jinja template is rendered with marks for texts, and the Go template writes what stands between the marks. It is kept
only if it renders further conversations the same. Templates that do more (tools, thinking, dates) are left out, since
Ollama then uses the file's own.

Source: Ollama 0.32.15: parser/parser.go (the grammar), template/template.go (what a template is given),
server/routes.go and server/images.go (which template rules), llm/server.go (`num_ctx` is capped at the file's
context length); 0.24.0: model/models/qwen3 and gemma3, whose attention factor cancels against the kernel's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from skipwise.names import first_line

if TYPE_CHECKING:
    from skipwise.export.gguf import GgufPlan

FILE = "Modelfile"
# Until 0.24, Ollama ran these architectures with Go code of its own; since 0.30 llama.cpp's server runs all.
_OWN_ENGINE, _LLAMA_SERVER_SINCE = ("qwen3", "gemma3"), "0.30.0"
_SYSTEM, _USER, _ASSISTANT = "system", "user", "assistant"
_MARKS = {_SYSTEM: "QSYSQ", _USER: "QUSRQ", _ASSISTANT: "QASTQ"}
# Conversations that a Go template must render like the Jinja template: roles, in order.
_CHATS = (
    (_USER,),
    (_USER, _ASSISTANT, _USER),
    (_USER, _ASSISTANT, _USER, _ASSISTANT, _USER),
)
_TEXTS = ('Say "yes",\n\nor {no}.', "Ünïcode 数 <b>&amp;</b>", "- a\n- b")
_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}


class GoTemplate(NamedTuple):
    """What a chat template writes before and after the texts of a conversation.

    Attributes:
        first: before the first user's text, if there is no system text.
        answer: between a user's text and the assistant's.
        again: between the assistant's text and the next user's.
        opening: after the last user's text, where the assistant begins.
        system: before a system text, and between it and the first user's; None if the model has no system texts.
    """

    first: str
    answer: str
    again: str
    opening: str
    system: tuple[str, str] | None

    @property
    def text(self) -> str:
        """The template in Go's language. It has no line ends of its own, which would be written."""
        start, with_system = "", ""
        if self.system is not None:
            start = f'{{{{ if .System }}}}{self.system[0]}{{{{ .System }}}}{{{{ $last = "system" }}}}{{{{ end }}}}'
            with_system = f'{{{{ else if eq $last "system" }}}}{self.system[1]}'
        return (
            f'{{{{ $last := "" }}}}{start}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}'
            f'{{{{ if eq $last "" }}}}{self.first}{with_system}{{{{ else }}}}{self.again}{{{{ end }}}}'
            f'{{{{ .Content }}}}{{{{ $last = .Role }}}}{{{{ else if eq .Role "assistant" }}}}{self.answer}'
            "{{ .Content }}{{ $last = .Role }}{{ end }}{{ end }}"
            f'{{{{ if ne $last "assistant" }}}}{self.opening}{{{{ end }}}}'
        )

    def render(self, chat: Sequence[dict[str, str]]) -> str:
        """What Go makes of a conversation that ends with a user's text."""
        found, last = "", ""
        for message in chat:
            role = message["role"]
            if role == _SYSTEM:
                assert self.system is not None
                found += self.system[0]
            elif role == _USER:
                starts = {"": self.first, _SYSTEM: self.system[1] if self.system else ""}
                found += starts.get(last, self.again)
            else:
                found += self.answer
            found, last = found + message["content"], role
        return found + self.opening


def write_modelfile(path: Path, plan: "GgufPlan", tokenizer: Any) -> list[str]:
    """Writes a Modelfile beside a GGUF file.

    Args:
        path: the GGUF file.
        plan: as it was planned.
        tokenizer: the model's tokenizer.

    Returns:
        Notes for users.
    """
    lines = [f"FROM ./{path.name}", f"PARAMETER num_ctx {plan.metadata['context_length']}"]
    notes = []
    if plan.family.architecture in _OWN_ENGINE and plan.metadata["rope.scaling.type"] == "yarn":
        lines.append(f"REQUIRES {_LLAMA_SERVER_SINCE}")
        notes.append(
            f"Ollama before {_LLAMA_SERVER_SINCE} runs {plan.family.architecture} files with an engine of its own, "
            "which leaves out YaRN's attention factor: do not use it"
        )
    stops = [tokenizer.eos_token]
    if not tokenizer.chat_template:
        # Without it Ollama would write a text as a turn of a chat, which the model does not know.
        lines.append('TEMPLATE """{{ .Prompt }}"""')
        notes.append("the model has no chat template, so Ollama is given the prompt as it is")
    else:
        template = go_template(tokenizer, adds_bos=bool(plan.tokenizer.entries["add_bos_token"]))
        if isinstance(template, str):
            lines.append(f"# No TEMPLATE: {template}. Ollama uses the chat template in the file.")
            notes.append(f"the Modelfile has no TEMPLATE ({template}): Ollama uses the chat template in the file")
        else:
            lines.append(f'TEMPLATE """{template.text}"""')
            stops.append(_turn_end(template, tokenizer))
            if template.system is None:
                notes.append("the model's chat template takes no system text, and the Modelfile's ignores it")
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys(stops) if stop and '"' not in stop]
    (path.parent / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return notes


def go_template(tokenizer: Any, *, adds_bos: bool) -> GoTemplate | str:
    """The Go template that writes the same as a tokenizer's Jinja template, or why there is none.

    They are the same for texts without white space around them, which many Jinja templates strip.
    """
    bos = tokenizer.bos_token or ""

    def rendered(chat: Sequence[dict[str, str]], **settings: Any) -> str:
        text = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True, **settings)
        return text.removeprefix(bos) if adds_bos and bos else text

    if not isinstance(tokenizer.chat_template, str):
        return "the tokenizer has several chat templates"
    try:
        plain = rendered(_chat((_USER,)))
        if "strftime_now" in tokenizer.chat_template:
            return "the model's template writes the date"
        if "tool_calls" in tokenizer.chat_template or rendered(_chat((_USER,)), tools=[_TOOL]) != plain:
            return "the model's template has tools"
        if any(rendered(_chat((_USER,)), enable_thinking=thinks) != plain for thinks in (False, True)):
            return "the model's template turns thinking on and off"
        first, opening = plain.split(_MARKS[_USER])
        _, answer, again, _ = _split(rendered(_chat((_USER, _ASSISTANT, _USER))))
    except Exception as error:
        return f"the model's template does not render a plain conversation: {first_line(error)}"
    try:
        before, after, _ = _split(rendered(_chat((_SYSTEM, _USER))))
        system = (before, after)
    except Exception:
        system = None
    found = GoTemplate(first, answer, again, opening, system)
    if any("{{" in piece or '"""' in piece for piece in (first, answer, again, opening, *(system or ()))):
        return "the model's template writes what Go's language cannot"
    chats = [_chat(roles, _TEXTS) for roles in _CHATS]
    chats += [_chat((_SYSTEM, *roles), _TEXTS) for roles in _CHATS if system is not None]
    chats.append(_chat((_USER, _ASSISTANT, _USER), ("a", "<think>\nb\n</think>\n\nc", "d")))
    if any(found.render(chat) != rendered(chat) for chat in chats):
        return "the model's template does more than write texts between fixed marks"
    return found


def _chat(roles: Sequence[str], texts: Sequence[str] | None = None) -> list[dict[str, str]]:
    """A conversation of marks, or of texts in turn."""
    return [
        {"role": role, "content": _MARKS[role] if texts is None else texts[place % len(texts)]}
        for place, role in enumerate(roles)
    ]


def _split(text: str) -> list[str]:
    """What stands around the marks."""
    for mark in _MARKS.values():
        text = text.replace(mark, "\0")
    return text.split("\0")


def _turn_end(template: GoTemplate, tokenizer: Any) -> str | None:
    """The special token that ends an assistant's text; None if it is not one."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    after = template.again.lstrip()
    return max((token for token in special if after.startswith(token)), key=len, default=None)

"""Conversations in records: OpenAI's `messages` and ShareGPT's `conversations`, read into one form.

A conversation is a document whose text is JSON, `{"messages": [...], "tools": [...]}`. `data.tokens.chats` renders it
by the model's chat template. Readers are told what to read of a record by the name of a field; `conversation_field` is
one that stands for the record's conversation.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

Format = Literal["auto", "text", "conversations"]
"""What records hold; `auto` looks at the first ones."""

NAMES = ("messages", "conversations")
"""Fields that hold a conversation, besides one named by `data.field`."""

_MARK = "conversation, or "
_ROLES = ("system", "developer", "user", "assistant", "tool")
# Names of the same roles in ShareGPT's form and in older ones.
_SAME_ROLE = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}


class ConversationError(ValueError):
    """A conversation cannot be used; the message is a predicate whose subject is the record."""


def conversation_field(field: str) -> str:
    """The field that stands for a record's conversation: in `messages`, in `conversations`, or in `field`."""
    return _MARK + field


def is_conversation(field: str) -> bool:
    """Whether a field is one of `conversation_field`."""
    return field.startswith(_MARK)


def fields_of(field: str) -> list[str]:
    """Names of the entries of a record that may hold its messages, for a `conversation_field`."""
    return [*dict.fromkeys([field.removeprefix(_MARK), *NAMES])]


BESIDE = ("tools", "functions", "system")
"""Names of the entries that belong to a conversation beside its messages."""


def form_of(record: Mapping[str, Any], field: str) -> frozenset[str]:
    """What a record holds: "text", "conversations", both or nothing."""
    messages = any(_is_list_of_messages(record.get(name)) for name in fields_of(field))
    return frozenset(["conversations"] * messages + ["text"] * isinstance(record.get(field), str))


def conversation_of(record: Mapping[str, Any], field: str) -> str:
    """The conversation of a record as JSON; empty if it is null or has no messages.

    Roles and texts get OpenAI's names and one form: parts of text are joined, arguments of tool calls are objects, and
    null entries, which tables write for absent ones, are left out. What else a message has is kept for the template.

    Args:
        record: a JSON object or a table row.
        field: from `conversation_field`.

    Raises:
        ConversationError: there is none, or it cannot be used.
    """
    there = [name for name in fields_of(field) if name in record]
    if there and all(record[name] is None for name in there):
        return ""
    # A field named by `data.field` may hold a text beside the conversation.
    usable = [
        name for name in there if record[name] is not None and (name in NAMES or not isinstance(record[name], str))
    ]
    name = next(iter(usable), None)
    if name is None:
        raise ConversationError(f"has no conversation; its fields are {', '.join(sorted(record)) or 'none'}")
    given = record[name]
    if not isinstance(given, list):
        raise ConversationError(f"has a {type(given).__name__} in field {name!r}, which is no list of messages")
    if not given:
        return ""
    messages = [_message(message, number) for number, message in enumerate(given, start=1)]
    if isinstance(system := record.get("system"), str) and system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if all(message["role"] != "assistant" for message in messages):
        raise ConversationError("has no turn of the assistant, so there is nothing to learn in it")
    found: dict[str, Any] = {"messages": messages}
    if tools := _tools(record):
        found["tools"] = tools
    return json.dumps(found, ensure_ascii=False)


def _is_list_of_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _message(given: Any, number: int) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ConversationError(f"has a {type(given).__name__} as message {number}, which must be an object")
    message = _without_nulls(given)
    said = message.pop("from", None) if "role" not in message else message.pop("role")
    if not isinstance(said, str):
        raise ConversationError(f"has no role in message {number}")
    role = _SAME_ROLE.get(said, said)
    if role not in _ROLES:
        known = ", ".join(_ROLES)
        raise ConversationError(f"has the role {said!r} in message {number}; known are {known}, human and gpt")
    content = message.pop("content", message.pop("value", None))
    if said == "function_call":
        message["tool_calls"], content = _calls(content, number), ""
    elif isinstance(call := message.pop("function_call", None), dict):
        message["tool_calls"] = [{"type": "function", "function": call}]
    if calls := message.get("tool_calls"):
        message["tool_calls"] = [_with_object(call) for call in calls]
    if content is None and not (role == "assistant" and calls):
        raise ConversationError(f"has no content in message {number}, of role {said}")
    return {"role": role, "content": _text(content, number), **message}


def _text(content: Any, number: int) -> str:
    """The text of a message; parts of text are joined."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ConversationError(f"has a {type(content).__name__} as the content of message {number}")
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type", "unknown") if isinstance(part, Mapping) else type(part).__name__
            raise ConversationError(f"has a part of type {kind} in message {number}, and only text can be trained on")
    return "".join(part["text"] for part in content)


def _calls(content: Any, number: int) -> list[dict[str, Any]]:
    """The tool calls of a ShareGPT message of role `function_call`."""
    try:
        calls = json.loads(content) if isinstance(content, str) else content
    except ValueError:
        calls = None
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise ConversationError(f"has a function_call in message {number} that is not JSON with name and arguments")
    return [{"type": "function", "function": call} for call in calls]


def _with_object(call: Any) -> Any:
    """A tool call whose arguments are an object, as templates expect, where they are the JSON of one."""
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments, str):
        return call
    try:
        read = json.loads(arguments)
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": read}} if isinstance(read, dict) else call


def _tools(record: Mapping[str, Any]) -> list[Any]:
    """The tools of a record: a list, or the JSON of one."""
    name = "tools" if record.get("tools") else "functions"
    tools = record.get(name)
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError:
            raise ConversationError(f"has {name} that are not JSON") from None
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise ConversationError(f"has a {type(tools).__name__} in field {name!r}, which must be a list")
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise ConversationError(f"has something in field {name!r} that is no object")
    tools = _without_nulls(tools)
    return [{"type": "function", "function": tool} for tool in tools] if name == "functions" else tools


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value

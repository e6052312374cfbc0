"""`skipwise keys create|list|revoke|role`: API keys of a server, and the limits of their roles."""

import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from skipwise.cli import options
from skipwise.cli.options import given, option, print_json
from skipwise.errors import ConfigError

_LONGEST_DAYS = 36_500
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

KeysOption = Annotated[
    Path | None,
    option(
        "--keys FILE",
        "Key file. It holds hashes, not the keys themselves.",
        shown="~/.config/skipwise/keys.json",
        group="Access",
        envvar="SKIPWISE_KEYS",
    ),
]


def default_key_file() -> Path:
    """The default key file."""
    return Path.home() / ".config" / "skipwise" / "keys.json"


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will use the key, for the audit log.")],
    role: Annotated[str, option("--role ROLE", "Role of the key, created by keys role.")] = "default",
    expires: Annotated[str | None, option("--expires TIME", "Lifetime, such as 12h, 30d or 8w.", shown="never")] = None,
    keys: KeysOption = None,
    as_json: options.Json = False,
) -> None:
    """Create an API key.

    The key is printed once. Only its hash is stored.

    Example: skipwise keys create ada --role reader --expires 90d
    """
    from skipwise.serve.keys import create_key

    path = keys or default_key_file()
    key = create_key(path, name, role=role, seconds=None if expires is None else _seconds(expires))
    if as_json:
        print_json({"key": key, "id": key.split("-")[1], "name": name, "role": role, "file": str(path)})
    else:
        print(key)
        typer.echo(f"Stored as {key.split('-')[1]} in {path}; the key itself is shown only this once.", err=True)


def list_keys(keys: KeysOption = None, as_json: options.Json = False) -> None:
    """List API keys and roles.

    skipwise keys alone does the same. See also keys create, keys revoke and keys role.

    Example: skipwise keys list
    """
    from skipwise.serve.keys import read_keys

    content, now = read_keys(keys or default_key_file()), time.time()
    for key in content.keys:
        role = content.roles[key.role]
        limits = {name: value for name, value in role.model_dump().items() if value is not None}
        if as_json:
            shown = key.model_dump(include={"id", "name", "role", "created", "expires", "revoked"})
            print_json({**shown, "state": key.state(now), "limits": limits})
        else:
            until = "" if key.expires is None else f", until {_day(key.expires)}"
            print(f"{key.id}  {key.state(now):<8} {key.name}, role {key.role}, since {_day(key.created)}{until}")
    if not as_json:
        for name, role in content.roles.items():
            print(f"role {name}: {_words(role)}")


def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="ID of the key, as keys list shows it.")],
    keys: KeysOption = None,
    as_json: options.Json = False,
) -> None:
    """Revoke an API key for good.

    A running server refuses it from the next request on.

    Example: skipwise keys revoke 1f0c93ab52de
    """
    from skipwise.serve.keys import revoke_key

    ended = revoke_key(keys or default_key_file(), key)
    if as_json:
        print_json({"id": ended.id, "name": ended.name, "revoked": ended.revoked})
    else:
        print(f"{ended.id} ({ended.name}) is revoked")


def role(
    name: Annotated[str, typer.Argument(metavar="ROLE", help="Name of the role.")],
    max_context: Annotated[
        int | None, option("--max-context TOKENS", "Longest request, answer included, such as 32k.")
    ] = None,
    requests_per_minute: Annotated[
        int | None, option("--requests-per-minute N", "Requests per minute, for each key.", min=1)
    ] = None,
    tokens_per_minute: Annotated[
        int | None, option("--tokens-per-minute TOKENS", "Tokens per minute, for each key, such as 100k.")
    ] = None,
    models: Annotated[
        Any, option("--models NAME,...", "Models that keys may use, such as short,long.", shown="all")
    ] = None,
    anew: Annotated[bool, option("--anew", "Remove all limits that are not given.")] = False,
    keys: KeysOption = None,
    as_json: options.Json = False,
) -> None:
    """Create a role, or change its limits.

    A change applies to all keys of the role at once. Limits that are not given stay as they are.

    Example: skipwise keys role reader --max-context 8k --requests-per-minute 30
    """
    from skipwise.serve.keys import change_role

    if models is not None and not models:
        # As of an unset variable: left out, it would allow all of them.
        raise ConfigError("--models names none; give names such as long,short, or leave it out")
    limits = {
        "max_context": max_context,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "models": models,
    }
    made = change_role(keys or default_key_file(), name, given(limits), anew=anew)
    if as_json:
        print_json({"role": name, "limits": made.model_dump()})
    else:
        print(f"role {name}: {_words(made)}")


def _words(role: Any) -> str:
    parts = {
        "context up to {} tokens": role.max_context,
        "{} requests a minute": role.requests_per_minute,
        "{} tokens a minute": role.tokens_per_minute,
        "models {}": role.models and ", ".join(role.models),
    }
    return ", ".join(text.format(value) for text, value in parts.items() if value is not None) or "no limits"


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)([smhdw])", text.strip())
    if match is None:
        raise ConfigError(f"--expires is {text!r}; give a number and s, m, h, d or w, such as 30d")
    seconds = int(match[1][:20]) * _SECONDS[match[2]]
    if not 0 < seconds <= _LONGEST_DAYS * _SECONDS["d"]:
        raise ConfigError(f"--expires is {text[:40]!r}; give from 1s to {_LONGEST_DAYS}d, or leave it out for never")
    return seconds


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))

"""API keys and their roles: a private file that holds no key, and the keyring of a server that follows it.

A key reads `skipwise-<id>-<secret>`. The id finds its record, which holds the SHA-256 of the secret, so whoever reads
the file cannot use a key. Secrets are 256 random bits, which nobody finds by trying: a slow hash adds nothing.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skipwise.errors import ConfigError
from skipwise.files import replace_file
from skipwise.serve.refusals import Refusal

KEY = re.compile(r"skipwise-([0-9a-f]{12})-([0-9a-f]{64})")
DEFAULT_ROLE = "default"
T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Role(BaseModel):
    """What holders of a key may do; None sets no limit beyond the server's own.

    Limits by the minute are of each key. Tokens include the new ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_context: int | None = Field(default=None, ge=1)
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    models: list[str] | None = Field(default=None, min_length=1)


class Key(BaseModel):
    """The record of a key, without the key.

    Attributes:
        id: the part of the key that is not secret.
        created, expires, revoked: seconds since 1970; None for never.
        digest: hexadecimal SHA-256 of the secret.
        salt, scrypt: of records by earlier versions, whose digest is scrypt's with this salt and these n, r, p.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str
    role: str
    created: float
    expires: float | None = None
    revoked: float | None = None
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    salt: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    scrypt: list[int] | None = Field(default=None, min_length=3, max_length=3)

    def state(self, now: float) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"

    def fits(self, secret: str) -> bool:
        """Whether the secret is this key's. For a record with `scrypt` this takes about 50 ms."""
        digest = _digest(secret)
        if self.scrypt is not None:
            n, r, p = self.scrypt
            salt = bytes.fromhex(self.salt or "")
            digest = hashlib.scrypt(secret.encode(), salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=32).hex()
        return hmac.compare_digest(digest, self.digest)


class KeyFile(BaseModel):
    """The content of a key file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int = Field(default=1, ge=1, le=1)
    roles: dict[str, Role] = Field(default_factory=lambda: {DEFAULT_ROLE: Role()})
    keys: list[Key] = Field(default_factory=list)


def read_keys(path: Path) -> KeyFile:
    """Reads a key file; a missing one has no keys.

    Raises:
        ConfigError: it is damaged, or others may write to it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read()
    except FileNotFoundError:
        return KeyFile()
    except OSError as error:
        raise ConfigError(
            f"the key file {str(path)!r} cannot be read ({error.strerror}); give another", page="server-start"
        ) from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"the key file {str(path)!r} has mode {mode:03o}, so others could add keys to it; chmod 600 it, and check "
            "its keys with 'skipwise keys list'",
            page="server-start",
        )
    try:
        content = KeyFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(
            f"the key file {str(path)!r} is damaged: {where}: {first['msg']}; restore it", page="server-start"
        ) from error
    for key in content.keys:
        if key.role not in content.roles:
            raise ConfigError(
                f"the key file {str(path)!r} is damaged: key {key.id} has the unknown role {key.role!r}",
                page="server-start",
            )
    return content


def create_key(path: Path, name: str, *, role: str = DEFAULT_ROLE, seconds: float | None = None) -> str:
    """Makes a key for a holder, stores its record, and returns the key, which is stored nowhere.

    The file is created if need be. The key expires after so many seconds; None is for never.

    Raises:
        ConfigError: the role is unknown, or the name has characters that are not allowed.
    """
    _check_name("name", name)
    secret, now = secrets.token_hex(32), time.time()

    def add(content: KeyFile) -> str:
        if role not in content.roles:
            raise ConfigError(
                f"role is {role!r}; known: {', '.join(sorted(content.roles))}; make it with 'skipwise keys role {role}'"
            )
        number = secrets.token_hex(6)
        while any(key.id == number for key in content.keys):
            number = secrets.token_hex(6)
        expires = None if seconds is None else now + seconds
        content.keys.append(Key(id=number, name=name, role=role, created=now, expires=expires, digest=_digest(secret)))
        return f"skipwise-{number}-{secret}"

    return _change(path, add)


def revoke_key(path: Path, number: str) -> Key:
    """Ends a key, given by its id or itself, for good; a running server refuses it from the next request on.

    Raises:
        ConfigError: there is no such key.
    """
    match = KEY.fullmatch(number)
    number = match[1] if match else number

    def end(content: KeyFile) -> Key:
        for place, key in enumerate(content.keys):
            if key.id == number:
                content.keys[place] = key.model_copy(update={"revoked": key.revoked or time.time()})
                return content.keys[place]
        raise ConfigError(f"key is {number[:24]!r}, and the file has no such id; see 'skipwise keys list'")

    return _change(path, end)


def change_role(path: Path, name: str, limits: Mapping[str, Any], *, anew: bool = False) -> Role:
    """Makes a role, or changes these limits of it for all its keys at once; returns the role.

    Args:
        path: the key file.
        name: of the role.
        limits: fields of `Role` by name; the others stay as they are.
        anew: whether all other limits are removed.
    """
    _check_name("role", name)

    def change(content: KeyFile) -> Role:
        before = Role() if anew else content.roles.get(name, Role())
        content.roles[name] = Role(**(before.model_dump() | dict(limits)))
        return content.roles[name]

    return _change(path, change)


class Keyring:
    """The keys of a running server, which follow the file as it changes; `clock` gives seconds since 1970.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._seen: tuple[int, ...] | None = None
        self._known: dict[str, tuple[Key, Role]] = {}
        self._roles: dict[str, Role] = {}
        self._follow()

    def __len__(self) -> int:
        self._follow()
        return sum(key.state(self._clock()) == "active" for key, _ in self._known.values())

    @property
    def roles(self) -> dict[str, Role]:
        """The roles as the file has them now."""
        self._follow()
        return self._roles

    def check(self, presented: str) -> tuple[Key, Role]:
        """The key's record and role.

        Raises:
            Refusal: 401, it is not a key, or is wrong, expired or revoked.
            ConfigError: the file cannot be used any more.
        """
        self._follow()
        match = KEY.fullmatch(presented)
        found = self._known.get(match[1]) if match else None
        if match is None or found is None or not found[0].fits(match[2]):
            raise Refusal(401, "the API key is not known here", code="invalid_api_key")
        key, role = found
        if key.scrypt is not None:
            # Once per start: from here on this key is as fast as others.
            key = key.model_copy(update={"digest": _digest(match[2]), "scrypt": None})
            self._known[key.id] = (key, role)
        # Only a holder of the secret is told why.
        if (state := key.state(self._clock())) != "active":
            raise Refusal(401, f"the API key is {state}", code="invalid_api_key")
        return key, role

    @property
    def has_slow_keys(self) -> bool:
        """Whether it has a key of the former version that was not used since the file was read."""
        return any(key.scrypt is not None for key, _ in self._known.values())

    def _follow(self) -> None:
        """Reads the file again if it has changed; a missing one has no keys."""
        try:
            now = self._path.stat()
            seen = (now.st_ino, now.st_mtime_ns, now.st_size, now.st_mode)
        except OSError:
            seen = ()
        if seen != self._seen:
            content = read_keys(self._path)
            self._roles = content.roles
            self._known = {key.id: (key, content.roles[key.role]) for key in content.keys}
            self._seen = seen


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} is {name!r}; give up to 64 letters, digits and . _ @ -, beginning with a letter or digit"
        )


def _change(path: Path, change: Callable[[KeyFile], T]) -> T:
    """Changes the file, which has its old or its new content at any moment and is readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(path.with_name(f".{path.name}.lock"), mode=0o600):
        content = read_keys(path)
        result = change(content)
        replace_file(path, content.model_dump_json(indent=2, exclude_none=True) + "\n", mode=0o600)
    return result

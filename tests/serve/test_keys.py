"""Keys, roles and the file they are kept in."""

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from skipwise import cli
from skipwise.errors import ConfigError
from skipwise.serve import keys as keys_module
from skipwise.serve.keys import Keyring, Role, change_role, create_key, read_keys, revoke_key
from skipwise.serve.refusals import Refusal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "keys.json"


def known(ring: Keyring, key: str) -> str | None:
    """The name of a key's holder; None if the key is refused."""
    try:
        return ring.check(key)[0].name
    except Refusal:
        return None


def wrong(key: str) -> str:
    return key[:-1] + ("0" if key[-1] != "0" else "1")


def test_a_key_is_known_by_its_secret_alone_which_the_file_does_not_hold(path: Path) -> None:
    key = create_key(path, "ada")
    assert key.rsplit("-", 1)[1] not in path.read_text()
    ring = Keyring(path)
    assert [known(ring, one) for one in (wrong(key), key, wrong(key))] == [None, "ada", None]


def test_the_file_is_for_its_owner_alone_from_its_first_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    inner = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append(os.fstat(number).st_mode & 0o777), inner(number)))
    before = os.umask(0)
    try:
        create_key(path, "ada")
    finally:
        os.umask(before)
    assert seen[0] == stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_write_that_fails_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(path, "ada")
    before = path.read_bytes()

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="28"):
        create_key(path, "bob")
    assert path.read_bytes() == before


def test_keys_made_at_once_are_all_kept(path: Path) -> None:
    names = [f"user{number}" for number in range(6)]
    threads = [threading.Thread(target=create_key, args=(path, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in read_keys(path).keys) == names


def test_revoked_and_expired_keys_are_refused_at_once(path: Path) -> None:
    now = 1000.0
    key, other = create_key(path, "ada"), create_key(path, "bob", seconds=100)
    ring = Keyring(path, clock=lambda: now)
    assert (known(ring, key), known(ring, other), len(ring)) == ("ada", "bob", 2)
    revoke_key(path, key.split("-")[1])
    with pytest.raises(Refusal, match="revoked"):
        ring.check(key)
    now = read_keys(path).keys[1].created + 101
    with pytest.raises(Refusal, match="expired"):
        ring.check(other)
    assert len(ring) == 0


@pytest.mark.parametrize(
    "presented",
    ["", "x", "skipwise-", "sk-1234", "skipwise-000000000000-" + "0" * 64, "skipwise-" + "0" * 200, "\udcff", "é" * 90],
)
def test_what_is_no_key_is_refused(path: Path, presented: str) -> None:
    create_key(path, "ada")
    with pytest.raises(Refusal, match="not known"):
        Keyring(path).check(presented)


OLD_KEY = "skipwise-fdc6349bd696-41c4f6f901d347f224d01c7c587eee02de6b03da2cb303aae9ef9dfb5ef1b4fb"
OLD_FILE = """{
  "version": 1,
  "roles": {"default": {"max_context": null, "requests_per_minute": null, "tokens_per_minute": null, "models": null}},
  "keys": [
    {
      "id": "fdc6349bd696", "name": "ada", "role": "default",
      "created": 1795989035.2010202, "expires": null, "revoked": null,
      "salt": "2a5f637cd7972b1a66ff49d8dbc4108d",
      "digest": "51df5f4e334636fc5c8dfc00297c981bfdd27ca49ea1dfea528637710cff718a",
      "scrypt": [16384, 8, 1]
    }
  ]
}"""


def test_a_file_of_an_earlier_version_is_read_and_its_keys_stay_valid(path: Path, monkeypatch: Any) -> None:
    path.parent.mkdir()
    path.write_text(OLD_FILE)
    path.chmod(0o600)
    new = create_key(path, "bob")
    ring, runs, inner = Keyring(path), [], keys_module.hashlib.scrypt
    monkeypatch.setattr(keys_module.hashlib, "scrypt", lambda *a, **k: (runs.append(1), inner(*a, **k))[1])
    assert [known(ring, key) for key in (wrong(OLD_KEY), OLD_KEY, new, OLD_KEY, new)] == [None, *["ada", "bob"] * 2]
    # For the wrong one and for the first right one.
    assert len(runs) == 2
    assert known(ring, wrong(OLD_KEY)) is None


def test_secrets_are_compared_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = create_key(path, "ada")
    ring, compared, inner = Keyring(path), [], keys_module.hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda a, b: (compared.append((a, b)), inner(a, b))[1])
    assert known(ring, key) == known(ring, key) == "ada"
    assert len(compared) == 2


def test_roles_are_those_of_the_file_as_it_is_now(path: Path) -> None:
    change_role(path, "short", {"max_context": 4096})
    key = create_key(path, "ada", role="short")
    ring = Keyring(path)
    assert ring.check(key)[1] == Role(max_context=4096)
    change_role(path, "short", {"max_context": 8192, "models": ["m"]})
    assert ring.check(key)[1] == Role(max_context=8192, models=["m"])
    for changes in ({}, {"models": ["n"]}):
        change_role(path, "short", changes)
        assert ring.check(key)[1].max_context == 8192
    change_role(path, "short", {"models": ["n"]}, anew=True)
    assert ring.check(key)[1] == Role(models=["n"])
    with pytest.raises(ConfigError, match=r"lnog.*short"):
        create_key(path, "bob", role="lnog")


def test_a_file_that_is_gone_damaged_or_open_to_others_lets_nobody_in(path: Path) -> None:
    key = create_key(path, "ada")
    ring, content = Keyring(path), json.loads(path.read_text())
    assert known(ring, key) == "ada"
    path.unlink()
    assert known(ring, key) is None
    content["keys"][0]["digest"] = "short"
    for text, mode, named in (("{", 0o600, "keys.json"), (json.dumps(content), 0o600, "digest"), ("{}", 0o620, "620")):
        path.write_text(text)
        path.chmod(mode)
        for use in (lambda: Keyring(path), lambda: ring.check(key), lambda: ring.check(key)):
            with pytest.raises(ConfigError, match=named):
                use()


def test_the_command_changes_what_is_given_and_says_what_the_role_is(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str) -> str:
        assert cli.main(["keys", "role", "reader", "--keys", str(path), *arguments]) == 0
        return capsys.readouterr().out.strip()

    assert said("--max-context", "8k", "--models", "long") == "role reader: context up to 8192 tokens, models long"
    assert said() == "role reader: context up to 8192 tokens, models long"
    assert said("--requests-per-minute", "5").startswith("role reader: context up to 8192 tokens, 5 requests a minute")
    assert said("--anew") == "role reader: no limits"


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 65, "../x", '"'])
def test_names_are_plain(path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        create_key(path, name)

"""Who may ask for what: keys over HTTP, roles, where the server listens, TLS, and what the audit log keeps."""

import asyncio
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from serve.standin import ByteTokenizer, StandIn
from skipwise.errors import ConfigError
from skipwise.serve.app import create_app
from skipwise.serve.backends import Embedded
from skipwise.serve.keys import Keyring, change_role, create_key, revoke_key
from skipwise.serve.listen import Address, Server
from skipwise.serve.scheduler import Turns

Serve = Callable[..., Any]


def complete(client: Any, tokens: int, new: int, model: str = "stand-in") -> Any:
    return client.completions.create(model=model, prompt="x" * tokens, max_tokens=new)


def test_a_role_bounds_context_models_and_the_rate(serve: Serve, keys: Path) -> None:
    change_role(
        keys, "small", {"max_context": 40, "models": ["stand-in"], "requests_per_minute": 5, "tokens_per_minute": 100}
    )
    small, full = create_key(keys, "small", role="small"), create_key(keys, "full")
    running = serve(keys=keys)
    client = running.client(small)
    assert [(one.id, one.max_model_len) for one in client.models.list()] == [("stand-in", 40)]
    assert len(running.client(full).models.list().data) == 3
    assert complete(client, 30, 10).usage.total_tokens == 40
    with pytest.raises(openai.PermissionDeniedError, match=r"41.*40"):
        complete(client, 31, 10)
    with pytest.raises(openai.NotFoundError, match="stand-in") as refused:
        complete(client, 1, 1, model="stand-in:long")
    assert "stand-in:short" not in str(refused.value)
    # 40 of 100 tokens are used; 40 more fit, and then none.
    complete(client, 30, 10)
    with pytest.raises(openai.RateLimitError, match="100 tokens") as error:
        complete(client, 30, 10)
    assert 1 <= int(error.value.response.headers["retry-after"]) <= 13
    complete(client, 1, 1)
    with pytest.raises(openai.RateLimitError, match="5 requests"):
        complete(client, 1, 1)
    assert complete(running.client(full), 1, 1)


def test_what_was_not_generated_is_not_counted(serve: Serve, keys: Path) -> None:
    change_role(keys, "r", {"tokens_per_minute": 100})
    running = serve(StandIn(token_seconds=0.01), keys=keys)
    client = running.client(create_key(keys, "a", role="r"))
    with pytest.raises(openai.PermissionDeniedError, match="101"):
        complete(client, 1, 100)
    with client.completions.create(model="stand-in", prompt="x", max_tokens=99, stream=True) as stream:
        next(iter(stream))

    def fits() -> bool:
        try:
            complete(client, 1, 40)
        except openai.RateLimitError:
            return False
        return True

    # Without what comes back, 40 tokens would take 24 seconds to flow in.
    running.wait_until(fits, seconds=10)


def test_who_is_refused_for_a_full_queue_is_not_billed(serve: Serve, keys: Path) -> None:
    change_role(keys, "r", {"tokens_per_minute": 100})
    running = serve(StandIn(token_seconds=0.02), keys=keys, turns=Turns(short_slots=1, waiting=1))
    full, client = (running.client(create_key(keys, role, role=role)) for role in ("default", "r"))
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(complete, full, 1, 60)]
        running.wait_until(lambda: running.backend.load == (1, 0))
        asked.append(pool.submit(complete, full, 1, 1))
        running.wait_until(lambda: running.backend.load == (1, 1))
        with pytest.raises(openai.InternalServerError) as error:
            complete(client, 60, 1)
        assert error.value.code == "overloaded"
        for one in asked:
            one.result()
    # Of 100 tokens 61 would be gone, and 40 of them not back before 24 seconds.
    assert complete(client, 60, 20).usage.prompt_tokens == 60


def test_a_damaged_key_file_lets_nobody_in_and_is_reported_once(serve: Serve, keys: Path, capfd: Any) -> None:
    key = create_key(keys, "a")
    client = serve(keys=keys).client(key)
    keys.write_text("{")
    for _ in range(3):
        with pytest.raises(openai.InternalServerError) as error:
            client.models.list()
        assert (error.value.status_code, error.value.response.headers["retry-after"]) == (503, "30")
    assert capfd.readouterr().err.count("is damaged") == 1


def test_elsewhere_than_on_this_machine_nobody_listens_without_keys(keys: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match=host):
            Address(host=host).check(None)
    key = create_key(keys, "a", seconds=0)
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0"):
        Address(host="0.0.0.0").check(Keyring(keys))
    create_key(keys, "b")
    Address(host="0.0.0.0").check(Keyring(keys))
    revoke_key(keys, key)
    for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1"):
        Address(host=host).check(None)


def test_where_it_cannot_listen_is_said_in_one_line(serve: Serve) -> None:
    taken = serve().port
    for host, port in (("127.0.0.1", taken), ("a" * 70 + ".example", 0), ("no-such-host.invalid", 0)):
        with pytest.raises(ConfigError, match=f"{host} port {port}"):
            Address(host=host, port=port).bind().listen()


def test_two_that_start_at_once_on_a_port_are_told_so_and_leave_nothing(capfd: Any) -> None:
    bound = Address(port=0).bind()
    # Neither listens yet, so the system lets both have the port.
    second = Address(port=bound.getsockname()[1])
    other = second.bind()
    bound.listen()
    backend = Embedded(StandIn(), ByteTokenizer(), Turns())  # type: ignore[arg-type]
    with bound, other, pytest.raises(ConfigError, match=r"127\.0\.0\.1 port \d+.*in use"):
        Server(create_app(backend), second, backend).run(sockets=[other])
    assert not asyncio.run(backend.is_healthy())
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture
def made_by_openssl(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate")

    def make(*flags: str) -> dict[str, Path]:
        files = {"certificate": tmp_path / "cert.pem", "private_key": tmp_path / "key.pem"}
        command = "openssl req -x509 -newkey rsa:2048 -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
        out = ["-keyout", str(files["private_key"]), "-out", str(files["certificate"])]
        subprocess.run([*command.split(), *flags, *out], capture_output=True, check=True)
        return files

    return make


def test_tls_files_that_cannot_work_are_refused(made_by_openssl: Callable[..., dict[str, Path]]) -> None:
    with pytest.raises(ConfigError, match="--tls-key"):
        Address(**made_by_openssl("-passout", "pass:abcdefgh")).check(None)  # type: ignore[arg-type]
    certificate = made_by_openssl("-nodes")["certificate"]
    with pytest.raises(ConfigError, match="--tls-key"):
        Address(certificate=certificate).check(None)
    with pytest.raises(ConfigError, match=r"key.*PEM"):
        Address(certificate=certificate, private_key=certificate).check(None)


def test_tls(serve: Serve, made_by_openssl: Callable[..., dict[str, Path]]) -> None:
    files = made_by_openssl("-nodes")
    running = serve(**files)
    assert running.url.startswith("https://")
    context = ssl.create_default_context(cafile=str(files["certificate"]))
    with urllib.request.urlopen(running.url + "/health", context=context, timeout=10) as answer:
        assert json.load(answer) == {"status": "ok"}
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", running.port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        name = (secured.cipher() or ("",))[0]
    assert name.startswith("ECDHE-")
    assert "GCM" in name or "CHACHA20" in name
    context.set_ciphers("AES256-SHA:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", running.port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")
    with pytest.raises(OSError, match=r"(?i)remote end closed|reset|bad status"):
        urllib.request.urlopen(running.url.replace("https", "http") + "/health", timeout=10)


def test_the_audit_log_says_who_and_how_much_and_no_word_of_text(
    serve: Serve, keys: Path, tmp_path: Path, capfd: Any
) -> None:
    key = create_key(keys, "ada")
    running = serve(keys=keys)
    client = running.client(key)
    words = ["zebrafish", "marmalade", "xylophone"]
    client.completions.create(model="stand-in", prompt=words[0], max_tokens=9)
    client.chat.completions.create(
        model="stand-in", messages=[{"role": "user", "content": words[1] * 10}], max_tokens=20, user=words[2]
    )
    for body in ({"model": words[2], "prompt": words[0]}, {"model": "stand-in", "prompt": words[0], words[1]: 1}):
        with pytest.raises(openai.APIStatusError):
            client.post("/completions", body=body, cast_to=object)
    with pytest.raises(openai.APIStatusError):
        client.get("/" + words[2], cast_to=object)
    with client.completions.create(model="stand-in", prompt=words[0], max_tokens=50, stream=True) as stream:
        next(iter(stream))
    with pytest.raises(openai.AuthenticationError):
        running.client("skipwise-" + words[1]).models.list()
    lines = running.logged(7)
    # Who leaves in the midst of a stream is noted as gone, unless all of it was on its way already.
    left = 200 if lines[5]["completion_tokens"] == 50 else 499
    assert [line["status"] for line in lines] == [200, 200, 404, 400, 404, left, 401]
    assert [(line["key"], line["name"]) for line in lines] == [(key.split("-")[1], "ada")] * 6 + [("-", "-")]
    counts = [(line["prompt_tokens"], line["completion_tokens"], line["mode"]) for line in lines[:2]]
    assert counts == [(9, 9, "short"), (90, 20, "long")]
    asked = [(line["original_window"], line["asked_tokens"], line["role"], line["code"]) for line in lines]
    assert asked[:2] == [(64, 18, "default", None), (64, 110, "default", None)]
    assert asked[2] == (None, None, "default", "model_not_found")
    assert [line[2:] for line in asked[3:]] == [("default", "invalid_request")] * 2 + [
        ("default", None),
        ("-", "invalid_api_key"),
    ]
    for line in lines[:2]:
        waited, first, computed = line["wait_seconds"], line["first_token_seconds"], line["compute_seconds"]
        assert 0 <= waited <= first <= line["seconds"]
        assert 0 < computed <= line["seconds"]
    assert lines[4]["endpoint"] == "other"
    assert stat.S_IMODE(running.log.stat().st_mode) == 0o600
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) >= 2
    printed = "".join(capfd.readouterr())
    for word in [*words, *(word[::-1] for word in words), key.rsplit("-", 1)[1]]:
        assert all(word.encode() not in content for content in written), word
        assert word not in printed, word


def test_nobody_can_say_that_they_are_somebody_else(serve: Serve) -> None:
    running = serve()
    pretence = {"X-Forwarded-For": "zebrafish", "X-Forwarded-Proto": "https", "Forwarded": "for=zebrafish"}
    running.client(default_headers=pretence).models.list()
    assert running.logged(1)[0]["client"] == "127.0.0.1"


def test_a_log_that_is_moved_away_is_begun_anew(serve: Serve, tmp_path: Path) -> None:
    running = serve()
    for moved in ("audit.1", "audit.2"):
        complete(running.client(), 1, 1)
        running.logged(1)
        running.log.rename(tmp_path / moved)


def test_metrics_count_and_name_no_key(serve: Serve, keys: Path) -> None:
    key = create_key(keys, "ada")
    running = serve(keys=keys)
    complete(running.client(key), 70, 3)
    request = urllib.request.Request(running.url + "/metrics", headers={"Authorization": f"Bearer {key}"})
    # Counted when the answer has gone.
    counted = 'skipwise_requests_total{endpoint="/v1/completions",mode="long",status="200"} 1.0'
    running.wait_until(lambda: counted in urllib.request.urlopen(request, timeout=10).read().decode())
    text = urllib.request.urlopen(request, timeout=10).read().decode()
    assert 'skipwise_tokens_total{kind="prompt",mode="long"} 70.0' in text
    assert 'skipwise_tokens_total{kind="completion",mode="long"} 3.0' in text
    assert "ada" not in text
    assert key.split("-")[1] not in text


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root")
def test_it_works_with_the_network_cut() -> None:
    cut = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$0" "$@"', sys.executable]
    if subprocess.run([*cut, "-c", "pass"], capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    tests = [str(Path(__file__).with_name("test_openai_client.py")), "-k", "completion or chat"]
    done = subprocess.run([*cut, "-m", "pytest", "-q", "-n", "0", *tests], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout

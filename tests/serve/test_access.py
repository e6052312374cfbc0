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

import pytest

from serve.standin import ByteTokenizer, StandIn
from skipwise.errors import ConfigError
from skipwise.serve.app import create_app
from skipwise.serve.backends import Embedded
from skipwise.serve.keys import Keyring, Role, create_key, revoke_key, set_role
from skipwise.serve.listen import Address, Server
from skipwise.serve.scheduler import Turns

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")


def client_of(running: Any, key: str, **arguments: Any) -> Any:
    return openai.OpenAI(base_url=running.url + "/v1", api_key=key, max_retries=0, **arguments)


def test_a_role_bounds_context_models_and_the_rate(serve: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    set_role(path, "small", Role(max_context=40, models=["stand-in"], requests_per_minute=5, tokens_per_minute=100))
    small, full = create_key(path, "small", role="small"), create_key(path, "full")
    running = serve(keys=path)
    client = client_of(running, small)
    assert [(one.id, one.max_model_len) for one in client.models.list()] == [("stand-in", 40)]
    assert len(client_of(running, full).models.list().data) == 3
    assert client.completions.create(model="stand-in", prompt="x" * 30, max_tokens=10).usage.total_tokens == 40
    with pytest.raises(openai.PermissionDeniedError, match="41 in all; this key may ask for 40"):
        client.completions.create(model="stand-in", prompt="x" * 31, max_tokens=10)
    with pytest.raises(openai.NotFoundError, match="this key may use: stand-in") as refused:
        client.completions.create(model="stand-in:long", prompt="x")
    assert "stand-in:short" not in str(refused.value)
    # 40 of 100 tokens are used; 40 more fit, and then none.
    client.completions.create(model="stand-in", prompt="x" * 30, max_tokens=10)
    with pytest.raises(openai.RateLimitError, match="100 tokens a minute") as error:
        client.completions.create(model="stand-in", prompt="x" * 30, max_tokens=10)
    assert 1 <= int(error.value.response.headers["retry-after"]) <= 13
    client.completions.create(model="stand-in", prompt="x", max_tokens=1)
    with pytest.raises(openai.RateLimitError, match="5 requests a minute"):
        client.completions.create(model="stand-in", prompt="x", max_tokens=1)
    assert client_of(running, full).completions.create(model="stand-in", prompt="x", max_tokens=1)


def test_what_was_not_generated_is_not_counted(serve: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    set_role(path, "r", Role(tokens_per_minute=100))
    running = serve(StandIn(token_seconds=0.01), keys=path)
    client = client_of(running, create_key(path, "a", role="r"))
    with pytest.raises(openai.PermissionDeniedError, match="comes to 101 tokens"):
        client.completions.create(model="stand-in", prompt="x", max_tokens=100)
    with client.completions.create(model="stand-in", prompt="x", max_tokens=99, stream=True) as stream:
        next(iter(stream))

    def fits() -> bool:
        try:
            client.completions.create(model="stand-in", prompt="x", max_tokens=40)
        except openai.RateLimitError:
            return False
        return True

    # Without what comes back, 40 tokens would take 24 seconds to flow in.
    running.wait_until(fits, seconds=10)


def test_who_is_refused_for_a_full_queue_is_not_billed(serve: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    set_role(path, "r", Role(tokens_per_minute=100))
    running = serve(StandIn(token_seconds=0.02), keys=path, turns=Turns(short_slots=1, waiting=1))
    full = client_of(running, create_key(path, "full"))
    client = client_of(running, create_key(path, "a", role="r"))
    client.models.list()  # the first look at a key takes its time
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(full.completions.create, model="stand-in", prompt="x", max_tokens=new) for new in (60, 1)]
        running.wait_until(lambda: running.backend.load == (1, 1))
        with pytest.raises(openai.InternalServerError, match="1 requests are waiting and 1 may"):
            client.completions.create(model="stand-in", prompt="x" * 60, max_tokens=1)
        for one in asked:
            one.result()
    # Of 100 tokens 61 would be gone, and 40 of them not back before 24 seconds.
    assert client.completions.create(model="stand-in", prompt="x" * 60, max_tokens=20).usage.prompt_tokens == 60


def test_a_revoked_key_ends_at_once(serve: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = create_key(path, "a")
    client = client_of(serve(keys=path), key)
    client.models.list()
    revoke_key(path, key)
    with pytest.raises(openai.AuthenticationError, match="revoked"):
        client.models.list()


def test_a_key_file_that_is_spoilt_lets_nobody_in_and_is_complained_of_once(
    serve: Callable[..., Any], tmp_path: Path, capfd: Any
) -> None:
    path = tmp_path / "keys.json"
    key = create_key(path, "a")
    client = client_of(serve(keys=path), key)
    path.write_text("{")
    for _ in range(3):
        with pytest.raises(openai.InternalServerError, match="keys cannot be checked now") as error:
            client.models.list()
        assert error.value.response.headers["retry-after"] == "30"
    assert capfd.readouterr().err.count("is damaged") == 1


def test_elsewhere_than_on_this_machine_nobody_listens_without_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="which other machines can reach, and there is no valid API key"):
            Address(host=host).check(None)
    key = create_key(path, "a", seconds=0)
    with pytest.raises(ConfigError, match="no valid API key"):
        Address(host="0.0.0.0").check(Keyring(path))
    create_key(path, "b")
    Address(host="0.0.0.0").check(Keyring(path))
    revoke_key(path, key)
    for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1"):
        Address(host=host).check(None)


def test_a_taken_port_is_said_in_one_line(serve: Callable[..., Any]) -> None:
    running = serve()
    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1 port"):
        Address(port=running.port).bind().listen()


def test_two_that_start_at_once_on_a_port_are_told_so_and_leave_nothing(capfd: Any) -> None:
    first = Address(port=0)
    bound = first.bind()
    # Neither listens yet, so the system lets both have the port.
    second = Address(port=bound.getsockname()[1])
    other = second.bind()
    bound.listen()
    backend = Embedded(StandIn(), ByteTokenizer(), Turns())  # type: ignore[arg-type]
    app = create_app(backend)
    with bound, other, pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1 port \d+ \(.*in use"):
        Server(app, second, backend).run(sockets=[other])
    assert not asyncio.run(backend.is_healthy())
    assert "Traceback" not in capfd.readouterr().err


def test_a_host_that_is_none_is_said_in_one_line() -> None:
    for host in ("a" * 70 + ".example", "no-such-host.invalid"):
        with pytest.raises(ConfigError, match="cannot listen on"):
            Address(host=host).bind()


def made_by_openssl(folder: Path, *flags: str) -> tuple[Path, Path]:
    """A certificate and its key."""
    certificate, private_key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    made = subprocess.run(
        [*command.split(), *flags, "-keyout", str(private_key), "-out", str(certificate)], capture_output=True
    )
    assert made.returncode == 0, made.stderr
    return certificate, private_key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to make a certificate")
def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    certificate, private_key = made_by_openssl(tmp_path, "-passout", "pass:abcdefgh")
    with pytest.raises(ConfigError, match="is encrypted; give one without a passphrase"):
        Address(certificate=certificate, private_key=private_key).check(None)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to make a certificate")
def test_tls(serve: Callable[..., Any], tmp_path: Path) -> None:
    certificate, private_key = made_by_openssl(tmp_path, "-nodes")
    running = serve(certificate=certificate, private_key=private_key)
    assert running.url.startswith("https://")
    context = ssl.create_default_context(cafile=str(certificate))
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
    with pytest.raises(ConfigError, match="give both or neither"):
        Address(certificate=certificate).check(None)
    with pytest.raises(ConfigError, match="give a certificate and its own key"):
        Address(certificate=certificate, private_key=certificate).check(None)


def test_the_audit_log_says_who_and_how_much_and_no_word_of_text(
    serve: Callable[..., Any], tmp_path: Path, capfd: Any
) -> None:
    path = tmp_path / "keys.json"
    key = create_key(path, "ada")
    running = serve(keys=path)
    client = client_of(running, key)
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
        client_of(running, "skipwise-" + words[1]).models.list()
    running.wait_until(lambda: len((tmp_path / "audit.jsonl").read_text().splitlines()) == 7)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    number = key.split("-")[1]
    assert [(line["key"], line["name"], line["status"]) for line in lines] == [
        (number, "ada", 200),
        (number, "ada", 200),
        (number, "ada", 404),
        (number, "ada", 400),
        (number, "ada", 404),
        (number, "ada", lines[5]["status"]),
        ("-", "-", 401),
    ]
    # Who leaves in the midst of a stream is noted as gone, unless all of it was on its way already.
    assert lines[5]["status"] == (200 if lines[5]["completion_tokens"] == 50 else 499)
    assert (lines[0]["prompt_tokens"], lines[0]["completion_tokens"], lines[0]["mode"]) == (9, 9, "short")
    assert (lines[1]["prompt_tokens"], lines[1]["completion_tokens"], lines[1]["mode"]) == (90, 20, "long")
    assert lines[4]["endpoint"] == "other"
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(written) >= 2
    printed = "".join(capfd.readouterr())
    secret = key.rsplit("-", 1)[1]
    for word in [*words, *(word[::-1] for word in words), secret]:
        assert all(word.encode() not in content for content in written), word
        assert word not in printed, word


def test_nobody_can_say_that_they_are_somebody_else(serve: Callable[..., Any], tmp_path: Path) -> None:
    running, log = serve(), tmp_path / "audit.jsonl"
    pretence = {"X-Forwarded-For": "zebrafish", "X-Forwarded-Proto": "https", "Forwarded": "for=zebrafish"}
    client_of(running, "-", default_headers=pretence).models.list()
    running.wait_until(lambda: log.read_text())
    assert json.loads(log.read_text())["client"] == "127.0.0.1"


def test_a_log_that_is_moved_away_is_begun_anew(serve: Callable[..., Any], tmp_path: Path) -> None:
    running, log = serve(), tmp_path / "audit.jsonl"

    def ask() -> None:
        client_of(running, "-").completions.create(model="stand-in", prompt="x", max_tokens=1)
        # A line is written when the answer has gone.
        running.wait_until(lambda: log.exists() and len(log.read_text().splitlines()) == 1)

    ask()
    log.rename(tmp_path / "audit.1")
    ask()
    assert len((tmp_path / "audit.1").read_text().splitlines()) == 1


def test_metrics_count_and_name_no_key(serve: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = create_key(path, "ada")
    running = serve(keys=path)
    client_of(running, key).completions.create(model="stand-in", prompt="x" * 70, max_tokens=3)
    request = urllib.request.Request(running.url + "/metrics", headers={"Authorization": f"Bearer {key}"})
    counted = 'skipwise_requests_total{endpoint="/v1/completions",mode="long",status="200"} 1.0'
    # Counted when the answer has gone.
    running.wait_until(lambda: counted in urllib.request.urlopen(request, timeout=10).read().decode())
    text = urllib.request.urlopen(request, timeout=10).read().decode()
    assert 'skipwise_tokens_total{kind="prompt",mode="long"} 70.0' in text
    assert 'skipwise_tokens_total{kind="completion",mode="long"} 3.0' in text
    assert "ada" not in text
    assert key.split("-")[1] not in text


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root")
def test_it_works_with_the_network_cut() -> None:
    code = (
        "import sys, json, threading, urllib.request, tempfile, pathlib\n"
        "sys.path.insert(0, 'tests')\n"
        "from serve.standin import StandIn, ByteTokenizer\n"
        "from skipwise.serve.app import create_app\n"
        "from skipwise.serve.backends import Embedded\n"
        "from skipwise.serve.listen import Address, Server\n"
        "from skipwise.serve.scheduler import Turns\n"
        "backend = Embedded(StandIn(), ByteTokenizer(), Turns())\n"
        "app = create_app(backend)\n"
        "address = Address(port=0); bound = address.bind()\n"
        "ready = threading.Event(); server = Server(app, address, backend, ready.set)\n"
        "thread = threading.Thread(target=server.run, kwargs={'sockets': [bound]}); thread.start(); ready.wait(30)\n"
        "body = json.dumps({'model': 'stand-in', 'prompt': 'abc', 'max_tokens': 3}).encode()\n"
        "request = urllib.request.Request(address.url(bound) + '/v1/completions', body,\n"
        "    {'Content-Type': 'application/json'})\n"
        "print(json.load(urllib.request.urlopen(request))['choices'][0]['text'])\n"
        "server.handle_exit(15, None); thread.join()\n"
    )
    cut = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$0" -c "$1"', sys.executable]
    if subprocess.run([*cut, "pass"], capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    done = subprocess.run([*cut, code], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "cba", done.stderr

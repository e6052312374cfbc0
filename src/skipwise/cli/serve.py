"""`skipwise serve`: one model with two modes behind OpenAI's API."""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from skipwise.cli import options
from skipwise.cli.keys import KeysOption, default_key_file
from skipwise.cli.options import option, print_json
from skipwise.cli.serve_engines import SLOTS, Asked, check_flags, embedded, llama_cpp, vllm
from skipwise.errors import ConfigError
from skipwise.export.earlier import file_of_export
from skipwise.model.place import find_place

if TYPE_CHECKING:
    from socket import socket

    from skipwise.serve.audit import AuditLog
    from skipwise.serve.backends import Backend
    from skipwise.serve.keys import Keyring
    from skipwise.serve.listen import Address

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "aiohttp")

ACCESS, SCHEDULING, ENGINE = "Access", "Scheduling", "Engine"

AuditOption = Annotated[
    Path | None,
    option("--audit FILE", "Append a line per request: who, when, tokens, status. No text.", group=ACCESS),
]
EngineOption = Annotated[
    Literal["embedded", "vllm", "llama-cpp"],
    option("--engine NAME", "embedded (in this process), vllm, or llama-cpp (for CPUs; GGUF).", group=ENGINE),
]
CacheOption = Annotated[
    Literal["dynamic", "static", "quantized-8", "quantized-4", "offloaded"],
    option("--cache KIND", options.KV_CACHE, group=ENGINE),
]
VllmArgsOption = Annotated[str, option("--vllm-args TEXT", "More arguments for vllm serve.", group=ENGINE)]
LlamaCppArgsOption = Annotated[str, option("--llama-cpp-args TEXT", "More arguments for llama-server.", group=ENGINE)]
VllmMemoryOption = Annotated[
    str,
    option(
        "--vllm-memory BASE,LONG",
        "Share of each GPU's memory for the base and the extended model.",
        group=ENGINE,
    ),
]
TurnsOption = Annotated[
    Literal["fair", "arrival"],
    option(
        "--turns ORDER",
        "fair (short requests overtake long ones) or arrival (first come, first served, each alone).",
        group=SCHEDULING,
    ),
]
ShortOption = Annotated[
    int | None,
    option("--short-slots N", "Concurrent requests in short mode.", shown="16; llama-cpp: 4", min=1, group=SCHEDULING),
]
LongOption = Annotated[
    int | None,
    option("--long-slots N", "Concurrent requests in long mode.", shown="2; llama-cpp: 1", min=1, group=SCHEDULING),
]
WaitingOption = Annotated[
    int, option("--waiting N", "Maximum length of the queue. Further requests are refused.", min=1, group=SCHEDULING)
]
MeasureOption = Annotated[
    bool,
    option("--measure/--no-measure", "Measure what requests cost here, for about 5 s at start.", group=SCHEDULING),
]
GraceOption = Annotated[
    float,
    option("--grace SECONDS", "Time that requests have to finish at shutdown.", min=0, max=86_400, group=SCHEDULING),
]
TemplateOption = Annotated[
    Path | None,
    option("--chat-template FILE", "Jinja chat template to use instead of the tokenizer's.", group=options.LOADING),
]


def serve(
    model: options.Model,
    host: Annotated[
        str, option("--host HOST", "Address to listen on. One that other machines can reach needs API keys.")
    ] = "127.0.0.1",
    port: Annotated[int, option("--port N", "Port to listen on. 0 takes a free one.", min=0, max=65535)] = 8000,
    name: Annotated[
        str | None, option("--name NAME", "Model name that clients use.", shown="the folder's name")
    ] = None,
    max_new_tokens: Annotated[
        int, option("--max-new-tokens TOKENS", "New tokens of a request that sets no maximum.")
    ] = 256,
    keys: KeysOption = None,
    audit: AuditOption = None,
    tls_cert: Annotated[Path | None, option("--tls-cert FILE", "TLS certificate chain (PEM).", group=ACCESS)] = None,
    tls_key: Annotated[Path | None, option("--tls-key FILE", "TLS private key (PEM).", group=ACCESS)] = None,
    turns: TurnsOption = "fair",
    short_slots: ShortOption = None,
    long_slots: LongOption = None,
    waiting: WaitingOption = 128,
    grace: GraceOption = 60.0,
    measure: MeasureOption = True,
    engine: EngineOption = "embedded",
    cache: CacheOption = "dynamic",
    vllm_args: VllmArgsOption = "",
    vllm_memory: VllmMemoryOption = "0.3,0.6",
    llama_cpp_args: LlamaCppArgsOption = "",
    base: options.Base = None,
    chat_template: TemplateOption = None,
    dtype: options.Dtype = None,
    attention: options.Attention = None,
    weights: options.Weights = "full",
    trust_remote_code: options.Trust = False,
    as_json: options.Json = False,
) -> None:
    """Serve a model through an OpenAI-compatible API.

    Short requests go to the unchanged base model, long ones to the extended model.

    Example: skipwise serve embedded

    Example: skipwise serve ./my-model-32k --keys keys.json --audit audit.jsonl

    Example: skipwise serve ./my-model-32k --engine llama-cpp --dtype q8_0
    """
    if engine == "llama-cpp":
        model, base = file_of_export(model), base and file_of_export(base)
    _check_model_and_packages(model, base)
    check_flags(
        engine,
        {
            "--cache": ("embedded", cache if cache != "dynamic" else ""),
            "--weights": ("embedded", weights if weights != "full" else ""),
            "--vllm-args": ("vllm", vllm_args),
            "--llama-cpp-args": ("llama-cpp", llama_cpp_args),
        },
    )
    from skipwise.cli.serve_requests import requests_told
    from skipwise.serve.audit import AuditLog
    from skipwise.serve.listen import Address
    from skipwise.serve.scheduler import Turns

    keyring = _keyring(keys)
    address = Address(host=host, port=port, certificate=tls_cert, private_key=tls_key, grace_seconds=grace)
    address.check(keyring)
    # First, since a model takes long to load.
    log, template, bound = AuditLog(audit), _template(chat_template), address.bind()
    short, long = SLOTS[engine]
    order = Turns(
        fair=turns == "fair",
        short_slots=short_slots or short,
        long_slots=long_slots or long,
        waiting=waiting,
        waiting_each=max(1, waiting // 2) if keyring else waiting,
        several_owners=keyring is not None,
    )
    name = name or _name_of(model)
    how: dict[str, Any] = {"dtype": dtype, "attention": attention, "trust_remote_code": trust_remote_code}
    asked = Asked(model=model, base=base, name=name, turns=order, template=template, **how)
    if engine == "embedded":
        backend = embedded(asked, cache, weights)
    elif engine == "vllm":
        backend = vllm(asked, vllm_args, vllm_memory)
    else:
        backend = llama_cpp(asked, llama_cpp_args)
    told = requests_told(backend, keyring, measure=measure)
    if not as_json:
        print(*told.lines(), sep="\n", file=sys.stderr, flush=True)
    about = {"name": name, "told": told.to_json() if as_json else None}
    _run(backend, address, bound, keyring, log, max_new_tokens=max_new_tokens, **about)


def _check_model_and_packages(model: str, base: str | None) -> None:
    for place in (model, base):
        if place is not None:
            find_place(place)
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"serving needs the package {package}; install it with: pip install 'skipwise[serve]'",
                page="missing-extra",
            )


def _keyring(file: Path | None) -> "Keyring | None":
    """The keys of a file; of the default file if it exists."""
    from skipwise.serve.keys import Keyring

    if file is not None and not file.exists():
        raise ConfigError(
            f"--keys is {str(file)!r}, and there is no such file; 'skipwise keys create NAME' makes it",
            page="not-found",
        )
    file = file or default_key_file()
    return Keyring(file) if file.exists() else None


def _run(
    backend: "Backend",
    address: "Address",
    bound: "socket",
    keyring: "Keyring | None",
    log: "AuditLog",
    *,
    name: str,
    max_new_tokens: int,
    told: dict[str, Any] | None,
) -> None:
    """Serves until it is told to end; says where as soon as it does, as JSON if there is anything to tell in it."""
    from skipwise.serve.app import create_app
    from skipwise.serve.gate import Bounds
    from skipwise.serve.listen import Server

    # A token is seldom more than 32 bytes of JSON.
    bounds = Bounds(body_bytes=max(1 << 20, 32 * backend.target))
    app = create_app(backend, keyring=keyring, audit=log, bounds=bounds, default_max_tokens=max_new_tokens)

    def ready() -> None:
        if told is not None:
            place = {"url": address.url(bound), "models": list(backend.models), "keys": len(keyring or ())}
            print_json({**place, **told})
            sys.stdout.flush()
            return
        guarded = f"{len(keyring)} API keys" if keyring is not None else "no keys: this machine alone"
        print(f"skipwise: {name} at {address.url(bound)} ({guarded}); Ctrl-C ends it", file=sys.stderr, flush=True)
        if keyring is not None and address.certificate is None and not address.is_loopback:
            print("skipwise: without TLS, keys and texts can be read on their way; see --tls-cert", file=sys.stderr)

    Server(app, address, backend, ready).run(sockets=[bound])


def _name_of(model: str) -> str:
    """The last part of a path or of a hub name; a folder given as `.` or `..` is looked up."""
    return (Path(model) if model.strip("./") else Path(model).resolve()).name


def _template(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--chat-template {str(path)!r} cannot be read ({error}); give a text file", page="not-found"
        ) from error

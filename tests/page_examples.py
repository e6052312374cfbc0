"""What the terminal prints of each verdict and refusal: the examples on the pages under docs/messages/."""

import contextlib
import functools
import importlib
import importlib.util
import io
import json
import math
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from doctor_models import FAULTS, WINDOW, build, change_decoder_inputs, checkpoint_probes, config_of, examine, extended
from safetensors.torch import load_file, save_file
from slices import LAYERED
from tiny_models import byte_tokenizer, save_tiny, tiny_config
from transformers.models.llama import modeling_llama

from skipwise import cli
from skipwise.doctor import Verdict
from skipwise.doctor.checkup import check_up
from skipwise.model import load_model, load_slice, read_config, save_model, with_rope
from skipwise.model.extend import extended_config
from skipwise.rope import INTERPOLATIONS, Linear, YaRN
from skipwise.window import Window

slices = importlib.import_module("skipwise.doctor.slice")
TARGET = Window(train=2048, original=4096, target=32768)


# Verdicts about a model


def isolated() -> Any:
    return change_decoder_inputs(extended(), lambda _: {"attention_mask": None})


def scaled_too_late() -> Any:
    model = build(config_of())
    model.config = model.model.config = extended_config(model.config, YaRN(), WINDOW)
    return model


def with_other_logits() -> Any:
    model = extended()

    def double(_: Any, __: Any, output: Any) -> Any:
        output.logits = 2 * output.logits
        return output

    model.register_forward_hook(double)
    return model


def with_far_window() -> tuple[Any, Window]:
    window = Window(train=64, original=2**17, target=2**20)
    return with_rope(build(config_of(max_position_embeddings=window.original)), Linear(), window), window


def of_models() -> Iterator[Verdict]:
    for name in ("reach", "layers"):
        yield examine(isolated(), check_reload=False)[name]
    yield examine(extended(), check_reload=False)["mask"]
    for name, fault in {
        "causal": "the future is seen",
        "shift": "absolute positions",
        "positions": "positions ignored",
        "rows": "rows share positions",
        "local": "local layers only",
    }.items():
        yield examine(FAULTS[fault][0](), check_reload=False)[name]
    yield examine(scaled_too_late(), check_reload=False)["tables"]
    model, window = with_far_window()
    yield examine(model, Linear(), window, check_reload=False)["precision"]
    yield examine(with_other_logits(), check_reload=False)["loss"]
    yield examine(extended("gemma3_text"), check_dilution=True, check_reload=False)["dilution"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_probes, "save_model", save_without_theta)
        yield examine(extended(), tokenizer=byte_tokenizer(special=False))["reload"]


def of_slices() -> Iterator[Verdict]:
    case = LAYERED["sliding"]
    sliced = load_slice(save_tiny(Path("deep-model"), case.config), interpolation=YaRN(), window=WINDOW)
    yield slices.extent(sliced)
    folder = save_tiny(Path("even-model"), LAYERED["alike"].config)
    sliced = load_slice(folder, interpolation=YaRN(), window=WINDOW)
    yield slices.whole(sliced._replace(config=read_config(folder)), WINDOW, YaRN())


def save_without_theta(model: Any, tokenizer: Any, folder: str, **how: Any) -> None:
    save_model(model, tokenizer, folder, **how)
    file = Path(folder) / "config.json"
    config = json.loads(file.read_text())
    for holder in (config, config["rope_parameters"], config["rope_scaling"]):
        del holder["rope_theta"]
    file.write_text(json.dumps(config))


# Verdicts about files


def both(**entries: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """Changes the rope entries of both formats."""

    def change(config: dict[str, Any], _: Any) -> None:
        config["rope_parameters"] |= entries
        config["rope_scaling"] |= entries

    return change


def lost_base(config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    both(original_max_position_embeddings=8192)(config, tokenizer)
    lengths = {"max_position_embeddings": 65536, "original_max_position_embeddings": 8192}
    config |= {"vocab_size": 128256, "original_rope_theta": 10_000.0, **lengths}


def overwritten(config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    both(original_max_position_embeddings=32768)(config, tokenizer)
    config["original_max_position_embeddings"] = 32768


FAULTY_FILES: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "lengths": lambda config, _: config.update(max_position_embeddings=32768.0),
    "eras": lambda config, _: config["rope_scaling"].update(factor=4.0),
    "base": lost_base,
    "original": overwritten,
    "doubled": both(factor=64.0),
    "maximum": lambda config, tokenizer: (
        config.update(max_position_embeddings=16384),
        tokenizer.update(model_max_length=16384),
    ),
    "factor": both(attention_factor=0.1 * math.log(4) + 1),
    "tokenizer": lambda _, tokenizer: tokenizer.update(model_max_length=4096),
    "unapplied": lambda config, _: config.update(
        dual_chunk_attention_config={"original_max_position_embeddings": 262144}
    ),
    "readable": both(rope_type="yarnn", type="yarnn"),
}


def of_files(sound: Path, place: Path) -> Iterator[Verdict]:
    for name, fault in FAULTY_FILES.items():
        config, tokenizer = (
            json.loads((sound / f"{file}.json").read_text()) for file in ("config", "tokenizer_config")
        )
        fault(config, tokenizer)
        folder = place / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        yield next(verdict for verdict in check_up(folder).verdicts if verdict.name == name)


# Verdicts about documents

WORDS = [
    "the",
    "river",
    "is",
    "wide",
    "and",
    "low",
    "hills",
    "roll",
    "on",
    "there",
    "home",
    "again",
    "while",
    "rain",
    "falls",
    "over",
    "fields",
    "and",
    "towns",
]


class Texts:
    """Random texts of sentences that occur again and again, but whose order is new."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._sentences = [" ".join(self._rng.choice(WORDS, size=12)).capitalize() + "." for _ in range(3000)]

    def __call__(self, sentences: int) -> str:
        return " ".join(self._rng.choice(self._sentences, size=sentences))

    def noise(self, letters: int) -> str:
        return "".join(self._rng.choice([chr(code) for code in range(33, 127)], size=letters))


def write_documents(text: Texts) -> None:
    for name, numbers, sentences in (("docs", range(60), 250), ("docs", range(60, 70), 2000), ("short", range(20), 2)):
        Path(name).mkdir(exist_ok=True)
        for number in numbers:
            (Path(name) / f"{number:02}.txt").write_text(text(sentences))
    shutil.copytree("docs", "mixed")
    mixed = Path("mixed")
    shutil.copy(mixed / "61.txt", mixed / "copy.txt")
    for number in range(60, 70):
        (mixed / f"newer-{number}.txt").write_text((mixed / f"{number}.txt").read_text() + text(2))
    (mixed / "menu.txt").write_text("home | products | contact\n" * 2000)
    (mixed / "keys.txt").write_text(text.noise(40_000))
    (mixed / "empty.txt").write_text(" \n")
    (mixed / "scan.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (mixed / "letter.txt").write_bytes(("Die Größe der Tür, für Mühe und Öl. " * 80).encode("cp1252"))
    shutil.copytree("docs", "bad-docs")
    Path("bad-docs/notes.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    Path("bad-docs/plan.docx").write_bytes(b"PK\x03\x04")
    shutil.copytree("docs", "papers")
    for number in range(3):
        Path(f"papers/{number}.pdf").write_bytes(b"%PDF-1.4\n")
    turns = [[text(20), text(20)] for _ in range(40)]
    records = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]}
        for asked, told in turns
    ]
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, records)))


def of_documents() -> Iterator[tuple[str, str]]:
    mixed = corpus_verdicts("./my-model", "--data", "mixed/", "--target", "32k")
    for name in ("kinds", "encoding", "empty", "language", "copies", "alike", "gzip", "held-out", "leakage"):
        yield name, mixed[name]
    yield "reading", corpus_verdicts("--data", "bad-docs/")["reading"]
    yield "chats", corpus_verdicts("--data", "chats.jsonl")["chats"]
    yield "target", corpus_verdicts("--data", "docs/", "--target", "256k")["target"]
    yield "training", corpus_verdicts("--data", "short/")["training"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skipwise.data.formats.is_installed", lambda module: module != "pypdfium2")
        yield "package", corpus_verdicts("--data", "papers/")["package"]


def corpus_verdicts(*arguments: str) -> dict[str, str]:
    """By name, the first verdict that did not pass, with its examples; else the one that did."""
    out, _ = run("doctor", *arguments)
    found: dict[str, str] = {}
    name = ""
    for line in out.splitlines():
        if line[:6] in ("pass  ", "fail  ", "note  "):
            name = line.split()[1]
            name = "" if name in found and not found[name].startswith("pass") else name
            if name:
                found[name] = line
        elif name and line.startswith(" " * 17):
            found[name] += f"\n{line}"
        else:
            name = ""
    return found


# Refusals


def run(*arguments: str) -> tuple[str, str]:
    """What a command prints on stdout and on stderr."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        cli.main([*arguments])
    return out.getvalue(), err.getvalue()


def with_config(name: str, like: str = "my-model", **changes: Any) -> None:
    shutil.copytree(like, name)
    file = Path(name) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def write_models() -> None:
    config = tiny_config("llama", max_position_embeddings=4096)
    save_tiny(Path("my-model"), config)
    save_tiny(Path("other-model"), tiny_config("llama", max_position_embeddings=2048))
    for kind in ("yarn", "dynamic"):
        loaded = load_model("my-model", interpolation=INTERPOLATIONS[kind](), window=TARGET)
        save_model(loaded.model, loaded.tokenizer, f"my-{kind}-32k")
    transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2).save_pretrained("gpt2")
    with_config("my-model-gptq", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    for name in ("broken", "pickled", "no-tokenizer", "spoilt"):
        shutil.copytree("my-model", name)
    weights = Path("broken/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:2000])
    Path("pickled/model.safetensors").rename("pickled/pytorch_model.bin")
    for file in Path("no-tokenizer").glob("*token*"):
        file.unlink()
    tensors = load_file("spoilt/model.safetensors")
    save_file({name: one * math.nan for name, one in tensors.items()}, "spoilt/model.safetensors", {"format": "pt"})
    Path("my-model-32k").mkdir()
    Path("my-model-32k/notes.txt").touch()
    Path("results.jsonl").write_text('{"task": "perplexity"}\n')


EXTEND = "extend ./my-model --target 32k --data docs/ --set training.use_cpu=true"
SHORT = f"{EXTEND} --recipe paper --set window=256 --set training.max_steps=60 --set validation.lengths=[2k] "
SHORT += "--set training.gradient_accumulation_steps=1 --set training.per_device_train_batch_size=1 "
COMMANDS = {
    "invalid-setting": f"{EXTEND} --set training.lerning_rate=1e-5",
    "unreadable-documents": EXTEND.replace("docs/", "bad-docs/"),
    "invalid-positions": f"{EXTEND} --set window=64k",
    "unsupported-model": "doctor ./gpt2 --target 32k",
    "damaged-checkpoint": "doctor ./broken --target 32k",
    "not-found": "doctor ./my-modle --target 32k",
    "output-taken": f"{EXTEND} --output my-model-32k",
    "cannot-write": "plan ./my-model --target 32k --out /proc/plan.html",
    "target-not-longer": EXTEND.replace("32k", "4k"),
    "no-long-documents": EXTEND.replace("docs/", "short/"),
    "unusable-conversations": EXTEND.replace("docs/", "chats.jsonl"),
    "quantized-checkpoint": EXTEND.replace("my-model", "my-model-gptq"),
    "untrusted-code": "doctor ./pickled --target 32k",
    "unsuitable-tokenizer": EXTEND.replace("my-model", "no-tokenizer"),
    "already-scaled": "doctor ./my-yarn-32k --target 64k --set interpolation=ntk",
    "engine-cannot-compute": "export ./my-dynamic-32k --to gguf --out my.gguf",
    "unclear-config": "doctor ./my-model --target 32k --set original=8k",
    "missing-extra": "serve ./my-yarn-32k --base ./my-model --engine vllm",
    "parallel-run": f"{EXTEND} --set parallel.shard=true",
    "length-does-not-fit": "eval ./my-model --task perplexity --length 16k --documents docs/",
    "server-start": "serve ./my-yarn-32k --host 0.0.0.0",
    "wrong-base": "generate ./my-yarn-32k --base ./other-model --prompt Hello",
    "unequal-arms": "compare ./my-model --target 32k --data docs/ "
    "--set 'arms=[base, {name: longer, like: pose, training: {max_steps: 200}}]'",
    "unusable-results": "report results.jsonl --out report.html",
    "not-finite": "eval ./spoilt --task perplexity --length 2k --documents docs/",
    "changed-files": "eval ./my-model --suite suite --length 2k",
    "weights-differ": "export ./my-yarn-32k --to hf --out exported",
    "preflight-failed": f"{SHORT} --output run-1",
    "out-of-memory": f"{SHORT} --output run-2",
    "loss-exploded": f"{SHORT} --output run-3",
    "run-changed": f"{SHORT} --output run-3 --resume --set data.join=true",
}


def save_other_weights(*given: Any, **how: Any) -> None:
    save_model(*given, **how)
    (file,) = Path(given[2]).glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: one * 1.01 for name, one in tensors.items()}, file, {"format": "pt"})


def out_of_memory(*_: Any, **__: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@contextlib.contextmanager
def gone_wrong(name: str) -> Iterator[None]:
    """Within, something is as wrong as the refusal says."""
    trainer = importlib.import_module("skipwise.train.trainer").SkipwiseTrainer
    forward, loss, losses = modeling_llama.LlamaModel.forward, trainer.compute_loss, []

    @functools.wraps(forward)
    def isolating(*given: Any, **inputs: Any) -> Any:
        return forward(*given, **inputs | {"attention_mask": None})

    def exploding(*given: Any, **how: Any) -> Any:
        losses.append(loss(*given, **how))
        return losses[-1] * (math.nan if len(losses) > 4 else 1)

    patches: Mapping[str, tuple[Any, str, Any]] = {
        "preflight-failed": (modeling_llama.LlamaModel, "forward", isolating),
        "out-of-memory": (trainer, "training_step", out_of_memory),
        "loss-exploded": (trainer, "compute_loss", exploding),
        "weights-differ": (importlib.import_module("skipwise.export.exporting"), "save_model", save_other_weights),
    }
    with pytest.MonkeyPatch.context() as patch:
        if name in patches:
            patch.setattr(*patches[name])
        yield


def refusal(name: str) -> str:
    """The last lines on stderr: the message, and where to read on."""
    with gone_wrong(name):
        _, err = run(*shlex.split(COMMANDS[name]))
    # A progress bar that was cut off may stand before the message.
    return err[err.rindex("skipwise: ") :].rstrip("\n")

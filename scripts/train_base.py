"""Trains the small base model that ships with skipwise: a Llama of 2.1 million parameters with a window of 256 tokens.

    python scripts/train_base.py --out base1 --minutes 27 --compile --bf16
    python scripts/train_base.py --out base2 --minutes 17 --start base1 --rate-scale 0.5 --seed 1 --compile --bf16

It also trains a GPT-J or a Qwen of the same width, depth and vocabulary on the same batches, to measure the method on
families other than the one that ships:

    python scripts/train_base.py --family gptj --out base-gptj --minutes 12

Every batch has three kinds of window, each with its own mean loss:

- text: the standard library's sources (held-out files excepted), every next token;
- repeats: random tokens that occur twice or more, scored from the second time on, which forms copying heads early;
- passkeys: the prompts of the evaluation in filler or in real text, scored on the five digits only.

The result is a plain checkpoint folder; its tokenizer is byte-level BPE with single digits.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from muon import Muon
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from skipwise.data.documents import is_held_out, stdlib_documents
from skipwise.evals.languages import ENGLISH
from skipwise.evals.tasks.passkey_prompt import PasskeyBuilder

WINDOW = 256
VOCABULARY = 1024
IGNORED = -100

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": WINDOW,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_GATED: dict[str, Any] = {
    **_COMMON,
    "head_dim": 32,
    "intermediate_size": 576,
    "num_key_value_heads": 6,
    "tie_word_embeddings": True,
}

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GATED)),
    # Half of a head's dimensions are rotary: a quarter, as in GPT-J-6B, would give such a small head four frequencies.
    "gptj": lambda: GPTJForCausalLM(GPTJConfig(**_COMMON, rotary_dim=16)),
    "qwen": lambda: Qwen3ForCausalLM(Qwen3Config(**_GATED)),
}
"""By family: builds a model of 2.1 or 2.2 million parameters with random weights."""


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Trains byte-level BPE with single digits, so that a key is five tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=WINDOW,
    )


class Batches:
    """Windows of the three kinds, drawn from one seeded generator.

    Args:
        tokenizer: the base model's.
        tokens: token ids of all training text, 1-D, documents joined by the end token.
        rng: source of all randomness.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, tokens: np.ndarray, rng: np.random.Generator) -> None:
        self.tokens, self.rng = tokens, rng
        self.in_filler = PasskeyBuilder(tokenizer)
        self.tokenizer = tokenizer

    def text(self) -> tuple[np.ndarray, np.ndarray]:
        """A window of source text, every token scored."""
        start = int(self.rng.integers(0, len(self.tokens) - WINDOW))
        ids = self.tokens[start : start + WINDOW].astype(np.int64)
        return ids, ids

    def repeats(self) -> tuple[np.ndarray, np.ndarray]:
        """A random phrase, repeated through the window or once after other tokens."""
        length = int(self.rng.integers(8, WINDOW // 2))
        phrase = self.rng.integers(1, VOCABULARY, size=length)
        if self.rng.random() < 0.5:
            ids = np.resize(phrase, WINDOW)
            labels = ids.copy()
            labels[: length + 1] = IGNORED
            return ids, labels
        ids = self.rng.integers(1, VOCABULARY, size=WINDOW)
        copy = int(self.rng.integers(length, WINDOW - length + 1))
        ids[copy - length : copy] = phrase if self.rng.random() < 0.3 else ids[copy - length : copy]
        first = int(self.rng.integers(0, copy - length + 1))
        ids[first : first + length] = phrase
        ids[copy : copy + length] = phrase
        labels = np.full(WINDOW, IGNORED)
        labels[copy + 2 : copy + length] = ids[copy + 2 : copy + length]
        return ids, labels

    def passkey(self) -> tuple[np.ndarray, np.ndarray]:
        """A passkey prompt in filler or source text, of half a window to a whole one."""
        builder = self.in_filler
        if self.rng.random() < 0.5:
            start = int(self.rng.integers(0, len(self.tokens) - WINDOW))
            builder = PasskeyBuilder(self.tokenizer, self.tokens[start : start + WINDOW].tolist())
        length = int(self.rng.integers(WINDOW // 2, WINDOW + 1))
        prompt = builder.build(length, float(self.rng.random()), self.rng)
        ids = np.zeros(WINDOW, dtype=np.int64)
        labels = np.full(WINDOW, IGNORED)
        ids[:length] = prompt.prompt_ids + prompt.answer_ids
        labels[len(prompt.prompt_ids) : length] = prompt.answer_ids
        return ids, labels

    def draw(self, text: int, repeats: int, passkeys: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and labels, both (text + repeats + passkeys, WINDOW), in that order of kinds."""
        rows = [self.text() for _ in range(text)]
        rows += [self.repeats() for _ in range(repeats)]
        rows += [self.passkey() for _ in range(passkeys)]
        ids, labels = (np.stack(column) for column in zip(*rows, strict=True))
        return torch.from_numpy(ids), torch.from_numpy(labels)


def learning_rate_factor(done: float) -> float:
    """Linear warm-up over the first 2% of the time, constant, then a linear decay over the last 40%."""
    return min(1.0, done / 0.02 + 0.01, max(0.02, (1.0 - done) / 0.4))


def losses_by_kind(logits: torch.Tensor, labels: torch.Tensor, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """Mean next-token loss of each kind of window that is present."""
    parts = []
    for part, target in zip(logits.split(sizes), labels.split(sizes), strict=True):
        if len(part):
            parts.append(
                torch.nn.functional.cross_entropy(
                    part[:, :-1].reshape(-1, part.shape[-1]).float(), target[:, 1:].reshape(-1), ignore_index=IGNORED
                )
            )
    return parts


def optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head, norms and biases."""
    blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    inner = [p for p in blocks.parameters() if p.ndim == 2]
    outer = [p for p in model.parameters() if not any(p is q for q in inner)]
    return [
        Muon(inner, lr=0.02, momentum=0.95, weight_decay=0.02),
        torch.optim.AdamW(outer, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def main() -> None:
    """Trains for a time (or a number of steps) and writes the checkpoint folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=27.0, help="training time; the schedule follows the clock")
    parser.add_argument("--steps", type=int, help="fixed number of steps instead of a time, for reproducible runs")
    parser.add_argument("--batch", type=int, default=32)
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--family", choices=FAMILIES, default="llama", help="family of a new model")
    begin.add_argument("--start", type=Path, help="continue from this checkpoint instead of a new model")
    parser.add_argument("--rate-scale", type=float, default=1.0, help="factor on all learning rates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile the model (needs a C++ compiler)")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 matrix products")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)

    texts = [document.text for document in stdlib_documents() if not is_held_out(document.identity)]
    words = ENGLISH.passkey
    prompts = [words.instruction, words.filler, words.question]
    prompts += [words.needle.format(key=f"{n * 7919 % 100000:05d}") for n in range(200)]
    tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(args.start) if args.start else train_tokenizer(texts + prompts * 20)
    )
    tokens = np.concatenate(
        [np.array([0, *tokenizer.encode(text, add_special_tokens=False)], np.uint16) for text in texts]
    )
    print(f"text: {len(texts)} files, {len(tokens):,} tokens", flush=True)

    model: Any = (
        AutoModelForCausalLM.from_pretrained(args.start, dtype=torch.float32).train()
        if args.start
        else FAMILIES[args.family]()
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    run = torch.compile(model) if args.compile else model
    print(f"model: {model.num_parameters():,} parameters", flush=True)
    optims = optimizers(model)
    base_rates = [args.rate_scale * group["lr"] for optim in optims for group in optim.param_groups]
    batches = Batches(tokenizer, tokens, rng)
    sizes = (args.batch - 2 * (args.batch // 6), args.batch // 6, args.batch // 6)

    begun, step, done = time.monotonic(), 0, 0.0
    while done < 1.0:
        factor = learning_rate_factor(done)
        for group, rate in zip((g for o in optims for g in o.param_groups), base_rates, strict=True):
            group["lr"] = rate * factor
        ids, labels = (part.to(device) for part in batches.draw(*sizes))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.bf16):
            logits = run(input_ids=ids, use_cache=False).logits
        parts = losses_by_kind(logits, labels, sizes)
        loss = parts[0] + 0.25 * sum(parts[1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"loss is {loss.item()} at step {step}; lower the learning rate")
        step += 1
        seconds = time.monotonic() - begun
        done = step / args.steps if args.steps else seconds / (60 * args.minutes)
        if step % 25 == 0 or done >= 1.0:
            text, repeats, keys = (part.item() for part in parts)
            print(
                f"step {step:5d}  {seconds:6.0f} s  text {text:.3f}  repeats {repeats:.3f}  passkey {keys:.3f}",
                flush=True,
            )

    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    start, family = (args.start.name, None) if args.start else (None, args.family)
    names = {"out": args.out.name, "start": start, "family": family}
    record = {**vars(args), **names, "steps_done": step, "seconds": round(time.monotonic() - begun)}
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

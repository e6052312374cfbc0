"""Tokenizers, models and documents of the evaluations' tests."""

import re
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import NARROW, tiny_config
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from skipwise.evals import EvalContext, EvalResult
from skipwise.evals.languages import ENGLISH

BOS, END = 256, 0

# --- tokenizers ------------------------------------------------------------------------------------------------------


class ByteTokenizer:
    """One token per byte; puts 256 before a text, as Llama's tokenizer does with its own token."""

    def __init__(self, *, adds_bos: bool = True) -> None:
        self.bos_token_id = BOS
        self._adds_bos = adds_bos

    def get_vocab(self) -> dict[str, int]:
        return {chr(token): token for token in range(257)}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [BOS] * (self._adds_bos and add_special_tokens) + list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(token for token in ids if token < 256).decode("latin1")


class Utf8Tokenizer(ByteTokenizer):
    """The same, which decodes all languages."""

    def decode(self, ids: list[int]) -> str:
        return bytes(token for token in ids if token < 256).decode(errors="replace")


class PieceTokenizer:
    """Pieces of at most four letters, like a small BPE. Each new piece gets the next id, so decoding is exact."""

    bos_token_id = 0
    chat_template: str | None = None
    _piece = re.compile(r" ?[A-Za-z]{1,4}| ?[0-9]| ?[^\sA-Za-z0-9]|\s")

    def __init__(self) -> None:
        self._pieces = ["<s>"]
        self._ids: dict[str, int] = {}

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids = [self._id(piece) for piece in self._piece.findall(text)]
        return [0, *ids] if add_special_tokens else ids

    def decode(self, ids: list[int]) -> str:
        return "".join(self._pieces[token] for token in ids)

    def _id(self, piece: str) -> int:
        if piece not in self._ids:
            self._ids[piece] = len(self._pieces)
            self._pieces.append(piece)
        return self._ids[piece]


class ChatTokenizer(PieceTokenizer):
    """The same with a chat template."""

    chat_template = "a template"

    def apply_chat_template(self, messages: list[dict], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert (tokenize, add_generation_prompt) == (False, True)
        return "".join(f"<{m['role']}>{m['content']}</{m['role']}>" for m in messages) + "<assistant>"


# --- models ----------------------------------------------------------------------------------------------------------


def make_llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    settings = NARROW | {"max_position_embeddings": 512, "pad_token_id": None} | changes
    return AutoModelForCausalLM.from_config(tiny_config("llama", **settings)).eval()


def with_adapters(model: Any) -> Any:
    """The model, wrapped by PEFT, with low-rank additions that change its logits."""
    torch.manual_seed(1)
    wrapped: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return wrapped.eval()


class Oracle(torch.nn.Module):
    """Continues a text with what `continuation` returns for it; then, or where that is empty, with the end token 0.

    It reads through the KV cache and the mask, as real models do, and counts what it reads.

    Args:
        continuation: takes all that was read of a row, prompt and own output, as text.
        window: its `max_position_embeddings`.
    """

    def __init__(self, continuation: Callable[[str], str], window: int = 65536) -> None:
        super().__init__()
        self.config = LlamaConfig(vocab_size=257, num_hidden_layers=1, max_position_embeddings=window)
        self.generation_config = GenerationConfig(eos_token_id=END)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.tokens_read = 0
        self._continuation = continuation

    def forward(
        self,
        input_ids: Any,
        position_ids: Any,
        past_key_values: Any,
        use_cache: bool,
        logits_to_keep: Any,
        attention_mask: Any = None,
    ) -> Any:
        rows, count = input_ids.shape
        self.tokens_read += rows * count
        ids = input_ids[:, None, :, None].float()
        if past_key_values is not None:
            ids, _ = past_key_values.update(ids, ids, 0)
        if attention_mask is None:
            attention_mask = torch.ones(rows, ids.shape[2])
        asked = range(count)[-logits_to_keep:] if isinstance(logits_to_keep, int) else []
        logits = torch.zeros(rows, len(asked), 257)
        for row in range(rows):
            read = [int(token) for token, real in zip(ids[row, 0, :, 0], attention_mask[row], strict=True) if real]
            for place, column in enumerate(asked):
                text = ByteTokenizer().decode(read[: len(read) - (count - 1 - column)])
                following = self._continuation(text)
                logits[row, place, following.encode()[0] if following else END] = 1.0
        return SimpleNamespace(logits=logits)


def key_reader(wrong_digit: int | None = None) -> Oracle:
    """Answers passkey questions by looking the key up; `wrong_digit` spoils that digit of every answer."""

    def continuation(text: str) -> str:
        read, _, said = text.partition(ENGLISH.passkey.question)
        if read == text:
            return ""
        key = read.split("The pass key is ")[1][:5]
        if wrong_digit is not None:
            key = f"{key[:wrong_digit]}x{key[wrong_digit + 1 :]}"
        return f" {key}."[len(said) :]

    return Oracle(continuation)


def _rope(kind: str, **more: object) -> dict[str, Any]:
    parameters = {"rope_type": kind, "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32}
    return {"rope_parameters": parameters | more}


_FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]}
# Family and settings; of Gemma 2 caps on attention and on the final logits, and layers that see eight tokens only.
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-eager": ("llama", {"attn_implementation": "eager"}),
    "yarn": ("llama", _rope("yarn")),
    "dynamic": ("llama", {"max_position_embeddings": 20, **_rope("dynamic")}),
    "longrope": ("phi3", {"original_max_position_embeddings": 32, **_rope("longrope", **_FACTORS)}),
    "gpt_neox": ("gpt_neox", {}),
    "gemma2": (
        "gemma2",
        {"head_dim": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "sliding_window": 8},
    ),
    "gemma3": ("gemma3_text", {"head_dim": 8, "sliding_window": 8}),
    "mistral": ("mistral", {"sliding_window": 8}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "granite": ("granite", {"logits_scaling": 4.0}),
    "qwen2": ("qwen2", {}),
}
FAMILIES = tuple(_FAMILIES)


def make_family(kind: str) -> Any:
    """A tiny model of one family, with the same weights each time."""
    family, own = _FAMILIES[kind]
    torch.manual_seed(0)
    settings = NARROW | {"vocab_size": 61, "max_position_embeddings": 128} | own
    return AutoModelForCausalLM.from_config(tiny_config(family, **settings)).eval()


def calls_of(module: Any) -> list[dict[str, Any]]:
    """The named arguments of every call of a module from now on."""
    calls: list[dict[str, Any]] = []
    module.register_forward_pre_hook(lambda _, args, given: calls.append(dict(given)), with_kwargs=True)
    return calls


def masked_entries(model: Any, run: Callable[[], Any]) -> list[int]:
    """Sizes of the masks that a Llama's attention is given in a run, 0 for none."""
    calls = [calls_of(layer.self_attn) for layer in model.model.layers]
    run()
    masks = [call.get("attention_mask") for of_layer in calls for call in of_layer]
    return [0 if mask is None else mask.numel() for mask in masks]


# --- documents and contexts ------------------------------------------------------------------------------------------

PROSE = (
    "The keeper of the lighthouse wrote down the weather every evening. Nobody had asked him to! In winter the pages "
    'were short, and in summer they told of ships. "Who will read all this?" asked a visitor. He shrugged. Years later '
    "the notes were worth more than the lamp, for no one else had measured the wind on that coast.\n\n"
)


def prose_documents(tokenizer: Any) -> list[np.ndarray]:
    """Two documents, the second of which begins with the beginning-of-sequence token, as in a store."""
    return [
        np.array(tokenizer.encode(PROSE * 3, add_special_tokens=False)),
        np.array(tokenizer.encode("A second document. " + PROSE, add_special_tokens=True)),
    ]


def body_of(document: np.ndarray) -> list[int]:
    """A document's token ids without the one of `ByteTokenizer` that may begin it."""
    return [token for token in document.tolist() if token != BOS]


def context_of(model: Any = None, tokenizer: Any = None, **more: Any) -> EvalContext:
    return EvalContext(model=model, tokenizer=tokenizer or ByteTokenizer(), progress=False, **more)


def by_metric(results: Iterable[EvalResult]) -> dict[str, EvalResult]:
    return {result.metric: result for result in results}

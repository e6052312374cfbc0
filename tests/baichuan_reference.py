"""Baichuan's architecture by its published description (arXiv 2309.10305, section 2): tiny, random, in plain torch.

It shares nothing with Llama's class of the transformers library: rotary tables, packed projections, attention, norms
and head are written out here.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, HEADS, INNER, LAYERS, EPSILON = 32, 4, 48, 2, 1e-6

_RUN = "\nraise SystemExit('the code was run')\n"
CODE = {
    1: "class RotaryEmbedding: ...\nclass BaiChuanForCausalLM:\n    lm_head: nn.Linear" + _RUN,
    2: "class RotaryEmbedding: ...\nclass NormHead: ...\nclass BaichuanForCausalLM: ..." + _RUN,
    13: "def _gen_alibi_mask(): ...\nclass NormHead: ...\nclass BaichuanForCausalLM: ..." + _RUN,
}
"""What tells the models apart in the code that comes with them; 13 stands for the models of 13B parameters."""


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(HIDDEN) + 0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * hidden / (hidden.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W_pack = nn.Linear(HIDDEN, 3 * HIDDEN, bias=False)
        self.o_proj = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, hidden: Tensor, positions: Tensor) -> Tensor:
        batch, length, _ = hidden.shape
        size = HIDDEN // HEADS
        packed = self.W_pack(hidden).view(batch, length, 3, HEADS, size)
        queries, keys, values = (packed[:, :, part].transpose(1, 2) for part in range(3))
        queries, keys = turned(queries, positions), turned(keys, positions)
        scores = queries @ keys.transpose(2, 3) / math.sqrt(size)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(later, -torch.inf).softmax(-1) @ values
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, HIDDEN))


def turned(heads: Tensor, positions: Tensor) -> Tensor:
    """Dimension i and dimension i + half of each head are turned by the angle position * 10000 ** (-i / half)."""
    half = heads.shape[-1] // 2
    angles = positions[:, None].float() * 10000.0 ** (-torch.arange(half).float() / half)
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, INNER, bias=False)
        self.up_proj = nn.Linear(HIDDEN, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gate = self.gate_proj(hidden)
        return self.down_proj(gate * gate.sigmoid() * self.up_proj(hidden))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), MLP()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(), RMSNorm()

    def forward(self, hidden: Tensor, positions: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), positions)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Baichuan(nn.Module):
    """Version 1 has a plain head; version 2 divides each row of its head by its length."""

    def __init__(self, version: int, vocabulary: int) -> None:
        super().__init__()
        self.version = version
        self.model: Any = nn.Module()
        self.model.embed_tokens = nn.Embedding(vocabulary, HIDDEN)
        self.model.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.model.norm = RMSNorm()
        self.lm_head = nn.Linear(HIDDEN, vocabulary, bias=False)
        for parameter in self.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)

    @torch.no_grad()
    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            hidden = layer(hidden, positions)
        hidden, weight = self.model.norm(hidden), self.lm_head.weight
        if self.version == 2:
            weight = weight / weight.pow(2).sum(1, keepdim=True).sqrt()
        return functional.linear(hidden, weight)


def baichuan(version: int, vocabulary: int = 640) -> Baichuan:
    with torch.random.fork_rng():
        torch.manual_seed(version)
        return Baichuan(version, vocabulary).eval()


def config(version: int, vocabulary: int = 640, window: int = 64) -> dict[str, Any]:
    """As the published ones are: version 1 names the window as Llama does, version 2 twice."""
    name = "BaiChuan" if version == 1 else "Baichuan"
    longest = {"max_position_embeddings": window} if version == 1 else {"model_max_length": window, "z_loss_weight": 0}
    return {
        "architectures": [f"{name}ForCausalLM"],
        "auto_map": {
            "AutoConfig": f"configuration_baichuan.{name}Config",
            "AutoModelForCausalLM": f"modeling_baichuan.{name}ForCausalLM",
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "model_type": "baichuan",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "rms_norm_eps": EPSILON,
        "tie_word_embeddings": False,
        "tokenizer_class": f"{name}Tokenizer",
        "torch_dtype": "float32",
        "transformers_version": "4.29.2",
        "use_cache": True,
        "vocab_size": vocabulary,
        **longest,
    }


def save_baichuan(model: Baichuan, folder: Path, layout: str = "bin", *, code: bool = True) -> Path:
    """Leaves a folder as they are published.

    Args:
        model: to save.
        folder: where to.
        layout: `bin`, `safetensors`, `bin-shards` or `safetensors-shards`.
        code: whether the model's code lies beside it.
    """
    folder.mkdir(exist_ok=True)
    vocabulary = model.lm_head.out_features
    (folder / "config.json").write_text(json.dumps(config(model.version, vocabulary)))
    if code:
        (folder / "modeling_baichuan.py").write_text(CODE[model.version])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if model.version == 1:
        for layer in range(LAYERS):
            table = 10000.0 ** (-torch.arange(HIDDEN // HEADS // 2).float() * 2 / (HIDDEN // HEADS))
            weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = table
    kind, _, sharded = layout.partition("-")
    stem, ending = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    if not sharded:
        write(weights, folder / f"{stem}.{ending}")
        return folder
    names = sorted(weights)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{stem}-{number:05}-of-00002.{ending}"
        write({name: weights[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    return folder


def add_tokenizer(folder: Path, **settings: Any) -> None:
    """Leaves the files of a tokenizer as they are published, of a tiny model that SentencePiece has trained."""
    shutil.copy(Path(__file__).parent / "model" / "sentencepiece_models" / "baichuan.model", folder / "tokenizer.model")
    shown = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": True}
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    tokens = {name: {"__type": "AddedToken", "content": text, **shown} for name, text in names.items()}
    published = {
        "add_bos_token": False,
        "add_eos_token": False,
        "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
        "model_max_length": 64,
        "tokenizer_class": "BaichuanTokenizer",
        "use_fast": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | published | settings))


def write(weights: dict[str, Tensor], file: Path) -> None:
    if file.suffix == ".safetensors":
        save_file(weights, file, metadata={"format": "pt"})
    else:
        torch.save(weights, file)

"""Extends every causal language model of the installed transformers library and reports which ones work.

    python benchmarks/model_families.py --out docs/results/model-families.md

Each family is built tiny and random from its own config class (no list of names, no downloads) and saved. It is then
loaded, extended, saved, reloaded by plain transformers, and rebuilt around the same parameters. A family works if, for
every interpolation that it does not refuse, the rotary table in use is the requested one, two distant chunks get other
logits than in the base model, and all reloads agree bit for bit.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import traceback
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from skipwise.errors import SkipwiseError, UnsupportedModelError
from skipwise.loss import training_inputs
from skipwise.model import load_model, read_config, rope_state, rotary_tables, save_model, with_rope
from skipwise.model.source import quiet_transformers
from skipwise.rope import INTERPOLATIONS
from skipwise.window import Window

WINDOW = Window(train=32, original=64, target=256)
LARGEST = 60_000_000
KINDS = ("yarn", "linear", "longrope", "ntk")

# A config that has one of these fields gets this value; all other fields keep their defaults.
SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "vocab_size_per_layer_input": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "max_position_embeddings": WINDOW.original,
    "n_positions": WINDOW.original,
    "max_seq_len": WINDOW.original,
    "original_max_position_embeddings": WINDOW.original,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "num_experts_per_token": 2,
    "moe_num_shared_experts": 1,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "lru_width": 64,
    "image_size": 28,
    "patch_size": 14,
}
# Families whose sizes must fit each other in ways that the settings above do not.
FITTING: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"max_position_embeddings": WINDOW.original},
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"topk_method": "greedy"},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 16,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"ffn_hidden_size": 48, "expert_ffn_hidden_size": 32, "num_layers": 2, "head_dim": 8},
    "qwen4_exp": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen4_exp_text": {"layer_types": ["linear_attention", "full_attention"]},
    "minimax_m3_vl_text": {"rotary_dim": 16},
    "mimo_v2_flash": {"head_dim": 48},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba2": {"use_mem_rope": True},
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    default = AutoConfig.for_model(model_type)
    return type(default)(**{**shrunk(default), **FITTING.get(model_type, {})})


def shrunk(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings of SMALL for this config and, recursively, for its sub-configs."""
    default = config.to_dict()
    settings = {name: value for name, value in SMALL.items() if name in default}
    if "qk_rope_head_dim" in default:
        # Latent attention: every head has its own keys, and head_dim follows from its parts.
        settings |= {"num_key_value_heads": 4}
        settings.pop("head_dim", None)
    if types := default.get("layer_types"):
        # One layer of each of two kinds; the last one attends to the whole context.
        kinds = sorted(dict.fromkeys(types), key="full_attention".__eq__)
        settings["layer_types"] = [kinds[0], kinds[-1]]
    rope = default.get("rope_parameters") or {}
    if rope.get("rope_type", "default") not in ("default", "proportional"):
        # Published as extended already: undo it.
        settings["rope_parameters"] = {**rope, "rope_type": "default"}
    if "original_max_position_embeddings" in rope:
        settings["rope_parameters"] = {**rope, "rope_type": "default"} | {
            "original_max_position_embeddings": WINDOW.original
        }
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            settings[name] = {**shrunk(inner), "model_type": inner.model_type}
    return settings


def tiny_checkpoint(model_type: str, folder: Path) -> None:
    config = tiny_config(model_type)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters at the smallest that generic settings give")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)


@torch.no_grad()
def logits(model: PreTrainedModel, farthest: int = WINDOW.target) -> torch.Tensor:
    ids = torch.arange(32)[None] % 90
    positions = torch.cat([torch.arange(16), torch.arange(farthest - 16, farthest)])[None]
    return model(**training_inputs(ids, positions)).logits


def check(folder: Path, kind: str) -> str:
    """`yes`, or the first thing that went wrong."""
    interpolation = INTERPOLATIONS[kind]()
    base = load_model(folder)
    if torch.equal(logits(base.model), logits(base.model, WINDOW.target // 2)):
        return "positions are not read"
    expected = interpolation.table(rope_state(base.model.config).spec, WINDOW)
    extended = load_model(folder, interpolation=interpolation, window=WINDOW)
    wanted = logits(extended.model)
    before, after = rotary_tables(base.model), rotary_tables(extended.model)
    changed = [path for path in after if not np.array_equal(before[path].inv_freq, after[path].inv_freq)]
    if not changed:
        return "the table did not change"
    for path in changed:
        found = after[path]
        if found.inv_freq.shape != expected.inv_freq.shape or not np.allclose(
            found.inv_freq, expected.inv_freq, 1e-6, 0
        ):
            return f"another table in {path}"
        if not np.isclose(found.attention_factor, expected.attention_factor):
            return f"another attention factor in {path}"
    if torch.equal(wanted, logits(base.model)):
        return "the logits did not change"
    with tempfile.TemporaryDirectory() as saved:
        save_model(extended.model, extended.tokenizer, saved)
        reloaded: Any = AutoModelForCausalLM.from_pretrained(saved)
    if not torch.equal(logits(reloaded), wanted):
        return "a plain reload differs"
    if not torch.equal(logits(with_rope(base.model, interpolation, WINDOW)), wanted):
        return "rebuilding differs from loading"
    return "yes"


def attempt(folder: Path, kind: str) -> str:
    try:
        return check(folder, kind)
    except SkipwiseError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}".split("\n")[0][:160]


def family(model_type: str) -> dict[str, str]:
    """One row of the report: the outcome of each interpolation for a family."""
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        folder = Path(scratch)
        try:
            tiny_checkpoint(model_type, folder)
        except Exception as error:
            said = traceback.format_exception_only(error)[-1].strip().split("\n")[0][:160]
            return {"family": model_type, "built": said} | refusal_by_config(model_type, folder)
        try:
            read_config(folder)
        except SkipwiseError as error:
            return {"family": model_type, "refused": reason(error, folder)}
        row = {"family": model_type} | {kind: attempt(folder, kind) for kind in ("yarn", "linear")}
        if row["yarn"].startswith("refused"):
            row |= {kind: attempt(folder, kind) for kind in ("longrope", "ntk")}
        return row


def refusal_by_config(model_type: str, folder: Path) -> dict[str, str]:
    """The refusal of a family that could not be built, if its default config alone is refused."""
    try:
        AutoConfig.for_model(model_type).save_pretrained(folder)
        read_config(folder)
    except UnsupportedModelError as error:
        return {"refused": reason(error, folder)}
    except Exception:
        return {}
    return {}


def reason(error: SkipwiseError, folder: Path) -> str:
    return str(error).rpartition("cannot be extended: ")[2].replace(f"model {str(folder)!r}: ", "")


def report(rows: list[dict[str, str]]) -> str:
    def works(row: dict[str, str]) -> bool:
        # An interpolation may be refused, with the reason, but none may fail.
        found = [row[kind] for kind in KINDS if kind in row and not row[kind].startswith("refused: ")]
        return bool(found) and set(found) == {"yes"}

    working = [row for row in rows if works(row)]
    refused = [row for row in rows if "refused" in row]
    untried = [row for row in rows if "built" in row and "refused" not in row]
    failing = [row for row in rows if not works(row) and "refused" not in row and "built" not in row]
    lines = [
        "# Model families",
        "",
        "`benchmarks/model_families.py` extends every causal language model of transformers "
        f"{transformers.__version__} ({len(rows)} model types), tiny and random, from {WINDOW.original} to "
        f"{WINDOW.target} tokens. A family works if all of this holds for every interpolation that it does not refuse: "
        "the rotary table in use is the requested one, the logits of distant chunks change, and a plain reload of the "
        "saved folder and a rebuilt model both agree bit for bit with the loaded one.",
        "",
        f"{len(working)} work, {len(refused)} are refused with the reason, {len(failing)} fail, "
        f"{len(untried)} could not be built from generic tiny settings and were not tried.",
        "",
        "Baichuan-7B and Baichuan2-7B have no class in transformers and are loaded as Llama models "
        "(`tests/model/test_baichuan.py`).",
        "",
        "## Work",
        "",
        f"| model type | {' | '.join(KINDS)} |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {row['family']} | {' | '.join(cell(row, kind) for kind in KINDS)} |" for row in working]
    lines += ["", "## Refused", "", "| model type | reason |", "|---|---|"]
    lines += [f"| {row['family']} | {cell(row, 'refused')} |" for row in refused]
    lines += ["", "## Fail", "", f"| model type | {' | '.join(KINDS)} |", "|---|---|---|---|---|"]
    lines += [f"| {row['family']} | {' | '.join(cell(row, kind) for kind in KINDS)} |" for row in failing]
    lines += ["", "## Not tried", "", "| model type | why the tiny model could not be built |", "|---|---|"]
    lines += [f"| {row['family']} | {cell(row, 'built')} |" for row in untried]
    return "\n".join(lines) + "\n"


def cell(row: dict[str, str], name: str) -> str:
    return row.get(name, "").replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="Markdown file for the report; otherwise it is printed")
    parser.add_argument("families", nargs="*", help="only these model types")
    args = parser.parse_args()
    rows = []
    for model_type in args.families or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        rows.append(family(model_type))
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report(rows), encoding="utf-8")


if __name__ == "__main__":
    main()

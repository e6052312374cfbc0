"""Probes of the rotary tables, of the loss, and of saving and loading a model."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from skipwise.doctor.bench import LOCAL_LAYERS, Bench, angle_error, largest, local_span
from skipwise.loss import IGNORED, NextTokenLoss
from skipwise.model import attention_of, is_four_bit, load_model, rotary_tables, save_config, save_model, set_attention
from skipwise.model.extend import built_around, common_names
from skipwise.model.rotary import text_config
from skipwise.model.save import CONFIG_FILE
from skipwise.model.saved import LIMIT_BYTES, differences, first_layers, layers_to_reread, weight_bytes, wrongly_saved
from skipwise.model.source import quiet_transformers
from skipwise.records.verdict import Verdict, judge
from skipwise.rope import Interpolation, RopeSpec, RopeTable, eras, read_rope
from skipwise.rope.tables import deviation, unscaled_frequencies
from skipwise.window import Window

# Allows for frequencies computed in float32. Frequencies kept in 16 bits would be off by 4e-3.
TABLE_TOLERANCE = 1e-5
_WORRYING_RADIANS = 0.05
# Saving and loading more than this would take minutes.
_RELOAD_LIMIT_BYTES = LIMIT_BYTES


def local(bench: Bench) -> Verdict | None:
    """Reports layers of local attention. A model that has no other layers cannot use a longer window."""
    span = local_span(bench.config)
    if span is None:
        return None
    kinds = getattr(bench.config, "layer_types", None) or [LOCAL_LAYERS[0]] * bench.config.num_hidden_layers
    num_local = sum(kind in LOCAL_LAYERS for kind in kinds)
    cure = (
        f"no layer attends further back: choose a target of at most {span} tokens, or set sliding_window to null in "
        "config.json"
    )
    if num_local == len(kinds) and span < bench.window.target:
        return Verdict(
            name="local", status="fail", detail=f"every layer attends only to the last {span} tokens", cure=cure
        )
    detail = (
        f"{num_local} of {len(kinds)} layers attend only to the last {span} tokens, and keep their own rotary table"
    )
    return Verdict(name="local", status="note", detail=detail)


def unapplied(bench: Bench) -> Verdict | None:
    """Reports long-context settings that transformers does not apply."""
    found = eras.unapplied(bench.config.to_dict())
    return Verdict(name="unapplied", status="note", detail="; ".join(found)) if found else None


def tables(bench: Bench) -> Verdict:
    """Checks that rotary tables at the target are the interpolation's. Layers of local attention keep their own."""
    bench.logits(bench.positions(bench.longest_skip))  # Sets tables that depend on the length to those of the target.
    faults, fine = compare_tables(rotary_tables(bench.model), bench.config, bench.interpolation, bench.window)
    cure = (
        "the scaling did not reach the built model: load it with load_model(..., interpolation=..., window=...), which "
        "sets the config before the model is built, and never cast buffers to 16 bits (model.half())"
    )
    return judge("tables", not faults, faults or fine, cure)


def compare_tables(
    found: dict[str, RopeTable], config: Any, interpolation: Interpolation, window: Window
) -> tuple[str, str]:
    """Compares a model's rotary tables with those that the interpolation defines.

    Args:
        found: tables by path as in `rotary_tables`, for the target.
        config: the decoder's part of the model's config.
        interpolation: that the model was extended with.
        window: lengths of the extension, in tokens.

    Returns:
        The first few faults, empty if there is none; and what to say if so.
    """
    expected = _expected_tables(found, config, interpolation, window)
    off = {path: deviation(found[path], table) for path, table in expected.items()}
    target, maximum = window.target, config.max_position_embeddings
    faults = [f"config.json would say max_position_embeddings {maximum} instead of {target}"] * (maximum != target)
    faults += [
        f"{path} is off by {off[path]:.2g} (attention factor {found[path].attention_factor:.6g}, should be "
        f"{table.attention_factor:.6g})"
        for path, table in expected.items()
        if off[path] > TABLE_TOLERANCE
    ]
    fine = (
        f"{len(found)} rotary table{'s' * (len(found) > 1)} as {interpolation.kind} defines for {target}, "
        f"frequencies and attention factor, to {max(off.values()):.1g}"
    )
    return "; ".join(faults[:3]), fine


def precision(bench: Bench) -> Verdict:
    """Reports the float32 error of angles at the last positions of the target."""
    last = bench.window.target - 1
    error = angle_error(rotary_tables(bench.model).values(), last)
    detail = f"float32 angles are off by up to {error:.2g} rad up to position {last}"
    cure = (
        "neighboring positions blur there: expect weaker retrieval near the end of the target"
        if error > _WORRYING_RADIANS
        else ""
    )
    return Verdict(name="precision", status="note", detail=detail, cure=cure)


def loss(bench: Bench) -> Verdict:
    """Checks that training's loss, computed in slices, equals the loss of the model's own logits."""
    positions, labels = bench.positions(bench.middle_skip), bench.ids.clone()
    labels[0, bench.half] = IGNORED
    logits = bench.logits(positions)[0, :-1]
    wanted = nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED).item()
    few_rows = 16 * bench.config.vocab_size  # Small, so that the head runs on many slices.
    bench.seed()
    with torch.no_grad(), bench.autocast():
        found = NextTokenLoss(bench.model, chunk_bytes=few_rows)(bench.ids, positions, labels).item()
    allowed = max(1e-5, torch.finfo(bench.dtype).eps) * abs(wanted)
    detail = f"in slices {found:.6f}, from the model's own logits {wanted:.6f} (rounding allows {allowed:.1g})"
    cure = "computing this class's logits in slices changes them: report the class, and train another model"
    return judge("loss", abs(found - wanted) <= allowed, detail, cure)


def reload(bench: Bench) -> Verdict:
    """Checks that saving and loading keeps weights, rotary tables, and logits beyond the original window.

    For a large model, only the weights of some layers are saved and loaded. The logits are then computed with the
    weights in memory and the saved config.
    """
    model = bench.model.eval()
    positions = bench.positions(bench.longest_skip)
    before, tables = bench.logits(positions), rotary_tables(model)
    with tempfile.TemporaryDirectory(prefix="skipwise-doctor-") as folder:
        what, wrong, again = _saved_and_reread(bench, folder)
        after, reloaded = bench.logits(positions, model=again), rotary_tables(again)
    off = max(deviation(reloaded.get(path), table) for path, table in tables.items())
    moved, allowed = largest(after - before), bench.rounding(before)
    worst = max(wrong, key=wrong.__getitem__) if wrong else None
    weights = "" if wrong is None else "weights are the same, "
    if wrong and worst:
        weights = f"{len(wrong)} weights differ, {worst} by {wrong[worst]:.2g}, "
    detail = (
        f"{what} saved and loaded: {weights}tables differ by {off:.2g}, logits by {moved:.2g} (rounding allows "
        f"{allowed:.2g})"
    )
    cure = (
        "the saved model differs from the trained one: make sure that config.json keeps rope_parameters with "
        "rope_theta, and do not change the model after loading it"
    )
    if wrong:
        cure = (
            f"transformers does not save the weights of this {type(model).__name__} correctly: report it, and train "
            "another model"
        )
    return judge("reload", not wrong and off <= TABLE_TOLERANCE and moved <= allowed, detail, cure)


def _saved_and_reread(bench: Bench, folder: str) -> tuple[str, dict[str, float] | None, PreTrainedModel]:
    """Saves as much of the model as is quick, and loads it again.

    Returns:
        What was saved, as text; the weights that differ after loading and by how much (None if no weights were saved);
        and the model whose tables and logits are to be compared.
    """
    model, layers = bench.model, text_config(bench.model.config).num_hidden_layers
    few = layers_to_reread(model, _RELOAD_LIMIT_BYTES)
    saved = first_layers(model, few)
    size, free = weight_bytes(saved), shutil.disk_usage(folder).free
    in_four_bits = any(is_four_bit(module) for module in model.modules())
    obstacle = ""
    if 1.2 * size > free:
        obstacle = f"weights are {size / 1e9:.3g} GB, and {folder} has {free / 1e9:.3g} GB free"
    elif in_four_bits and few < layers:
        obstacle = "the library saves 4-bit weights only as a whole, and these are too large"
    if obstacle:
        return f"the config alone ({obstacle})", None, _config_reloaded(model, folder)
    save_model(model, bench.tokenizer, folder, state_dict=saved if few < layers else None)
    if few == layers and bench.tokenizer is not None and not in_four_bits:
        how: dict[str, Any] = {"dtype": model.dtype, "attention": attention_of(model.config)}
        again: Any = load_model(folder, **how, trust_remote_code=_brings_own_code(model)).model
        again = again.to(model.device)
        return "the whole checkpoint", differences(again.state_dict(), saved), again
    what = f"the config and {few} of {layers} layers" if few < layers else "the whole checkpoint"
    # `load_model` would dequantize 4-bit weights, so their logits are computed with the weights in memory.
    return what, wrongly_saved(model, folder, few), _config_reloaded(model, folder)


def _config_reloaded(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """Builds a model from the saved config around the weights in memory, which is cheap at any size."""
    with quiet_transformers():
        if not (Path(folder) / CONFIG_FILE).exists():
            save_config(model.config, folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=_brings_own_code(model))
        set_attention(config, attention_of(model.config))
        return built_around(type(model), config, dict(model.named_parameters(remove_duplicate=False)), model)


def _brings_own_code(model: PreTrainedModel) -> bool:
    """Whether the class came with the checkpoint. Its code has already run, so loading it again needs no new trust."""
    return type(model).__module__.startswith("transformers_modules")


def _expected_tables(
    found: dict[str, RopeTable], config: Any, interpolation: Interpolation, window: Window
) -> dict[str, RopeTable]:
    """Expected tables by path: the interpolation's, or that of a layer type's own rope entry."""
    settings = common_names(config)
    scaled = interpolation.table(read_rope(settings).spec, window)
    entries = settings.get("rope_parameters") or {}
    expected = {}
    for path, table in found.items():
        kind = path.rpartition(".")[2]
        if kind == eras.GLOBAL_LAYERS or not isinstance(entries.get(kind), dict):
            expected[path] = scaled
        else:
            spec = RopeSpec(rotary_dim=2 * len(table.inv_freq), theta=entries[kind]["rope_theta"])
            inv_freq = unscaled_frequencies(spec) / entries[kind].get("factor", 1.0)
            expected[path] = RopeTable(inv_freq=inv_freq, attention_factor=1.0)
    return expected

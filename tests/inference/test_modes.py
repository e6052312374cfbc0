import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TARGET
from transformers import AutoModelForCausalLM

from skipwise.errors import CheckpointError, ConfigError
from skipwise.inference.engine import MODES
from skipwise.inference.generate import LocalEngine
from skipwise.inference.modes import TwoModes, with_adapter
from skipwise.inference.origin import Origin, check_base
from skipwise.model import rotary_tables

from .conftest import ORIGINAL, TUNINGS, Run, answer, random_ids, tensor_bytes


def plain(folder: Path) -> Any:
    """A checkpoint as the transformers library alone loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def inputs(length: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor([random_ids(length, seed)])


@pytest.mark.parametrize("tuning", TUNINGS)
@torch.no_grad()
def test_short_mode_is_the_base_model_to_the_bit_and_long_mode_the_merged_one(
    tuning: str, runs: dict[str, Run]
) -> None:
    modes = TwoModes.load(runs[tuning].folder)
    base, merged = plain(runs[tuning].base), plain(runs[tuning].folder)
    assert (modes.modes, modes.original_window, modes.target) == (("short", "long"), ORIGINAL, TARGET)
    for length in (1, 2, 31, ORIGINAL):
        ids = inputs(length, length)
        assert torch.equal(modes(ids).logits, base(ids).logits), length
        with modes.mode("long"):
            assert torch.allclose(modes(ids).logits, merged(ids).logits, atol=1e-5), length
    ids = inputs(TARGET)
    assert torch.allclose(modes(ids).logits, merged(ids).logits, atol=1e-5)
    # The modes differ by far more than that, or the two lines above would say nothing.
    assert (merged(ids).logits - base(ids).logits).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["lora with norms and embeddings", "full"])
@torch.no_grad()
def test_short_mode_is_the_base_model_on_1000_prompts(tuning: str, runs: dict[str, Run]) -> None:
    modes, base = TwoModes.load(runs[tuning].folder), plain(runs[tuning].base)
    lengths = torch.randint(1, ORIGINAL + 1, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    long = inputs(TARGET)
    for seed, length in enumerate(lengths):
        if seed % 100 == 0:
            modes(long)
        ids = inputs(length, seed)
        assert torch.equal(modes(ids).logits, base(ids).logits), (seed, length)


@torch.no_grad()
def test_after_4_bits_both_modes_are_what_was_trained(four_bit_run: Run) -> None:
    modes = TwoModes.load(four_bit_run.folder)
    base, merged = plain(four_bit_run.base), plain(four_bit_run.folder)
    ids = inputs(ORIGINAL)
    assert torch.equal(modes(ids).logits, base(ids).logits)
    ids = inputs(TARGET)
    assert torch.equal(modes(ids).logits, merged(ids).logits)
    # The additions are there, and over the base in full precision they would be another model.
    assert (four_bit_run.folder / "adapter" / "adapter_config.json").is_file()
    own = four_bit_run.folder / "adapter"
    origin = Origin(folder=four_bit_run.folder, base=str(four_bit_run.base), adapter=own, is_own=True)
    together = with_adapter(base, origin)
    with pytest.raises(CheckpointError, match=str(four_bit_run.folder)):
        check_base(base, together, origin)


@torch.no_grad()
def test_each_mode_has_its_own_rotary_tables(modes: TwoModes, runs: dict[str, Run]) -> None:
    for model, folder in ((modes.model("short"), runs["lora"].base), (modes.model("long"), runs["lora"].folder)):
        (ours,), (theirs,) = rotary_tables(model).values(), rotary_tables(plain(folder)).values()
        assert ours.attention_factor == theirs.attention_factor
        assert (ours.inv_freq == theirs.inv_freq).all()
    short, long = (next(iter(rotary_tables(modes.model(mode)).values())) for mode in ("short", "long"))
    assert short.attention_factor == 1.0 != long.attention_factor


def test_low_rank_additions_share_all_weights_of_the_base(runs: dict[str, Run]) -> None:
    of_base = sum(parameter.nbytes for parameter in plain(runs["lora"].base).parameters())
    additions = sum(file.stat().st_size for file in (runs["lora"].folder / "adapter").glob("*.safetensors"))
    assert of_base < tensor_bytes(TwoModes.load(runs["lora"].folder)) < of_base + additions + 2000
    assert tensor_bytes(TwoModes.load(runs["full"].folder)) > 2 * of_base


@pytest.mark.parametrize(
    ("prompt", "new", "mode"),
    [
        (ORIGINAL - 9, 8, "short"),
        (ORIGINAL - 8, 8, "short"),
        (ORIGINAL - 7, 8, "long"),
        (1, ORIGINAL - 1, "short"),
        (1, ORIGINAL, "long"),
        (TARGET - 8, 8, "long"),
    ],
)
def test_the_choice_counts_what_will_be_generated(prompt: int, new: int, mode: str, modes: TwoModes) -> None:
    assert modes.choose(prompt + new) == mode
    ids = inputs(prompt)
    own: Any = modes.model(mode)  # pyright: ignore[reportArgumentType]
    expected = own.generate(ids, max_new_tokens=new, do_sample=False)
    assert torch.equal(modes.generate(ids, max_new_tokens=new, do_sample=False), expected)


def test_a_mode_is_for_its_thread_and_ends_with_its_block_whatever_happens(modes: TwoModes) -> None:
    ids, seen = inputs(8), {}

    def elsewhere() -> None:
        with torch.no_grad():
            seen["logits"] = modes(ids).logits

    with torch.no_grad(), modes.mode("long") as long:
        forced = modes(ids).logits
        assert torch.equal(forced, long(input_ids=ids).logits)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with pytest.raises(ZeroDivisionError), modes.mode("short"):
            _ = 1 / 0
        assert torch.equal(modes(ids).logits, forced)
    with torch.no_grad():
        chosen = modes(ids).logits
    assert torch.equal(chosen, seen["logits"])
    assert not torch.equal(chosen, forced)


def test_what_no_mode_holds_is_refused(modes: TwoModes) -> None:
    for length, mode, held in ((TARGET + 1, None, str(TARGET)), (ORIGINAL + 1, "short", str(ORIGINAL))):
        with pytest.raises(ConfigError, match=f"{length} tokens.*{held}"):
            modes.choose(length, mode)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="middle"), modes.mode("middle"):  # pyright: ignore[reportArgumentType]
        pass
    with pytest.raises(ConfigError, match="cache"):
        modes(inputs(4), past_key_values=object())


def test_a_model_that_is_no_run_has_one_mode(tiny_checkpoint: Path, runs: dict[str, Run]) -> None:
    alone = TwoModes.load(tiny_checkpoint)
    assert (alone.choose(ORIGINAL), alone.model("short") is alone.model("long")) == ("short", True)
    long = TwoModes.long_alone(runs["full"].folder)
    assert (long.modes, long.choose(4)) == (("long",), "long")
    with pytest.raises(ConfigError, match="short"):
        long.choose(4, "short")


@pytest.fixture
def copied(runs: dict[str, Run], tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs["lora"].folder, tmp_path / "run"))


def test_a_base_that_is_gone_is_said_in_one_line(copied: Path, tiny_checkpoint: Path) -> None:
    record = json.loads((copied / "skipwise.json").read_text())
    record["config"]["model"] = "/no/such/folder"
    (copied / "skipwise.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"/no/such/folder.*--base"):
        TwoModes.load(copied)
    assert TwoModes.load(copied, base=tiny_checkpoint).modes == ("short", "long")
    (copied / "skipwise.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"--base"):
        TwoModes.load(copied)


def test_another_version_of_the_base_is_refused(copied: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    model = plain(other)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(1.01)
    model.save_pretrained(other)
    with pytest.raises(CheckpointError, match=r"q_proj"):
        TwoModes.load(copied, base=other)


def test_an_adapter_that_is_none_is_refused(copied: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for source, named in ((copied, r"no adapter_config\.json"), (tiny_checkpoint, "not a run of skipwise extend")):
        with pytest.raises(CheckpointError, match=named):
            TwoModes.load(source, adapter=tmp_path)


@pytest.mark.parametrize("tuning", ["lora with norms and embeddings", "full"])
def test_both_modes_in_eight_bits_compute_nearly_the_same_in_less_memory(tuning: str, runs: dict[str, Run]) -> None:
    exact, packed = (TwoModes.load(runs[tuning].folder, weights=weights) for weights in ("full", "int8"))
    ids = torch.tensor([random_ids(150)])
    for mode in MODES:
        with torch.no_grad():
            expected, found = (each.model(mode)(ids[:, :ORIGINAL]).logits for each in (exact, packed))
        assert 0 < (found - expected).abs().max() < 0.1 * expected.std()
    assert tensor_bytes(packed) < 0.7 * tensor_bytes(exact)
    prompt = random_ids(150)
    engines = [LocalEngine(packed, cache=kind, chunk_tokens=64) for kind in ("dynamic", "static", "dynamic")]
    answers = [answer(engine, prompt, 12) for engine in engines]
    assert answers[0] == answers[1] == answers[2] == answer(engines[2], prompt, 12)

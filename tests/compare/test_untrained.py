"""Arms that nobody trained are read as their kind says, and leave the model as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch

from skipwise.compare.settings import ARM_KINDS
from skipwise.compare.untrained import as_measured, pieces_of
from skipwise.evals import evaluate
from skipwise.model import attention_of, load_model, rotary_tables
from skipwise.rope import DynamicNTK, YaRN
from skipwise.window import Window

WINDOW = Window(train=64, original=64, target=512)


def test_dynamic_ntk_has_the_base_of_each_length(tiny_checkpoint: Path) -> None:
    model, _ = load_model(tiny_checkpoint)
    (plain,) = rotary_tables(model).values()
    dim = 2 * len(plain.inv_freq)
    theta = plain.inv_freq[1] ** (-dim / 2)
    for length in (32, 64, 128, 512):
        with as_measured(model, "by_length", [length], WINDOW, DynamicNTK()) as network:
            (found,) = rotary_tables(network).values()
        changed = theta * max(1.0, length / 64) ** (dim / (dim - 2))
        expected = [changed ** (-2 * pair / dim) for pair in range(dim // 2)]
        np.testing.assert_allclose(found.inv_freq, expected, rtol=1e-5)
    assert rotary_tables(model).popitem()[1].inv_freq.tolist() == plain.inv_freq.tolist()


@pytest.mark.parametrize("measured", ["dual_chunk", "shifted"])
def test_other_distances_hold_for_the_measurement_alone(tiny_checkpoint: Path, measured: str) -> None:
    model, _ = load_model(tiny_checkpoint)
    model.eval()
    ids, before = torch.arange(400)[None] % 50, attention_of(model.config)
    with torch.no_grad():
        plain = model(ids).logits
        with as_measured(model, measured, [400], WINDOW, YaRN()) as network:  # type: ignore[arg-type]
            assert network is model
            assert (model(ids).logits - plain).abs().max() > 0
        assert attention_of(model.config) == before
        assert torch.equal(model(ids).logits, plain)


def test_the_same_tokens_are_scored_length_by_length(tiny_checkpoint: Path) -> None:
    loaded = load_model(tiny_checkpoint)
    documents = [np.random.default_rng(place).integers(0, 200, 600) for place in range(3)]
    task, lengths = {"kind": "perplexity", "num_documents": 2, "scored_tokens": 16}, [32, 64]

    def found(measured: str) -> list[float]:
        pieces = pieces_of(task, lengths, measured)  # type: ignore[arg-type]
        return [r.value for one, own in pieces for r in evaluate(*loaded, [one], own, documents, progress=False)]

    # Within the original window the base reads, so both must be the same.
    assert found("by_length") == found("plain")


def test_only_what_follows_the_length_is_measured_length_by_length() -> None:
    perplexity, passkey = {"kind": "perplexity", "num_documents": 2}, {"kind": "passkey", "trials": 5, "num_depths": 5}
    assert pieces_of(perplexity, [64, 512], "plain") == [(perplexity, [64, 512])]
    cut = {**perplexity, "cut_tokens": 512}
    assert pieces_of(perplexity, [64, 512], "by_length") == [(cut, [64]), (cut, [512])]
    assert pieces_of(passkey, [64, 512], "by_length") == [(passkey, [64]), (passkey, [512])]
    untrained = {name: kind.measured for name, kind in ARM_KINDS.items() if not kind.trained}
    assert untrained == {
        "base": "plain",
        "interpolation-only": "plain",
        "dynamic-ntk": "by_length",
        "dca": "dual_chunk",
        "string": "shifted",
    }
    assert {kind.measured for kind in ARM_KINDS.values() if kind.trained} == {"plain"}

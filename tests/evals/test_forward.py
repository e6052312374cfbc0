"""The chunked prefill gives what one pass gives, and never makes more logits than asked."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import transformers as hf
from peft import PromptTuningConfig, get_peft_model

from skipwise.errors import CheckpointError, ConfigError
from skipwise.runtime import chunks, forward
from skipwise.runtime.forward import check_length, logit_pieces, token_nlls

from .tiny import FAMILIES, make_family, make_llama, masked_entries, with_adapters


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> hf.PreTrainedModel:
    return make_family(request.param)


@pytest.mark.parametrize(("chunk_tokens", "first_scored"), [(7, 1), (16, 25), (64, 30), (64, 52), (5, 53)])
def test_nlls_equal_those_of_one_pass(model, naive_nlls, chunk_tokens: int, first_scored: int) -> None:
    ids = torch.randint(3, 61, (1, 54))
    expected = naive_nlls(copy.deepcopy(model), ids[0].tolist())[first_scored - 1 :]
    # Three positions' logits at a time.
    nlls = token_nlls(model, ids, first_scored, chunk_tokens=chunk_tokens, logits_bytes=3 * 4 * 61)
    assert nlls.dtype == torch.float64
    np.testing.assert_allclose(nlls[0].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_tables_that_follow_the_length_forget_longer_inputs(kind: str, naive_nlls) -> None:
    model = make_family(kind)
    fresh = copy.deepcopy(model)
    token_nlls(model, torch.randint(3, 61, (1, 100)), chunk_tokens=16)
    ids = torch.randint(3, 61, (1, 54))
    expected = naive_nlls(fresh, ids[0].tolist())
    np.testing.assert_allclose(token_nlls(model, ids, chunk_tokens=16)[0].numpy(), expected, rtol=1e-5, atol=1e-6)
    hooks = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert not hooks, "hooks stay behind"


def test_a_batch_gives_what_each_input_gives(tiny_llama, monkeypatch) -> None:
    # Exponentials of three positions of three inputs at a time, or of ten of one.
    monkeypatch.setattr(forward, "_SUMMED_BYTES", 10 * 4 * 257)
    ids = torch.randint(0, 256, (3, 40))
    together = token_nlls(tiny_llama, ids, 20, chunk_tokens=8)
    alone = torch.cat([token_nlls(tiny_llama, row[None], 20, chunk_tokens=11) for row in ids])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_no_logits_but_the_asked_ones_and_never_many(tiny_llama) -> None:
    shapes: list[torch.Size] = []
    tiny_llama.lm_head.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    pieces = list(
        logit_pieces(tiny_llama, torch.randint(0, 256, (1, 300)), 250, chunk_tokens=32, logits_bytes=7 * 4 * 257)
    )
    assert sum(shape[1] for shape in shapes) == 50
    assert max(shape[1] for shape in shapes) == 7
    assert [position for piece in pieces for position in piece.first + np.arange(piece.logits.shape[1])] == list(
        range(250, 300)
    )


def test_attention_never_sees_a_square_of_the_length(tiny_llama) -> None:
    ids = torch.randint(0, 256, (1, 401))
    assert max(masked_entries(tiny_llama, lambda: token_nlls(tiny_llama, ids, 396, chunk_tokens=16))) <= 16 * 400


@pytest.mark.parametrize(
    ("kind", "dtype", "pass_bytes", "shown"),
    [("llama", torch.float32, 2**30, [32, 18])]
    # Chunks without a mask are made for two types of number.
    + [("llama", torch.float64, 2**30, [50]), ("llama", torch.float64, 2**10, [16, 16, 16, 2])]
    + [(kind, torch.float32, 2**30, [16, 16, 16, 2]) for kind in ("llama-eager", "mistral", "gemma3")],
)
def test_chunks_without_a_mask_or_one_pass_where_it_is_light(kind, dtype, pass_bytes, shown, monkeypatch) -> None:
    monkeypatch.setattr(chunks, "_PASS_BYTES", pass_bytes)
    monkeypatch.setattr(chunks, "_CHUNK_TOKENS", {"cpu": 16})
    model = make_family(kind).to(dtype)
    seen: list[tuple[int, bool]] = []

    def note(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append((args[0].shape[1], kwargs.get("attention_mask") is not None))

    model.model.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    list(logit_pieces(model, torch.randint(3, 61, (1, 50))))
    assert [tokens for tokens, _ in seen] == shown
    if max(shown) > 16:
        assert not any(masked for _, masked in seen), "a mask of n x n"


@pytest.mark.parametrize(
    ("device", "free", "inside", "columns"),
    [
        ("cpu", 2**40, 48, 1000),
        # 1000 tokens of (16 * 32 + 4 * 48) floats are 2.8 MB, and with a wide feed-forward 1.05 GB.
        ("cpu", 2 * 2_816_000, 48, 1000),
        ("cpu", 2 * 2_816_000 - 2, 48, 512),
        ("cpu", 2 * 2_816_000, 49, 512),
        ("cuda", 2**40, 48, 1000),
        ("mps", 2**40, 48, 1024),
    ],
)
def test_one_pass_where_the_device_has_room_for_it_and_attends_without_a_square(
    device, free, inside, columns, monkeypatch
) -> None:
    monkeypatch.setattr(chunks, "free_bytes", lambda device: free)
    config = make_llama(intermediate_size=inside).config
    model = SimpleNamespace(config=config, dtype=torch.float32, device=torch.device(device))
    assert chunks.pass_columns(model, 1, 1000) == columns


def test_a_cpu_says_what_is_free() -> None:
    free = chunks.free_bytes(torch.device("cpu"))
    assert 2**20 < free <= psutil.virtual_memory().total


def test_a_model_with_adapters_scores_as_the_merged_one_does(tiny_llama, naive_nlls) -> None:
    wrapped = with_adapters(tiny_llama)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    ids = torch.randint(0, 256, (1, 60))
    expected = naive_nlls(merged, ids[0].tolist())
    assert not np.allclose(expected, naive_nlls(make_llama(), ids[0].tolist())), "adapters that do nothing"
    # At once, in chunks, and by slices of a chunk's hidden states.
    cases: list[dict[str, Any]] = [{}, {"chunk_tokens": 16}, {"chunk_tokens": 16, "logits_bytes": 3 * 4 * 257}]
    for limits in cases:
        nlls = token_nlls(wrapped, ids, **limits)[0].numpy()
        np.testing.assert_allclose(nlls, expected, rtol=1e-4, atol=1e-5)


def test_adapters_that_lengthen_the_input_are_refused(tiny_llama) -> None:
    wrapped = get_peft_model(tiny_llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ConfigError, match="PROMPT_TUNING"):
        token_nlls(wrapped, torch.randint(0, 256, (1, 20)))


def spoil_token(model: Any, value: float) -> None:
    """From now on the logit of token 77 is `value` everywhere."""

    def spoil(module: torch.nn.Module, args: tuple, logits: torch.Tensor) -> None:
        logits[..., 77] = value

    model.lm_head.register_forward_hook(spoil)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "trial 3: .*NaN at position 9"),
        (float("inf"), "trial 3: .*infinite at position 9"),
        (float("-inf"), "trial 3: token 77 at position 25 .*infinite"),
    ],
)
def test_infinite_scores_stop_with_the_token(tiny_llama, value: float, message: str) -> None:
    spoil_token(tiny_llama, value)
    ids = torch.randint(0, 70, (2, 40))
    ids[1, 25] = 77
    with pytest.raises(CheckpointError, match=message):
        token_nlls(tiny_llama, ids.flip(0), 10, where=["trial 3", "trial 2"], chunk_tokens=8)


def test_a_token_that_cannot_be_is_no_fault_elsewhere(tiny_llama) -> None:
    ids = torch.randint(0, 70, (1, 40))
    spoil_token(tiny_llama, float("-inf"))
    assert token_nlls(tiny_llama, ids).isfinite().all()


def test_nan_logits_stop_with_the_place(tiny_llama) -> None:
    poison = 200
    with torch.no_grad():
        tiny_llama.model.embed_tokens.weight[poison] = float("nan")
    ids = torch.randint(0, 200, (2, 40))
    # The first of a chunk: a masked NaN is still one for the tokens of its chunk that come before it.
    ids[1, 24] = poison
    with pytest.raises(CheckpointError, match=r"trial 3: .*NaN at position 24"):
        token_nlls(tiny_llama, ids, 10, where=["passkey, trial 2", "passkey, trial 3"], chunk_tokens=8)


def test_lengths_beyond_the_window_are_refused_unless_meant(tiny_llama) -> None:
    check_length(tiny_llama.config, 512, allow_beyond=False)
    check_length(tiny_llama.config, 513, allow_beyond=True)
    with pytest.raises(ConfigError, match=r"513 .*512"):
        check_length(tiny_llama.config, 513, allow_beyond=False)

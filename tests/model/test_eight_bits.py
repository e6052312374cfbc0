"""Linear layers in 8 bits."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import family_config, tiny_model
from torch import nn

from skipwise.errors import ConfigError
from skipwise.model import check_weights, eight_bits, hold_in_eight_bits
from skipwise.model._transformers import int8_product, multiplies_bfloat16
from skipwise.model.eight_bits import Int8Head, Int8Linear

IDS = torch.randint(0, 250, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _drawn_alike() -> Iterator[None]:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("has_products", [False, True])
@pytest.mark.parametrize("kind", [Int8Linear, Int8Head])
def test_computes_with_codes_and_steps(
    kind: type[Int8Linear], has_products: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eight_bits, "multiplies_bfloat16", lambda: has_products)
    layer, inputs = nn.Linear(64, 257), torch.randn(2, rows, 64)
    packed = kind(layer)
    steps = layer.weight.abs().amax(1, keepdim=True) / 127
    assert (packed.weight - layer.weight).abs().div(steps).max() <= 0.76
    expected = inputs.double() @ packed.weight.double().T + layer.bias.double()
    torch.testing.assert_close(packed(inputs).double(), expected, rtol=0, atol=float(expected.abs().max()) * 2**-7)
    assert packed(inputs.bfloat16()).dtype == torch.bfloat16
    assert kind(layer.bfloat16()).weight.dtype == torch.bfloat16
    assert packed(inputs[:, :0]).shape == (2, 0, 257)


def test_a_row_of_zeros_and_a_row_of_one_large_number_keep_their_values() -> None:
    layer = nn.Linear(32, 2, bias=False)
    layer.weight.zero_()
    layer.weight[1, 5] = 1e4
    assert torch.equal(Int8Linear(layer).weight[0], torch.zeros(32))
    torch.testing.assert_close(Int8Linear(layer).weight[1], layer.weight[1], rtol=2**-8, atol=0)


def test_the_likeliest_logits_are_not_rounded_to_16_bits() -> None:
    head, hidden = Int8Head(nn.Linear(64, 1000, bias=False)), 30 * torch.randn(1, 5, 64)
    logits, exact = head(hidden), hidden @ head.weight.T
    torch.testing.assert_close(logits.topk(32).values, exact.topk(32).values, rtol=1e-5, atol=1e-4)
    assert torch.equal(logits.argmax(-1), exact.argmax(-1))
    # The others are.
    assert (logits - exact).abs().max() > 1e-3


def linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is nn.Linear]


@pytest.mark.parametrize("family", ["llama", "gemma3", "cohere", "deepseek_v3"])
def test_a_model_computes_nearly_the_same(family: str) -> None:
    model: Any = tiny_model(family_config(family)).eval()
    expected = model(IDS).logits
    hold_in_eight_bits([model])
    logits = model(IDS).logits
    assert 0 < (logits - expected).abs().max() < 0.1 * expected.std()
    assert isinstance(model.get_output_embeddings(), Int8Head)
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_layers_that_two_models_share_stay_shared_and_additions_in_full() -> None:
    model: Any = tiny_model(family_config("llama", intermediate_size=64))
    other: Any = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(owner), leaf, parameter)
    wrapped: Any = get_peft_model(other, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    long = wrapped.get_base_model()
    expected = long(IDS).logits
    hold_in_eight_bits([model, long])
    layer = long.model.layers[0].self_attn.q_proj
    assert layer.base_layer is model.model.layers[0].self_attn.q_proj
    assert linears(model) == []
    assert all(".lora_" in name for name in linears(long))
    assert 0 < (long(IDS).logits - expected).abs().max() < 0.1 * expected.std()


def test_layers_of_an_odd_width_stay_as_they_are() -> None:
    model: Any = tiny_model(family_config("llama", intermediate_size=40))
    hold_in_eight_bits([model])
    assert {name.rpartition(".")[2] for name in linears(model)} == {"down_proj"}
    with pytest.raises(ConfigError, match="no linear layer"):
        hold_in_eight_bits([model])


def test_weights_are_checked_before_anything_is_loaded() -> None:
    check_weights("int8", None)
    check_weights("int8", "cpu")
    check_weights("full", "cuda")
    for weights, device, about in (("int4", None, "full or int8"), ("int8", "cuda:0", "cuda")):
        with pytest.raises(ConfigError, match=about):
            check_weights(weights, device)


@pytest.mark.parametrize("rows", [1, 4, 5, 33])
def test_the_product_of_torch_takes_any_number_of_outputs(rows: int) -> None:
    inputs, codes = torch.randn(rows, 96).bfloat16(), torch.randint(-127, 128, (33, 96), dtype=torch.int8)
    steps = torch.rand(33).bfloat16()
    expected = inputs.double() @ (codes.double() * steps.double()[:, None]).T
    found = int8_product(inputs, codes, steps)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=float(expected.abs().max()) * 2**-8)
    assert multiplies_bfloat16() in (True, False)

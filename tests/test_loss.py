"""The chunked loss is the model's own, as exact as the naive one, and never holds the logits of a window."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import SHAPE, SHARP, tiny_config, tiny_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaForCausalLM, PreTrainedConfig

import skipwise.loss
from skipwise.config import LoraTuning
from skipwise.loss import IGNORED, NextTokenLoss, diluted_mask, training_inputs, use_chunked_loss
from skipwise.positions import PoSE
from skipwise.train.arguments import CHECKPOINTING
from skipwise.train.tuning import apply_tuning
from skipwise.window import Window

VOCABULARY, TOKENS, ROWS = SHAPE["vocab_size"], 24, 5
SLICED = 4 * VOCABULARY * ROWS
"""`chunk_bytes` by which the head sees a few rows at a time, the last slice not full."""

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, untied": ("llama", {"tie_word_embeddings": False}),
    "gemma 2, soft cap": ("gemma2", {"head_dim": 16, "final_logit_softcapping": 2.0, "sliding_window": 8}),
    "cohere, scaled": ("cohere", {"logit_scale": 0.3}),
    "granite, scaled": ("granite", {"logits_scaling": 3.0}),
    "gpt-neox": ("gpt_neox", {"partial_rotary_factor": 0.5}),
    "mixture of experts": ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "phi, bias": ("phi", {"partial_rotary_factor": 0.5}),
}


def config_of(family: str, **changes: Any) -> PreTrainedConfig:
    model_type, settings = FAMILIES[family]
    return tiny_config(model_type, **SHARP | settings | changes)


def build(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    model = tiny_model(config_of(family, **changes), seed=3, dtype=dtype)
    # The library's grouped product of experts knows no float64.
    model.config._experts_implementation = "eager"
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # Zero as they are made.
            nn.init.normal_(parameter, std=0.3)
    return model.train()


@pytest.fixture
def llama() -> Any:
    return build("llama, untied")


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Two windows with a skip each, some labels masked."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(VOCABULARY, (2, TOKENS), generator=generator)
    positions = torch.arange(TOKENS).repeat(2, 1)
    positions[0, 10:] += 100
    positions[1, 15:] += 37
    labels = ids.clone()
    labels[0, 10], labels[1, 3:9] = IGNORED, IGNORED
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def naive_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The reference of `NextTokenLoss`'s docstring; float64 logits stay as they are."""
    logits = model(**training_inputs(batch["input_ids"], batch["position_ids"])).logits
    if logits.dtype != torch.float64:
        logits = logits.float()
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_error(found: Tensor, truth: Tensor) -> float:
    found, truth = found.detach().double(), truth.detach().double()
    return float((found - truth).norm() / truth.norm().clamp(min=1e-30))


def assert_as_exact_as_naive(
    model: Any, truth_model: Any, batch: dict[str, Tensor], slack: float, autocast: bool
) -> None:
    """Value and every gradient lie as near to the truth as the naive version's do."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, naive = NextTokenLoss(model, SLICED)(**batch), naive_loss(model, batch)
    truth = naive_loss(truth_model, batch)
    assert loss.dtype == torch.float32
    assert relative_error(loss, truth) <= 2 * relative_error(naive, truth) + slack
    found, own, true = gradients(model, loss), gradients(model, naive), gradients(truth_model, truth)
    assert found.keys() == own.keys() == true.keys()
    for name, gradient in true.items():
        assert found[name].dtype == own[name].dtype
        allowed = 2 * relative_error(own[name], gradient) + slack
        assert relative_error(found[name], gradient) <= allowed, name


@pytest.mark.parametrize(
    ("family", "dtype", "autocast", "slack"),
    [
        *((family, torch.float32, False, 1e-6) for family in FAMILIES),
        *((family, torch.bfloat16, False, 2e-3) for family in ("llama, tied", "gemma 2, soft cap")),
        ("llama, untied", torch.float32, True, 2e-3),
    ],
)
def test_value_and_every_gradient_are_as_exact_as_the_naive_loss(
    family: str, dtype: torch.dtype, autocast: bool, slack: float, batch: dict[str, Tensor]
) -> None:
    model = build(family, dtype=dtype)
    # The truth is of twice the precision; of autocast, that of the same weights without.
    truth_model = copy.deepcopy(model).to(torch.float64 if slack == 1e-6 else torch.float32)
    assert_as_exact_as_naive(model, truth_model, batch, slack, autocast)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_heads_gradient_stays_exact_over_many_slices(dtype: torch.dtype) -> None:
    """A sum that is rounded to 16 bits after every slice drifts from the truth as the slices grow more."""
    model = build("llama, untied", dtype=dtype)
    ids = torch.randint(VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(5))
    batch = {"input_ids": ids, "position_ids": torch.arange(64).repeat(4, 1), "labels": ids}
    truth_model = copy.deepcopy(model).float()
    true, own, found = (
        gradients(of, loss)["lm_head.weight"]
        for of, loss in (
            (truth_model, naive_loss(truth_model, batch)),
            (model, naive_loss(model, batch)),
            (model, NextTokenLoss(model, 4 * VOCABULARY * 2)(**batch)),  # 126 slices
        )
    )
    assert found.dtype == dtype
    assert relative_error(found, true) <= relative_error(own, true) + 1e-4


def weighted_truth(model: Any, batch: dict[str, Tensor], weights: Tensor | None, distill: float) -> Tensor:
    """Label by label, from whole logits: weight * (cross entropy + distill * KL(short || skipped)) / labels."""
    ids, labels = batch["input_ids"], batch["labels"]
    logits = model(**training_inputs(ids, batch["position_ids"])).logits.double()
    short = model(**training_inputs(ids, torch.arange(TOKENS).repeat(2, 1))).logits.double().detach()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(2):
        for place in range(1, TOKENS):
            if labels[row, place] == IGNORED:
                continue
            found, wanted = logits[row, place - 1].softmax(-1), short[row, place - 1].softmax(-1)
            loss = -found[labels[row, place]].log() + distill * (wanted * (wanted / found).log()).sum()
            total = total + loss * (1.0 if weights is None else weights[row, place].double())
            count += 1
    return total / count


@pytest.mark.parametrize("family", ["llama, tied", "gemma 2, soft cap", "phi, bias"])
@pytest.mark.parametrize(("weighted", "distill"), [(True, 0.0), (False, 0.7), (True, 0.7)])
def test_weights_and_divergence_are_those_of_a_loop_over_labels(
    family: str, weighted: bool, distill: float, batch: dict[str, Tensor]
) -> None:
    model = build(family)
    weights = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(9)) + 0.5 if weighted else None
    truth_model = copy.deepcopy(model).double()
    loss = NextTokenLoss(model, SLICED, distill=distill)(**batch, label_weights=weights)
    truth = weighted_truth(truth_model, batch, weights, distill)
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
    found, true = gradients(model, loss), gradients(truth_model, truth)
    assert found.keys() == true.keys()
    for name, gradient in true.items():
        assert relative_error(found[name], gradient) < 2e-4, name


def test_without_skips_there_is_nothing_to_distill(llama: Any, batch: dict[str, Tensor]) -> None:
    batch["position_ids"] = torch.arange(TOKENS).repeat(2, 1)
    plain = NextTokenLoss(llama, SLICED)(**batch)
    assert NextTokenLoss(llama, SLICED, distill=1.0)(**batch).item() == pytest.approx(plain.item(), rel=1e-5)


def test_gradient_checkpointing_changes_nothing(llama: Any, batch: dict[str, Tensor]) -> None:
    plain = gradients(llama, NextTokenLoss(llama, SLICED)(**batch))
    getattr(llama, CHECKPOINTING.replace("checkpointing", "checkpointing_enable"))({"use_reentrant": False})
    kept = gradients(llama, NextTokenLoss(llama, SLICED)(**batch))
    assert all(torch.equal(kept[name], gradient) for name, gradient in plain.items())


def test_slices_of_any_size_give_the_same(llama: Any, batch: dict[str, Tensor]) -> None:
    losses = [NextTokenLoss(llama, 4 * VOCABULARY * rows)(**batch).item() for rows in (0, 1, 7, 1000)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_without_gradients_only_the_value_is_made(llama: Any, batch: dict[str, Tensor]) -> None:
    trained = NextTokenLoss(llama, SLICED)(**batch)
    with torch.no_grad():
        value = NextTokenLoss(llama.eval(), SLICED)(**batch)
    assert not value.requires_grad
    assert value.item() == trained.item()


def test_a_window_without_labels_costs_nothing_and_trains_nothing(llama: Any, batch: dict[str, Tensor]) -> None:
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    loss = NextTokenLoss(llama, SLICED)(**batch)
    assert loss.item() == 0
    found = gradients(llama, loss)
    assert found.keys() == dict(llama.named_parameters()).keys()  # Data parallelism waits for every one of them.
    assert not any(gradient.any() for gradient in found.values())
    assert NextTokenLoss(llama, SLICED)(**batch, num_items=torch.tensor(0)).item() == 0


def test_the_first_label_of_a_window_is_never_scored(llama: Any, batch: dict[str, Tensor]) -> None:
    before = NextTokenLoss(llama, SLICED)(**batch)
    batch["labels"][:, 0] = IGNORED
    assert torch.equal(NextTokenLoss(llama, SLICED)(**batch), before)


def test_accumulated_parts_are_the_whole(llama: Any, batch: dict[str, Tensor]) -> None:
    loss = NextTokenLoss(llama, SLICED)
    whole = gradients(llama, loss(**batch))
    count = (batch["labels"][:, 1:] != IGNORED).sum()
    llama.zero_grad()
    for row in range(2):
        loss(**{name: value[row : row + 1] for name, value in batch.items()}, num_items=count).backward()
    for name, parameter in llama.named_parameters():
        assert torch.allclose(parameter.grad, whole[name], rtol=1e-4, atol=1e-7), name
    assert loss(**batch, num_items=10).item() == pytest.approx(loss(**batch).item() * int(count) / 10)


def test_a_second_backward_pass_is_refused_not_wrong(llama: Any, batch: dict[str, Tensor]) -> None:
    loss = NextTokenLoss(llama, SLICED)(**batch)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


class WithProjection(LlamaForCausalLM):
    """A model with a trained layer between decoder and head."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, logits_to_keep: int | Tensor = 0, **inputs: Any) -> Any:  # pyright: ignore
        outputs = self.model(**inputs)
        return type("Output", (), {"logits": self.lm_head(self.projection(outputs.last_hidden_state).tanh())})


def test_every_layer_beside_the_decoder_gets_its_gradient(batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model = WithProjection(config_of("llama, untied"))
    found = gradients(model, NextTokenLoss(model, SLICED)(**batch))
    for name, gradient in gradients(model, naive_loss(model, batch)).items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("family", ["llama, tied", "llama, untied", "phi, bias"])
@pytest.mark.parametrize("in_full", [False, True])
def test_low_rank_additions_get_the_naive_gradients(family: str, in_full: bool, batch: dict[str, Tensor]) -> None:
    model = build(family)
    wrapped = apply_tuning(model, LoraTuning(rank=2, train_norms=in_full, train_embeddings=in_full))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:  # Zero as they are made, which would hide lora_A's gradients.
            nn.init.normal_(parameter, std=0.1)
    own = gradients(wrapped, naive_loss(wrapped, batch))
    use_chunked_loss(model)
    found = gradients(wrapped, wrapped(**batch)["loss"])
    assert found.keys() == own.keys()
    assert any("embed" in name for name in found) == in_full
    for name, gradient in own.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-6), name


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation gave out, forwards or backwards."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
        return out


@pytest.mark.parametrize("tied", [False, True])
def test_no_tensor_of_tokens_by_vocabulary_is_ever_made(tied: bool) -> None:
    vocabulary, tokens, rows = 2000, 96, 4
    model = build("llama, tied" if tied else "llama, untied", vocab_size=vocabulary)
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "position_ids": torch.arange(tokens)[None], "labels": ids}
    with LargestTensor() as largest:
        NextTokenLoss(model, 4 * vocabulary * rows)(**batch).backward()
    # Nothing is larger than the head itself, or than one slice of logits.
    assert largest.numel == vocabulary * max(rows, SHAPE["hidden_size"])
    with LargestTensor() as largest:
        naive_loss(model, batch).backward()
    assert largest.numel >= vocabulary * (tokens - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_product_is_told_from_all_other_heads(
    family: str, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for kind in (skipwise.loss._LinearCrossEntropy, skipwise.loss._ChunkedLoss):
        monkeypatch.setattr(
            kind, "apply", lambda *given, kind=kind, apply=kind.apply: taken.append(kind) or apply(*given)
        )
    model = build(family)
    for _ in range(2):
        NextTokenLoss(model, SLICED)(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        NextTokenLoss(model, SLICED)(**batch)
    one_product = not any(word in family for word in ("soft cap", "scaled", "bias"))
    kind = skipwise.loss._LinearCrossEntropy if one_product else skipwise.loss._ChunkedLoss
    assert taken == [kind, kind, skipwise.loss._ChunkedLoss]


@pytest.mark.parametrize("watch", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_head_with_hooks_is_called(llama: Any, batch: dict[str, Tensor], watch: str) -> None:
    """As sharding and offloading put them there: outside of its own forward the weight may not be there at all."""
    plain, calls = NextTokenLoss(llama, SLICED)(**batch), []
    getattr(llama.lm_head, watch)(lambda *_: calls.append(1))
    assert NextTokenLoss(llama, SLICED)(**batch).item() == pytest.approx(plain.item(), rel=1e-6)
    assert len(calls) > 1


@pytest.mark.parametrize(
    ("vocabulary", "width", "mib"),
    # A quarter of a head that is trained, where that is more than 64 MiB.
    [(97, 4, 64), (32_000, 4, 64), (262_144, 4, 64), (262_144, 2304, 576)],
)
def test_the_default_slice_is_bounded_for_any_vocabulary(vocabulary: int, width: int, mib: int) -> None:
    with torch.device("meta"):
        model = tiny_model(config_of("llama, untied", vocab_size=vocabulary, hidden_size=width, head_dim=2))
    loss = NextTokenLoss(model)
    assert loss._slice_bytes(loss._head_parameters()) == mib * 2**20
    assert mib * 2**20 // (4 * vocabulary) >= 64
    model.lm_head.requires_grad_(False)
    assert loss._slice_bytes(loss._head_parameters()) == 64 * 2**20


def test_forward_gives_the_loss_only_where_labels_are_given(llama: Any, batch: dict[str, Tensor]) -> None:
    inputs = training_inputs(batch["input_ids"], batch["position_ids"])
    logits = llama(**inputs).logits
    naive = llama(**inputs, labels=batch["labels"])
    use_chunked_loss(llama)
    assert torch.equal(llama(**inputs).logits, logits)
    out = llama(**batch)
    assert out.keys() == {"loss"}
    assert out["loss"].item() == pytest.approx(naive.loss.item(), rel=1e-6)
    halved = llama(**batch, num_items_in_batch=2 * (batch["labels"][:, 1:] != IGNORED).sum())["loss"]
    assert halved.item() == pytest.approx(out["loss"].item() / 2)
    # Labels that are shifted already, as parts of a window have them.
    labels = batch.pop("labels")
    shifted = torch.cat([labels[:, 1:], torch.full((2, 1), IGNORED)], dim=1)
    assert llama(**batch, shift_labels=shifted)["loss"].item() == pytest.approx(out["loss"].item(), rel=1e-6)
    batch["labels"] = labels
    del llama.forward
    again = llama(**inputs, labels=batch["labels"])
    assert torch.equal(again.logits, logits)
    assert torch.equal(again.loss, naive.loss)


def test_the_decoder_is_left_as_it_was(llama: Any, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    NextTokenLoss(llama, SLICED)(**batch)
    assert "forward" not in vars(llama.base_model)

    own = llama.base_model.forward
    llama.base_model.forward = kept = lambda *args, **kwargs: own(*args, **kwargs)
    NextTokenLoss(llama, SLICED)(**batch)
    assert llama.base_model.forward is kept

    monkeypatch.setattr(llama.lm_head, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        NextTokenLoss(llama, SLICED)(**batch)
    assert llama.base_model.forward is kept


@pytest.fixture
def one_process_group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.parametrize("family", ["llama, tied", "llama, untied"])
def test_data_parallelism_sees_every_gradient(family: str, batch: dict[str, Tensor]) -> None:
    model = build(family)
    alone = gradients(model, NextTokenLoss(model)(**batch))
    use_chunked_loss(model)
    model.zero_grad()
    nn.parallel.DistributedDataParallel(model)(**batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, alone[name]), name


def test_diluted_mask_is_what_its_formula_says() -> None:
    """Against loops over queries and keys, on positions of one, two and several chunks."""
    rng, window = np.random.default_rng(0), Window(train=24, original=32, target=400)
    samples = [PoSE(chunks=chunks, skips="flat").sample(24, window, rng) for chunks in (1, 2, 2, 5, 24)]
    positions = np.stack([sample.position_ids for sample in samples])
    diluted = torch.tensor([True, True, False, True, True])
    mask = diluted_mask(torch.from_numpy(positions), diluted)
    assert mask.shape == (5, 1, 24, 24)
    for row, ids in enumerate(positions):
        begins = [0, *(np.flatnonzero(np.diff(ids) != 1) + 1)]
        for query in range(24):
            for key in range(24):
                chunk = sum(begin <= key for begin in begins) - 1
                after = begins[chunk + 1] if chunk + 1 < len(begins) else 24
                expected = 0.0
                if key > query:
                    expected = torch.finfo(torch.float32).min
                elif query >= after and diluted[row]:
                    expected = math.log((ids[after] - ids[begins[chunk]]) / (after - begins[chunk]))
                assert mask[row, 0, query, key].item() == pytest.approx(expected, rel=1e-6), (row, query, key)


def test_a_diluted_key_counts_as_often_as_it_stands_for_others() -> None:
    """A chunk of 4 tokens and a skip of 8: each of its keys is there three times for the chunk behind it."""
    torch.manual_seed(0)
    positions = torch.tensor([[0, 1, 2, 3, 12, 13]])
    query, key, value = torch.randn(3, 1, 2, 6, 8)
    mask = diluted_mask(positions, torch.tensor([True]))
    found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)[:, :, 4:]
    thrice = [0, 1, 2, 3] * 3 + [4, 5]
    causal = torch.ones(2, 14, dtype=torch.bool).tril(12)
    expected = nn.functional.scaled_dot_product_attention(
        query[:, :, 4:], key[:, :, thrice], value[:, :, thrice], attn_mask=causal
    )
    torch.testing.assert_close(found, expected)


def test_dilution_changes_the_loss_of_its_own_rows_only(llama: Any) -> None:
    ids = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(5))
    positions = torch.arange(12).repeat(2, 1)
    positions[:, 5:] += 100
    loss = NextTokenLoss(llama)
    plain = loss(ids, positions, ids)
    torch.testing.assert_close(loss(ids, positions, ids, diluted=torch.tensor([False, False])), plain)
    both, first = (loss(ids, positions, ids, diluted=torch.tensor(rows)) for rows in ([True, True], [True, False]))
    assert not torch.allclose(both, plain)
    torch.testing.assert_close(
        loss(ids[:1], positions[:1], ids[:1], diluted=torch.tensor([True])) + loss(ids[1:], positions[1:], ids[1:]),
        2 * first,
    )


def test_hooks_of_a_layer_are_seen_and_can_be_left_out() -> None:
    """By private names of torch, which has no public ones for either."""
    layer = nn.Linear(2, 2, bias=False)
    assert not skipwise.loss._has_hooks(layer)
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
        hook = register(lambda *_: pytest.fail("it ran"))
        assert skipwise.loss._has_hooks(layer)
        with skipwise.loss._without_hooks(layer):
            layer(torch.ones(1, 2))
        assert skipwise.loss._has_hooks(layer)
        with pytest.raises(pytest.fail.Exception):
            layer(torch.ones(1, 2))
        hook.remove()

"""A session's logits are those of one pass over all that it has read, however it was read."""

from typing import Any

import pytest
import torch

from skipwise.errors import CheckpointError
from skipwise.runtime.caches import cache_name, empty_cache
from skipwise.runtime.session import Session

from .tiny import make_family, make_llama

N, LAST = 50, 30


@pytest.fixture(params=["llama", "llama-eager", "gemma2", "mistral", "dynamic"])
def model(request: pytest.FixtureRequest) -> Any:
    return make_family(request.param)


def test_prefill_and_steps_give_the_logits_of_one_pass(model: Any) -> None:
    ids = torch.randint(3, 61, (2, N))
    expected = model(input_ids=ids, use_cache=False).logits[:, -LAST:].detach()
    session = Session(model, empty_cache(model, 2, N), length=N)
    # The prefill's last chunk in pieces, then several columns at a time and one.
    pieces = list(session.prefill(ids[:, :40], LAST - 10, chunk_tokens=16, piece_tokens=9))
    assert [piece.shape[1] for piece in pieces] == [9, 3, 8]
    assert session.step(ids[:, 40:43], 0).shape[1] == 0
    with session.rewound():
        session.step(torch.full((2, 4), 7), 4)
    assert session.columns == 43
    found = [*pieces, session.step(ids[:, 43:49], 6), session.step(ids[:, 49:])]
    wanted = torch.cat([expected[:, :20], expected[:, 23:]], dim=1)
    torch.testing.assert_close(torch.cat(found, dim=1), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_the_cache_goes_by_the_name_that_the_library_has_for_it() -> None:
    model, ids = make_llama(), torch.randint(0, 256, (1, 12))
    session = Session(model, empty_cache(model, 1, 12), length=12)
    assert len(list(session.prefill(ids, 1, chunk_tokens=5))) == 1

    class Former(torch.nn.Module):
        def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...

    assert cache_name(Former()) == "past_key_values"


def test_rows_that_are_kept_and_padded_go_on_alone() -> None:
    model, ids = make_llama(), torch.randint(0, 256, (3, 12))
    padding = torch.tensor([0, 5, 2])
    session = Session(model, empty_cache(model, 3, 20), length=20, padding=padding, names=["a", "b", "c"])
    list(session.prefill(ids, chunk_tokens=5))
    session.keep([1, 2])
    token = torch.tensor([[9], [8]])
    for row, (logits, skipped) in enumerate(zip(session.step(token), (5, 2), strict=True)):
        alone = torch.cat([ids[row + 1, skipped:], token[row]])[None]
        torch.testing.assert_close(logits[-1], model(input_ids=alone).logits[0, -1], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    # Its thirteenth column and the second, of which two are padding.
    with pytest.raises(CheckpointError, match=r"b: .*NaN at position 8"):
        session.step(token)

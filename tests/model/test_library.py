"""What the transformers library computes with for a config, without the memory that its weights would take."""

import numpy as np
import pytest
from tiny_models import EXPERTS, LATENT, tiny_config

from skipwise.model.library import library_tables


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_tables_of_a_model_that_no_machine_could_hold(family: str) -> None:
    # Joined experts of a layer are one tensor, of 2**50 bytes here.
    huge = {
        "hidden_size": 1 << 14,
        "intermediate_size": 1 << 18,
        "moe_intermediate_size": 1 << 18,
        "num_local_experts": 1 << 15,
        "n_routed_experts": 1 << 15,
    }
    few = {"mixtral": EXPERTS, "deepseek_v3": LATENT, "gpt_oss": {"head_dim": 16}}[family]
    small, large = (tiny_config(family, **few | {"head_dim": 16} | more) for more in ({}, huge))
    found, expected = library_tables(large, 64), library_tables(small, 64)
    assert expected
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        assert np.array_equal(found[name].inv_freq, table.inv_freq)

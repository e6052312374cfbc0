"""What a fuzzer makes of the server's own description: no input of it gets an answer of 500 or more."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from serve.standin import StandIn

UNCHECKED = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
"""What hypothesis may find slow or hard in a schema that is not of its making."""


@pytest.mark.slow
def test_no_input_of_the_schema_is_answered_with_a_fault_of_ours(serve: Callable[..., Any]) -> None:
    running = serve(StandIn())
    schema = schemathesis.openapi.from_url(running.url + "/openapi.json")
    tried: list[int] = []
    for operation in schema.get_all_operations():
        operation = operation.ok()

        @settings(max_examples=150, deadline=None, suppress_health_check=UNCHECKED)
        @schemathesis_given(operation)
        def send(case: Any) -> None:
            response = case.call(timeout=30)
            tried.append(response.status_code)
            assert response.status_code < 500, (case.as_curl_command(), response.text)

        send()
    assert len(tried) > 300
    assert {200, 400} <= set(tried)
    assert running.engine.open == set()


def schemathesis_given(operation: Any) -> Callable[..., Any]:
    """Draws cases of an operation, valid ones and such as are not."""
    from hypothesis import given
    from hypothesis import strategies as st
    from schemathesis import GenerationMode

    modes = [operation.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]
    return given(case=st.one_of(modes))

"""What tasks refuse before a model runs: settings by name and value, and lengths that they cannot be measured at."""

import re
from typing import Any

import numpy as np
import pytest

from skipwise.errors import ConfigError, DataError
from skipwise.evals import TASK_GROUPS, make_task

from .tiny import BOS, PieceTokenizer, context_of, make_llama

RULER, REASONING = TASK_GROUPS["ruler"], TASK_GROUPS["reasoning"]

# Each task, and values that none of its settings may have.
SETTINGS: dict[str, dict[str, list[Any]]] = {
    "passkey": {"trials": [0, "many"], "num_depths": [2.0], "haystack": [["filler"], "hay"]},
    "needles": {
        "trials": [0],
        "num_needles": [1, 2000],
        "kinds": ["single", 5, [["single"]], [], ["single", "double"]],
        "max_new_tokens": ["64"],
        "haystack": ["hay"],
    },
    "perplexity": {"cut_tokens": ["abc", 0]},
    "sliding": {"cut_tokens": ["abc"], "stride_tokens": [1.5]},
    "truncated": {"num_documents": ["x"], "bos": [["never"]]},
    "nll_by_position": {"num_buckets": [None]},
    "longppl": {"min_gain": ["abc"], "max_nll": [True, float("nan")], "scorer": [5, ""], "short_tokens": [None]},
    "regression": {
        "base": ["", 5],
        "untrained": ["maybe"],
        "trust_remote_code": [1],
        "num_buckets": [0],
        "bos": ["sometimes"],
    },
    "serving": {"repeats": [0], "warm_ups": [-1]},
    "suite": {"folder": ["", None, 3]},
    **{name: {"trials": [0], "chat": ["yes"], "thinking_tokens": [9]} for name in (*RULER, *REASONING)},
}
SETTINGS["reasoning_associations"] |= {"num_people": [1, 13], "haystack": ["hay"], "num_depths": [0]}
SETTINGS["reasoning_alike"] |= {"num_alike": [1, 7], "haystack": ["hay"], "num_depths": [0]}
SETTINGS["reasoning_walks"] |= {"num_steps": [0, 9]}
SETTINGS["reasoning_chains"] |= {"num_gifts": [-1, 4], "haystack": ["hay"], "num_depths": [0]}


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_setting_out_of_range_is_named_with_its_value(kind: str) -> None:
    needed = {"regression": {"base": "x"}, "suite": {"folder": "x"}}.get(kind, {})
    for name, values in SETTINGS[kind].items():
        for value in values:
            with pytest.raises(ConfigError, match=rf"{kind}\.{name} is {re.escape(repr(value))}"):
                make_task({"kind": kind, **needed, name: value})


@pytest.mark.parametrize(
    ("kind", "trials", "depths", "such"), [("passkey", 25, 10, 20), ("needles", 7, 5, 5), ("reasoning_chains", 7, 5, 5)]
)
def test_trials_are_a_multiple_of_depths(kind: str, trials: int, depths: int, such: int) -> None:
    with pytest.raises(ConfigError, match=f"{trials} .* {depths} .* {such}"):
        make_task({"kind": kind, "trials": trials, "num_depths": depths})


QUICK = {"trials": 2, "num_depths": 2}
# Settings, lengths that can be measured, and lengths that cannot, with the numbers that are named.
LENGTHS: list[tuple[dict[str, Any], list[int], list[int], type[Exception], str]] = [
    ({"kind": "passkey", **QUICK}, [201, 300], [300, 200], ConfigError, "200 .* 201"),
    ({"kind": "passkey", **QUICK, "haystack": "documents"}, [201], [300, 200], ConfigError, "200 .* 201"),
    ({"kind": "needles", **QUICK}, [800], [800, 300], ConfigError, "300 .* 128"),
    (
        {"kind": "needles", **QUICK, "max_new_tokens": 24, "kinds": ["single", "multi_key"]},
        [800],
        [800, 300],
        ConfigError,
        "300 .* multi_key",
    ),
    ({"kind": "perplexity", "scored_tokens": 40}, [41, 120], [40, 120], ConfigError, "40, 120 with 40"),
    ({"kind": "perplexity", "scored_tokens": 8, "cut_tokens": 100}, [100], [120], ConfigError, "cut at 100"),
    ({"kind": "sliding", "stride_tokens": 40}, [41], [120, 40], ConfigError, "stride_tokens is 40"),
    *(({"kind": k}, [200, 300], [200, 400], DataError, "has 300") for k in ("perplexity", "sliding", "truncated")),
    ({"kind": "nll_by_position"}, [200, 300], [200, 400], DataError, "has 300"),
    ({"kind": "longppl", "short_tokens": 79}, [80, 120], [79, 120], ConfigError, "79 tokens .* 79"),
    ({"kind": "longppl", "short_tokens": 30}, [80, 120], [80, 400], DataError, "has 300"),
    ({"kind": "serving", "new_tokens": 64}, [65], [64], ConfigError, "64 tokens, of which 64"),
]


@pytest.mark.parametrize(("settings", "fitting", "refused", "error", "named"), LENGTHS)
def test_lengths_are_checked_before_the_model_runs(settings, fitting, refused, error, named: str, documents) -> None:
    model = make_llama()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    context = context_of(model, documents=documents)
    task = make_task(settings)
    task.check_lengths(context, fitting)
    with pytest.raises(error, match=named):
        task.check_lengths(context, refused)


@pytest.mark.parametrize("kind", ["passkey", "needles", "reasoning_alike"])
def test_a_haystack_has_text(kind: str) -> None:
    task = make_task({"kind": kind, "haystack": "documents"})
    with pytest.raises(DataError, match=" 1 "):
        task.check_lengths(context_of(documents=[np.array([BOS])]), [2000])


@pytest.mark.parametrize("name", RULER)
def test_the_smallest_prompt_of_a_ruler_task_must_fit(name: str) -> None:
    context = context_of(tokenizer=PieceTokenizer(), documents=[np.array([0, 0])])
    with pytest.raises(ConfigError, match=rf"{name} .* 140 .* \d+ "):
        make_task(name).check_lengths(context, [140])

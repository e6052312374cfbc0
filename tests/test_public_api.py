import ast
import importlib
import inspect

import pytest
from forked import launched

import skipwise

PUBLIC = [
    "INTERPOLATIONS",
    "SAMPLERS",
    "PoSE",
    "PositionSample",
    "RopeSpec",
    "RopeTable",
    "RunConfig",
    "TwoModes",
    "Window",
    "__version__",
    "calibrate",
    "coverage",
    "doctor",
    "errors",
    "evaluate",
    "extend",
    "load_model",
    "pilot",
    "plan",
    "save_model",
]


def test_the_public_names_are_exactly_these() -> None:
    assert skipwise.__all__ == PUBLIC
    assert dir(skipwise) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(skipwise, name) is not None


@pytest.mark.parametrize(
    ("package", "names"),
    [
        (
            "plan",
            "MACHINES Advice Approach ByTarget Deployment Job Machine ModelShape Plan PlanConfig ServingEstimate "
            "TrainingEstimate Utilisation check_plan plan this_cpu",
        ),
        (
            "report",
            "Arm Curve Decision EffectiveLength Evidence Figure MeanScore Measure Report Section Table basis decide "
            "depth_grid draw_coverage effective_length enough_trials least_samples mean_scores perplexity_by_length "
            "read_evidence render_page results_table short_limit state_attention_factor state_effective_length "
            "state_results table_of write_model_card",
        ),
    ],
)
def test_packages_export_these_names(package: str, names: str) -> None:
    found = importlib.import_module(f"skipwise.{package}")
    assert found.__all__ == names.split()
    assert all(getattr(found, name) is not None for name in found.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'skipwise' has no attribute 'no_such'"):
        skipwise.no_such  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_a_function_is_not_hidden_by_the_module_of_its_own_name() -> None:
    # The order of the first imports is what matters: the module first, then the public name.
    names = [name for name, home in skipwise._HOMES.items() if name == home]
    assert {"coverage", "doctor"} <= set(names)
    launched(
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    for module in [module for module in sys.modules if module.split('.')[0] == 'skipwise']:\n"
        "        del sys.modules[module]\n"
        "    inner = getattr(importlib.import_module(f'skipwise.{name}'), name)\n"
        "    assert getattr(importlib.import_module('skipwise'), name) is inner, name\n"
    )


def test_type_checkers_are_told_the_same_homes_as_the_interpreter() -> None:
    tree = ast.parse(inspect.getsource(skipwise))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    told = {
        alias.name: node.module.removeprefix("skipwise.")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert told == skipwise._HOMES

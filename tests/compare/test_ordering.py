"""The ordering of methods on a small version of the recorded comparison.

PoSE's place is the paper's (arXiv 2309.10400, table 1); that the default recipe is better is what our records say.
"""

from pathlib import Path

import pytest

from skipwise.compare import Comparison, compare
from skipwise.config.reading import read_settings

ROOT = Path(__file__).parents[2]
SIZES = {
    "arms": ["base", "interpolation-only", "randpos", "pose", {"name": "default", "like": "recipe"}],
    "target": "2k",
    "evaluation": {"lengths": ["256", "2k"], "tasks": [{"kind": "perplexity", "num_documents": 12}]},
}


@pytest.mark.slow
def test_the_default_is_better_than_pose_and_pose_than_all_else_by_more_than_the_interval(tmp_path: Path) -> None:
    recorded = read_settings(ROOT / "benchmarks" / "comparisons" / "five-x16.yaml")
    training = {**recorded["training"], "max_steps": 50, "disable_tqdm": True}
    small = {**recorded, **SIZES, "training": training, "output": str(tmp_path / "compared")}
    results = compare(Comparison.from_mapping(small))
    assert results.failed == []
    beside_pose = {one.arm: one for one in results.differences if one.length_tokens == 2048}
    assert set(beside_pose) == {"base", "interpolation-only", "randpos", "default"}
    default = beside_pose.pop("default")
    assert default.ci_high is not None
    assert default.ci_high < 0, "the default recipe is not better than PoSE by more than the interval"
    for arm, difference in beside_pose.items():
        assert difference.num_pairs == 12
        assert difference.ci_low is not None
        assert difference.ci_low > 0, f"{arm} is not worse than PoSE by more than the interval"

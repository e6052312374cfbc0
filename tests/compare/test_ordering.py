"""The paper's ordering of methods (PoSE, arXiv 2309.10400, table 1), on a small version of the recorded comparison."""

from pathlib import Path

import pytest

from skipwise.compare import Comparison, compare
from skipwise.config.reading import read_settings

ROOT = Path(__file__).parents[2]
SIZES = {
    "arms": ["base", "interpolation-only", "randpos", "pose"],
    "target": "2k",
    "evaluation": {"lengths": ["256", "2k"], "tasks": [{"kind": "perplexity", "num_documents": 12}]},
}


@pytest.mark.slow
def test_pose_is_better_than_what_it_is_compared_with_by_more_than_the_interval(tmp_path: Path) -> None:
    recorded = read_settings(ROOT / "benchmarks" / "comparisons" / "five-x16.yaml")
    training = {**recorded["training"], "max_steps": 50, "disable_tqdm": True}
    small = {**recorded, **SIZES, "training": training, "output": str(tmp_path / "compared")}
    results = compare(Comparison.from_mapping(small))
    assert results.failed == []
    beside_pose = {one.arm: one for one in results.differences if one.length_tokens == 2048}
    assert set(beside_pose) == {"base", "interpolation-only", "randpos"}
    for arm, difference in beside_pose.items():
        assert difference.num_pairs == 12
        assert difference.ci_low is not None
        assert difference.ci_low > 0, f"{arm} is not worse than PoSE by more than the interval"

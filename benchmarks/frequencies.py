"""Rotary frequencies chosen by needles beside YaRN's rule, at sixteen times the window: untrained, and trained.

    python benchmarks/frequencies.py --folder runs/frequencies-x16 --seeds 0,1,2

Searches with `skipwise calibrate rope`, unless the folder has its result already; writes the comparison with what was
found, whether or not it is measurably better than the rule; and runs it, or goes on with it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

BELOW = Path(__file__).parent / "comparisons" / "newer-methods-x16.yaml"
KINDS = ("yarn", "longrope")


def found(folder: Path, kind: str, more: list[str]) -> dict[str, Any]:
    """The best interpolation of a search, with the judgement on it."""
    file = folder / f"{kind}.json"
    if not file.is_file():
        command = ["calibrate", "rope", "embedded", "--target", "4k", "--kind", kind, "--json", *more]
        done = subprocess.run(
            [sys.executable, "-m", "skipwise", *command], check=True, stdout=subprocess.PIPE, text=True
        )
        file.write_text(done.stdout, encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def comparison(folder: Path, seeds: list[int], by_kind: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The arms of `newer-methods-x16.yaml` give way to these; everything else is as there."""
    arms: list[Any] = [{"name": "growing", "like": "recipe"}, "pose", "interpolation-only"]
    for kind, searched in by_kind.items():
        best = {"interpolation": searched["best"]}
        arms += [
            {"name": f"{kind} searched, untrained", "like": "interpolation-only", **best},
            {"name": f"{kind} searched, growing", "like": "recipe", **best},
            {"name": f"{kind} searched, pose", "like": "pose", **best},
        ]
    shared = yaml.safe_load(BELOW.read_text(encoding="utf-8"))
    return {**shared, "arms": arms, "reference": "growing", "seeds": seeds, "output": str(folder / "compared")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/frequencies-x16"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--candidates", default="48")
    parser.add_argument("--trials", default="16")
    parser.add_argument("--judged", default="48")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    more = ["--candidates", given.candidates, "--trials", given.trials, "--judged", given.judged]
    by_kind = {kind: found(given.folder, kind, more) for kind in KINDS}
    for kind, searched in by_kind.items():
        print(kind, json.dumps(searched))
    settings = comparison(given.folder, [int(seed) for seed in given.seeds.split(",")], by_kind)
    file = given.folder / "comparison.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    begun = ["--resume"] if (given.folder / "compared").is_dir() else []
    subprocess.run([sys.executable, "-m", "skipwise", "compare", str(file), *begun], check=True)


if __name__ == "__main__":
    main()

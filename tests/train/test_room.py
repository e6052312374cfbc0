"""What a process may still take of memory, by limits that others set."""

import resource
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny_runs import weights

from skipwise.config import RunConfig
from skipwise.errors import CheckpointError
from skipwise.train import extend
from skipwise.train.process import room_bytes, rooms_of_groups


def group(folder: Path, limit: str, taken: int, inactive: int, *, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(f"cache 7\n{names[2]} {inactive}\n")


@pytest.mark.parametrize(
    ("line", "top", "names"),
    [
        ("0::/outer/inner", "", ("memory.max", "memory.current", "inactive_file")),
        ("4:memory:/outer/inner", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
    ids=["version 2", "version 1"],
)
def test_each_group_around_a_process_leaves_what_it_has_not_taken(
    line: str, top: str, names: tuple[str, str, str], tmp_path: Path
) -> None:
    """Pages of files that the system would take back are free."""
    told = tmp_path / "cgroup"
    told.write_text(f"9:cpu:/elsewhere\n{line}\n")
    group(tmp_path / top / "outer", "1000", 300, 50, names=names)
    group(tmp_path / top / "outer" / "inner", "800", 300, 20, names=names)
    assert sorted(rooms_of_groups(told, tmp_path)) == [520, 750]
    group(tmp_path / top / "outer" / "inner", "max", 300, 20, names=names)
    assert rooms_of_groups(told, tmp_path) == [750]


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert rooms_of_groups(tmp_path / "none", tmp_path) == []


def test_weights_beyond_a_process_are_refused_with_the_numbers(
    settings: dict[str, Any], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = sum(tensor.nbytes for tensor in weights(tiny_checkpoint).values())
    assert held == 139904
    monkeypatch.setattr("skipwise.train.preparation.room_bytes", lambda device: held - 1)
    told = r"137 KiB and this process has memory for 137 KiB: split them over 2 processes or more by --launch fsdp2"
    with pytest.raises(CheckpointError, match=told):
        extend(RunConfig.from_mapping(settings))
    monkeypatch.setattr("skipwise.train.preparation.room_bytes", lambda device: held)
    extend(RunConfig.from_mapping(settings))


def test_a_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = psutil.Process().memory_info().data + 10**6

    def getrlimit(kind: int) -> tuple[int, int]:
        return (limit, limit) if kind == resource.RLIMIT_DATA else (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    assert 0 <= room_bytes(torch.device("cpu")) <= 10**6

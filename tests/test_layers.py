"""Imports go one way, and light things stay light."""

import ast
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import skipwise

ROOT = Path(skipwise.__file__).parent

# Each module or package may import those before it, never those after it.
ORDER = (
    "errors",
    "names",
    "pages",
    "window",
    "files",
    "allocator",
    "imports",
    "bars",
    # pure: numpy and the standard library only
    "own_samplers",
    "positions",
    "coverage",
    "rope",
    "memory",
    "launch",
    # what a run is, what it leaves, what training computes
    "config",
    "distributed",
    "hollow",
    "attention",
    "loss",
    # texts and models
    "data",
    "records",
    "model",
    "doctor",
    "runtime",
    # what is done with them
    "evals",
    "calibrate",
    # reads records; `train` writes its model card with it
    "report",
    "train",
    "inference",
    "compare",
    "plan",
    "pilot",
    "export",
    "serve",
    "demo",
    "cli",
    "__main__",
)
PURE = ("errors", "names", "pages", "window", "own_samplers", "positions", "coverage", "rope", "memory", "launch")
MODULES = sorted(
    path.name.removesuffix(".py")
    for path in ROOT.iterdir()
    if (path.suffix == ".py" and path.name != "__init__.py") or any(path.glob("*.py"))
)


def files_of(module: str) -> list[Path]:
    package = ROOT / module
    return sorted(package.rglob("*.py")) if package.is_dir() else [package.with_suffix(".py")]


def imports_of(path: Path) -> Iterator[str]:
    """Every dotted name that the file imports anywhere, also inside functions and for type checkers only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: write imports in full, 'from skipwise.x import y'"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_layers_below_it(module: str) -> None:
    assert module in ORDER, f"{module} has no place yet: put it into ORDER, after what it imports"
    allowed = {*ORDER[: ORDER.index(module) + 1], "__version__"}
    for path in files_of(module):
        for name in imports_of(path):
            head, _, rest = name.partition(".")
            if head == "skipwise":
                assert rest.split(".")[0] in allowed, f"{path.relative_to(ROOT)} imports {name} from above"


def test_the_picture_has_every_module_in_this_order() -> None:
    picture = (ROOT.parent.parent / "docs" / "architecture.svg").read_text(encoding="utf-8")
    words = re.findall(r"[a-z_]+", " ".join(re.findall(r">([^<]+)</text>", picture)))
    assert {module for module in MODULES if module != "__main__"} <= set(words)
    layers = [re.findall("[a-z_]+", layer) for layer in re.findall(r'font-weight="bold"[^>]*>([^<]+)<', picture)]
    for above, below in itertools.pairwise(layers):
        assert min(map(ORDER.index, above)) > max(map(ORDER.index, below)), (above, below)


@pytest.mark.parametrize("module", [module for module in PURE if module in MODULES])
def test_pure_modules_import_nothing_but_numpy(module: str) -> None:
    for path in files_of(module):
        third_party = {name.split(".")[0] for name in imports_of(path)} - sys.stdlib_module_names
        assert third_party <= {"numpy", "skipwise"}, path


def test_reports_are_made_from_records_never_from_models() -> None:
    for path in files_of("report"):
        for name in imports_of(path):
            assert not name.startswith(("torch", "transformers", "skipwise.model", "skipwise.train")), path


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import skipwise", ("torch", "transformers", "numpy", "typer")),
        (
            "from skipwise import PoSE, Window, coverage; coverage(PoSE(), Window(train=8, original=8, target=32))",
            ("torch",),
        ),
        ("from skipwise.cli import main; main(['--help'])", ("torch", "transformers", "numpy")),
        ("from skipwise.cli import main; main(['doctor', '--help'])", ("torch", "transformers", "numpy")),
        ("from skipwise.cli import main; main(['no-such-verb'])", ("torch", "transformers", "numpy")),
    ],
)
def test_light_things_import_nothing_heavy(
    fresh_python: Callable[[str], None], code: str, absent: tuple[str, ...]
) -> None:
    fresh_python(f"{code}\nimport sys\nheavy = {{*{absent}}} & {{*sys.modules}}\nassert not heavy, heavy")

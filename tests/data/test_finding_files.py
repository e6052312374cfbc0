"""Finding files: every one that is there and none twice, whatever leads to it, held against plain walks of the disk."""

import glob
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from corpora import build_store
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from skipwise.cli.options import print_json
from skipwise.data.documents import LocalFiles, find_sources, look_through, read_documents
from skipwise.errors import DataError


def _texts(source: Any) -> list[str]:
    return [document.text for document in read_documents(source)]


def _plant(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"text of {name}")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files in folders, with links that lead round, and out, and to what is there anyhow."""
    root = tmp_path / "docs"
    _plant(root, "a.txt", "one/b.txt", "one/deep/c.md", "two/d.txt", "z/e.txt")
    _plant(tmp_path / "elsewhere", "f.txt", "sub/g.txt")
    (root / "one" / "loop").symlink_to(root)
    _plant(tmp_path / "beside", "h.txt")
    (root / "one" / "up").symlink_to(tmp_path)
    (root / "b-link.txt").symlink_to(root / "one" / "b.txt")
    (root / "b-link-too").symlink_to(root / "z")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    os.link(root / "a.txt", root / "two" / "a-again.txt")
    return root


def _by_hand(*roots: Path) -> list[str]:
    """The text of every file below some folders, found by the system's own numbers for files."""
    files = {
        (status.st_dev, status.st_ino): Path(folder, name)
        for root in roots
        for folder, _, names in os.walk(root)
        for name in names
        if (status := Path(folder, name).stat())
    }
    return sorted(path.read_text() for path in files.values())


def test_every_file_is_read_once_in_a_tree_of_links(tree: Path) -> None:
    assert sorted(_texts(tree)) == _by_hand(tree, tree.parent / "elsewhere")
    names = [document.name for document in read_documents(tree)]
    # Of folders the real one has the name, and what only a link leads to comes last.
    assert "z/e.txt" in names
    assert names[-2:] == ["out/f.txt", "out/sub/g.txt"]


@pytest.mark.parametrize("how", ["twice", "dotted", "absolute", "glob and folder", "part and whole", "deep glob"])
def test_no_file_is_read_twice_however_the_source_is_written(
    how: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree.parent)
    source: list[str] = {
        "twice": ["docs", "docs"],
        "dotted": ["docs", "./docs/", "elsewhere/../docs"],
        "absolute": ["docs", str(tree)],
        "glob and folder": ["docs/*", "docs", "docs/one/*.txt"],
        "part and whole": ["docs/one/b.txt", "docs/two", "docs"],
        "deep glob": ["docs/**", "docs/**/*.txt", "docs/*/*.txt", "doc[s]/**/**/*"],
    }[how]
    assert sorted(_texts(source)) == _by_hand(tree, tree.parent / "elsewhere")


def test_a_hub_data_set_that_is_named_twice_is_one_source() -> None:
    assert len(find_sources(["owner/name", "owner/name:train", "owner/name:test"])) == 2


def test_kinds_that_are_not_read_are_counted_once(tree: Path) -> None:
    _plant(tree, "x.ppt", "one/y.doc", "two/z.doc")
    found = find_sources([str(tree), f"{tree}/*"])
    assert [source.passed_over for source in found] == [{".ppt": 1, ".doc": 2}]


NAMES = st.sampled_from(["a", "b", ".h", "ab", "[x]"])
PARTS = st.sampled_from(["*", "a*", "**", "?", "a", ".*", "[ab]", "b", "[!a]*"])


@settings(max_examples=150, deadline=None)
@given(
    paths=st.lists(st.lists(NAMES, min_size=1, max_size=4), max_size=8),
    pattern=st.lists(PARTS, min_size=1, max_size=4),
)
def test_patterns_match_what_the_standard_library_matches(
    paths: list[list[str]], pattern: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("glob")
    for path in paths:
        folder = root.joinpath(*path[:-1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{path[-1]}.txt").write_text("text")
    asked = str(root.joinpath(*pattern[:-1], f"{pattern[-1]}.txt" if pattern[-1] != "**" else "**"))
    if not glob.has_magic(asked.removeprefix(str(root))):
        return
    expected = sorted({Path(match) for match in glob.glob(asked, recursive=True) if Path(match).is_file()}, key=str)  # noqa: PTH207 - what it is held against
    (found,) = find_sources(asked)
    assert isinstance(found, LocalFiles)
    assert [file.path for file in found.files] == expected


@pytest.mark.parametrize("asked", ["docs", "docs/*", "docs/*/deep/*", "docs/**/*.md", "docs/**"])
def test_a_folder_that_may_not_be_listed_is_named(asked: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.scandir

    def forbidding(path: Any) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return own(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    with refused(DataError, r"docs/one/deep .*\(Permission denied\)"):
        _texts(str(tree.parent / asked))


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root cannot become another user")
def test_a_folder_without_rights_is_named_to_its_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents[:3]:  # pytest's own, one more where it runs in several processes
        if parent != Path(tempfile.gettempdir()):
            parent.chmod(0o755)
    _plant(tmp_path, "docs/a.txt", "docs/closed/b.txt")
    (tmp_path / "docs" / "closed").chmod(0)
    (tmp_path / "docs" / "listed").mkdir()
    _plant(tmp_path, "docs/listed/c.txt")
    (tmp_path / "docs" / "listed").chmod(0o444)
    code = (
        "import os; from skipwise.data.documents import look_through; from skipwise.errors import DataError\n"
        "os.setuid(65534)\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "for source in ('docs', 'docs/*', 'docs/**/*.txt', 'docs/closed/b.txt'):\n"
        "    try: print(look_through(source))\n"
        "    except DataError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *walked, named = done.stdout.splitlines()
    assert len(walked) == 3
    for line in walked:
        assert "folder docs/closed cannot be listed (Permission denied)" in line
        # Its name can be seen, and nothing else.
        assert "docs/listed/c.txt" in line
    assert named.startswith("docs/closed/b.txt cannot be accessed (Permission denied)")


@pytest.mark.parametrize("asked", ["docs", "docs/*", "docs/**", "docs/**/*.txt"])
def test_a_link_that_leads_to_itself_is_named_and_can_be_left_out(asked: str, tree: Path) -> None:
    expected = sorted(_texts(str(tree.parent / asked)))
    (tree / "two" / "round.txt").symlink_to("round.txt")
    (tree / "round.txt").symlink_to("round.txt")
    (tree / "round").symlink_to("round")
    with pytest.raises(DataError, match=r"docs/(two/)?round\.txt .*\(Too many levels"):
        _texts(str(tree.parent / asked))
    looked = look_through(str(tree.parent / asked), skip_unreadable=True)
    assert sorted(document.text for document in looked.documents()) == expected


def test_a_link_that_may_not_be_followed_is_named_as_it_may_lead_to_a_folder(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path.stat

    def forbidding(path: Path, **how: Any) -> os.stat_result:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return own(path, **how)

    (tree / "closed").symlink_to(tree / "nowhere")
    (tree / "broken").symlink_to(tree / "nowhere")
    monkeypatch.setattr(Path, "stat", forbidding)
    with pytest.raises(DataError, match=r"docs/closed .*\(Permission denied\)"):
        _texts(tree)


def test_files_of_one_number_are_each_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a share that shows several disks of its server as one may have them.
    _plant(tmp_path, "a.txt", "bb.txt", "ccc.txt")
    own = Path.stat

    def numbered(path: Path, **how: Any) -> os.stat_result:
        status = own(path, **how)
        if path.suffix != ".txt":
            return status
        names = [name for name in dir(status) if name.startswith("st_")]
        return SimpleNamespace(**{name: getattr(status, name) for name in names} | {"st_ino": 7})  # type: ignore[return-value]

    monkeypatch.setattr(Path, "stat", numbered)
    assert _texts(tmp_path) == ["text of a.txt", "text of bb.txt", "text of ccc.txt"]


def test_a_file_name_that_is_not_utf_8_is_read_stored_and_printed(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], byte_tokens: Any
) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102 - a Path is no bytes
    with open(folder + b"/na\xefve.txt", "wb") as file:  # noqa: PTH123
        file.write(b"one text")
    with open(folder + b"/lines\xff.jsonl", "wb") as file:  # noqa: PTH123
        file.write(b'{"text": "two"}\n{"text": "three"}\n')
    source = os.fsdecode(folder)
    store = build_store(source, byte_tokens, min_tokens=1, cache_dir=tmp_path / "cache", progress=False)
    assert list(store.names) == ["lines\\xff.jsonl:1", "lines\\xff.jsonl:2", "na\\xefve.txt"]
    assert _texts(tmp_path) == ["two", "three", "one text"]
    print(*store.names)
    print_json({"names": list(store.names), "source": source})
    out = capfdbinary.readouterr().out.splitlines()[1]
    assert json.loads(out) == {"names": list(store.names), "source": source}

    with open(folder + b"/bad\xfe.txt", "wb") as file:  # noqa: PTH123
        file.write(b"\xff")
    with pytest.raises(DataError, match=r"caf\\xe9/bad\\xfe\.txt:1 "):
        _texts(source)


@pytest.fixture
def byte_tokens() -> Any:
    from tiny_models import byte_tokenizer

    return byte_tokenizer()

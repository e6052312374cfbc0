"""Sizes of the code at one or several commits, side by side: lines by room and by kind, long files, long functions.

    python benchmarks/house.py 4370048 HEAD

Lines are counted as by `wc -l`, with blank lines and docstrings. A function is counted from its `def` to its last line,
without its docstring.
"""

import argparse
import ast
import subprocess
from collections import Counter
from collections.abc import Iterator

LONG_FILE, LONG_FUNCTION = 500, 60


def files_at(commit: str) -> Iterator[tuple[str, str]]:
    """Path and text of every Python file of a commit."""
    names = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", commit], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    wanted = [name for name in names if name.endswith(".py")]
    told = "\n".join(f"{commit}:{name}" for name in wanted)
    out = subprocess.run(["git", "cat-file", "--batch"], input=told.encode(), capture_output=True, check=True).stdout
    for name in wanted:
        header, _, out = out.partition(b"\n")
        size = int(header.split()[-1])
        yield name, out[:size].decode()
        out = out[size + 1 :]


def long_functions(text: str) -> int:
    """Number of functions in a file that are longer than the limit."""
    found = 0
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and node.end_lineno is not None:
                signature = node.body[0].lineno - node.lineno
                found += signature + node.end_lineno - body[0].lineno + 1 > LONG_FUNCTION
    return found


def kinds(text: str) -> Counter[str]:
    """Numbers of a file's lines that are docstrings, imports, comments, blank, and code."""
    lines = text.split("\n")[:-1]
    kind = ["blank" if not line.strip() else "comments" if line.strip()[0] == "#" else "code" for line in lines]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            kind[node.lineno - 1 : node.end_lineno] = ["imports"] * ((node.end_lineno or 0) - node.lineno + 1)
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:
            told = node.body[0]
            kind[told.lineno - 1 : told.end_lineno] = ["docstrings"] * ((told.end_lineno or 0) - told.lineno + 1)
    return Counter(kind)


def sizes(commit: str) -> Counter[str]:
    """All counts of a commit, by name."""
    found = Counter[str]()
    for name, text in files_at(commit):
        root, *inner = name.split("/")
        lines = text.count("\n")
        found[root] += lines
        if root == "src":
            found[f"src/skipwise/{inner[1]}" + ("/" if len(inner) > 2 else "")] += lines
        if root in ("src", "tests"):
            found.update({f"{root}: {kind}": number for kind, number in kinds(text).items()})
            found[f"{root}: files"] += 1
            found[f"{root}: files over {LONG_FILE} lines"] += lines > LONG_FILE
            found[f"{root}: functions over {LONG_FUNCTION} lines"] += long_functions(text)
    return found


def main() -> None:
    """Prints a table with a column for each commit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", default=["HEAD"])
    commits = parser.parse_args().commits
    counted = [sizes(commit) for commit in commits]
    print("| | " + " | ".join(commits) + " |\n|---|" + "---:|" * len(commits))
    for name in sorted({name for found in counted for name in found}):
        print(f"| {name} | " + " | ".join(f"{found[name]:,}" for found in counted) + " |")


if __name__ == "__main__":
    main()

"""The tests of pages fail when a page is wrong."""

from pathlib import Path

import pytest

from docs.checking import check_block
from docs.pages import Block, PageError, read_page
from docs.running import Terminal, missing_line


def block(tmp_path: Path, text: str) -> Block:
    (tmp_path / "page.md").write_text(text)
    return read_page(tmp_path / "page.md").blocks[0]


def console(tmp_path: Path, *lines: str) -> Block:
    return block(tmp_path, "```console\n" + "\n".join(lines) + "\n```\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("skipwise extned ./my-model", "No such command 'extned'"),
        ("skipwise extend ./my-model --traget 32k", "No such option: --traget"),
        ("skipwise extend ./my-model --target 32k --set sampler.chunk=3", "sampler.chunk is not a setting"),
        ("skipwise extend ./my-model --target 32k --set training.max_step=3", "setting 'training.max_step'"),
        ("skipwise eval ./my-model --length 4k --set ruler.chat=true", "ruler"),
        ("skipwise eval ./my-model --length 4k --task pass", "pass"),
        ("skipwise plan embedded --target 32kk | head", "32kk"),
        ("skipwise plan ./my-model --target 32k > plan.txt && skipwise doctr", "No such command 'doctr'"),
    ],
)
def test_commands_that_skipwise_does_not_have(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(PageError, match=said):
        check_block(console(tmp_path, f"$ {line}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```\nskipwise plan ./my-model\n```", "in a block of 'console'"),
        ("```yaml\nmodel: a\ntarget: 32k\nwindw: 2k\n```", "windw"),
        ("```yaml\ndata:\n  - {source: docs/, weight: 1, min_token: 2}\n```", "min_token"),
        ("```yaml\nkind: Job\n```", "no settings of a run"),
        ("```python\nextend(\n```", "line 1"),
        ("```console\nsome output\n```", "no command"),
        ("```console\n$ cat <<EOF\nabc\n```", "no line 'EOF'"),
    ],
)
def test_other_blocks_that_are_wrong(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(PageError, match=said):
        check_block(block(tmp_path, text + "\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- run: wiht --json -->\n```console\n$ ls\n```", "is not known"),
        ("<!-- run: not -->\n```console\n$ ls\n```", "is not known"),
        ("<!-- run: exit 1 -->\nSome words.\n```console\n$ ls\n```", "before a block"),
        ("```console\n$ ls\n", "no end"),
    ],
)
def test_comments_and_fences_that_are_wrong(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(PageError, match=said):
        block(tmp_path, text)


def test_blocks_that_are_right(tmp_path: Path) -> None:
    text = (
        "<!-- run: with --set training.max_steps=1 -->\n<!-- run: with eval --set trials=2 -->\n```console\n"
        "$ skipwise extend ./my-model --target 32k \\\n    --data docs/\nextended\n"
        "$ cat > run.yaml <<EOF\n> model: a\n> EOF\n```\n"
    )
    found = block(tmp_path, text)
    check_block(found)
    first, second = found.commands()
    assert first.words == ["extend", "./my-model", "--target", "32k", "--data", "docs/"]
    assert (first.shown, first.line) == (("extended",), 4)
    assert found.with_added(["extend", "a"]) == ["extend", "a", "--set", "training.max_steps=1"]
    assert found.with_added(["eval", "a"]) == ["eval", "a", "--set", "trials=2"]
    assert found.with_added(["eval", "build-suite", "a"]) == ["eval", "build-suite", "a"]
    assert (second.words, second.text) == (None, "cat > run.yaml <<EOF\nmodel: a\nEOF")
    check_block(block(tmp_path, "```yaml\nmodel: a\ntarget: 32k\narms: [base, pose]\n```\n"))
    check_block(block(tmp_path, "```yaml\ndata:\n  - {source: docs/, weight: 1, join: true}\n```\n"))


def test_numbers_of_output_may_differ_and_words_may_not() -> None:
    printed = "step 1 of 20\nloss 3.51, 12 GiB\nfinished: my-model"
    assert missing_line(["step 3 of 20", "...", "finished: ..."], printed) is None
    assert missing_line(["loss  2.9, 8 GiB"], printed) is None
    assert missing_line(["loss 2.9, 8 MiB"], printed) == "loss 2.9, 8 MiB"
    assert missing_line(["finished: my-model", "step 1 of 20"], printed) == "step 1 of 20"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["$ ls", "my-modle"], "shows 'my-modle'"),
        (["$ test -d nowhere"], "exit code 1, not 0"),
        (["$ skipwise serve my-model &", "..."], "the line that says that it is ready"),
        (["$ cat <<EOF > a.txt", "some words", "EOF", "$ cat a.txt", "other words"], "shows 'other words'"),
    ],
)
def test_a_page_that_shows_what_is_not_printed(lines: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    with Terminal(tmp_path, tmp_path) as terminal, pytest.raises(PageError, match=said):
        terminal.run(console(tmp_path, *lines))


@pytest.mark.slow
def test_calls_of_skipwise_run_as_in_a_terminal(tmp_path: Path) -> None:
    with Terminal(tmp_path, tmp_path / "home") as terminal:
        terminal.run(console(tmp_path, "$ mkdir below", "$ cd below", "$ skipwise --version", "skipwise 0.1.0"))
        terminal.run(console(tmp_path, "$ skipwise --version > version", "$ cat version", "skipwise 0.1.0"))
        assert (tmp_path / "below" / "version").exists()
        terminal.run(
            block(tmp_path, "<!-- run: exit 2 -->\n```console\n$ skipwise doctr\nskipwise: No such ...\n```\n")
        )
        terminal.run(block(tmp_path, "```python\nvalue = 1\n```\n"))
        terminal.run(console(tmp_path, "$ export SKIPWISE_CACHE=here", "$ echo $SKIPWISE_CACHE", "here"))
        terminal.run(
            block(tmp_path, "```python\nimport os\nassert (value, os.environ['SKIPWISE_CACHE']) == (1, 'here')\n```\n")
        )
        with pytest.raises(PageError, match="exit code 0, not 2"):
            terminal.run(block(tmp_path, "<!-- run: exit 2 -->\n```console\n$ skipwise --version\n```\n"))

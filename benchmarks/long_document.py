"""Peak memory and time of one long document, tokenized in pieces and as a whole.

    python benchmarks/long_document.py [--mb 30] [--model embedded]

The document is a text of `--mb` million characters from the standard library's sources. One process builds a token
store of it; another gives it to the tokenizer's engine at once, as earlier versions did. Each prints its peak memory
above what it held before; the store also says how often the progress bar moved. A third process compares the ids of
both.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def write_text(file: Path, characters: int) -> None:
    """Writes the document in ASCII, where a character is a byte."""
    from skipwise.data.documents import stdlib_documents

    sources = "\n".join(document.text for document in stdlib_documents()).encode("ascii", "replace").decode()
    file.write_text((sources * (characters // len(sources) + 1))[:characters], encoding="ascii")


def measure_here(args: argparse.Namespace) -> None:
    """Runs one process; prints its measurements as JSON."""
    from skipwise.config import DataConfig
    from skipwise.data.corpus import store_corpus
    from skipwise.data.tokens import TextEncoder
    from skipwise.model import load_model

    tokenizer: Any = load_model(args.model).tokenizer
    encoder = TextEncoder(tokenizer)
    text = "" if args.way == "pieces" else args.file.read_text(encoding="ascii")
    before, begun = _peak_mb(), time.monotonic()
    told: dict[str, Any] = {}
    if args.way == "whole":
        tokens = len(encoder.engine.encode_batch_fast([text], add_special_tokens=False)[0].ids)
    elif args.way == "pieces":
        with tempfile.TemporaryDirectory() as cache:
            data = DataConfig(source=str(args.file))
            corpus = store_corpus(data, tokenizer, cache_dir=cache, num_workers=1)
            tokens = corpus.documents(min_tokens=2).counts.tokens
    else:
        whole = encoder.engine.encode_batch_fast([text], add_special_tokens=False)[0].ids
        told["same"] = encoder.encode(text) == whole
        tokens = len(whole)
    print(json.dumps({**told, "tokens": tokens, "seconds": time.monotonic() - begun, "mb": _peak_mb() - before}))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    """Runs the processes one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--mb", type=int, default=30)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--way", choices=("whole", "pieces", "both"))
    parser.add_argument("--file", type=Path)
    args = parser.parse_args()
    if args.way:
        measure_here(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "long.txt"
        write_text(file, args.mb * 1_000_000)
        for way in ("whole", "pieces", "both"):
            command = [sys.executable, __file__, "--way", way, "--file", str(file), "--model", args.model]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            told = json.loads(done.stdout.splitlines()[-1])
            line = f"{way}: {told['tokens']:,} tokens, {told['seconds']:.0f} s, {told['mb']:,.0f} MB"
            line += f", {told['mb'] / args.mb:.1f} bytes a character"
            if way == "pieces":
                shares = {shown.split("%")[0] for shown in done.stderr.splitlines() if "%|" in shown}
                line += f", the bar showed {len(shares)} shares"
            print(line + (f", the same ids: {told['same']}" if way == "both" else ""))


if __name__ == "__main__":
    main()

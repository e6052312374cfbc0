"""Measures how fast several processes tokenize, and the memory and time of a store of a hundred million documents.

    python benchmarks/corpus.py tokenize [--mib 192] [--part-mib 24] [--rounds 2]
    python benchmarks/corpus.py index [--documents 100000000] [--tokens 2048 4096] [--join]

`tokenize` writes JSON lines: documents of 1 to 40 KB, cut at random from the standard library's sources. One process
with one thread, one with two threads, and two with one thread each tokenize them in turn. Parts are smaller than
skipwise's 256 MiB, so that there are several. The rates include everything from reading to the last byte on disk. The
share of putting parts together is that of the process that did it.

`index` writes token files directly, block by block: random lengths, splits and hashes, and an empty `tokens.bin` of its
real length. A separate process then opens the training part and draws items. Its memory is printed twice: `peak` is the
operating system's figure for the whole process, including mapped pages of the files, which the system may take back;
`kept` is the anonymous memory that opening leaves behind.
"""

import argparse
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

_BLOCK = 1 << 20
_VOCABULARY = 32_000


def write_texts(folder: Path, mib: int, num_files: int) -> int:
    """Writes JSON lines; returns the number of documents."""
    from skipwise.data.documents import stdlib_documents

    rng = random.Random(0)
    text = "\n".join(document.text for document in stdlib_documents())
    documents = 0
    for number in range(num_files):
        size = 0
        with (folder / f"{number:03}.jsonl").open("w", encoding="utf-8") as file:
            while size < (mib << 20) / num_files:
                length = int(1000 * 40 ** rng.random())
                begin = rng.randrange(len(text) - length)
                size += file.write(json.dumps({"text": text[begin : begin + length]}) + "\n")
                documents += 1
    return documents


def tokenize_here(args: argparse.Namespace) -> None:
    """Runs one process; prints its seconds for putting parts together, and how many parts it tokenized."""
    from transformers import AutoTokenizer

    from skipwise.config import DataConfig
    from skipwise.data.corpus import building, store_corpus
    from skipwise.demo import BASE

    building._PART_BYTES = args.part_mib << 20
    seconds, parts = [0.0], [0]
    join, tokenize = building._SharedBuild._join, building._tokenize

    def timed(build: Any) -> bool:
        begun = time.monotonic()
        try:
            return join(build)
        finally:
            seconds[0] += time.monotonic() - begun

    def counted(*arguments: Any) -> None:
        parts[0] += 1
        tokenize(*arguments)

    building._SharedBuild._join, building._tokenize = timed, counted  # type: ignore[method-assign]
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    print("ready", flush=True)
    sys.stdin.readline()  # all start together, once every process has finished its imports
    begun = time.process_time()
    corpus = store_corpus(
        DataConfig(source=str(args.folder / "texts")),
        tokenizer,
        cache_dir=args.folder / "cache",
        num_workers=args.threads,
        progress=False,
    )
    told = {"seconds": time.process_time() - begun, "join_seconds": seconds[0], "parts": parts[0]}
    print(json.dumps(told | {"fingerprint": corpus.documents().fingerprint}), flush=True)


def tokenize(args: argparse.Namespace) -> None:
    """Runs the configurations in turn; prints each turn and the medians."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts").mkdir()
        documents = write_texts(folder / "texts", args.mib, num_files=2 * args.mib // args.part_mib)
        size = sum(file.stat().st_size for file in (folder / "texts").iterdir())
        print(f"{documents:,} documents, {size / 1e6:.0f} MB, parts of {args.part_mib} MiB", flush=True)
        turns: dict[tuple[int, int], list[float]] = {}
        fingerprints = set()
        for _ in range(args.rounds):
            for processes, threads in ((1, 1), (1, 2), (2, 1)):
                shutil.rmtree(folder / "cache", ignore_errors=True)
                command = [sys.executable, __file__, "tokenize-here", "--folder", name, "--threads", str(threads)]
                command += ["--part-mib", str(args.part_mib)]
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
                running = [subprocess.Popen(command, **pipes) for _ in range(processes)]
                for process in running:
                    assert process.stdout
                    assert process.stdout.readline() == "ready\n"
                begun = time.monotonic()
                for process in running:
                    assert process.stdin
                    process.stdin.write("\n")
                    process.stdin.flush()
                told = [json.loads(process.communicate()[0]) for process in running]
                seconds = time.monotonic() - begun
                turns.setdefault((processes, threads), []).append(seconds)
                fingerprints |= {one["fingerprint"] for one in told}
                join = max(one["join_seconds"] for one in told)
                print(
                    f"{processes} processes of {threads} threads: {seconds:6.1f} s, "
                    f"{documents / seconds:6.0f} documents/s, {size / 1e6 / seconds:5.2f} MB/s, "
                    f"processor time {sum(one['seconds'] for one in told):.1f} s, "
                    f"parts {[one['parts'] for one in told]}, putting together {join:.2f} s ({join / seconds:.1%})",
                    flush=True,
                )
        assert len(fingerprints) == 1
        for (processes, threads), seconds in turns.items():
            print(f"median of {processes} x {threads}: {size / 1e6 / statistics.median(seconds):.2f} MB/s")


def write_token_files(folder: Path, documents: int, at_least: int, at_most: int) -> None:
    """Writes token files as `StoreWriter` does, without tokens."""
    rng = np.random.default_rng(0)
    tokens = 0
    names = ("offsets", "splits", "digests", "origins")
    files = {name: (folder / f"{name}.bin").open("wb") for name in names}
    files["offsets"].write(np.zeros(1, np.int64).data)
    for begin in range(0, documents, _BLOCK):
        size = min(_BLOCK, documents - begin)
        ends = tokens + np.cumsum(rng.integers(at_least, at_most + 1, size))
        tokens = int(ends[-1])
        lines = np.arange(begin, begin + size)
        files["offsets"].write(ends.data)
        files["splits"].write(rng.integers(0, 1 << 64, size, np.uint64).data)
        files["digests"].write(rng.bytes(16 * size))
        files["origins"].write(np.stack([lines // 1_000_000, lines % 1_000_000 + 1], axis=1).data)
    for file in files.values():
        file.close()
    num_files = -(-documents // 1_000_000)
    file_names = [f"{number:05}.jsonl" for number in range(num_files)]
    (folder / "files.bin").write_text("".join(file_names))
    (folder / "file_offsets.bin").write_bytes(np.cumsum([0, *map(len, file_names)]).astype(np.int64).data)
    (folder / "sentence_ends.bin").write_bytes(np.zeros(_VOCABULARY, bool).data)
    with (folder / "tokens.bin").open("wb") as file:
        file.truncate(2 * tokens)
    meta = {
        "format": 3,
        "tokenizer": "none",
        "dtype": "uint16",
        "separator_id": 0,
        "documents": documents,
        "tokens": tokens,
        "bytes": {file.name: file.stat().st_size for file in folder.iterdir()},
        "checksums": {},
    }
    (folder / "meta.json").write_text(json.dumps(meta))


class Clock:
    """Measures wall time and this process's processor time."""

    def __enter__(self) -> "Clock":
        self._begun = time.monotonic(), time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        self._seconds, self._of_processor = time.monotonic() - self._begun[0], time.process_time() - self._begun[1]

    def __str__(self) -> str:
        return f"{self._seconds:.3g} s ({self._of_processor:.3g} s of processor time)"


def own_bytes() -> int:
    """Anonymous memory of this process: no file backs it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def index_here(args: argparse.Namespace) -> None:
    """Opens the store and draws items in this process, so that peak memory is that of this work alone."""
    from skipwise.data.items import TrainingItems
    from skipwise.data.store import TokenStore, View
    from skipwise.positions import PoSE
    from skipwise.window import Window

    def peak_gib() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    window = Window(train=2048, original=2048, target=32768)
    before, peak_before = own_bytes(), peak_gib()
    with Clock() as opening:
        store = TokenStore(args.folder, View(min_tokens=2048, part="train", join=args.join))
        items = TrainingItems(store, PoSE(), window, seed=0)
    kept, peak = own_bytes() - before, peak_gib()
    print(f"{store.counts}", flush=True)
    print(
        f"opened in {opening}; peak {peak:.2f} GiB, of which imports {peak_before:.2f}; kept "
        f"{kept / 2**20:.1f} MiB, {kept / store.counts.seen:.3f} bytes a document",
        flush=True,
    )
    with Clock() as hashing:
        fingerprint = store.fingerprint
    print(f"fingerprint {fingerprint[:16]} in {hashing}; peak {peak_gib():.2f} GiB", flush=True)
    with Clock() as first:
        items.item(0, 0)
    places = np.random.default_rng(1).integers(0, len(items), args.items).tolist()
    times = []
    for place in places:
        moments = [time.perf_counter()]
        document = items.document(1, place)
        moments.append(time.perf_counter())
        tokens = store.document(document)
        assert len(tokens) >= window.train
        assert not tokens.any()  # nothing was written; this reads all tokens
        moments.append(time.perf_counter())
        store.document(document)
        moments.append(time.perf_counter())
        item = items.item(1, place)
        moments.append(time.perf_counter())
        assert item.position_ids[-1] < window.target
        times.append(np.diff(moments))
    order, fetch, lookup, whole = 1e6 * np.median(times, axis=0)
    print(
        f"first item after {first}; medians of {args.items:,} random places: {whole:.0f} us an item whose tokens are "
        f"in memory, in it {order:.1f} us for the epoch's order and {lookup:.1f} us for the document; to fetch its "
        f"tokens from the file before took {fetch:.0f} us",
        flush=True,
    )


def index(args: argparse.Namespace) -> None:
    """Writes the files, measures in another process, and removes them."""
    with tempfile.TemporaryDirectory(dir=args.temporary) as name:
        begun = time.monotonic()
        write_token_files(Path(name), args.documents, *args.tokens)
        disk = sum(file.stat().st_blocks * 512 for file in Path(name).iterdir())
        length = (Path(name) / "tokens.bin").stat().st_size
        print(
            f"{args.documents:,} documents of {args.tokens[0]} to {args.tokens[1]} tokens, {length / 1e9:.0f} GB of "
            f"tokens (holes), {disk / 1e9:.1f} GB on disk, written in {time.monotonic() - begun:.0f} s",
            flush=True,
        )
        command = [sys.executable, __file__, "index-here", "--folder", name, "--items", str(args.items)]
        subprocess.run([*command, "--join"] if args.join else command, check=True)


def main() -> None:
    """Parses arguments and runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("tokenize")
    verb.add_argument("--mib", type=int, default=192)
    verb.add_argument("--part-mib", type=int, default=24)
    verb.add_argument("--rounds", type=int, default=2)
    verb.set_defaults(run=tokenize)
    verb = verbs.add_parser("tokenize-here")
    verb.add_argument("--folder", type=Path)
    verb.add_argument("--threads", type=int)
    verb.add_argument("--part-mib", type=int)
    verb.set_defaults(run=tokenize_here)
    verb = verbs.add_parser("index")
    verb.add_argument("--documents", type=int, default=100_000_000)
    verb.add_argument("--tokens", type=int, nargs=2, default=[2048, 4096])
    verb.add_argument("--join", action="store_true", help="joins short documents, as many as are below 2,048 tokens")
    verb.add_argument("--items", type=int, default=2_000)
    verb.add_argument("--temporary", type=Path, help="a folder on a disk with room")
    verb.set_defaults(run=index)
    verb = verbs.add_parser("index-here")
    verb.add_argument("--folder", type=Path)
    verb.add_argument("--items", type=int)
    verb.add_argument("--join", action="store_true")
    verb.set_defaults(run=index_here)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

"""Cost of streaming: memory by size of the corpus, documents a second, and time to resume.

    python benchmarks/streaming.py [--mib 512 2048] [--shards 64] [--lanes 64] [--steps 40]

The Parquet shards hold documents cut at random from the standard library's sources. For each size one process opens the
stream with the embedded model's tokenizer, takes a document of every lane in each step, and prints its peak resident
memory. Another restores the lanes' places of the last step and prints the time until it has the first document.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WINDOW = 2048


def write_shards(folder: Path, mib: int, num_shards: int) -> int:
    """Writes Parquet files of documents of 10 to 100 KB; returns the number of documents."""
    import pyarrow
    from pyarrow import parquet

    from skipwise.data.documents import stdlib_documents

    rng = random.Random(0)
    text = "\n".join(document.text for document in stdlib_documents())
    documents = 0
    for shard in range(num_shards):
        texts, size = list[str](), 0
        while size < (mib << 20) / num_shards:
            length = int(10_000 * 10 ** rng.random())
            begin = rng.randrange(len(text) - length)
            texts.append(text[begin : begin + length])
            size += len(texts[-1])
        # Compression would find that all documents are cut from the same sources.
        parquet.write_table(
            pyarrow.table({"text": texts}), folder / f"{shard:04}.parquet", compression="none", row_group_size=100
        )
        documents += len(texts)
    return documents


def stream_here(args: argparse.Namespace) -> None:
    """Runs one process; prints its measurements and the places of its lanes as JSON."""
    from transformers import AutoTokenizer

    from skipwise.config import DataConfig
    from skipwise.data.corpus import StreamedCorpus, open_corpus
    from skipwise.demo import BASE

    tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
    places = json.loads(sys.stdin.readline())
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    data = DataConfig(source=str(args.folder), streaming=True, buffer=args.buffer, held_out=0.0)
    corpus = open_corpus(data, tokenizer)
    assert isinstance(corpus, StreamedCorpus)
    stream = corpus.stream(lanes=args.lanes, seed=0)
    stream.restore([places])
    first = args.steps if places else 0
    tokens, seconds_to_first = 0, 0.0
    for step in range(first, first + (1 if places else args.steps)):
        tokens += sum(len(stream.take(lane, step, min_tokens=WINDOW).tokens) for lane in range(args.lanes))
        seconds_to_first = seconds_to_first or time.monotonic() - begun
    seconds = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {
        "first": seconds_to_first,
        "rate": args.lanes * args.steps / seconds,
        "tokens": tokens / seconds,
        "before": before >> 10,
        "peak": peak >> 10,
        "places": stream.state(args.steps),
    }
    print(json.dumps(told))


def measured(args: argparse.Namespace, folder: Path, places: Any) -> dict[str, Any]:
    """Measurements of a separate process."""
    options = ["--lanes", str(args.lanes), "--steps", str(args.steps), "--buffer", str(args.buffer)]
    command = [sys.executable, __file__, "--folder", str(folder), *options]
    done = subprocess.run(command, input=json.dumps(places), check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures each size; runs as a measuring process if `--folder` is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", default=[512, 2048], help="sizes of the corpus")
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--lanes", type=int, default=64, help="windows of a step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--buffer", type=int, default=100)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        return stream_here(args)
    print("corpus     documents  begun   then a second      memory beside imports  resumed")
    for mib in args.mib:
        with tempfile.TemporaryDirectory() as name:
            documents = write_shards(Path(name), mib, args.shards)
            first = measured(args, Path(name), {})
            again = measured(args, Path(name), first["places"])
        print(
            f"{mib:5} MiB  {documents:9,}  {first['first']:4.1f} s  {first['rate']:5.0f} documents  "
            f"{first['tokens'] / 1e6:5.2f}M tokens  {first['peak'] - first['before']:5} MiB  {again['first']:10.1f} s"
        )
    return None


if __name__ == "__main__":
    main()

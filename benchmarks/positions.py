"""Times the drawing of one training example's positions.

    python benchmarks/positions.py [--train 2k] [--target 32k 128k] [--repeats 5000]

Prints, for each target and sampler, the median and the fastest time of one `sample` call.
"""

import argparse
import platform
import time

import numpy as np

from skipwise.positions import CREAM, FullLength, Plain, PoSE, PositionSampler, RandPos, SentenceGaps
from skipwise.window import Window, parse_length

SAMPLERS: tuple[PositionSampler, ...] = (
    PoSE(),
    PoSE(text="contiguous"),
    PoSE(text="aligned"),
    PoSE(start="anywhere"),
    PoSE(skips="flat"),
    PoSE(skips="flat", text="aligned", start="anywhere"),
    PoSE(chunks=3),
    PoSE(chunks=3, skips="simplex"),
    PoSE(chunks=3, skips="flat"),
    PoSE(chunks=64),
    RandPos(),
    CREAM(),
    SentenceGaps(),
    Plain(),
    FullLength(),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=parse_length, default=2048)
    parser.add_argument("--target", type=parse_length, nargs="+", default=[32 * 1024, 128 * 1024])
    parser.add_argument("--repeats", type=int, default=5000)
    args = parser.parse_args()

    print(f"Python {platform.python_version()}, numpy {np.__version__}")
    for target in args.target:
        measure(Window(train=args.train, original=args.train, target=target), args.repeats)


def measure(window: Window, repeats: int) -> None:
    num_tokens = 2 * window.target
    print(f"\n{window.train} of {window.target} positions")
    print(f"{'median':>8} {'fastest':>8}  microseconds for one example")
    for sampler in SAMPLERS:
        rng = np.random.default_rng(0)
        seconds = []
        for _ in range(repeats):
            begun = time.perf_counter()
            sampler.sample(num_tokens, window, rng)
            seconds.append(time.perf_counter() - begun)
        print(f"{1e6 * np.median(seconds):8.1f} {1e6 * min(seconds):8.1f}  {sampler}")


if __name__ == "__main__":
    main()

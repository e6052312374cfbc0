"""Built-in accelerators: memory, bandwidth and speed from their makers' public specifications.

Speeds are of dense matrix products in 16 bits with float32 sums; specifications that count sparse ones are halved.
What share of speed and bandwidth is reached is no property of the accelerator: see `Utilisation`.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from skipwise.errors import ConfigError
from skipwise.names import did_you_mean

GIB, GIGA, TERA = 2**30, 10**9, 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One accelerator.

    Attributes:
        name: as people write it.
        memory_gib: as the driver reports it.
        bandwidth_gb: read from its memory in a second, in 10^9 bytes.
        tflops: dense 16-bit operations in a second, in 10^12; of a CPU, float32 ones.
        bits: of the numbers that training computes in.
        half: the 16-bit type that it is fast in.
        fp8: it computes in 8-bit floating point.
        link_gb: sent in a second to others of the same node, in 10^9 bytes, one way.
        network_gb: sent in a second by a whole node to others, as nodes of this kind are usually built.
        node: accelerators of one node.
        source: where the figures are from.
    """

    name: str
    memory_gib: float
    bandwidth_gb: float
    tflops: float
    bits: int = 16
    half: str = "bfloat16"
    fp8: bool = True
    link_gb: float = 32
    network_gb: float = 25
    node: int = 8
    source: str = ""

    @property
    def memory_bytes(self) -> int:
        """All of its memory."""
        return round(self.memory_gib * GIB)

    def link_between(self, count: int) -> float:
        """10^9 bytes that each of so many sends to others in a second.

        Over several nodes, all of a node pass on a part each of what crosses between them: what one sends to its
        neighbour crosses once for the node.
        """
        return self.link_gb if count <= self.node else min(self.link_gb, self.network_gb)


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilisation:
    """Shares of what a machine's specification says; assumptions, unless `skipwise plan --calibrate` measured them.

    Attributes:
        training: of the speed, over a training step. Well-tuned runs of 7B models reach 0.4 to 0.55.
        prefill: of the speed, while a prompt is read.
        decode: of the bandwidth, while tokens are made.
        network: of the links between accelerators, while they train.
        memory: of the memory, that a plan may fill; the rest is for the driver, the library and fragments.
    """

    training: float = 0.4
    prefill: float = 0.5
    decode: float = 0.6
    network: float = 0.7
    memory: float = 0.92

    def __post_init__(self) -> None:
        for name in ("training", "prefill", "decode", "network", "memory"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise ConfigError(f"utilisation.{name} is {value!r}; give a share above 0, at most 1")


MACHINES: dict[str, Machine] = {
    "v100-32": Machine(
        name="V100 32 GB",
        memory_gib=31.7,
        bandwidth_gb=900,
        tflops=125,
        half="float16",
        fp8=False,
        link_gb=150,
        network_gb=50,
        source="NVIDIA V100 data sheet (SXM2)",
    ),
    "a100-40": Machine(
        name="A100 40 GB",
        memory_gib=39.4,
        bandwidth_gb=1555,
        tflops=312,
        fp8=False,
        link_gb=300,
        network_gb=200,
        source="NVIDIA A100 data sheet (SXM4)",
    ),
    "a100-80": Machine(
        name="A100 80 GB",
        memory_gib=79.2,
        bandwidth_gb=2039,
        tflops=312,
        fp8=False,
        link_gb=300,
        network_gb=200,
        source="NVIDIA A100 data sheet (SXM4)",
    ),
    "l4": Machine(name="L4 24 GB", memory_gib=22.2, bandwidth_gb=300, tflops=121, source="NVIDIA L4 data sheet"),
    "l40s": Machine(name="L40S 48 GB", memory_gib=44.4, bandwidth_gb=864, tflops=362, source="NVIDIA L40S data sheet"),
    "rtx-4090": Machine(
        name="RTX 4090 24 GB",
        memory_gib=23.5,
        bandwidth_gb=1008,
        tflops=165,
        source="NVIDIA Ada GPU architecture white paper",
    ),
    "h100": Machine(
        name="H100 80 GB",
        memory_gib=79.1,
        bandwidth_gb=3350,
        tflops=989,
        link_gb=450,
        network_gb=400,
        source="NVIDIA H100 data sheet (SXM5)",
    ),
    "h200": Machine(
        name="H200 141 GB",
        memory_gib=139.8,
        bandwidth_gb=4800,
        tflops=989,
        link_gb=450,
        network_gb=400,
        source="NVIDIA H200 data sheet (SXM5)",
    ),
    "b200": Machine(
        name="B200 180 GB",
        memory_gib=178.0,
        bandwidth_gb=8000,
        tflops=2250,
        link_gb=900,
        network_gb=400,
        source="NVIDIA DGX B200 data sheet",
    ),
    "mi300x": Machine(
        name="MI300X 192 GB",
        memory_gib=191.7,
        bandwidth_gb=5300,
        tflops=1307,
        link_gb=448,
        network_gb=400,
        source="AMD MI300X data sheet",
    ),
}


def this_cpu() -> Machine:
    """The CPU here; speed and bandwidth are guesses by its cores, which `--calibrate` replaces."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        name=f"CPU, {cores} cores",
        memory_gib=_own_memory() / GIB,
        bandwidth_gb=20.0 + 2.0 * cores,
        tflops=0.08 * cores,  # 2.5 GHz and 32 float32 operations a cycle
        bits=32,
        half="float32",
        fp8=False,
        source="this machine; speed by its cores",
    )


def _own_memory() -> int:
    """Bytes that a process here may fill: of the machine, or of the container that it runs in."""
    memory = psutil.virtual_memory().total
    with suppress(OSError, ValueError):
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return memory


def machine_of(name: str) -> Machine:
    """The accelerator of a name, `cpu` for the machine here.

    Raises:
        ConfigError: for an unknown name, with those that are known.
    """
    if name == "cpu":
        return this_cpu()
    if name.lower() not in MACHINES:
        known = [*MACHINES, "cpu"]
        raise ConfigError(f"the machine is {name!r}; {did_you_mean(name, known)}give one of {', '.join(known)}")
    return MACHINES[name.lower()]

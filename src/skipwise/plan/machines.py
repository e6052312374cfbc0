"""Built-in accelerators: memory, bandwidth and speed from their makers' public specifications.

Speeds are dense 16-bit matrix products with float32 accumulation; specifications that count sparse ones are halved.
How much of the speed and bandwidth is reached is not a property of the accelerator: see `Utilisation`.
"""

import os
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path

import psutil

from skipwise.errors import ConfigError
from skipwise.names import did_you_mean

GIB, GIGA, TERA = 2**30, 10**9, 10**12


@dataclass(frozen=True, slots=True)
class Machine:
    """One accelerator, or a CPU.

    Attributes:
        name: for display.
        memory_gib: memory as the driver reports it.
        bandwidth_gb: memory bandwidth in 10^9 bytes per second.
        tflops: dense 16-bit operations in 10^12 per second; float32 operations for a CPU.
        link_gb: sent to other accelerators of the node, in 10^9 bytes per second, one way.
        network_gb: sent by a whole node to other nodes, in 10^9 bytes per second, as such nodes are usually built.
        source: where the figures come from.
        bits: 16 for an accelerator, 32 for a CPU: precision that training computes in.
        half: its fast 16-bit type.
        fp8: whether it computes in 8-bit floating point.
        node: accelerators per node.
    """

    name: str
    memory_gib: float
    bandwidth_gb: float
    tflops: float
    link_gb: float = 32
    network_gb: float = 25
    source: str = ""
    _: KW_ONLY
    bits: int = 16
    half: str = "bfloat16"
    fp8: bool = True
    node: int = 8

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return round(self.memory_gib * GIB)

    @property
    def is_cpu(self) -> bool:
        """Whether it is a CPU."""
        return self.bits == 32

    @property
    def process_bytes(self) -> int:
        """Memory of a training process beside tensors: CUDA's driver and libraries, or Python and its packages."""
        return (530 if self.is_cpu else 600) * 2**20

    @property
    def inference_process_bytes(self) -> int:
        """The same of a process that only runs a model: on a CPU without the Trainer and what it imports."""
        return 400 * 2**20 if self.is_cpu else self.process_bytes

    def link_between(self, count: int) -> float:
        """Bandwidth of each of `count` accelerators to the others, in 10^9 bytes per second.

        Across nodes, a ring crosses each node boundary once, and all accelerators of the node share that traffic.
        """
        return self.link_gb if count <= self.node else min(self.link_gb, self.network_gb)


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilisation:
    """Fractions of the specification that are reached: assumed, unless `skipwise plan --calibrate` measured them.

    Attributes:
        training: of the speed in a training step. Well-tuned runs of 7B models reach 0.4 to 0.55.
        prefill: of the speed in prefill.
        decode: of the memory bandwidth in decoding.
        network: of the links between accelerators in training.
        memory: of the memory that a plan may fill; the rest is for driver, library and fragmentation.
    """

    training: float = 0.4
    prefill: float = 0.5
    decode: float = 0.6
    network: float = 0.7
    memory: float = 0.92

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise ConfigError(f"utilisation.{field.name} is {value!r}; give a share above 0, at most 1")


# name, memory in GiB, bandwidth in GB/s, TFLOPS, links and network in GB/s, source
MACHINES: dict[str, Machine] = {
    "v100-32": Machine(
        "V100 32 GB", 31.7, 900, 125, 150, 50, "NVIDIA V100 data sheet (SXM2)", half="float16", fp8=False
    ),
    "a100-40": Machine("A100 40 GB", 39.4, 1555, 312, 300, 200, "NVIDIA A100 data sheet (SXM4)", fp8=False),
    "a100-80": Machine("A100 80 GB", 79.2, 2039, 312, 300, 200, "NVIDIA A100 data sheet (SXM4)", fp8=False),
    "l4": Machine("L4 24 GB", 22.2, 300, 121, source="NVIDIA L4 data sheet"),
    "l40s": Machine("L40S 48 GB", 44.4, 864, 362, source="NVIDIA L40S data sheet"),
    "rtx-4090": Machine("RTX 4090 24 GB", 23.5, 1008, 165, source="NVIDIA Ada GPU architecture white paper"),
    "h100": Machine("H100 80 GB", 79.1, 3350, 989, 450, 400, "NVIDIA H100 data sheet (SXM5)"),
    "h200": Machine("H200 141 GB", 139.8, 4800, 989, 450, 400, "NVIDIA H200 data sheet (SXM5)"),
    "b200": Machine("B200 180 GB", 178.0, 8000, 2250, 900, 400, "NVIDIA DGX B200 data sheet"),
    "mi300x": Machine("MI300X 192 GB", 191.7, 5300, 1307, 448, 400, "AMD MI300X data sheet"),
}


PRICES_AS_OF = "2025"
TYPICAL_PRICES: dict[str, float] = {
    "v100-32": 0.6,
    "a100-40": 1.3,
    "a100-80": 1.8,
    "l4": 0.7,
    "l40s": 1.2,
    "rtx-4090": 0.5,
    "h100": 3.0,
    "h200": 3.8,
    "b200": 6.0,
    "mi300x": 3.5,
}
"""US dollars for an hour of one accelerator on demand, as specialised clouds asked in 2025; large clouds ask up to
three times as much. An assumption, always to be said with the number: `skipwise pilot --price` gives the real one."""


def this_cpu() -> Machine:
    """This machine's CPU; speed and bandwidth are guessed from its cores, until `--calibrate` measures them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total
    with suppress(OSError, ValueError):  # The limit of a container.
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return Machine(
        name=f"CPU, {cores} cores",
        memory_gib=memory / GIB,
        bandwidth_gb=20.0 + 2.0 * cores,
        tflops=0.08 * cores,  # 2.5 GHz and 32 float32 operations per cycle
        bits=32,
        half="float32",
        fp8=False,
        source="this machine; speed by its cores",
    )


def machine_of(name: str) -> Machine:
    """The machine of a name; `cpu` is this machine's CPU.

    Raises:
        ConfigError: unknown name.
    """
    if name == "cpu":
        return this_cpu()
    if name.lower() not in MACHINES:
        known = [*MACHINES, "cpu"]
        raise ConfigError(f"the machine is {name!r}; {did_you_mean(name, known)}give one of {', '.join(known)}")
    return MACHINES[name.lower()]

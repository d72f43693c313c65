"""Which layers are timed, and what our layer is meant to reach there. Needs neither Torch nor a GPU."""

from collections.abc import Sequence
from typing import Any, NamedTuple

#: The contender that every ratio is taken to.
BASELINE = "linear-bf16"

#: What a record of speed can hold, in the order of the page.
PARTS = ("layers", "crossover", "detection")


class Shape(NamedTuple):
    """A layer: X (m, k), W (n, k), and which share of the k columns are outlier columns."""

    m: int
    k: int
    n: int
    fraction: float

    @property
    def columns(self) -> int:
        """How many outlier columns: at least one, unless the share is 0."""
        return max(1, round(self.fraction * self.k)) if self.fraction else 0


class Job(NamedTuple):
    """One row of the record: a shape, what is timed there, and the part of the page that shows it."""

    part: str
    shape: Shape
    names: Sequence[str]

    @property
    def key(self) -> str:
        """The row's name in a record that is resumed."""
        return key_of({"part": self.part, **self.shape._asdict()})


def key_of(row: dict[str, Any]) -> str:
    """The name of a row of the record."""
    return f"{row['part']} {row['m']}x{row['k']}x{row['n']} {row['fraction']:g}"


#: The share of outlier columns where nothing else is said.
FRACTION = {"cpu": 0.005, "cuda": 0.001}

#: (K, N) of layers: SmolLM2-135M; Llama 3.1 of 8, 70 and 405 billion parameters.
SMOLLM2 = ((576, 576), (576, 1536), (1536, 576))
LLAMA = ((4096, 4096), (4096, 14336), (14336, 4096), (8192, 8192), (8192, 28672), (28672, 8192), (16384, 53248), (53248, 16384))
#: Widths of the models in the paper, whose first feed-forward layer is four times as wide: Dettmers et al. (2022), appendix D.
PAPER_WIDTHS = (768, 1024, 1536, 2048, 2560, 4096, 5140, 12288)

#: The int8 layers of other libraries, where they are installed: contenders on each device.
PEERS = {
    "cpu": ("bitsandbytes", "torchao", "torch-dynamic", "onnxruntime", "openvino", "ggml"),
    "cuda": ("bitsandbytes", "torchao", "torchao-compiled"),
}

CROSSOVER = (BASELINE, "bitsandbytes", "int8", "int8-none")
DETECTION = (BASELINE, "int8", "int8-clean", "int8-none", "detect", "quantize")


def grid(device: str, names: Sequence[str]) -> list[Job]:
    """What is measured unless shapes are given; on a CPU a small grid, of minutes.

    Args:
        device: "cpu" or "cuda".
        names: the contenders that can run there.
    """
    usual = FRACTION[device]
    layers = layer_names(names)
    rows: tuple[int, ...]
    widths: tuple[int, ...]
    sweep_rows: tuple[int, ...]
    if device == "cpu":
        shapes = [Shape(m, 4096, 4096, usual) for m in (1, 16, 256)]
        shapes += [Shape(m, k, n, usual) for k, n in SMOLLM2 for m in (1, 512)]
        shapes += [Shape(m, k, n, usual) for k, n in (*NARROW, *WIDE) for m in CPU_ROWS]
        rows, widths, sweep_rows, wide = (1, 4, 16, 64, 256, 512), (256, 512, 1024, 2048, 4096), (1, 256), 4096
        detection = [(m, k) for m in (1, 16, 256, 1024) for k in (1024, 4096)]
    else:
        shapes = [Shape(m, d, 4 * d, usual) for d in PAPER_WIDTHS for m in (1, 16, 256, 4096)]
        shapes += [Shape(m, k, n, usual) for k, n in (*SMOLLM2, *LLAMA) for m in (1, 16, 256, 4096)]
        shapes += [Shape(m, 8192, 8192, f) for m in (1, 4096) for f in (0.0, 0.01, 0.05)] + [Shape(16384, 8192, 8192, usual)]
        rows, widths, sweep_rows, wide = tuple(2**i for i in range(15)), (256, 512, 1024, 2048, 4096, 8192, 16384), (1, 256, 4096), 8192
        detection = [(m, k) for m in (1, 16, 256, 4096) for k in (1024, 4096, 8192, 16384)]
    jobs = [Job("layers", shape, layers) for shape in dict.fromkeys(shapes)]
    sweep = [Shape(m, wide, wide, usual) for m in rows] + [Shape(m, k, k, usual) for m in sweep_rows for k in widths]
    jobs += [Job("crossover", shape, CROSSOVER) for shape in dict.fromkeys(sweep)]
    return jobs + [Job("detection", Shape(m, k, k, usual), DETECTION) for m, k in detection]


def layer_names(names: Sequence[str]) -> list[str]:
    """The contenders of a row of the part "layers"."""
    return [name for name in names if name != "int8-clean"]


#: (K, N) of the aims on a GPU.
LARGE = ((8192, 8192), (8192, 28672), (28672, 8192), (16384, 53248), (53248, 16384))


class Aim(NamedTuple):
    """On `device`, our layer is meant to be `least` times as fast as the contender `other`."""

    device: str
    shape: Shape
    other: str
    least: float


#: (K, N) of the aims on a CPU: SmolLM2-135M's layers; its output head, and layers of Llama 3.1 8B.
NARROW = ((576, 192), *SMOLLM2)
WIDE = ((576, 49152), *LLAMA[:3])
CPU_ROWS = (1, 8, 64, 256)


def cpu_aim(m: int, k: int, n: int) -> float:
    """How many times as fast as bfloat16 a layer on a CPU is meant to be. Once arithmetic limits both, int8 has twice the rate."""
    narrow = (k, n) in NARROW
    return {1: 2.0 if narrow else 2.5, 8: 1.5, 64: 1.7}.get(m) or (1.8 if not narrow else 1.5 if n >= 576 else 1.25)


AIMS = (
    *(Aim("cpu", Shape(m, k, n, 0.005), BASELINE, cpu_aim(m, k, n)) for k, n in (*NARROW, *WIDE) for m in CPU_ROWS),
    *(Aim("cpu", Shape(m, 4096, 4096, 0.005), "bitsandbytes", x) for m, x in ((1, 3.5), (64, 3.0), (256, 1.7))),
    *(
        Aim("cuda", Shape(4096, k, n, 0.001), other, x)
        for k, n in LARGE
        for other, x in ((BASELINE, 1.5), ("bitsandbytes", 2.0), ("int-mm", 0.8))
    ),
    *(Aim("cuda", Shape(m, 8192, 8192, 0.001), other, x) for m in (1, 16) for other, x in ((BASELINE, 1.6), ("bitsandbytes", 3.0))),
)

#: On a GPU, detection and quantization are meant to take at most this share of the layer's time at this shape.
STAGES_AIM = (Shape(4096, 8192, 8192, 0.001), 0.15)


def aimed_at(device: str) -> list[Shape]:
    """The layers that the aims are about, the one with the fewest operations first."""
    shapes = dict.fromkeys(aim.shape for aim in AIMS if aim.device == device)
    return sorted(shapes, key=lambda s: (s.m * s.k * s.n, s.k))


def miniature(shape: Shape) -> Shape:
    """A layer that stands for `shape` in a rehearsal, small enough for Triton's interpreter: one row, few or many, narrow or wide."""
    # 20 rows are more than a decode tile has.
    m = {1: 1, 16: 2}.get(shape.m, 20)
    k, n = (24 if size > 8192 else 16 for size in shape[1:3])
    return Shape(m, k, n, 0.05)


#: What a rehearsal leaves out, since it takes long in the interpreter and shows nothing that another contender does not.
UNREHEARSED = ("int8-float", "int8-launched", "product", "product-outliers", "linear-fp16", "linear-fp32")


def rehearsed(jobs: Sequence[Job]) -> list[Job]:
    """Tiny layers that stand for those of the jobs, two of each sweep."""
    small: dict[str, dict[Shape, Job]] = {part: {} for part in PARTS}
    for job in jobs:
        shape = miniature(job.shape)
        left_out = UNREHEARSED if job.part == "layers" else (*UNREHEARSED, "bitsandbytes")
        small[job.part][shape] = Job(job.part, shape, [name for name in job.names if name not in left_out])
    sweeps = {part: sorted(found.values(), key=lambda job: job.shape)[:2] for part, found in small.items() if part != "layers"}
    return [*small["layers"].values(), *(job for part in sweeps for job in sweeps[part])]

"""The ladder: ten kernels from a copy to LLM.int8(), each with a checker, and with a launch to look at.

    ladder.attempt("copy", text)      # in the browser: the verdict, and a record of what the text loads and stores

The checkers are those of `tutorials.checks`; they run a kernel of Triton as well, which `tests/test_ladder.py` does. What each kernel
has to do is written on the page (docs/theatre/write.md); its stub and its solution are in `chapter_kernels`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import reference

from . import minitriton, recording
from .checks import chapter_07_quantize_kernel, chapter_08_product_kernel, ladder_products, ladder_rows
from .checks.engine import Exercise, Verdict
from .checks.launching import Memory, Prepare, launched
from .example import W, X

F32 = np.float32


@dataclass(frozen=True)
class Rung:
    """One kernel to write.

    Attributes:
        function: the kernel's name.
        exercise: the checker of the kernel as a function of arrays.
        prepare: lays out the buffers of a launch.
        example: the arrays of the launch that the page shows.
    """

    function: str
    exercise: Exercise
    prepare: Prepare
    example: Callable[[], tuple]

    def check(self, kernel: Any) -> Verdict:
        """The verdict on a kernel of `minitriton` or of Triton."""
        return self.exercise(launched(kernel, self.prepare))

    def record(self, text: str, kernel: minitriton.Kernel) -> dict[str, Any]:
        """What the kernel does in the launch that the page shows, with the results that are wanted."""
        arrays = self.example()
        launch = self.prepare(Memory(), *arrays)
        code = kernel.function.__code__
        arguments = dict(zip(code.co_varnames[: code.co_argcount], launch.arguments, strict=False))
        found = recording.record(text, kernel, launch.grid, arguments, launch.options)
        wanted = self.exercise.right(*arrays)
        names = [buffer.name for buffer in launch.results]
        for buffer in found["buffers"]:
            if buffer["name"] in names:
                right = (wanted if isinstance(wanted, tuple) else (wanted,))[names.index(buffer["name"])]
                buffer["wanted"] = [recording.text(value) for value in np.ravel(right)]
        return found


def attempt(name: str, text: str) -> dict[str, Any]:
    """Runs a reader's text: whether its kernel passes, the verdict, and the record of the launch that the page shows."""
    rung = RUNGS[name]
    try:
        kernel = minitriton.compiled(text, rung.function)
    except SyntaxError as error:
        return {"passed": False, "text": f"SyntaxError: {error.msg} in line {error.lineno}", "record": None}
    except Exception as error:
        return {"passed": False, "text": f"{type(error).__name__}: {error}", "record": None}
    if not isinstance(kernel, minitriton.Kernel):
        return {"passed": False, "text": f"{rung.function} is no kernel: keep its name, and @triton.jit above it.", "record": None}
    verdict = rung.check(kernel)
    return {"passed": verdict.passed, "text": verdict.message, "record": rung.record(text, kernel)}


def _narrow() -> tuple:
    return (X[:, :3].copy(),)


def _codes(rows: int, k: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9, 10, (rows, k), np.int8)


def _few_codes() -> tuple:
    return np.array([[25, -64, 4, 17], [127, 18, 0, -55], [-50, 127, 20, 62]], np.int8), np.array([0.5, 0.25, 2], F32)


def _ties() -> tuple:
    return (np.array([0.5, 1.5, 2.5, -2.5, 63.5, -0.49, 126.51, -127], F32),)


def _operands() -> tuple:
    return _codes(5, 40, 0), _codes(3, 40, 1)


def _with_scales() -> tuple:
    return *_operands(), np.linspace(0.5, 2, 5, dtype=F32), np.linspace(0.5, 2, 3, dtype=F32)


def _outliers() -> tuple:
    codes, scale = reference.absmax_quantize(W, -1)
    return X, codes, scale.ravel()


#: The kernels by the names of their anchors, from the first to the last.
RUNGS = {
    "copy": Rung("my_copy", ladder_rows.copy, ladder_rows.prepare_copy, lambda: (X.ravel(),)),
    "scale": Rung("my_dequantize", ladder_rows.scale, ladder_rows.prepare_scale, _few_codes),
    "masked-copy": Rung("my_masked_copy", ladder_rows.masked_copy, ladder_rows.prepare_masked_copy, _narrow),
    "row-maximum": Rung("my_row_absmax", ladder_rows.row_maximum, ladder_rows.prepare_row_maximum, _narrow),
    "rounding": Rung("my_round", ladder_rows.rounding, ladder_rows.prepare_rounding, _ties),
    "quantize-rows": Rung("my_quantize_rows", chapter_07_quantize_kernel.rows_of_codes, chapter_07_quantize_kernel.prepare_rows, _narrow),
    "tile": Rung("my_tile", ladder_products.tile, ladder_products.prepare_tile, lambda: (_codes(16, 32, 0), _codes(16, 32, 1))),
    "k-loop": Rung("my_int8_product", ladder_products.k_loop, ladder_products.prepare_k_loop, _operands),
    "epilogue": Rung("my_product", chapter_08_product_kernel.scaled_product, chapter_08_product_kernel.prepare_product, _with_scales),
    "outlier-loop": Rung("my_llm_int8", ladder_products.outlier_loop, ladder_products.prepare_outliers, _outliers),
}

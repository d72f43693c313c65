"""Checkers of the exercises: they run an answer on many inputs and show the smallest one where it is wrong.

    checks.absmax(my_absmax)

Every checker returns a `Verdict`, whose text says either that the answer is right and on how many inputs, or: the
smallest input found where it is wrong, what came out, what should have, and, where the answer behaves like a known
mistake, which one. A stub that returns NotImplemented gets "not yet".

One file per chapter, `engine.py` what they share. NumPy and `reference` only, so that the checkers also run in the browser; the
kernels' are in `kernel_checks.py`, which has to be imported by itself.
"""

from .chapter_00_float16 import float16
from .chapter_01_absmax import absmax
from .chapter_02_zeropoint import zeropoint
from .chapter_03_granularity import vectorwise
from .chapter_04_outliers import outlier_features
from .chapter_05_decomposition import decomposition
from .chapter_06_outlier_part import outlier_part
from .chapter_09_program import program
from .chapter_10_layer import layer
from .chapter_11_costs import layer_bytes
from .engine import Exercise, Verdict

__all__ = [
    "Exercise",
    "Verdict",
    "absmax",
    "decomposition",
    "float16",
    "layer",
    "layer_bytes",
    "outlier_features",
    "outlier_part",
    "program",
    "vectorwise",
    "zeropoint",
]

"""Checkers of the kernel exercises: as those of `tutorials.checks`, around a launch. They need Torch and Triton."""

from .chapter_07_quantize_kernel import quantize_rows
from .chapter_08_product_kernel import product
from .launches import guard_every_launch

__all__ = ["guard_every_launch", "product", "quantize_rows"]

"""Checkers of the kernel exercises: as those of `tutorials.checks`, around a launch. They need Torch and Triton."""

from .chapter_06_quantize_kernel import quantize_rows
from .chapter_07_product_kernel import product

__all__ = ["product", "quantize_rows"]

"""The CPU path in Torch operations: any machine, no compiler, no Triton. Its files have the names of their twins in `fast.kernels`.

1. `arithmetic.py`     the contract's rounding, scales and codes
2. `outliers.py`       which columns hold an outlier
3. `quantization.py`   scales and codes of rows
4. `product.py`        the int8 product, by one of two routes
5. `layer.py`          the layer

`native.c` does all of it in one call, where there is a C compiler: `build.py` compiles it, `native.py` calls it, `engine.py` chooses.

Everything except the product is processed in blocks of rows: the float32 values of a block stay in a core's cache, in memory that
the process already has. For a buffer of all rows, the system would have to clear fresh pages at every call: about 1000 of them for
M = 256, K = N = 4096.
"""

from .layer import linear
from .outliers import outlier_columns
from .product import int8_matmul
from .quantization import quantize

__all__ = ["int8_matmul", "linear", "outlier_columns", "quantize"]

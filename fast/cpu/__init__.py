"""The CPU path, in Torch operations: any machine, no compiler, no Triton. Its files have the names of their twins in `fast.kernels`.

1. `arithmetic.py`     the contract's rounding, scales and codes
2. `outliers.py`       which columns hold an outlier
3. `quantization.py`   scales and codes of rows
4. `product.py`        the int8 product, by one of two routes
5. `layer.py`          the layer

Around the product everything goes by blocks of rows: what a block needs in float32 stays in a core's cache, and is taken from memory
that the process already has. A buffer of all rows would make the system clear fresh pages at every call: with M = 256,
K = N = 4096 about 1000 of them.
"""

from .layer import linear
from .outliers import outlier_columns
from .product import int8_matmul
from .quantization import quantize

__all__ = ["int8_matmul", "linear", "outlier_columns", "quantize"]

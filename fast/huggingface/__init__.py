"""`import fast.huggingface` makes transformers know LLM.int8() of this package, for `from_pretrained` and `save_pretrained`.

    AutoModelForCausalLM.from_pretrained(path, quantization_config=fast.huggingface.Int8Config())

Before transformers reads any weight, the linear layers of the (still empty) model are replaced by `Int8Linear`; each weight is
quantized as it is read. A saved model loads back with plain `from_pretrained(path)`, as long as this module is imported.

1. `config.py`          how a model is quantized, as config.json holds it
2. `quantizer.py`       what transformers calls while it loads
3. `stored.py`          what a checkpoint holds in int8
4. `declarations.py`    what a model in int8 writes about itself
5. `parallel_plan.py`   the layers' styles for tensor parallelism
"""

from .config import METHOD, Int8Config
from .declarations import declaration, declare
from .quantizer import Int8Quantizer, bitsandbytes_config, save_bitsandbytes

__all__ = ["METHOD", "Int8Config", "Int8Quantizer", "bitsandbytes_config", "declaration", "declare", "save_bitsandbytes"]

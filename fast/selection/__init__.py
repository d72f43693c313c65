"""Which layers of a model become int8, and why others stay as they are.

1. `choice.py`         the choice, and the summary of it
2. `float_layers.py`   what a linear layer is, and what keeps one from being quantized
3. `readers.py`        modules whose code reads the weights of their layers
4. `routers.py`        layers that choose, such as routers of a mixture of experts
5. `source.py`         the models' source, for both
6. `placeholders.py`   weights that are elsewhere
"""

from .choice import Summary, choose_layers, named_in, size_of

__all__ = ["Summary", "choose_layers", "named_in", "size_of"]

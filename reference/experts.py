"""A mixture of experts in int8: each expert is two layers of its own, over the rows that are routed to it.

Shazeer et al. (2017), https://arxiv.org/abs/1701.06538: a router chooses k of E experts for each token, and weighs them. The paper of
LLM.int8() knows no experts; what follows from it is that nothing changes for one of them. Outlier columns are decided per expert, over
the rows that this expert sees, for both of its projections. So a token that goes elsewhere cannot change this expert's result, and the
result is the same wherever the expert is: one machine or several. An expert without rows does nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import arguments
from .linear import Int8Linear


@dataclass(frozen=True, eq=False)
class Int8Experts:
    """E experts whose weights are held in int8. Make them with `Int8Experts.from_float`.

    Attributes:
        first: E layers from the hidden size H, up: (2 I, H) with a gate, (I, H) without one.
        second: E layers back down, (H, I).
        apply_gate: what is between them, from the first layer's output to (..., I), row by row.
    """

    first: Sequence[Int8Linear]
    second: Sequence[Int8Linear]
    apply_gate: Callable[[NDArray[np.float32]], NDArray[np.float32]]

    @classmethod
    def from_float(
        cls,
        first: NDArray,
        second: NDArray,
        apply_gate: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        first_bias: NDArray | None = None,
        second_bias: NDArray | None = None,
        threshold: float | None = 6.0,
    ) -> "Int8Experts":
        """The load phase: quantizes each expert's weights, by row.

        Args:
            first: (E, 2 I, H) or (E, I, H) float16, bfloat16 or float32.
            second: (E, H, I) likewise.
            apply_gate: as the attribute.
            first_bias, second_bias: (E, 2 I) or (E, I), and (E, H); or None.
            threshold: as in `outlier_columns`.

        Raises:
            TypeError, ValueError: an argument has the wrong type or shape; the message names it.
        """
        first, second = arguments.floats("first", first, ndim=3), arguments.floats("second", second, ndim=3)
        if len(first) != len(second):
            raise ValueError(f"first and second must hold the same number of experts, got {len(first)} and {len(second)}")

        def layers(weights: NDArray, biases: NDArray | None) -> tuple[Int8Linear, ...]:
            each = [None] * len(weights) if biases is None else biases
            return tuple(Int8Linear.from_float(w, bias, threshold) for w, bias in zip(weights, each, strict=True))

        return cls(layers(first, first_bias), layers(second, second_bias), apply_gate)

    def __call__(self, hidden_states: NDArray, top_k_index: NDArray[np.integer], top_k_weights: NDArray) -> NDArray[np.float32]:
        """The inference phase: each token's experts, weighed and added up.

        Args:
            hidden_states: (T, H) float16, bfloat16 or float32, one row per token.
            top_k_index: (T, k) of an integer dtype: the experts of each token. E and more stand for no expert.
            top_k_weights: (T, k) float16, bfloat16 or float32: what each expert's row is multiplied by.

        Returns:
            (T, H) float32.

        Raises:
            TypeError: hidden_states or top_k_weights is not an array of one of these dtypes.
            ValueError: shapes that do not fit.
        """
        x, weights = arguments.floats("hidden_states", hidden_states, ndim=2), arguments.floats("top_k_weights", top_k_weights, ndim=2)
        if top_k_index.shape != weights.shape or len(weights) != len(x):
            raise ValueError(
                f"top_k_index and top_k_weights must have shape ({len(x)}, k), one row per row of hidden_states, "
                f"got {top_k_index.shape} and {weights.shape}"
            )
        y = np.zeros((*weights.shape, x.shape[1]), np.float32)
        for e, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            token, place = np.nonzero(top_k_index == e)
            y[token, place] = second(self.apply_gate(first(x[token])))
        weights = np.where(top_k_index < len(self.first), weights, np.float32(0))
        with np.errstate(over="ignore", invalid="ignore"):  # as in any float sum
            return np.sum(y * weights[:, :, None], axis=1, dtype=np.float32)

"""River's biased MF with the sums of the compiled engine, so that the two can be compared bit for bit on every machine.

River leaves dot products to the BLAS of the machine, which sums short ones as it likes; mostly from left to right, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from river import reco


def dot(left: Any, right: Any) -> Any:
    """A dot product of less than 16 factors, summed from left to right.

    >>> float(dot(np.array([1.0, 2.0]), np.array([3.0, 4.0])))
    11.0
    """
    total = 0.0
    for a, b in zip(np.atleast_1d(left).tolist(), np.atleast_1d(right).tolist(), strict=True):
        total += a * b
    return np.float64(total)


class BiasedMF(reco.BiasedMF):
    """River's, but for the order of sums in dot products."""

    def predict_one(self, user: Any, item: Any, x: Any = None) -> float:
        known = self.global_mean.get() + self.u_biases[user] + self.i_biases[item]
        return float(known + dot(self.u_latents[user], self.i_latents[item]))

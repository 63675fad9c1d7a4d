"""Sersic profiles of any index as sums of eight Gaussians, smooth in the index.

Light inside any radius is right to 0.003 of the total for indices of 0.55 to 4, and to 0.005 up to 6.2; light
per logarithm of the radius to 0.005 and 0.012. ``experiments/fit_sersic_gaussians.py`` makes the table.

References:
    Hogg & Lang 2013, PASP 125, 719 (Sersic profiles as sums of Gaussians).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["INDEX_RANGE", "sersic_gaussians", "sersic_index"]

INDEX_RANGE = (0.55, 6.2)
"""Range of the index, in which the table was fitted."""
# fmt: off
_LOGIT = (
    (-2.53277, -1.20071, -0.68573, -0.15971, 0.19343, 0.12240, -0.18570, -2.27239),
    (0.64724, 0.14709, 0.44536, 0.27341, 0.00191, -0.00718, -0.25401, 1.49965),
    (0.76204, 0.68796, 0.28987, 0.22834, 0.24593, 0.18655, 0.46309, -0.07678),
    (0.75954, 0.76540, 0.86586, 0.86599, 0.87071, 0.91430, 0.81288, 0.96093),
)
"""Chebyshev coefficients of the logits of the components' fluxes, lowest order first."""
_LOG_WIDTH = (
    (-2.63185, -1.72346, -1.10225, -0.59588, -0.09743, 0.37308, 0.87413, 1.50711),
    (-1.46034, -1.09229, -0.68176, -0.25901, 0.10109, 0.49779, 0.89937, 1.29853),
    (0.20109, 0.18610, 0.13784, 0.08734, 0.07065, 0.03300, 0.01184, 0.06945),
    (-0.03784, -0.01455, 0.00097, 0.00535, 0.00185, 0.01137, 0.02185, 0.01307),
)
"""Those of the logarithms of the widths [half-light radii]."""
# fmt: on


def sersic_index(u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The Sersic index of a coordinate without bounds: its logarithm is linear in ``tanh(u)``."""
    low, high = (math.log(n) for n in INDEX_RANGE)
    return torch.exp((low + high) / 2 + (high - low) / 2 * torch.tanh(u))


def sersic_gaussians(u: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b c"], Float[Tensor, "*b c"]]:
    """Fluxes, which sum to 1, and widths (sigma) [half-light radii] of the components of a round profile.

    Args:
        u: coordinate of the index (:func:`sersic_index`).
    """
    t = torch.tanh(u)
    powers = torch.stack((torch.ones_like(t), t, 2 * t**2 - 1, 4 * t**3 - 3 * t), -1)
    logit, width = (powers @ powers.new_tensor(table) for table in (_LOGIT, _LOG_WIDTH))
    return logit.softmax(-1), width.exp()

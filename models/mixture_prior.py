"""A mixture of normals over latents with learned components: the VampPrior of a table of posteriors."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from astrozoo.errors import InputError

__all__ = ["MixturePrior"]


class MixturePrior(nn.Module):
    """``p(z) = sum_k w_k N(z; mean_k, diag sd_k^2)``.

    The VampPrior takes the encoder's posteriors of learned pseudo-inputs as components. Here the components
    start as the posteriors of real inputs, and their means, SDs and weights are learned.

    Args:
        features: length of ``z``.
        components: their number.

    References:
        Tomczak & Welling 2018 (VampPrior).
    """

    def __init__(self, features: int, components: int) -> None:
        super().__init__()
        if components < 1:
            raise InputError("components", components, "1 or more")
        self.features = features
        self.mean = nn.Parameter(torch.zeros(components, features))
        self.log_sd = nn.Parameter(torch.zeros(components, features))
        self.logits = nn.Parameter(torch.zeros(components))

    def start(self, mean: Float[Tensor, "n features"], sd: Float[Tensor, "n features"]) -> None:
        """Start at evenly spaced rows of a table of posteriors.

        Each SD is that of a kernel density estimate (Scott's rule) added to the row's, so that neighbouring
        components overlap.

        Raises:
            InputError: the table has fewer rows than there are components.
        """
        count = len(self.mean)
        if len(mean) < count:
            raise InputError("table", f"{len(mean)} rows", f"{count} or more, one for each component")
        rows = torch.linspace(0, len(mean) - 1, count).round().long()
        width = mean.std(0) * count ** (-1 / (self.features + 4))
        with torch.no_grad():
            self.mean.copy_(mean[rows])
            self.log_sd.copy_((sd[rows].square() + width.square()).sqrt().log())

    def forward(self, context: None = None) -> dist.MixtureSameFamily:
        """The distribution of ``z``."""
        normals = dist.Normal(self.mean, self.log_sd.exp(), validate_args=False).to_event(1)
        weights = dist.Categorical(logits=self.logits, validate_args=False)
        return dist.MixtureSameFamily(weights, normals, validate_args=False)

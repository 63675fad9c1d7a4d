"""Normalizing flows of zuko by name and setting, as distributions that Pyro samples from.

A flow maps ``z`` to standard normals ``u``. :func:`make_flow` makes one of four kinds:

* "maf", masked autoregressive with affine steps: ``log_prob`` takes one pass, a draw one pass per feature;
* "nsf", the same with rational-quadratic splines: skewed, heavy or multi-modal marginals;
* "iaf", a "maf" by inversion: a draw takes one pass, ``log_prob`` of given values one pass per feature;
* "realnvp", affine couplings: both take one pass.

The slow direction of the first three takes only two passes if they are made with ``passes=2``: each step is
then a coupling of the two halves of the features. :func:`inverted` exchanges the directions.

References:
    Papamakarios et al. 2017 (MAF); Durkan et al. 2019 (NSF); Kingma et al. 2016 (IAF); Dinh et al. 2017
    (RealNVP).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
import zuko
from jaxtyping import Float
from pyro.distributions.transforms import LowerCholeskyAffine
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from astrozoo.errors import InputError, UnknownNameError

__all__ = [
    "KINDS",
    "FlowDistribution",
    "StandardisedFlow",
    "flow_distribution",
    "inverted",
    "make_flow",
    "start_as_identity",
]

KINDS = ("maf", "nsf", "iaf", "realnvp")
"""Kinds of flows that :func:`make_flow` knows."""
_STEPS = (
    zuko.flows.MaskedAutoregressiveTransform,
    zuko.flows.GeneralCouplingTransform,
    zuko.flows.ElementWiseTransform,
)
"""The steps of these flows, each with a network ``hyper`` (but for one feature without conditions)."""
_LEAST = 1e-30
"""Values of logarithmic conditions are limited to this from below, so that a logarithm is finite. It is far
below any radius or flux, and a float32."""


class FlowDistribution(dist.TorchDistribution):
    """The distribution of ``z`` if ``transform(z)`` are standard normals.

    It has no state besides its arguments. A draw uses the normals of ``noise`` alone, so that the zoo's
    guides and samplers can replace them.

    Args:
        transform: from ``z`` to standard normals; bijective on vectors.
        noise: the standard normals, with the batch shape of this distribution.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as torch declares it
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, transform: Transform, noise: dist.TorchDistribution) -> None:
        self.transform: Any = transform
        self.noise = noise
        super().__init__(noise.batch_shape, noise.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """The same distribution with a larger batch shape."""
        return type(self)(self.transform, self.noise.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*s *b features"]:
        """Draws, differentiable in the parameters of the transform."""
        return self.push(self.noise.rsample(torch.Size(sample_shape)))

    def log_prob(self, value: Float[Tensor, "*s *b features"]) -> Float[Tensor, "*s *b"]:
        """Log density."""
        noise, log_jacobian = self.transform.call_and_ladj(value)
        return self.noise.log_prob(noise) + log_jacobian

    def push(self, noise: Float[Tensor, "*s *b features"]) -> Float[Tensor, "*s *b features"]:
        """``z`` from standard normals. A sampler that should see independent normals draws these."""
        return self.transform.inv(noise)

    def push_with_jacobian(self, noise: Float[Tensor, "*s *b features"]) -> tuple[Tensor, Tensor]:
        """``z`` from standard normals, and ``log |dz/du|``: ``log_prob(z)`` without the inverse."""
        return self.transform.inv.call_and_ladj(noise)


def make_flow(
    kind: str,
    features: int,
    context: int = 0,
    *,
    transforms: int = 3,
    hidden: Sequence[int] = (64, 64),
    passes: int | None = None,
    bins: int | None = None,
) -> zuko.lazy.Flow:
    """An untrained flow. Activations are SiLU, so that second derivatives exist.

    Args:
        kind: one of :data:`KINDS`.
        features: length of ``z``.
        context: length of the conditions; 0: none.
        transforms: number of steps; the order of the features alternates between them.
        hidden: widths of the hidden layers of each step's network.
        passes: passes of the slow direction, 2 to ``features``; None: ``features``. Not of "realnvp".
        bins: pieces of each spline, of "nsf" only; None: 8. Splines are the identity outside [-5, 5].

    Raises:
        UnknownNameError: there is no flow of that kind.
        InputError: a number is out of range, or a setting is not one of that kind.
    """
    if kind not in KINDS:
        raise UnknownNameError("flow", kind, KINDS)
    for name, value in {"features": features, "transforms": transforms}.items():
        if value < 1:
            raise InputError(name, value, "1 or more")
    if context < 0:
        raise InputError("context", context, "0 or more")
    if not hidden or min(hidden) < 1:
        raise InputError("hidden", hidden, "widths of one layer or more")
    if passes is not None and (kind == "realnvp" or not 2 <= passes <= max(features, 2)):
        raise InputError("passes", f"{passes} of {kind!r}", f"2 to {features}, not of 'realnvp'")
    if bins is not None and (kind != "nsf" or bins < 2):
        raise InputError("bins", f"{bins} of {kind!r}", "2 or more, of 'nsf' only")
    settings: dict[str, Any] = {"transforms": transforms, "hidden_features": tuple(hidden)}
    settings |= {"activation": nn.SiLU}
    if kind == "realnvp":
        return zuko.flows.RealNVP(features, context, **settings)
    settings["passes"] = passes
    if kind == "nsf":
        return zuko.flows.NSF(features, context, bins=bins or 8, **settings)
    flow = zuko.flows.MAF(features, context, **settings)
    return flow if kind == "maf" else inverted(flow)


def inverted(flow: zuko.lazy.Flow) -> zuko.lazy.Flow:
    """A flow with the transform of another in the opposite direction: its draws are as quick as the other's
    log densities."""
    return zuko.lazy.Flow(flow.transform.inv, flow.base)


def start_as_identity(flow: zuko.lazy.Flow) -> None:
    """Set a flow's parameters so that it is the identity: the last layer of each network becomes zero."""
    for step in flow.modules():
        if isinstance(step, zuko.flows.ElementWiseTransform) and not hasattr(step, "hyper"):
            last = step.parameters()
        elif isinstance(step, _STEPS):
            last = step.hyper[-1].parameters()
        else:
            continue
        for parameter in last:
            nn.init.zeros_(parameter)


def flow_distribution(
    flow: zuko.lazy.Flow, context: Float[Tensor, "*b context"] | None = None
) -> FlowDistribution:
    """The distribution that a flow describes, given conditions; its batch shape is that of the conditions."""
    like = next(flow.parameters())
    batch = () if context is None else context.shape[:-1]
    return FlowDistribution(flow.transform(context), _standard_normals((*batch, _features(flow)), like))


def _features(flow: zuko.lazy.Flow) -> int:
    return flow.base().event_shape[0]


def _standard_normals(shape: Sequence[int], like: Tensor) -> dist.TorchDistribution:
    loc = torch.zeros(tuple(shape), dtype=like.dtype, device=like.device)
    # Validation reads values, which a traced function cannot do.
    return dist.Normal(loc, torch.ones_like(loc), validate_args=False).to_event(1)


class StandardisedFlow(nn.Module):
    """A flow over ``z`` given conditions, both in units of the set that it is trained on.

    ``z`` is whitened by the mean and the covariance of that set, so that an untrained flow is the normal with
    these moments. A condition is standardised by its mean and SD, of its logarithm if it is logarithmic.

    Args:
        flow: from :func:`make_flow`. It becomes the identity.
        logarithmic: for each condition, whether its logarithm is used. Such a condition is positive.
    """

    centre: Tensor
    root: Tensor
    context_centre: Tensor
    context_scale: Tensor
    context_range: Tensor

    def __init__(self, flow: zuko.lazy.Flow, logarithmic: Sequence[bool] = ()) -> None:
        super().__init__()
        self.flow, self.features, self.logarithmic = flow, _features(flow), tuple(logarithmic)
        start_as_identity(flow)
        count = len(self.logarithmic)
        self.register_buffer("centre", torch.zeros(self.features))
        self.register_buffer("root", torch.eye(self.features))
        self.register_buffer("context_centre", torch.zeros(count))
        self.register_buffer("context_scale", torch.ones(count))
        self.register_buffer(
            "context_range", torch.tensor([[-torch.inf], [torch.inf]]).expand(2, count).clone()
        )

    def standardise(
        self,
        mean: Float[Tensor, "features"],
        covariance: Float[Tensor, "features features"],
        context: Float[Tensor, "n context"] | None = None,
    ) -> None:
        """Set the moments of ``z``, and the moments and ranges of the conditions, to those of a set.

        Raises:
            InputError: the covariance is not positive definite, a condition is constant, or a logarithmic
                one is not positive.
        """
        root, failed = torch.linalg.cholesky_ex(covariance.double())
        if failed or not root.isfinite().all():
            raise InputError("covariance", "a matrix that is not positive definite", "that of several draws")
        with torch.no_grad():
            self.centre.copy_(mean)
            self.root.copy_(root)
            if context is not None and len(self.logarithmic):
                if not (context > 0)[:, list(self.logarithmic)].all():
                    got = "a logarithmic one that is not positive"
                    raise InputError("conditions", got, "positive values")
                inner = self._logarithms(context.double())
                scale = inner.std(0)
                if not (scale > 0).all():
                    raise InputError("conditions", "one that is constant", "conditions that vary")
                self.context_centre.copy_(inner.mean(0))
                self.context_scale.copy_(scale)
                self.context_range.copy_(torch.stack((context.amin(0), context.amax(0))))

    def forward(self, context: Float[Tensor, "*b context"] | None = None) -> FlowDistribution:
        """The distribution of ``z`` given conditions in the units of the training set; ``[*b, features]``.

        Raises:
            InputError: the number of conditions is another.
        """
        count = 0 if context is None else context.shape[-1]
        if count != len(self.logarithmic):
            raise InputError("conditions", f"{count} of them", f"{len(self.logarithmic)}")
        batch: Sequence[int] = ()
        if context is not None:
            batch = context.shape[:-1]
            context = (self._logarithms(context) - self.context_centre) / self.context_scale
        whiten = LowerCholeskyAffine(self.centre, self.root).inv
        steps = zuko.transforms.ComposedTransform(whiten, self.flow.transform(context))
        return FlowDistribution(steps, _standard_normals((*batch, self.features), self.centre))

    def _logarithms(self, context: Float[Tensor, "*b context"]) -> Float[Tensor, "*b context"]:
        if not any(self.logarithmic):
            return context
        chosen = torch.tensor(self.logarithmic, device=context.device)
        return torch.where(chosen, context.clamp(min=_LEAST).log(), context)

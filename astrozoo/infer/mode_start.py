"""Where a fit of independent normals starts: at the mode, with the widths that its curvature implies."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.infer.maximise import maximise
from astrozoo.infer.randomness import noise_for
from astrozoo.objective import Density, VariationalObjective
from astrozoo.types import Status

__all__ = ["mode_start"]

MODE = 60
"""The most gradients that the search for the mode takes."""
CLOSE = 0.5
"""Length of a Newton step at which it ends, which is then taken unseen [posterior SDs]."""


def mode_start(
    target: VariationalObjective, density: Density, w0: Float[Tensor, "b p"], *, seed: int, draws: int
) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b p p"]]:
    """Parameters of the guide from which to maximise its ELBO, and about its Hessian there.

    Where ``log p`` is quadratic with the Hessian ``H``, the ELBO of independent normals has its maximum at
    the mode with the variances ``-1 / H_ii``, and its Hessian in means and log SDs is ``H`` beside ``-2``. A
    gradient of ``log p`` costs as much as one of the ELBO for a single draw. A row for which ``w0`` has the
    greater ELBO, or whose search ends at no mode (that of a centred hierarchy runs away, say), keeps ``w0``,
    and the Hessian there is NaN.

    Args:
        target: of a guide with a method ``normal(layout, mean, sd)``.
        draws: that the two starts are compared on.

    Raises:
        KeyboardInterrupt: if interrupted: there is nothing to keep yet.
    """
    z0 = target.unconstrained(w0, w0.new_zeros(1, target.draw_dim))[:, 0]
    unknown = torch.full((*z0.shape, z0.shape[1]), torch.nan, dtype=z0.dtype, device=z0.device)
    found = maximise(density, z0, tolerance=CLOSE, max_iterations=MODE, curvature=unknown)
    if Status.INTERRUPTED in found.statuses:
        raise KeyboardInterrupt
    H, g = found.state.curvature, density.value_and_grad(found.w)[1]
    root, failed = torch.linalg.cholesky_ex(-H)
    ok = (failed == 0) & root.isfinite().flatten(1).all(1) & g.isfinite().all(1)
    ok &= torch.tensor([status.ok for status in found.statuses], device=ok.device)
    root = torch.where(ok[:, None, None], root, torch.eye(z0.shape[1]).to(root))
    last = torch.cholesky_solve(g[..., None], root)[..., 0]
    mean = torch.where(ok[:, None], found.w + last, z0)
    variance = torch.where(ok[:, None], -1 / H.diagonal(dim1=1, dim2=2), 1.0)
    w = target.normal(mean, variance.sqrt())
    noise = noise_for(seed, 0, draws=draws, like=target, matched=True)
    new, old = (target.values(x, noise).mean(1) for x in (w, w0))
    ok &= new.isfinite() & ~(new <= old)
    curvature = _of_parameters(target, mean, variance, H)
    return torch.where(ok[:, None], w, w0), torch.where(ok[:, None, None], curvature, torch.nan)


def _of_parameters(
    target: VariationalObjective, mean: Tensor, variance: Tensor, H: Tensor
) -> Float[Tensor, "b p p"]:
    """The Hessian in the guide's parameters, each of which is a function of one mean or one log SD alone."""
    d = mean.shape[1]
    moments = torch.cat((mean, variance.log() / 2), 1)
    place = torch.arange(1.0, 2 * d + 1).to(moments)  # of a parameter among all
    with torch.enable_grad():
        leaf = moments.detach().requires_grad_()
        w = target.normal(leaf[:, :d], leaf[:, d:].exp())
        slope, placed = (torch.autograd.grad((w * x).sum(), leaf, retain_graph=True)[0] for x in (1.0, place))
    order = (placed / slope)[0].round().long() - 1
    whole = torch.diag_embed(torch.full_like(moments, -2.0))
    whole[:, :d, :d] = H
    own = torch.empty_like(whole)
    own[:, order[:, None], order] = whole / (slope[:, :, None] * slope[:, None])
    return own

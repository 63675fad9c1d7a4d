"""The trust-region sub-problem: maximise ``g's + s'Hs / 2`` over ``|s| <= radius``, for a batch of rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["solve", "subproblem_dense", "subproblem_krylov"]

_ROUNDS = 60


def subproblem_dense(
    g: Float[Tensor, "b p"], H: Float[Tensor, "b p p"], radius: Float[Tensor, "b"]
) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b"]]:
    """The global maximiser, through the eigenvalues of ``H`` and the secular equation.

    The gradient may lie outside the eigenspace of the greatest curvature (the "hard case"): what is then
    missing from the radius is gone along that eigenspace.

    Returns:
        the step, and the gain ``g's + s'Hs / 2`` that the quadratic model promises for it.

    References:
        Moré & Sorensen 1983; Nocedal & Wright 2006, section 4.3.
    """
    curvature, Q = torch.linalg.eigh(-H)  # [b, p], ascending
    c = (Q.mT @ g[..., None])[..., 0]
    lowest = curvature[:, :1]
    gap = curvature - lowest
    tiny = torch.finfo(g.dtype).tiny
    delta = radius[:, None]

    # s(t) = c / (gap + t), t = multiplier + lowest: no cancellation near the hard case.
    low = lowest.clamp_min(0.0)
    norm_g = torch.linalg.vector_norm(c, dim=1, keepdim=True)
    high = torch.maximum(low, norm_g / delta)
    y = c / (gap + low).clamp_min(tiny)
    interior = (lowest > 0) & (torch.linalg.vector_norm(y, dim=1, keepdim=True) <= delta)
    t = torch.where(interior, low, high)
    for _ in range(_ROUNDS):
        y = c / (gap + t).clamp_min(tiny)
        norm = torch.linalg.vector_norm(y, dim=1, keepdim=True)
        done = interior | ((norm / delta - 1).abs() < 1e-8) | (norm_g <= tiny)
        if done.all():
            break
        low, high = torch.where(norm > delta, t, low), torch.where(norm > delta, high, t)
        slope = (y.square() / (gap + t).clamp_min(tiny)).sum(1, keepdim=True).clamp_min(tiny)
        newton = t + norm.square() / slope * (norm - delta) / delta
        inside = (newton > low) & (newton < high)
        t = torch.where(done, t, torch.where(inside, newton, (low + high) / 2))
    y = c / (gap + t).clamp_min(tiny)

    norm = torch.linalg.vector_norm(y, dim=1, keepdim=True)
    y = torch.where(norm > delta, y * (delta / norm.clamp_min(tiny)), y)
    missing = (delta.square() - y[:, 1:].square().sum(1, keepdim=True)).clamp_min(0.0).sqrt()
    along = torch.where(c[:, :1] < 0, -missing, missing)
    first = torch.where((lowest <= 0) & (norm_g + lowest.abs() > tiny), along, y[:, :1])
    y = torch.cat((first, y[:, 1:]), 1)
    gain = (c * y - curvature * y.square() / 2).sum(1)
    return (Q @ y[..., None])[..., 0], gain


def subproblem_krylov(
    hvp: Callable[[Float[Tensor, "b p"]], Float[Tensor, "b p"]],
    g: Float[Tensor, "b p"],
    radius: Float[Tensor, "b"],
    *,
    max_products: int = 100,
) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b"]]:
    """An approximate maximiser from Hessian-vector products alone: conjugate gradients, cut at the radius.

    Ends a row when its residual has fallen to ``min(0.1, |g|^1/2) |g|``, when it meets positive curvature
    (it then follows it to the radius), when it reaches the radius, or after ``max_products`` products.

    References:
        Steihaug 1983; Nocedal & Wright 2006, algorithm 7.2.
    """
    s, r, d = torch.zeros_like(g), g.clone(), g.clone()
    rr = r.square().sum(1)
    target = rr * torch.minimum(rr.sqrt(), torch.full_like(rr, 0.01))
    live: Bool[Tensor, "b"] = rr > 0
    for _ in range(min(max_products, 2 * g.shape[1])):
        if not live.any():
            break
        Bd = -hvp(d)
        dBd = (d * Bd).sum(1)
        bowl = dBd > 0
        alpha = torch.where(bowl, rr / torch.where(bowl, dBd, 1.0), 0.0)
        cut = ~bowl | (torch.linalg.vector_norm(s + alpha[:, None] * d, dim=1) >= radius)
        alpha = torch.where(live, torch.where(cut, _to_radius(s, d, radius), alpha), 0.0)[:, None]
        s, r = s + alpha * d, r - alpha * Bd
        new = r.square().sum(1)
        live = live & ~cut & (new > target)
        d = torch.where(live[:, None], r + (new / rr.clamp_min(torch.finfo(g.dtype).tiny))[:, None] * d, d)
        rr = new
    return s, (s * (g + r)).sum(1) / 2


def _to_radius(s: Tensor, d: Tensor, radius: Tensor) -> Tensor:
    """The positive ``tau`` with ``|s + tau d| = radius``."""
    dd = d.square().sum(1).clamp_min(torch.finfo(d.dtype).tiny)
    sd = (s * d).sum(1)
    short = (radius.square() - s.square().sum(1)).clamp_min(0.0)
    return (-sd + (sd.square() + dd * short).sqrt()) / dd


def solve(
    product: Callable[[Float[Tensor, "b p"]], Float[Tensor, "b p"]],
    right: Float[Tensor, "b p"],
    scale: Float[Tensor, "p"],
    *,
    tolerance: float = 1e-6,
    max_products: int = 500,
) -> Float[Tensor, "b p"]:
    """``A^-1 right`` for a positive definite A known by its products, by preconditioned conjugate gradients.

    Args:
        product: A times each row.
        scale: of the parameters: about the diagonal of ``A^-1``.
        tolerance: of the residual, relative, in the norm of the preconditioner; a row that ends with a
            larger one, or meets negative curvature, is NaN.
    """
    x, r = torch.zeros_like(right), right.clone()
    d = scale * r
    rz = first = (r * d).sum(1)
    live: Bool[Tensor, "b"] = rz > 0
    broken = torch.zeros_like(live)
    tiny = torch.finfo(right.dtype).tiny
    for _ in range(max_products):
        if not live.any():
            break
        Ad = product(d)
        bend = (d * Ad).sum(1)
        broken |= live & ~(bend > 0)
        live &= ~broken
        alpha = torch.where(live, rz / bend.clamp_min(tiny), 0.0)[:, None]
        x, r = x + alpha * d, r - alpha * Ad
        new = (r * scale * r).sum(1)
        d = torch.where(live[:, None], scale * r + (new / rz.clamp_min(tiny))[:, None] * d, d)
        rz = new
        live = live & (rz > tolerance**2 * first)
    return torch.where((broken | live)[:, None], torch.nan, x)

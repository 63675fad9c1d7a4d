"""The trust-region sub-problem: maximise ``g's + s'Hs / 2`` over ``|s| <= radius``, for a batch of rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["solve", "subproblem_dense", "subproblem_krylov"]

WORTH = 0.05
"""A step that ends on the boundary is improved as long as another Hessian-vector product adds more than this
fraction to its predicted gain."""
_ROUNDS = 60
"""Most iterations that solve the secular equation: Newton steps, or bisections where these leave the bracket.
They end once the length of the step is the radius to a relative 1e-8, usually after fewer than ten."""


def subproblem_dense(
    g: Float[Tensor, "b p"], H: Float[Tensor, "b p p"], radius: Float[Tensor, "b"]
) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b"]]:
    """The global maximiser: Newton's step where that is one and lies inside, else by the secular equation.

    The gradient may lie outside the eigenspace of the greatest curvature (the "hard case"): what is then
    missing from the radius is gone along that eigenspace.

    Returns:
        the step, and the gain ``g's + s'Hs / 2`` that the quadratic model promises for it.

    References:
        Moré & Sorensen 1983; Nocedal & Wright 2006, section 4.3.
    """
    root, failed = torch.linalg.cholesky_ex(-H)  # a tenth of the work of eigenvalues
    root = torch.where(failed[:, None, None] > 0, torch.eye(g.shape[1]).to(H), root)
    half = torch.linalg.solve_triangular(root, g[..., None], upper=False)
    s = torch.linalg.solve_triangular(root.mT, half, upper=True)[..., 0]
    gain = half[..., 0].square().sum(1) / 2
    inside = (failed == 0) & (torch.linalg.vector_norm(s, dim=1) <= radius)
    rest = torch.nonzero(~inside)[:, 0]
    if len(rest):
        s[rest], gain[rest] = _secular(g[rest], H[rest], radius[rest])
    return s, gain


def _secular(g: Tensor, H: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
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
    product: Callable[[Float[Tensor, "a p"], Int[Tensor, "a"]], Float[Tensor, "a p"]],
    g: Float[Tensor, "b p"],
    radius: Float[Tensor, "b"],
    *,
    max_products: int = 100,
) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b"]]:
    """The maximiser within the Krylov space of ``g``, from Hessian-vector products alone (GLTR).

    Lanczos vectors make the Hessian tridiagonal; its sub-problem is solved exactly in every space on the way,
    on the boundary and under positive curvature too. A row ends when its residual has fallen to
    ``min(0.1, |g|^1/2) |g|``, when on the boundary one more product adds less than ``WORTH`` of the gain,
    or after ``max_products``. Directions to which the gradient is exactly orthogonal remain unseen.

    Args:
        product: the Hessians of the rows of these indices times vectors.

    References:
        Gould, Lucidi, Roma & Toint 1999, SIAM J. Optim. 9, 504.
    """
    s, gain = torch.zeros_like(g), torch.zeros_like(g[:, 0])
    norm = torch.linalg.vector_norm(g, dim=1)
    target = norm * norm.sqrt().clamp_max(0.1)
    live = torch.nonzero(norm > 0)[:, 0]
    q = g[live] / norm[live, None]
    Q = q[:, None]  # [live, k, p]
    T = g.new_zeros(len(live), 0, 0)
    below = g.new_zeros(len(live))
    for k in range(min(max_products, g.shape[1])):
        if not len(live):
            break
        r = product(q, live)
        T = torch.nn.functional.pad(T, (0, 1, 0, 1))
        T[:, k, k] = (q * r).sum(1)
        if k:
            T[:, k, k - 1] = T[:, k - 1, k] = below
        for _ in range(2):  # against all earlier ones, twice: rounding would lose their orthogonality
            r = r - ((Q @ r[..., None]).mT @ Q)[:, 0]
        below = torch.linalg.vector_norm(r, dim=1)
        along = torch.nn.functional.pad(norm[live, None], (0, k))
        h, promised = subproblem_dense(along, T, radius[live])
        edge = torch.linalg.vector_norm(h, dim=1) > 0.999 * radius[live]
        done = (below * h[:, -1].abs() <= target[live]) | (below <= 1e-12 * T.abs().amax((1, 2)))
        done |= edge & (promised - gain[live] <= WORTH * promised) & (k > 0)
        s[live], gain[live] = (h[:, None] @ Q)[:, 0], promised
        on = ~done
        live, below, T = live[on], below[on], T[on]
        q = r[on] / below[:, None]
        Q = torch.cat((Q[on], q[:, None]), 1)
    return s, gain


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

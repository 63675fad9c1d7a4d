"""Draws from ``N(mode, A^-1)`` where the curvature A is known by its products with vectors alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from astrozoo.infer import _metric
from astrozoo.infer._metric import DENSE_LIMIT, Block, Structure
from astrozoo.infer._operators import Metric

__all__ = ["CurvatureDraws", "draws_by_products", "inverse_root", "preconditioner", "solve"]

PROBES = 16
"""Random vectors whose products with the curvature give the preconditioner. Two of them make it exact where
the curvature is diagonal in the preconditioner's basis.
"""
MAX_PRODUCTS = 200
"""The most products with the curvature for one draw. Lanczos needs about the square root of the condition
number of the preconditioned curvature, times a few."""
TOLERANCE = 1e-4
"""Relative change of a draw by another product at which it has converged. A hundred draws tell means apart to
a tenth of an SD, a thousand times this."""
BASIS_ELEMENTS = 2**25
"""Numbers of all Lanczos bases of the draws that are made at once, if each takes 50 products: 270 MB in
double precision.
"""


@dataclass(frozen=True)
class CurvatureDraws:
    """Draws of a normal, and what is known of it.

    Args:
        z: the draws; NaN where the curvature is not positive definite or products were too few.
        log_q: log density of each under the normal. Its constant has the standard error ``log_q_error``.
        variance: mean squares of the draws about the mode; the relative standard error is ``sqrt(2 / m)``.
        metric: the preconditioner.
        products: products with the curvature, of all draws and probes.
    """

    z: Float[Tensor, "m d"]
    log_q: Float[Tensor, "m"]
    log_q_error: float
    variance: Float[Tensor, "d"]
    metric: Metric
    products: int


def draws_by_products(
    product: Callable[[Float[Tensor, "k d"]], Float[Tensor, "k d"]],
    mode: Float[Tensor, "d"],
    draws: int,
    generator: torch.Generator,
    structure: Structure = _metric.DEFAULT,
) -> CurvatureDraws:
    """Independent draws of ``N(mode, A^-1)``.

    With the preconditioner ``root``, a draw is ``mode + root (root' A root)^-1/2 e`` of a standard normal
    ``e``. The inverse square root is by Lanczos, which also gives the determinant (stochastic Lanczos
    quadrature).

    Args:
        product: A times each row.
        structure: of the preconditioner, which is estimated from products with random vectors.

    References:
        Chow & Saad 2014, SIAM J. Sci. Comput. 36, A588 (preconditioned Lanczos draws); Ubaru, Chen & Saad
        2017, SIAM J. Matrix Anal. 38, 1075 (log determinants).
    """
    d, count = len(mode), 0

    def normals(rows: int) -> Tensor:
        return torch.randn(rows, d, generator=generator, dtype=mode.dtype).to(mode.device)

    def counted(v: Tensor) -> Tensor:
        nonlocal count
        count += len(v)
        return product(v)

    metric = preconditioner(counted, mode, generator, structure)

    def whitened(v: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        return metric.force(counted(metric.velocity(v[None])[0])[None])[0]

    z = mode.new_empty(draws, d)
    squares, quadratics = torch.zeros_like(mode), []
    log_q = mode.new_empty(draws)
    at_once = max(1, BASIS_ELEMENTS // (50 * d))
    for first in range(0, draws, at_once):
        rows = slice(first, min(first + at_once, draws))
        e = normals(rows.stop - first)
        u, quadratic = inverse_root(whitened, e)
        offset = metric.velocity(u[None])[0]
        z[rows] = mode + offset
        squares += offset.square().sum(0)
        log_q[rows] = -e.square().sum(1) / 2
        quadratics.append(quadratic)
    log_dets = torch.cat(quadratics) / 2
    log_q += log_dets.mean() - metric.log_det[0] - d / 2 * math.log(2 * math.pi)
    error = float(log_dets.std() / draws**0.5) if draws > 1 else math.nan
    return CurvatureDraws(z, log_q, error, squares / draws, metric, count)


def preconditioner(
    product: Callable[[Float[Tensor, "k d"]], Float[Tensor, "k d"]],
    like: Float[Tensor, "d"],
    generator: torch.Generator,
    structure: Structure = _metric.DEFAULT,
) -> Metric:
    """A root of about the inverse of A, from its products with :data:`PROBES` random vectors."""
    probes = torch.randn(PROBES, len(like), generator=generator, dtype=like.dtype).to(like.device)
    return _metric.estimated(
        probes[None], -product(probes)[None], _without_correlations(structure, len(like))
    )


def solve(
    product: Callable[[Float[Tensor, "k d"]], Float[Tensor, "k d"]],
    b: Float[Tensor, "d"],
    metric: Metric,
    *,
    tolerance: float,
    most: int,
) -> tuple[Float[Tensor, "d"], int, bool]:
    """``A^-1 b`` by conjugate gradients, A positive definite and known by its products.

    Args:
        metric: the preconditioner.
        tolerance: of the whitened residual, relative to the whitened ``b``.
        most: products at most.

    Returns:
        the solution (NaN where a direction has no positive curvature), the number of products, and whether
        the tolerance was reached.
    """

    def preconditioned(r: Tensor) -> Tensor:
        return metric.velocity(metric.force(r[None, None]))[0, 0]

    x, r = torch.zeros_like(b), b
    y = preconditioned(r)
    p, rho = y, r @ y
    limit = tolerance**2 * rho
    for n in range(most):
        if rho <= limit:
            return x, n, True
        q = product(p[None])[0]
        curvature = p @ q
        if not curvature > 0:
            return torch.full_like(b, torch.nan), n + 1, False
        x, r = x + rho / curvature * p, r - rho / curvature * q
        y = preconditioned(r)
        rho, before = r @ y, rho
        p = y + rho / before * p
    return x, most, bool(rho <= limit)


def _without_correlations(structure: Structure, d: int) -> Structure:
    """Random vectors show no principal directions: low-rank blocks become diagonal."""

    def simple(block: Block) -> Block:
        kind = "dense" if not block.kind and block.size <= min(DENSE_LIMIT, PROBES // 2) else block.kind
        return replace(block, kind="diagonal" if kind in ("", "low_rank") else kind)

    return replace(structure, blocks=tuple(map(simple, structure.blocks or (Block(d),))))


def inverse_root(
    product: Callable[[Float[Tensor, "m d"]], Float[Tensor, "m d"]],
    e: Float[Tensor, "m d"],
    *,
    tolerance: float = TOLERANCE,
    max_products: int = MAX_PRODUCTS,
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m"]]:
    """``A^-1/2 e`` and ``e' log(A) e`` of each row by Lanczos, A positive definite and known by its products.

    A row that needs more products, or meets negative curvature, is NaN.
    """
    norm = torch.linalg.vector_norm(e, dim=1)
    basis = [e / norm[:, None]]
    m, d = e.shape
    diagonal: list[Tensor] = []
    below: list[Tensor] = []
    before = e.new_zeros(m, 0)
    converged: Bool[Tensor, "m"] = torch.zeros(m, dtype=torch.bool, device=e.device)
    broken = converged.clone()
    coefficients, logs = before, torch.zeros_like(norm)
    tiny = 100 * torch.finfo(e.dtype).eps
    for k in range(min(max_products, d)):
        r = product(basis[k])
        diagonal.append((basis[k] * r).sum(1))
        for _ in range(2):  # against all earlier vectors, twice: rounding would lose their orthogonality
            for q in basis:
                r = r - (q * r).sum(1, keepdim=True) * q
        T = torch.diag_embed(torch.stack(diagonal, 1))
        if below:
            off = torch.stack(below, 1)
            T = T + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
        values, vectors = torch.linalg.eigh(T)
        broken |= ~(values[:, 0] > 0)
        first = vectors[:, 0] * norm[:, None]
        safe = values.clamp_min(torch.finfo(e.dtype).tiny)
        coefficients = (vectors @ (first * safe.rsqrt())[..., None])[..., 0]
        logs = (first.square() * safe.log()).sum(1)
        change = coefficients - torch.nn.functional.pad(before, (0, 1))
        size = torch.linalg.vector_norm(coefficients, dim=1)
        beta = torch.linalg.vector_norm(r, dim=1)
        exhausted = beta <= tiny * T.abs().amax((1, 2))
        converged = exhausted | (torch.linalg.vector_norm(change, dim=1) <= tolerance * size)
        if (converged | broken).all():
            break
        before = coefficients
        below.append(beta)
        basis.append(
            torch.where(exhausted[:, None], 0.0, r / beta.clamp_min(torch.finfo(e.dtype).tiny)[:, None])
        )
    x = torch.zeros_like(e)
    for column, q in zip(coefficients.T, basis, strict=False):
        x += column[:, None] * q
    good = converged & ~broken
    return torch.where(good[:, None], x, torch.nan), torch.where(good, logs, torch.nan)

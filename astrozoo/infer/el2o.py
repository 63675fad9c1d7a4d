"""Gaussian approximations by matching values, gradients and Hessians (EL2O)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo import registry
from astrozoo.density import log_density
from astrozoo.errors import InputError
from astrozoo.infer.approximation import elbo_of_draws, normal_draws
from astrozoo.infer.guide_factory import guide_name, unwrapped
from astrozoo.infer.identity import run_checkpoint
from astrozoo.infer.maximise import maximise
from astrozoo.infer.options import El2oSettings, RunOptions
from astrozoo.infer.progress import progress_bar
from astrozoo.infer.randomness import generator_for
from astrozoo.infer.results import finish
from astrozoo.infer.starts import density_starts
from astrozoo.objective import Density
from astrozoo.types import DENSE_COVARIANCE, Problem, Result, Status

__all__ = ["Gaussian", "el2o", "match"]

FAMILIES = ("full_rank", "mean_field")
"""Guides that the method fits. They are named, because it matches their covariance itself."""
MODE = 50
"""Most iterations of the climb to the mode, where the matching starts."""
STRETCH = 4.0
"""Largest factor by which a variance rises or falls in one iteration, and the most SDs by which a mean
moves."""
SLOWEST = 1 / 16
"""Least fraction of the way to a match that an iteration moves."""
_CG = 200
"""Most iterations of conjugate gradients in one solution of a linear system."""
"""The most conjugate-gradient steps of a fit."""


@dataclass(frozen=True)
class Gaussian:
    """``N(mean, root root')`` of each problem, and the log of its evidence."""

    mean: Float[Tensor, "b d"]
    root: Float[Tensor, "b d d"]
    log_evidence: Float[Tensor, "b"]


@dataclass
class _Shape:
    """Derivatives at the sample points, in coordinates in which the Gaussian is a unit one."""

    y: Float[Tensor, "m d"]
    value: Float[Tensor, "b m"]
    gradient: Float[Tensor, "b m d"]
    hessian: Float[Tensor, "b m d d"]


def match(shape: _Shape, diagonal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The quadratic ``c + b'y - y'Ay / 2`` nearest to values, gradients and Hessians, in least squares.

    All residuals have equal weight, as the coordinates have none of their own units. Solved by conjugate
    gradients on the normal equations, each row for itself.

    Args:
        diagonal: A is diagonal, and the values decide on c alone: what they owe to the correlations that a
            diagonal A cannot have would swamp it.

    Returns:
        ``c [b], b [b, d], A [b, d, d]``.

    References:
        Seljak & Yu 2019, arXiv 1901.04454, section 2.
    """
    y, level = shape.y, shape.value.mean(1)  # values may be huge beside their differences
    if diagonal:
        b = shape.gradient.mean(1)
        slopes = (shape.gradient * y).sum(1) / y.square().sum(0)
        a = -(slopes * y.square().mean(0) + shape.hessian.diagonal(dim1=2, dim2=3).mean(1))
        a = a / (1 + y.square().mean(0))
        c = (shape.value - b @ y.T + (a[:, None] * y.square()).sum(2) / 2).mean(1)
        return c, b, torch.diag_embed(a)

    def forward(c: Tensor, b: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        Ay = y @ A  # [b, m, d]
        return c[:, None] + b @ y.T - (Ay * y).sum(-1) / 2, b[:, None] - Ay, -A

    def adjoint(value: Tensor, gradient: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outer = torch.einsum("bm,mi,mj->bij", value, y, y) / 2 + torch.einsum("bmi,mj->bij", gradient, y)
        return value.sum(1), value @ y + gradient.sum(1), -(outer + outer.mT) / 2 - hessian

    def dot(p: tuple[Tensor, ...], q: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([(x * z).reshape(len(x), -1).sum(1) for x, z in zip(p, q, strict=True)]).sum(0)

    def normal(p: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        value, gradient, hessian = forward(*p)
        return adjoint(value, gradient, len(y) * hessian)

    def plus(p: tuple[Tensor, ...], q: tuple[Tensor, ...], scale: Tensor) -> Any:
        scaled = [scale.reshape(-1, *[1] * (z.ndim - 1)) * z for z in q]
        return tuple(x + z for x, z in zip(p, scaled, strict=True))

    target = adjoint(shape.value - level[:, None], shape.gradient, shape.hessian.sum(1))
    found: Any = tuple(torch.zeros_like(t) for t in target)
    r, d = target, target
    rr = first = dot(r, r)
    for _ in range(_CG):
        if not (rr > 1e-24 * first).any():
            break
        Nd = normal(d)
        step = rr / dot(d, Nd).clamp_min(torch.finfo(y.dtype).tiny)
        found, r = plus(found, d, step), plus(r, Nd, -step)
        new = dot(r, r)
        d, rr = plus(r, d, new / rr.clamp_min(torch.finfo(y.dtype).tiny)), new
    c, b, A = found
    return c + level, b, A


def _derivatives(density: Density, q: Gaussian, y: Float[Tensor, "m d"]) -> _Shape:
    """At the points ``mean + root y``."""
    z = q.mean[:, None] + torch.einsum("bij,mj->bmi", q.root, y)  # [b, m, d]
    if density.batch is None:
        parts = [t[None] for t in density.value_grad_hessian(z[0])]
    else:
        found = [density.value_grad_hessian(z[:, i]) for i in range(len(y))]
        parts = [torch.stack(column, 1) for column in zip(*found, strict=True)]
    value, gradient, hessian = parts
    root = q.root[:, None]
    return _Shape(y, value, (root.mT @ gradient[..., None])[..., 0], root.mT @ hessian @ root)


def _improve(
    density: Density, q: Gaussian, y: Tensor, diagonal: bool, share: Float[Tensor, "b"]
) -> tuple[Gaussian, Float[Tensor, "b"]]:
    """One iteration, and how far the match is: of means [SD] and log variances, the most; NaN if broken.

    Args:
        share: of the way to the match, in natural parameters.
    """
    shape = _derivatives(density, q, y)
    good = shape.hessian.isfinite().flatten(1).all(1) & shape.value.isfinite().all(1)
    fields = {k: v.nan_to_num(0, 0, 0) if k != "y" else v for k, v in vars(shape).items()}
    c, b, A = match(_Shape(**fields), diagonal)
    unit = torch.eye(b.shape[1], dtype=b.dtype, device=b.device)
    precision = torch.linalg.eigvalsh(A)
    full = torch.linalg.solve(A + unit * 1e-9, b).abs().amax(1)
    moved = torch.maximum(full, precision.clamp_min(1e-9).log().abs().amax(1))
    precision, directions = torch.linalg.eigh(unit + share[:, None, None] * (A - unit))
    bounded = precision.clamp(1 / STRETCH, STRETCH)
    b = share[:, None] * b
    move = (directions @ ((directions.mT @ b[..., None]) / bounded[..., None]))[..., 0]  # [SD]
    move = move * (STRETCH / move.abs().amax(1).clamp_min(STRETCH))[:, None]
    log_evidence = c + (b * move).sum(1) / 2 + math.log(2 * math.pi) * q.mean.shape[1] / 2
    log_evidence += q.root.diagonal(dim1=1, dim2=2).log().sum(1) - bounded.log().sum(1) / 2
    spread = (directions / bounded[:, None]) @ directions.mT
    covariance = q.root @ ((spread + spread.mT) / 2) @ q.root.mT
    covariance = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2)) if diagonal else covariance
    root = torch.linalg.cholesky((covariance + covariance.mT) / 2)
    mean = q.mean + (q.root @ move[..., None])[..., 0]
    keep = ~good[:, None]
    new = Gaussian(
        torch.where(keep, q.mean, mean),
        torch.where(keep[..., None], q.root, root),
        torch.where(good, log_evidence, torch.nan),
    )
    return new, torch.where(good, moved, torch.nan)


def _first(density: Density, z0: Tensor, diagonal: bool, seed: int) -> Gaussian:
    """At the mode, with the curvature there; where it curves up, by its magnitude."""
    found = maximise(density, z0, seed=seed, max_iterations=MODE, tolerance=1e-2)
    if Status.INTERRUPTED in found.statuses:
        raise KeyboardInterrupt  # there is nothing to keep yet
    hessian = density.value_grad_hessian(found.w)[2] if found.hessian is None else found.hessian
    hessian = hessian.nan_to_num(0, 0, 0)
    if diagonal:
        root = torch.diag_embed(hessian.diagonal(dim1=1, dim2=2).abs().clamp_min(1e-6).rsqrt())
    else:
        curvature, directions = torch.linalg.eigh(hessian)
        covariance = (directions / curvature.abs().clamp_min(1e-6)[:, None]) @ directions.mT
        root = torch.linalg.cholesky((covariance + covariance.mT) / 2)
    return Gaussian(found.w, root, torch.full_like(found.value, torch.nan))


def el2o(
    problem: Problem, guide: Callable[[Problem], Any], run: RunOptions, settings: El2oSettings
) -> Result:
    """The Gaussian whose log density has the values, gradients and Hessians of the posterior's.

    From the mode on, each iteration draws points from the current Gaussian (with the same noise each time, so
    that there is a fixed point), keeps them fixed, and solves the linear least squares of :func:`match`, one
    of whose unknowns is ln Z. A full-rank Gaussian posterior is matched exactly by the first iteration. An
    iteration takes ``particles`` Hessians per problem.

    Args:
        guide: the zoo's general ``full_rank`` or ``mean_field``, which names the family.

    Returns:
        a Result whose ``stats["log_evidence"]`` is the fitted ln Z, and ``stats["el2o"]`` the variance of
        ln p - ln q over fresh draws, 0 for a perfect match.

    Raises:
        InputError: for another guide, a start of the wrong shape, or a checkpoint of another run.

    References:
        Seljak & Yu 2019, arXiv 1901.04454.
    """
    began = time.monotonic()
    family = next((name for name in FAMILIES if unwrapped(guide) is registry.guide(name)), None)
    if family is None:
        raise InputError("guide", guide_name(guide), "'full_rank' or 'mean_field'")
    target = log_density(problem, compile=run.compile)
    if target.dim > DENSE_COVARIANCE:
        raise InputError(
            "problem", f"{target.dim} latents", f"at most {DENSE_COVARIANCE}: el2o matches dense Hessians"
        )
    rows, diagonal = problem.batch or 1, family == "mean_field"
    seed, particles, tolerance = run.seed, settings.particles, settings.tolerance
    pairs = max(8, target.dim) if particles is None else (particles + 1) // 2
    if diagonal and pairs < target.dim:
        raise InputError(
            "particles",
            f"{particles} for a mean field of {target.dim} dimensions",
            f"at least {2 * target.dim}: fewer cannot tell the correlations from the variances",
        )
    checkpoint = run_checkpoint(run, problem, "el2o", family=family, pairs=pairs)
    saved = checkpoint.load()
    moved = torch.full((rows,), torch.inf, dtype=target.dtype, device=target.device)
    share, iteration = torch.ones_like(moved), 0
    if saved is None:
        q = _first(target, density_starts(run.start, target, rows, seed), diagonal, seed)
    else:
        state = {name: torch.as_tensor(value, device=target.device) for name, value in saved.items()}
        q = Gaussian(state["mean"], state["root"], state["log_evidence"])
        share, moved, iteration = state["share"], state["moved"], int(saved["iteration"])
    y = _points(seed, pairs, target)
    trace: list[np.ndarray] = []
    interrupted = False
    with progress_bar("el2o", run.iterations, run.progress) as report:
        try:
            while iteration < run.iterations and bool((moved > tolerance).any()):
                before, (q, moved) = moved, _improve(target, q, y, diagonal, share)
                # What moves in circles, or apart, goes slower.
                share = torch.where(moved > 0.9 * before, (share / 2).clamp_min(SLOWEST), share)
                iteration += 1
                trace.append(moved.cpu().numpy())
                report(iteration, f"off by {float(moved.max()):.2g}")
                if checkpoint.due:
                    checkpoint.save(_arrays(q, share, moved, iteration))
        except KeyboardInterrupt:
            interrupted = True
    checkpoint.save(_arrays(q, share, moved, iteration))
    statuses = [_status(m, tolerance, interrupted) for m in moved.tolist()]
    drawn, ratio = normal_draws(target, q.mean, q.root, generator_for(seed, 1), run)
    return finish(
        problem,
        target,
        method="el2o",
        guide=family,
        run=run,
        statuses=statuses,
        began=began,
        trace={"off": np.asarray(trace)} if trace else {},
        stats={
            "iterations": iteration,
            "log_evidence": q.log_evidence.tolist(),
            "el2o": ratio.var(1).tolist(),
        }
        | elbo_of_draws(drawn),
        location=q.mean,
        covariance=q.root @ q.root.mT,
        **drawn,
    )


def _arrays(q: Gaussian, share: Tensor, moved: Tensor, iteration: int) -> dict[str, np.ndarray]:
    held = {"mean": q.mean, "root": q.root, "log_evidence": q.log_evidence, "share": share, "moved": moved}
    return {name: value.cpu().numpy() for name, value in held.items()} | {"iteration": np.asarray(iteration)}


def _points(seed: int, pairs: int, density: Density) -> Float[Tensor, "m d"]:
    """Normals in antithetic pairs; where there are enough, of unit covariance exactly."""
    half = torch.randn(pairs, density.dim, generator=generator_for(seed, 2), dtype=density.dtype)
    if pairs >= density.dim:
        half = torch.linalg.qr(half)[0] * pairs**0.5
    half = half.to(density.device)
    return torch.cat((half, -half))


def _status(moved: float, tolerance: float, interrupted: bool) -> Status:
    if moved != moved:
        return Status.DIVERGED
    if moved <= tolerance:
        return Status.CONVERGED
    return Status.INTERRUPTED if interrupted else Status.BUDGET_SPENT

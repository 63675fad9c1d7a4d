"""Second-order stochastic variational inference by a trust region (TrustVI); fixed-draw mode (DADVI)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from astrozoo.density import Elbo, elbo, log_density
from astrozoo.errors import InferenceError, InputError
from astrozoo.infer._fresh_draws import FreshDraws, on_fresh_draws
from astrozoo.infer._sampled import part_size
from astrozoo.infer._trust_region_state import CONVERGED, DIVERGED, SPENT
from astrozoo.infer.approximation import (
    elbo_of_draws,
    guide_draws,
    noise_per_latent,
    normal_draws,
    second_moments,
)
from astrozoo.infer.guide_factory import checkpoint_header, guide_name
from astrozoo.infer.identity import run_checkpoint
from astrozoo.infer.linear_response import Response
from astrozoo.infer.maximise import Solution, TrustRegionState, maximise
from astrozoo.infer.mode_start import mode_start
from astrozoo.infer.options import RunOptions, TrustRegionSettings
from astrozoo.infer.progress import progress_bar
from astrozoo.infer.randomness import generator_for, noise_for
from astrozoo.infer.results import finish
from astrozoo.infer.starts import variational_start
from astrozoo.types import DENSE_COVARIANCE, Problem, Result

__all__ = ["trust_region"]

MEAN_ERROR = 0.5
"""[posterior SD] The fixed mode doubles its draws while their choice gives the mean of a latent a larger SD.
It is DADVI's threshold. Of a site of more than 100 elements, 1 % may be above it."""
WIDTH_ERROR = 0.05
"""The fixed mode doubles its draws while their choice gives the SD of a latent a larger relative SD. It is
the error that 200 independent draws from the posterior would leave. Of a site of more than 100 elements, 1 %
may be above it."""
FEW = 4
"""Draws of the fixed mode while a mean field is far from its optimum."""
TOP = 1024
"""Most draws of either mode, unless ``particles`` is larger (stochastic mode: than half of it)."""
DENSE = 200
"""Parameters up to which Hessians are dense: of the linear response, of an objective without noise, and the
model of one that a mean field keeps."""


def trust_region(
    problem: Problem, guide: Callable[[Problem], Any], run: RunOptions, settings: TrustRegionSettings
) -> Result:
    """Fit ``guide`` to the posterior; see :func:`maximise` and :func:`mode_start` for the algorithm.

    In fixed mode draws are made once. Their number is doubled, at most to ``TOP``, until their choice changes
    the means by less than ``MEAN_ERROR`` and the widths by less than ``WIDTH_ERROR``. A problem for which
    that number is not enough ends with its budget spent.

    An iteration takes a gradient and up to 100 Hessian-vector products per draw (a Hessian where the
    objective has one of its own, or no noise and at most ``DENSE`` parameters). A mean field of at most
    ``DENSE`` parameters (of a model without any) on fixed draws starts by :func:`mode_start`, and takes only
    gradients until it is near its optimum.

    With ``covariance="linear_response"`` the draws, and ``log_ratio``, are of the normal with that
    covariance. ``stats["linear-response sd"]`` then holds the SD of every element of every site by the
    response of its own mean (up to ``DENSE`` parameters). It uses no normal, whose tail is too heavy in the
    logarithm of a scale.

    Returns:
        a Result. ``stats["elbo"]`` and ``stats["elbo_se"]`` are the ELBO of the fitted guide and its standard
        error on draws that the fit did not use. The trace names the draws: ``elbo_fixed_draws`` is the mean
        over the fixed draws, which the fit makes greater than the ELBO is; ``elbo_fresh_draws`` is on other
        draws (fixed mode: at the ends of its rounds); ``objective`` is one that takes no draws.

    Raises:
        InputError: for a full-rank guide in fixed mode with fewer antithetic pairs than latents (or a
            low-rank one, than its rank): the sample average then has no maximum; and as :func:`maximise`.

    References:
        Regier, Jordan & McAuliffe, NIPS 2017; Giordano, Ingram & Broderick 2023.
    """
    began = time.monotonic()
    seed, radius, mode, particles = run.seed, settings.radius, settings.mode, settings.particles
    linear_response = settings.covariance == "linear_response"
    target = elbo(problem, guide, objective=settings.objective, compile=run.compile)
    w0 = variational_start(run.start, target)
    shared = noise_per_latent(target, w0) if target.noise_dim and mode != "stochastic" else 0
    if mode == "auto":
        mode = "fixed" if shared <= 1 else "stochastic"
    fixed = mode == "fixed" or target.noise_dim == 0
    if linear_response and target.layout.dim > DENSE_COVARIANCE:
        raise InputError(
            "covariance",
            f"'linear_response' for {target.layout.dim} latents",
            f"at most {DENSE_COVARIANCE} latents, or covariance='guide'",
        )
    if linear_response and not fixed:
        raise InputError("covariance", "'linear_response' in stochastic mode", "it with mode='fixed'")
    maximised = "objective" if target.noise_dim == 0 else f"elbo_{'fixed' if fixed else 'fresh'}_draws"
    particles = min(max(2 * target.noise_dim, 16), 64) if particles is None else particles
    if fixed and 1 < shared > particles // 2:
        raise InputError(
            "particles",
            f"{particles} fixed draws for a guide whose latents depend on {shared} noise coordinates each",
            f"at least {2 * shared} (or mode='stochastic'): with fewer the guide can widen without "
            "changing any of the draws, and their average of the ELBO grows without bound",
        )
    coarse = FEW if fixed and shared == 1 else None
    particles += -particles % FEW if coarse else 0
    header = checkpoint_header(run, problem, guide, settings.objective) | {"mode": mode}
    header |= {"particles": particles, "radius": radius, "tolerance": settings.tolerance}
    checkpoint = run_checkpoint(run, problem, "trust_region", **header)
    saved = checkpoint.load()
    state = None if saved is None else TrustRegionState.restored(saved, target.device)
    used = particles if saved is None else int(saved["particles"])
    curvature = None
    if state is None and coarse and target.dim <= DENSE and target.has_normal and not target.has_parameters:
        searched = log_density(problem, compile="never")  # too few evaluations to pay for compiling
        w0, curvature = mode_start(target, searched, w0, seed=seed, draws=coarse)
        for name, n in searched.counts.items():  # a gradient of log p costs what one draw of the ELBO's does
            target.counts[name] += n
    fresh = FreshDraws.unknown(w0) if saved is None else FreshDraws.restored(saved, target.device)
    fresh_elbos: dict[int, Tensor] = {}
    with progress_bar("trust region", run.iterations, run.progress) as report:
        while True:

            def after_each(state: TrustRegionState, used: int = used) -> None:
                report(state.iteration, f"{len(state.active)} running, objective {state.value.mean():.6g}")
                if checkpoint.due:
                    checkpoint.save(state.arrays() | fresh.arrays() | {"particles": np.asarray(used)})

            found = maximise(
                target,
                w0,
                seed=seed,
                draws=used,
                coarse=coarse,
                doublings=max(1, (TOP // particles).bit_length() - 1),
                mode=mode,
                max_iterations=run.iterations,
                radius=radius,
                tolerance=settings.tolerance,
                dense_limit=target.dim if target.has_derivatives else 0 if target.noise_dim else DENSE,
                curvature=curvature,
                callback=after_each,
                state=state,
            )
            state = found.state
            noise = noise_for(seed, 0, draws=used, like=target, matched=True)
            rows = torch.nonzero(~fresh.settled)[:, 0]
            if not fixed or noise is None or not len(rows):
                break
            response = _response(target, found, noise, rows) if shared else None
            latest = on_fresh_draws(
                target.take(rows),
                found.w[rows],
                noise,
                seed=seed,
                part=part_size(used, coarse or used, target),
                inverse=None if response is None else response.inverse,
                posterior_sd=None if response is None else response.posterior_sd(),
            )
            enough = (latest.mean_error <= MEAN_ERROR) & (latest.width_error <= WIDTH_ERROR)
            converged = state.end[rows] == CONVERGED
            again = converged & ~enough
            fresh.update(rows, latest, settled=(converged & enough) | (state.end[rows] == DIVERGED))
            fresh_elbos[state.iteration] = fresh.elbo.clone()
            if not again.any():
                break
            if used * 2 > TOP or state.iteration >= run.iterations:
                state.end[rows[again]] = SPENT
                break
            used *= 2
            state.end[rows[again]], state.radius[rows[again]] = 0, radius
    checkpoint.save(found.state.arrays() | fresh.arrays() | {"particles": np.asarray(used)})
    fitted = guide_draws(target, found.w, run)
    stats: dict[str, Any] = {"iterations": found.iterations} | elbo_of_draws(fitted)
    stats |= {maximised: found.value.tolist()} if maximised != "elbo_fresh_draws" else {}
    stats |= {"particles": used, "mode": mode}
    if fixed and target.noise_dim:
        stats["error of means by choice of draws [sd]"] = fresh.mean_error.tolist()
        stats["relative error of sds by choice of draws"] = fresh.width_error.tolist()
    trace = {(maximised if name == "value" else name): array for name, array in found.trace.items()}
    if fixed and target.noise_dim:
        fresh_elbos.setdefault(state.iteration, fresh.elbo)
        trace["elbo_fresh_draws"] = np.full_like(trace[maximised], np.nan)
        for iteration, value in fresh_elbos.items():
            trace["elbo_fresh_draws"][iteration - 1] = value.cpu().numpy()
    if linear_response:
        response = _response(target, found, noise, torch.arange(len(w0), device=w0.device), products=True)
        assert response is not None
        if response.inverse is not None:
            stats["linear-response sd"] = {name: sd.tolist() for name, sd in response.sd().items()}
        constant = problem.fix(fitted["parameters"]) if target.has_parameters else problem
        fitted |= _corrected(constant, response, fitted["location"], run)
    return finish(
        problem,
        target,
        method="trust_region",
        guide=guide_name(guide),
        run=run,
        statuses=state.statuses,
        began=began,
        trace=trace,
        stats=stats,
        **fitted,
    )


def _response(
    target: Elbo, found: Solution, noise: Tensor | None, rows: Tensor, *, products: bool = False
) -> Response | None:
    """The linear response of some rows at the end of a round.

    Args:
        products: use Hessian-vector products where there are too many parameters for a Hessian; else there is
            no response of these.
    """
    hessian, part = None, target.take(rows)
    if found.hessian is not None:
        hessian = found.hessian[rows]
    elif target.dim <= DENSE:
        hessian = part.value_grad_hessian(found.w[rows], noise)[2]
    if hessian is None and not products:
        return None
    return Response(part, found.w[rows], hessian, noise)


def _corrected(problem: Problem, response: Response, mean: Tensor, run: RunOptions) -> dict[str, Any]:
    """Draws of the normal with the linear-response covariance, as fields of a Result.

    Raises:
        InferenceError: if that covariance is not positive definite: the point reached is no maximum.
    """
    covariance = response.covariance()
    root, bad = torch.linalg.cholesky_ex((covariance + covariance.mT) / 2)
    if bad.any() or not root.isfinite().all():
        rows = torch.nonzero((bad > 0) | ~root.isfinite().flatten(1).all(1))[:, 0].tolist()
        raise InferenceError(
            f"no linear-response covariance of problems {rows}: the Hessian there is not negative definite; "
            "the run has not reached a maximum (see its trace with covariance='guide')"
        )
    density = log_density(problem, compile=run.compile)
    drawn, _ = normal_draws(density, mean, root, generator_for(run.seed, 1, 1), run)
    return drawn | second_moments(covariance)

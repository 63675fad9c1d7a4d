"""Second-order stochastic variational inference by a trust region (TrustVI); fixed-draw mode (DADVI)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from astrozoo.density import elbo, log_density
from astrozoo.errors import InferenceError, InputError
from astrozoo.infer._common import (
    Checkpoint,
    elbo_of_draws,
    finish,
    generator_for,
    guide_draws,
    guide_name,
    noise_for,
    noise_per_latent,
    normal_draws,
    progress_bar,
    second_moments,
    variational_start,
)
from astrozoo.infer._fresh_draws import on_fresh_draws
from astrozoo.infer._linear_response import Response
from astrozoo.infer._maximise import SPENT, Solution, TrustRegionState, maximise
from astrozoo.infer._mode_start import mode_start
from astrozoo.infer._sampled import part_size
from astrozoo.types import DENSE_COVARIANCE, Problem, Result

__all__ = ["Solution", "TrustRegionState", "maximise", "trust_region"]

MEAN_ERROR = 0.5
"""The fixed mode doubles its draws while their choice gives the mean of a latent a larger SD [posterior SDs].
It is DADVI's threshold."""
WIDTH_ERROR = 0.05
"""The fixed mode doubles its draws while their choice gives the SD of a latent a larger relative SD. It is
the error that 200 independent draws from the posterior would leave."""
FEW = 4
"""Draws of the fixed mode while a mean field is far from its optimum."""
TOP = 1024
"""Most draws of either mode, unless ``particles`` is larger (stochastic mode: than half of it)."""
DENSE = 200
"""Parameters up to which Hessians are dense: of the linear response, of an objective without noise, and the
model of one that a mean field keeps."""


def trust_region(
    problem: Problem,
    guide: Callable[[Problem], Any],
    *,
    seed: int = 0,
    draws: int = 1000,
    chains: int = 1,
    budget: int = 200,
    objective: str = "monte_carlo",
    start: Any = None,
    compile: Literal["auto", "always", "never"] = "auto",
    progress: bool = True,
    checkpoint: str | Path | None = None,
    throw: bool = False,
    mode: Literal["auto", "stochastic", "fixed"] = "auto",
    particles: int | None = None,
    radius: float = 1.0,
    tolerance: float = 1e-4,
    covariance: Literal["guide", "linear_response"] = "guide",
) -> Result:
    """Fit ``guide`` to the posterior; see :func:`maximise` and :func:`mode_start` for the algorithm.

    Args:
        draws: from the fitted guide, per chain; they are independent, and chains only a shape.
        budget: the most iterations; each takes a gradient and up to 100 Hessian-vector products (a Hessian
            where the objective has one of its own, or no noise and at most ``DENSE`` parameters) per draw.
            A mean field of at most ``DENSE`` parameters on fixed draws starts by :func:`mode_start`, and
            takes gradients alone until it is near its optimum.
        objective: "monte_carlo", or a name from ``problem.objectives``.
        start: unconstrained latents or flat guide parameters, ``[dim]`` or ``[problem, dim]``, or a Result.
        mode: "stochastic" (fresh draws in each iteration) or "fixed" (draws made once, their number doubled,
            at most to ``TOP``, until their choice changes the means by less than
            ``MEAN_ERROR`` and the widths by less than ``WIDTH_ERROR``; a problem for which that number is not
            enough ends with its budget spent). "auto": fixed for a mean field, of which few draws say
            enough, and stochastic for any other guide, which could fit itself to the draws.
        particles: Monte-Carlo draws of the ELBO, in antithetic pairs, at first (the fixed mode begins with
            ``FEW`` of a mean field, and rounds up to a multiple of that). None: twice as many as the guide
            has latents, so that they can match all second moments, but at least 16 and at most 64.
        covariance: what ``Result.covariance`` holds: the guide's own, or the linear-response covariance
            (fixed mode or an objective without noise), which mends the mean field's too small variances;
            the draws, and ``log_ratio``, are then of the normal with that covariance, and
            ``stats["linear-response sd"]`` holds the SD of every element of every site by the response of
            its own mean (up to ``DENSE`` parameters): no normal in between, which in the logarithm of a scale
            has too heavy a tail.

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
    target = elbo(problem, guide, objective=objective, compile=compile)
    w0 = variational_start(start, target, seed)
    shared = noise_per_latent(target, w0) if target.noise_dim and mode != "stochastic" else 0
    if mode == "auto":
        mode = "fixed" if shared <= 1 else "stochastic"
    fixed = mode == "fixed" or target.noise_dim == 0
    if covariance not in ("guide", "linear_response"):
        raise InputError("covariance", repr(covariance), "'guide' or 'linear_response'")
    if covariance == "linear_response" and target.layout.dim > DENSE_COVARIANCE:
        raise InputError(
            "covariance",
            f"'linear_response' for {target.layout.dim} latents",
            f"at most {DENSE_COVARIANCE} latents, or covariance='guide'",
        )
    if covariance == "linear_response" and not fixed:
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
    settings: dict[str, Any] = {"guide": guide_name(guide), "objective": objective, "mode": mode}
    settings |= {"particles": particles, "radius": radius, "tolerance": tolerance}
    saved = Checkpoint(checkpoint, problem, "trust_region", seed, **settings)
    held = saved.load()
    state = None if held is None else TrustRegionState.restored(held, target.device)
    used = particles if held is None else int(held["particles"])
    curvature = None
    if state is None and coarse and target.dim <= DENSE and hasattr(target.module, "normal"):
        searched = log_density(problem, compile="never")  # too few evaluations to pay for compiling
        w0, curvature = mode_start(target, searched, w0, seed=seed, draws=coarse)
        for name, n in searched.counts.items():  # a gradient of log p costs what one draw of the ELBO's does
            target.counts[name] += n
    fresh_elbos: dict[int, Tensor] = {}
    with progress_bar("trust region", budget, progress) as report:
        while True:

            def after_each(state: TrustRegionState, used: int = used) -> None:
                report(state.iteration, f"{len(state.active)} running, objective {state.value.mean():.6g}")
                saved.save(lambda: state.arrays() | {"particles": np.asarray(used)})

            found = maximise(
                target,
                w0,
                seed=seed,
                draws=used,
                coarse=coarse,
                doublings=max(1, (TOP // particles).bit_length() - 1),
                mode=mode,
                max_iterations=budget,
                radius=radius,
                tolerance=tolerance,
                dense_limit=target.dim if target.derivatives else 0 if target.noise_dim else DENSE,
                curvature=curvature,
                callback=after_each,
                state=state,
            )
            state = found.state
            response, fresh = None, None
            noise = noise_for(seed, 0, draws=used, like=target, matched=True)
            if (fixed and shared) or covariance == "linear_response":
                hessian = found.hessian
                if hessian is None and target.dim <= DENSE:
                    hessian = target.value_grad_hessian(found.w, noise)[2]
                if hessian is not None or covariance == "linear_response":
                    response = Response(target, found.w, hessian, noise)
            if fixed and noise is not None:
                fresh = on_fresh_draws(
                    target,
                    found.w,
                    noise,
                    seed=seed,
                    part=part_size(used, coarse or used, target),
                    inverse=None if response is None else response.inverse,
                    posterior_sd=None if response is None else response.posterior_sd(),
                )
                fresh_elbos[state.iteration] = fresh.elbo
            enough = fresh is None or (fresh.mean_error <= MEAN_ERROR) & (fresh.width_error <= WIDTH_ERROR)
            again = (state.end == 1) & ~torch.as_tensor(enough)  # of those that have converged
            if not again.any():
                break
            if used * 2 > TOP or state.iteration >= budget:
                state.end[again] = SPENT
                break
            used *= 2
            state.end[again], state.radius[again] = 0, radius
    saved.save(lambda: found.state.arrays() | {"particles": np.asarray(used)}, now=True)
    fitted = guide_draws(target, found.w, seed, chains, draws)
    stats: dict[str, Any] = {"iterations": found.iterations} | elbo_of_draws(fitted)
    stats |= {maximised: found.value.tolist()} if maximised != "elbo_fresh_draws" else {}
    stats |= {"particles": used, "mode": mode}
    if fresh is not None:
        stats["error of means by choice of draws [sd]"] = fresh.mean_error.tolist()
        stats["relative error of sds by choice of draws"] = fresh.width_error.tolist()
    trace = {(maximised if name == "value" else name): array for name, array in found.trace.items()}
    if fresh_elbos:
        trace["elbo_fresh_draws"] = np.full_like(trace[maximised], np.nan)
        for iteration, value in fresh_elbos.items():
            trace["elbo_fresh_draws"][iteration - 1] = value.cpu().numpy()
    if covariance == "linear_response":
        assert response is not None
        if response.inverse is not None:
            stats["linear-response sd"] = {name: sd.tolist() for name, sd in response.sd().items()}
        fitted |= _corrected(problem, response, fitted["location"], seed, chains, draws, compile)
    return finish(
        problem,
        target,
        method="trust_region",
        guide=guide_name(guide),
        seed=seed,
        statuses=state.statuses,
        began=began,
        throw=throw,
        trace=trace,
        stats=stats,
        **fitted,
    )


def _corrected(
    problem: Problem, response: Response, mean: Tensor, seed: int, chains: int, draws: int, compile: str
) -> dict[str, Any]:
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
    density = log_density(problem, compile=compile)
    drawn, _ = normal_draws(density, mean, root, generator_for(seed, 1, 1), seed, chains, draws)
    return drawn | second_moments(covariance)

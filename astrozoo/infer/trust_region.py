"""Second-order stochastic variational inference by a trust region (TrustVI); fixed-draw mode (DADVI)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.density import elbo
from astrozoo.errors import InputError
from astrozoo.infer._common import (
    Checkpoint,
    finish,
    guide_draws,
    guide_name,
    noise_per_latent,
    progress_bar,
    variational_start,
)
from astrozoo.infer._maximise import Solution, TrustRegionState, maximise
from astrozoo.types import Problem, Result

__all__ = ["Solution", "TrustRegionState", "maximise", "trust_region"]


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
    mode: Literal["stochastic", "fixed"] = "stochastic",
    particles: int = 64,
    radius: float = 1.0,
    tolerance: float = 1e-4,
    covariance: Literal["guide", "linear_response"] = "guide",
) -> Result:
    """Fit ``guide`` to the posterior; see :func:`maximise` for the algorithm.

    Args:
        draws: from the fitted guide, per chain; they are independent, and chains only a shape.
        budget: the most iterations; each takes ``particles`` Hessians (or up to 100 Hessian-vector
            products above 200 parameters, for objectives without derivatives of their own) and at least as
            many gradients, per problem.
        objective: "monte_carlo", or a name from ``problem.objectives``.
        start: unconstrained latents or flat guide parameters, ``[dim]`` or ``[problem, dim]``, or a Result.
        mode: "stochastic" (fresh draws in each iteration) or "fixed" (draws made once).
        particles: Monte-Carlo draws of the ELBO, in antithetic pairs, at first.
        covariance: what ``Result.covariance`` holds: the guide's own, or the linear-response covariance
            (fixed mode or an objective without noise), which mends the mean field's too small variances.

    Raises:
        InputError: for a full-rank guide in fixed mode with fewer antithetic pairs than latents (or a
            low-rank one, than its rank): the sample average then has no maximum; and as :func:`maximise`.

    References:
        Regier, Jordan & McAuliffe, NIPS 2017; Giordano, Ingram & Broderick 2023.
    """
    began = time.monotonic()
    target = elbo(problem, guide, objective=objective, compile=compile)
    fixed = mode == "fixed" or target.noise_dim == 0
    if covariance not in ("guide", "linear_response"):
        raise InputError("covariance", repr(covariance), "'guide' or 'linear_response'")
    if covariance == "linear_response" and not fixed:
        raise InputError("covariance", "'linear_response' in stochastic mode", "it with mode='fixed'")
    w0 = variational_start(start, target, seed)
    shared = noise_per_latent(target, w0) if mode == "fixed" and target.noise_dim else 0
    if 1 < shared > particles // 2:
        raise InputError(
            "particles",
            f"{particles} fixed draws for a guide whose latents depend on {shared} noise coordinates each",
            f"at least {2 * shared} (or mode='stochastic'): with fewer the guide can widen without "
            "changing any of the draws, and their average of the ELBO grows without bound",
        )
    settings: dict[str, Any] = {"guide": guide_name(guide), "objective": objective, "mode": mode}
    settings |= {"particles": particles, "radius": radius, "tolerance": tolerance}
    saved = Checkpoint(checkpoint, problem, "trust_region", seed, **settings)
    held = saved.load()
    state = None if held is None else TrustRegionState.restored(held, target.device)
    with progress_bar("trust region", budget, progress) as report:

        def after_each(state: TrustRegionState) -> None:
            report(state.iteration, f"{len(state.active)} running, objective {state.value.mean():.6g}")
            saved.save(state.arrays)

        found = maximise(
            target,
            w0,
            seed=seed,
            draws=particles,
            mode=mode,
            max_iterations=budget,
            radius=radius,
            tolerance=tolerance,
            dense_limit=200 if target.derivatives is None else target.dim,
            callback=after_each,
            state=state,
        )
    saved.save(found.state.arrays, now=True)
    fitted = guide_draws(target, found.w, seed, chains, draws)
    if covariance == "linear_response" and found.hessian is not None:
        fitted["covariance"] = _linear_response(target, found.w, found.hessian)
    return finish(
        problem,
        target,
        method="trust_region",
        guide=guide_name(guide),
        seed=seed,
        statuses=found.statuses,
        began=began,
        throw=throw,
        trace={("elbo" if name == "value" else name): array for name, array in found.trace.items()},
        stats={"iterations": found.iterations, "elbo": found.value.tolist(), "parameters": found.w.tolist()},
        **fitted,
    )


def _linear_response(
    target: Any, w: Float[Tensor, "b p"], hessian: Float[Tensor, "b p p"]
) -> Float[Tensor, "b d d"]:
    """``J (-H)^-1 J'``, J the derivative of the guide's centre (Giordano et al. 2018, eq. 7).

    J by central differences: exact where the centre is linear in the parameters, as in all stock guides.
    """
    origin = torch.zeros(1, target.draw_dim, dtype=w.dtype, device=w.device)
    step = torch.finfo(w.dtype).eps ** (1 / 3)
    columns = []
    for i in range(w.shape[1]):
        move = torch.zeros_like(w)
        move[:, i] = step
        columns.append(
            (target.unconstrained(w + move, origin) - target.unconstrained(w - move, origin))[:, 0]
            / (2 * step)
        )
    J = torch.stack(columns, 2)  # [b, d, p]
    return J @ torch.linalg.solve(-hessian, J.mT)

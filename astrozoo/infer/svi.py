"""First-order stochastic variational inference: Adam on the captured ELBO."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from astrozoo._minibatch import Minibatches
from astrozoo.density import elbo
from astrozoo.errors import InputError
from astrozoo.infer.adam import AdamState, ascend
from astrozoo.infer.approximation import elbo_of_draws, guide_draws
from astrozoo.infer.guide_factory import checkpoint_header, guide_name
from astrozoo.infer.identity import run_checkpoint
from astrozoo.infer.options import RunOptions, SVISettings
from astrozoo.infer.progress import progress_bar
from astrozoo.infer.results import finish
from astrozoo.infer.starts import variational_start
from astrozoo.types import DENSE_COVARIANCE, Problem, Result

__all__ = ["svi"]

LATENT_TOLERANCE = 1e-4
"""[nat] What the noise of the fit may cost for each latent: as much as an SD that is wrong by 1 %. Above
``DENSE_COVARIANCE`` latents it is also the tolerance for each, because with a fixed tolerance a guide of 1e5
latents would gain more than that in every window.
"""


def _tolerances(settings: SVISettings, latents: int) -> dict[str, float]:
    """The tolerances of :func:`astrozoo.infer.adam.ascend`."""
    share = 4 if settings.minibatch is None else 1
    noise = max(settings.tolerance / share, LATENT_TOLERANCE * latents)
    if latents <= DENSE_COVARIANCE:
        return {"tolerance": settings.tolerance, "noise_tolerance": noise}
    return {"tolerance": max(settings.tolerance, LATENT_TOLERANCE * latents), "noise_tolerance": noise}


def svi(problem: Problem, guide: Callable[[Problem], Any], run: RunOptions, settings: SVISettings) -> Result:
    """Fit ``guide`` to the posterior by stochastic gradients; see :func:`astrozoo.infer.adam.ascend`.

    An iteration takes ``particles`` gradients per problem. The noise of the gradients may cost a quarter of
    the tolerance (with minibatches, whose choice adds most of the noise, the tolerance), or
    ``LATENT_TOLERANCE`` for each latent where that is more. With more than ``DENSE_COVARIANCE`` latents the
    tolerance is at least ``LATENT_TOLERANCE`` for each.

    Returns:
        a Result. ``stats["elbo"]`` and ``stats["elbo_se"]`` are the ELBO of the fitted guide and its standard
        error on draws that the fit did not use; ``trace["elbo_fresh_draws"]`` is the mean over each block of
        iterations, every one of which had new draws.

    Raises:
        InputError: for a start of the wrong shape, a checkpoint of another run, or a minibatch of a problem
            without one data plate.
        CaptureError: if the data plate cannot be cut into minibatches.
    """
    began = time.monotonic()
    objective, minibatch = settings.objective, settings.minibatch
    if minibatch is not None and objective != "monte_carlo":
        raise InputError("minibatch", f"one with objective={objective!r}", "the Monte-Carlo objective")
    parts = None if minibatch is None else Minibatches(problem, guide, minibatch, compile=run.compile)
    if problem.datasets and parts is not None:
        if parts.local:
            expected = "a model with global latents only; `train` fits an amortised guide to a Dataset"
            raise InputError("args", f"a Dataset and latents {list(parts.local)} of its items", expected)
        target = parts.target
    else:
        target = elbo(problem, guide, objective=objective, compile=run.compile)
    header = checkpoint_header(run, problem, guide, objective) | {"minibatch": minibatch}
    header |= {"particles": settings.particles, "rate": settings.learning_rate}
    checkpoint = run_checkpoint(run, problem, "svi", **header, tolerance=settings.tolerance)
    saved = checkpoint.load()
    if saved is None:
        state = AdamState.at(variational_start(run.start, target), settings.learning_rate)
    else:
        state = AdamState.restored(saved, target.device)
    with progress_bar("svi", run.iterations, run.progress) as report:

        def after_each(state: AdamState) -> None:
            if state.iteration % 10 == 0:
                report(
                    state.iteration, f"{int((state.end == 0).sum())} running, elbo {state.value.mean():.6g}"
                )
            if checkpoint.due:
                checkpoint.save(state.arrays())

        ascend(
            target,
            state,
            seed=run.seed,
            particles=settings.particles,
            budget=run.iterations,
            minibatches=parts,
            callback=after_each,
            **_tolerances(settings, target.layout.dim),
        )
    checkpoint.save(state.arrays())
    fitted = guide_draws(target, state.answer, run)
    if problem.datasets:  # density ratios would be those of one minibatch
        fitted["sample_stats"].pop("log_ratio", None)
        stats = {"iterations": state.iteration, "elbo": state.value.tolist()}
    else:
        stats = {"iterations": state.iteration} | elbo_of_draws(fitted)
    maximised = "elbo_fresh_draws" if target.noise_dim else "objective"
    if not target.noise_dim:
        stats["objective"] = state.value.tolist()
    if parts is not None:
        stats["minibatch_counts"] = dict(parts.counts)
    return finish(
        problem,
        target,
        method="svi",
        guide=guide_name(guide),
        run=run,
        statuses=state.statuses,
        began=began,
        trace={(maximised if name == "value" else name): np.asarray(x) for name, x in state.trace.items()},
        stats=stats,
        **fitted,
    )

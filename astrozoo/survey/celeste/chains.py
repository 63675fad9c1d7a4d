"""Draws of a source's posterior by Markov chains, where importance sampling fails.

A source is sampled with the neighbours that its errors depend on (:mod:`astrozoo.survey.celeste.blend`) by
many-chain HMC. The evidence of a type is then estimated by bridge sampling, between the draws of the chains
and those of a normal that is fitted to half of them.

References:
    Meng & Wong 1996, Statistica Sinica 6, 831 (bridge sampling).
    Gronau et al. 2017, J. Math. Psychol. 81, 80 (its iteration, and a fit to half of the draws).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from astrozoo.diagnostics.metrics import POOR_K_HAT
from astrozoo.infer.convergence import Mixing, mixing_of
from astrozoo.infer.hmc import hmc
from astrozoo.infer.options import HMCSettings, RunOptions
from astrozoo.infer.randomness import generator_for
from astrozoo.survey.celeste.blend import Blend
from astrozoo.survey.celeste.modes import KINDS, Modes
from astrozoo.survey.celeste.posterior import TypedDraws, draw_type, weighted_moments
from astrozoo.survey.celeste.response import respond
from astrozoo.types import Problem, Result, Status

__all__ = ["ChainDraws", "Quality", "redraw", "sample_type"]

_CHAINS = 16
"""Number of chains of a source. They share each step's evaluation, and its overhead."""
_LENGTHS = ((120, 72), (240, 288))
"""Iterations of warm-up and of sampling of each attempt. The second is for sources that the first leaves
without enough effective draws."""
_BRIDGE_ROUNDS = 100
"""Largest number of rounds of the bridge's fixed point; a few are typical."""
_BRIDGE_TOLERANCE = 1e-6
"""Change of the log evidence at which the bridge's fixed point is reached [nat]."""
_NEGLIGIBLE = 0.01
"""Probability of a type below which it is not sampled: it changes no estimate by more than 0.1 SD."""
_LEAST_LOG_WEIGHT = -1e4
"""Log of the least weight that is flattened [nat]. Draws without weight would otherwise never get any."""
_MORE = (256, 256, 256, 256)
"""Renderings of each proposal in the second attempt of importance sampling. It takes a tenth of the time of
chains, and suffices where k-hat is just above 0.7."""
_STARTS, _BRIDGE, _RESAMPLING = 1, 2, 3


class ChainDraws(NamedTuple):
    """Draws of one source as one type.

    Attributes:
        u: parameters of the source, chain by chain.
        log_evidence: of the type, with neighbours integrated out.
        mixing: R-hat and effective sample sizes of the source's parameters.
        converged: whether the chains fulfil the rule of :mod:`astrozoo.infer.convergence`.
    """

    u: Float[Tensor, "n d"]
    log_evidence: float
    mixing: Mixing
    converged: bool


class Quality(NamedTuple):
    """How far the draws of each source are to be trusted.

    Attributes:
        k_hat: of the importance weights, the largest of the types that may be a source's own; NaN where
            chains that converged replaced these draws.
        r_hat: largest R-hat of the source's parameters; NaN without chains.
        ess: smallest effective sample size of these, bulk or tail; NaN without chains.
    """

    k_hat: Float[Tensor, "b"]
    r_hat: Float[Tensor, "b"]
    ess: Float[Tensor, "b"]


def redraw(job: Modes, rows: Int[np.ndarray, "b"], typed: Mapping[str, TypedDraws], most: int) -> Quality:
    """Replace the draws of sources whose importance weights fail, in place.

    Weights fail if k-hat is above 0.7 for a type that may be the source's own. More draws, from more
    proposals, are tried first. Where they fail too, all types that may be its own are then sampled, so that
    their evidences are of one kind. Draws that are left have flattened weights.

    Args:
        job: the fit of the field.
        rows: the sources, of one patch size.
        typed: their importance draws, by type.
        most: largest number of sources that are sampled, those of the largest k-hat.
    """
    possible = torch.stack([_probability(job, rows, typed, star) > _NEGLIGIBLE for _, star, _ in KINDS])
    every = torch.stack([typed[name].k_hat for name, _, _ in KINDS])
    k_hat = torch.where(possible, every, -torch.inf).amax(0)
    out = Quality(k_hat, torch.full_like(k_hat, torch.nan), torch.full_like(k_hat, torch.nan))
    for drawn in typed.values():
        _flatten(drawn)
    worst = k_hat.nan_to_num(torch.inf).argsort(descending=True, stable=True)
    for k in worst[: max(0, min(most, int((~(k_hat <= POOR_K_HAT)).sum())))].tolist():
        out.k_hat[k] = _draw_more(job, int(rows[k]), k, typed, possible[:, k].tolist())
        if out.k_hat[k] <= POOR_K_HAT:
            continue
        chains = {}
        kinds = [kind for kind, may_be in zip(KINDS, possible[:, k].tolist(), strict=True) if may_be]
        for name, star, _ in kinds:
            importance = TypedDraws(*(part[k : k + 1] for part in typed[name]))
            if (sampled := sample_type(job, int(rows[k]), star, importance)) is not None:
                chains[name] = sampled
        if len(chains) < len(kinds):
            continue
        _replace(job, int(rows[k]), k, typed, chains)
        out.r_hat[k] = max(float(c.mixing.r_hat.max()) for c in chains.values())
        out.ess[k] = min(
            float(torch.minimum(c.mixing.bulk_ess, c.mixing.tail_ess).min()) for c in chains.values()
        )
        if all(c.converged for c in chains.values()):
            out.k_hat[k] = torch.nan
    return out


def _draw_more(job: Modes, row: int, k: int, typed: Mapping[str, TypedDraws], possible: list[bool]) -> float:
    """Make more importance draws of a source whose weights fail; put them in place if their weights do not.

    Returns:
        The largest k-hat of the types that may be the source's own.
    """
    at, everything = np.array([row]), torch.ones(1, dtype=torch.bool)
    patch, own_light = job.patch(at)
    response = respond(job, at, patch, own_light)
    worst = 0.0
    for (name, star, _), may_be in zip(KINDS, possible, strict=True):
        drawn = typed[name]
        if may_be and not drawn.k_hat[k] <= POOR_K_HAT:
            density = job.density(patch, at, star)
            mode, covariance = job.state.mode[name][at], job.state.covariance[name][at]
            more = draw_type(
                density, mode, covariance, everything, seed=job.seed, response=response, renderings=_MORE
            )
            if more.k_hat[0] <= POOR_K_HAT:
                n = drawn.u.shape[1]
                generator = generator_for(job.seed, row, int(star), _RESAMPLING)
                chosen = torch.multinomial(more.log_weight[0].exp(), n, replacement=True, generator=generator)
                drawn.u[k], drawn.log_weight[k] = more.u[0, chosen], -math.log(n)
                drawn.k_hat[k], drawn.log_evidence[k] = more.k_hat[0], more.log_evidence[0]
        if may_be:
            worst = max(worst, float(drawn.k_hat[k]))
    return worst


def _flatten(drawn: TypedDraws) -> None:
    """Replace weights that fail by their square roots, until none exceeds ``n**-0.5``, in place.

    One draw may otherwise have all of the weight, and every standard deviation would be 0.
    """
    log_weight = torch.log_softmax(drawn.log_weight.clamp_min(_LEAST_LOG_WEIGHT), -1)
    failed = ~(drawn.k_hat <= POOR_K_HAT)
    while (sharp := failed & (log_weight.amax(-1) > -0.5 * math.log(log_weight.shape[-1]))).any():
        log_weight[sharp] = torch.log_softmax(0.5 * log_weight[sharp], -1)
    drawn.log_weight[failed] = log_weight[failed]


def _replace(
    job: Modes, row: int, k: int, typed: Mapping[str, TypedDraws], chains: Mapping[str, ChainDraws]
) -> None:
    """Put draws and evidences of chains in the place of a source's importance draws."""
    for name, drawn in typed.items():
        if name in chains:
            n = drawn.u.shape[1]
            even = torch.linspace(0, len(chains[name].u) - 1, n).round().long()
            drawn.u[k], drawn.log_weight[k] = chains[name].u[even], -math.log(n)
        all_sampled = len(chains) == len(typed)
        evidence = chains[name].log_evidence if all_sampled else job.state.evidence[name][row]
        drawn.log_evidence[k] = evidence


def _probability(
    job: Modes, rows: Int[np.ndarray, "b"], typed: Mapping[str, TypedDraws], star: bool
) -> Float[Tensor, "b"]:
    """Of a type, by the evidences of the draws or by those of the modes, whichever is larger."""
    sign = 1 if star else -1
    leads = (x["star"] - x["galaxy"] for x in (
        {name: draws.log_evidence for name, draws in typed.items()},
        {name: job.state.evidence[name][rows] for name in typed},
    ))  # fmt: skip
    return torch.stack([torch.sigmoid(sign * lead) for lead in leads]).amax(0)


def sample_type(job: Modes, row: int, star: bool, drawn: TypedDraws) -> ChainDraws | None:
    """Sample a source of a fitted field as one type; None if no start has a finite density.

    Args:
        job: the fit of the field.
        row: the source.
        drawn: its importance draws, one row. The chains start from these.
    """
    blend = Blend.of(job, row, star)
    problem = Problem(_no_model, name="celeste", version="a density of its own")
    metric, start = _begin(blend, drawn, generator_for(job.seed, row, int(star), _STARTS))
    value, gradient = blend.value_and_grad(start)
    sound = (value.isfinite() & gradient.isfinite().all(1)).nonzero()[:, 0]
    if not len(sound):
        return None
    start = start[sound[torch.arange(_CHAINS) % len(sound)]]
    for warmup, draws in _LENGTHS:
        run = RunOptions(seed=job.seed, draws=draws, chains=_CHAINS, start=start, progress=False)
        result = hmc(problem, run, HMCSettings(warmup=warmup, precondition=metric), density=blend)
        if result.status is Status.INTERRUPTED:
            raise KeyboardInterrupt  # the checkpoint has the sources that were drawn before
        mixing = mixing_of({"source": result.draws["source"]}, batched=False)
        converged = bool(mixing.converged) and result.status is not Status.DIVERGED
        if converged:
            break
    chains = np.concatenate(list(result.draws.values()), -1)  # [chain, draw, d]
    log_density = torch.from_numpy(result.sample_stats["lp"])
    generator = generator_for(job.seed, row, int(star), _BRIDGE)
    evidence = _bridge(blend, torch.from_numpy(chains), log_density, mixing, generator)
    u = torch.from_numpy(result.draws["source"]).flatten(0, 1)
    return ChainDraws(u, evidence, mixing, converged)


def _no_model() -> None:
    """Stands for the model of a problem whose density is given."""


def _begin(
    blend: Blend, drawn: TypedDraws, generator: torch.Generator
) -> tuple[Result, Float[Tensor, "chain dim"]]:
    """The first mass matrix, and the starts: distinct importance draws, by their truncated weights."""
    d = drawn.u.shape[-1]
    root = blend.root
    own = root[:d, :d]
    mean, covariance = weighted_moments(drawn.u, drawn.log_weight, blend.mode[None, :d], (own @ own.mT)[None])
    location, whole = blend.mode.clone(), root @ root.mT
    location[:d], whole[:d, :d] = mean[0], covariance[0]
    metric = Result(
        draws={}, status=Status.CONVERGED, seed=0, model="celeste", method="importance",
        location=location[None].numpy(), covariance=whole[None].numpy(),
    )  # fmt: skip
    weight = torch.softmax(drawn.log_weight[0], -1).clamp(max=drawn.u.shape[1] ** -0.5)
    chosen = torch.multinomial(weight + torch.finfo(weight.dtype).tiny, _CHAINS, generator=generator)
    e = torch.randn(_CHAINS, blend.dim, generator=generator, dtype=root.dtype)
    start = blend.mode + e @ root.mT
    start[:, :d] = drawn.u[0, chosen]
    return metric, start


def _bridge(
    blend: Blend,
    chains: Float[Tensor, "c n d"],
    log_density: Float[Tensor, "c n"],
    mixing: Mixing,
    generator: torch.Generator,
) -> float:
    """The log of the integral of the density, from draws of the chains and of a normal."""
    half = chains.shape[1] // 2
    fitted, used = chains[:, :half].flatten(0, 1), chains[:, half:].flatten(0, 1)
    lp = log_density[:, half:].flatten()
    normal = torch.distributions.MultivariateNormal(fitted.mean(0), torch.cov(fitted.mT))
    e = torch.randn(used.shape, generator=generator, dtype=used.dtype)
    proposed = normal.loc + e @ normal.scale_tril.mT
    at_chains = lp - normal.log_prob(used)
    at_normal = blend.values(proposed)[:, 0] - normal.log_prob(proposed)
    at_normal = at_normal.nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    effective = float(mixing.bulk_ess.nan_to_num(1.0).min().clamp(1.0, 2.0 * len(used))) / 2
    share = torch.tensor(effective / (effective + len(proposed)), dtype=lp.dtype)
    log_evidence = at_chains.median()
    for _ in range(_BRIDGE_ROUNDS):
        before = log_evidence

        def log_mean(log_ratio: Tensor, numerator: Tensor, now: Tensor = before) -> Tensor:
            mixed = torch.logaddexp(share.log() + log_ratio - now, torch.log1p(-share))
            return torch.logsumexp(numerator - mixed, 0) - np.log(len(log_ratio))

        log_evidence = log_mean(at_normal, at_normal) - log_mean(at_chains, torch.zeros_like(at_chains))
        if abs(log_evidence - before) < _BRIDGE_TOLERANCE:
            break
    return float(log_evidence)

"""What a field says of its own sources: the fraction of stars, and the luminosity function of each type.

A survey's prior is that of a typical field. In the outskirts of a star cluster, most sources are stars. The
prior's parameters are therefore estimated from the evidences of all sources of the field (empirical Bayes):
they maximise the probability of the images, together with a prior of their own, which has the weight of some
sources at the survey's values. Where a field has few sources, the survey's values remain.

A source's likelihood is approximated by its evidence as each type and by a normal in its log flux: what is
left of the posterior after division by the prior.

References:
    Dempster, Laird & Rubin 1977, JRSS B 39, 1 (EM).
    Bovy, Hogg & Roweis 2011, Annals of Applied Statistics 5, 1657 (EM with a noise for each datum).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from astrozoo.models.celeste import Prior
from astrozoo.survey.celeste.modes import KINDS, Modes

__all__ = ["Fluxes", "adopt", "learn"]

_PRIOR_SOURCES = 20.0
"""Weight of the survey's values, as a number of sources.

The fraction of stars differs between fields by about 0.1, which is the standard deviation of a beta
distribution of this weight."""
_ROUNDS = 500
"""Largest number of rounds of EM. Tens suffice, except where most fluxes are hardly measured."""
_TOLERANCE = 1e-4
"""Change of each learned number at which EM stops: small against its error in the largest fields."""
_LEAST_GAIN = 1e-3
"""Smallest information of the pixels on a log flux, relative to that of the prior. It limits the variance of
a normal likelihood of a source that is not seen in the reference band."""


class Fluxes(NamedTuple):
    """What the pixels say of each source as a galaxy and as a star (the order of pairs in a prior).

    Attributes:
        log_evidence: under a prior.
        mean, variance: of the normal likelihood of the log flux in the reference band.
    """

    log_evidence: Float[np.ndarray, "s 2"]
    mean: Float[np.ndarray, "s 2"]
    variance: Float[np.ndarray, "s 2"]

    @classmethod
    def of(cls, job: Modes) -> Fluxes:
        """From the modes and evidences of a fit."""
        columns = []
        for (name, _, bending), mean, sd in zip(
            KINDS, job.prior.log_flux_mean, job.prior.log_flux_sd, strict=True
        ):
            centre = job.state.mode[name][:, bending].numpy()
            precision = 1 / job.state.covariance[name][:, bending, bending].numpy()
            gain = np.maximum(precision - sd**-2, _LEAST_GAIN * sd**-2)
            likely = (precision * centre - mean * sd**-2) / gain
            columns.append((job.state.evidence[name].numpy(), likely, 1 / gain))
        return cls(*(np.stack(parts, -1) for parts in zip(*columns, strict=True)))


def learn(prior: Prior, fluxes: Fluxes, star_fraction: float | None = None) -> Prior:
    """The prior with the field's fraction of stars and its luminosity functions.

    Args:
        prior: that of the evidences.
        fluxes: of all sources of a field.
        star_fraction: keeps the fraction of stars at this value.
    """
    if not len(fluxes.mean):
        return prior
    start_mean, start_sd = np.array(prior.log_flux_mean), np.array(prior.log_flux_sd)
    start_share = np.array([1 - prior.prob_star, prior.prob_star])
    evidence = fluxes.log_evidence - np.log(start_share) - _log_normal(fluxes, start_mean, start_sd)
    share, mean, sd = start_share, start_mean, start_sd
    for _ in range(_ROUNDS):
        log_p = evidence + np.log(share) + _log_normal(fluxes, mean, sd)
        chance = np.exp(log_p - np.logaddexp.reduce(log_p, axis=1, keepdims=True))
        before = np.concatenate((share, mean, sd))
        if star_fraction is None:
            share = (chance.sum(0) + _PRIOR_SOURCES * start_share) / (len(chance) + _PRIOR_SOURCES)
        precision = 1 / fluxes.variance + sd**-2
        expected = (fluxes.mean / fluxes.variance + mean * sd**-2) / precision
        weight = chance.sum(0) + _PRIOR_SOURCES
        mean = ((chance * expected).sum(0) + _PRIOR_SOURCES * start_mean) / weight
        square = (chance * ((expected - mean) ** 2 + 1 / precision)).sum(0)
        sd = np.sqrt((square + _PRIOR_SOURCES * (start_sd**2 + (start_mean - mean) ** 2)) / weight)
        if np.abs(np.concatenate((share, mean, sd)) - before).max() < _TOLERANCE:
            break
    return replace(
        prior,
        prob_star=float(share[1]),
        log_flux_mean=(float(mean[0]), float(mean[1])),
        log_flux_sd=(float(sd[0]), float(sd[1])),
    )


def adopt(job: Modes, prior: Prior, fluxes: Fluxes) -> None:
    """Continue with another fraction of stars and other luminosity functions.

    Evidences change, and with them the light of each source, which is the mean over its types. Modes stay:
    draws are made from the density with the new prior.
    """
    new, old = (
        np.log([1 - p.prob_star, p.prob_star])
        + _log_normal(fluxes, np.array(p.log_flux_mean), np.array(p.log_flux_sd))
        for p in (prior, job.prior)
    )
    for (name, _, _), shift in zip(KINDS, (new - old).T, strict=True):
        job.state.evidence[name] = job.state.evidence[name] + torch.from_numpy(shift)
    job.prior = prior
    job.repaint(np.arange(len(job.sources)))


def _log_normal(
    fluxes: Fluxes, mean: Float[np.ndarray, "2"], sd: Float[np.ndarray, "2"]
) -> Float[np.ndarray, "s 2"]:
    """Log density of the measured log fluxes under normals with their errors."""
    variance = fluxes.variance + sd**2
    return -0.5 * (np.log(2 * np.pi * variance) + (fluxes.mean - mean) ** 2 / variance)

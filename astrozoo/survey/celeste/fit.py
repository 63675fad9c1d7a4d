"""Celeste over a whole field: every source a posterior, overlapping neighbours modelled together.

Every source is fitted as a star and as a galaxy, in sweeps (:mod:`astrozoo.survey.celeste.sweeps`). After the
first, third and fifth sweep, companions that show only in the residuals are added. When no source changes any
more, draws are made from each source's posterior (:mod:`astrozoo.survey.celeste.posterior`).

References:
    Regier et al. 2019, Annals of Applied Statistics 13, 1884.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.table import Table, vstack
from jaxtyping import Bool, Float, Int
from torch import Tensor

from astrozoo.checkpoint import Checkpoint
from astrozoo.data.images import Field, check_overlap
from astrozoo.diagnostics.metrics import POOR_K_HAT
from astrozoo.errors import InputError
from astrozoo.infer.progress import progress_bar
from astrozoo.infer.randomness import generator_for
from astrozoo.models.celeste import Patch, Prior
from astrozoo.survey.catalogue import sky_positions
from astrozoo.survey.celeste.chains import redraw
from astrozoo.survey.celeste.companions import companions, unmodelled
from astrozoo.survey.celeste.field_prior import prior_of_field
from astrozoo.survey.celeste.modes import KINDS
from astrozoo.survey.celeste.pairs import examine_pairs, split_pairs
from astrozoo.survey.celeste.population import Fluxes, adopt, learn
from astrozoo.survey.celeste.posterior import draw_type, mix_types
from astrozoo.survey.celeste.profile_error import profile_error, sky_error, with_flux_error
from astrozoo.survey.celeste.response import respond
from astrozoo.survey.celeste.starts import Starts
from astrozoo.survey.celeste.sweeps import Sweeps
from astrozoo.survey.detect import detect
from astrozoo.survey.fields import check_fraction, fingerprint, usable_field

__all__ = ["FieldFit", "draw_posteriors", "fit_field", "fit_modes"]

_SEARCHES = (1, 3, 5)
"""Sweeps after which companions are searched for in the residuals, before blends have settled."""
_MAX_BY_CHAINS = (0.1, 50)
"""Largest number of sources that are drawn by Markov chains: a fraction of all sources, and a number below
which this fraction sets no limit. Chains take seconds a source; the others are flagged."""
_PART = 32
"""Number of sources whose posteriors are drawn, and saved in the checkpoint, at once."""


@dataclass(frozen=True)
class FieldFit:
    """Posterior draws of every source of a field.

    Args:
        detections: the sources that the fit began with: ``ra``, ``dec`` [deg] and other columns.
        prior: with the fraction of stars and the luminosity functions that were learned from the field.
        draws: ``{site: [source, draw, ...]}``, equal weights, in single precision: ``is_star``;
            ``offset`` (east, north) [arcsec] from (ra, dec); ``log_flux`` [ln nMgy] in the reference band;
            ``colour`` [ln ratio of adjacent bands]; ``log_radius`` [ln arcsec]; ``ellipticity``;
            ``dev_logit``. Shapes are NaN in draws of a star.
        model: expected electrons in each image, from sky and sources.
        p_star: probability that the source is a star.
        k_hat: of the importance weights; NaN where Markov chains that converged replaced them. Above 0.7 the
            posterior is not to be trusted.
        r_hat: largest R-hat of a source's parameters; NaN without Markov chains.
        ess: their smallest effective sample size, bulk or tail; NaN without Markov chains.
        converged: whether the trust region converged for both types, and neighbours settled.
        chi2: of the pixels of each source's patch, per pixel and band (NaN: no pixels), with the error of the
            PSF of :data:`astrozoo.survey.celeste.canvas.PSF_ERROR`.
        half: half size of each source's patch [px].
        flags: the catalogue's flags ``outgrows_patch``, ``maybe_double``, ``poor_profile`` and
            ``unmodelled_light``.
        left_over: what is detected in the residuals, and so not modelled: rows like those of detection.
        stats: sweeps, counts of evaluations, and seconds by stage: of all processes that worked on the fit
            and on the draws.
    """

    field: Field
    detections: Table
    prior: Prior
    draws: dict[str, np.ndarray]
    model: list[np.ndarray]
    p_star: Float[np.ndarray, "s"]
    k_hat: Float[np.ndarray, "s"]
    r_hat: Float[np.ndarray, "s"]
    ess: Float[np.ndarray, "s"]
    converged: np.ndarray
    chi2: Float[np.ndarray, "s band"]
    n_pixels: Int[np.ndarray, "s"]
    half: Int[np.ndarray, "s"]
    flags: dict[str, np.ndarray]
    left_over: Table
    stats: dict[str, Any]

    @property
    def poor(self) -> Bool[np.ndarray, "s"]:
        """Whether draws are not to be trusted: no k-hat of at most 0.7, nor chains that converged."""
        replaced = np.isnan(self.k_hat) & np.isfinite(self.r_hat)
        return ~((self.k_hat <= POOR_K_HAT) | replaced)


def fit_field(
    images: Field,
    catalog: Table | None = None,
    *,
    detections: Table | None = None,
    prior: Prior | None = None,
    seed: int = 0,
    draws: int = 512,
    max_sweeps: int = 20,
    fit_sky: bool = True,
    star_fraction: float | None = None,
    progress: bool = True,
    checkpoint: Path | None = None,
) -> FieldFit:
    """Fit every source of a field.

    Args:
        images: the field.
        prior: by default that of the field's bands, depth and pixels
            (:func:`astrozoo.survey.celeste.field_prior.prior_of_field`).
        catalog: sources to fit, with ``ra`` and ``dec`` [deg] or in a unit that they have
            (:func:`astrozoo.survey.catalogue.sky_positions`); detected where not given. Columns that
            :func:`astrozoo.survey.detect.detect` makes (fluxes, sizes) are used as starts if present.
        detections: what :func:`astrozoo.survey.detect.detect` gives for these images, if it is known already.
        draws: equal-weight draws per source.
        max_sweeps: at most this many passes; after the second, only over sources whose neighbours changed.
            A run may continue a checkpoint with more.
        fit_sky: correct the images' sky by what is left after the first sweep, on a coarse mesh.
        star_fraction: probability of a star, before the pixels are seen. None: that of the prior, and at the
            end what the field itself says (:mod:`astrozoo.survey.celeste.population`).
        checkpoint: folder in which work in progress is saved. A fit that was interrupted continues from it.
            The caller removes the folder when the result is saved.

    Raises:
        DataError: an image shows none of the sky of the reference image, or a catalogue without positions.
        InputError: for no draws or sweeps, a fraction of stars outside 0 to 1, a field without valid pixels,
            bands that ``prior`` does not have, unusable pixels, a catalogue whose sources are in no image, or
            a checkpoint of other work.
    """
    for what, got in (("draws", draws), ("max_sweeps", max_sweeps)):
        if got < 1:
            raise InputError(what, got, "1 or more")
    if star_fraction is not None:
        check_fraction(star_fraction)
    images = usable_field(images)
    check_overlap(images)
    prior = prior or prior_of_field(images)
    if star_fraction is not None:
        prior = replace(prior, prob_star=star_fraction)
    unknown = [b for b in images.bands if b not in prior.bands]
    if unknown:
        raise InputError("bands", unknown, f"bands with a prior, {', '.join(prior.bands)}")
    if catalog is not None:
        ra, dec = sky_positions(catalog, "catalogue")
        catalog = Table(catalog, copy=True)
        catalog["ra"], catalog["dec"] = ra, dec
    clock = {"detect": time.perf_counter()}
    table = catalog if catalog is not None else detections
    if table is None:
        table = detect(images)
    clock["detect"] = time.perf_counter() - clock["detect"]
    settings = (seed, draws, fit_sky, repr(prior), star_fraction is None, catalog is None)
    key = fingerprint(images, np.asarray(table["ra"]), np.asarray(table["dec"]), *settings)
    header = {"field, sources, seed and settings": key}
    store = Checkpoint(None if checkpoint is None else checkpoint / "field.npz", header)
    job = fit_modes(
        images,
        table,
        prior,
        seed=seed,
        max_sweeps=max_sweeps,
        fit_sky=fit_sky,
        search=catalog is None,
        progress=progress,
        checkpoint=store,
    )
    fluxes = Fluxes.of(job)
    adopt(job, learn(prior, fluxes, star_fraction), fluxes)
    clock["fit"] = job.seconds()
    fit, clock["draw"] = draw_posteriors(job, draws)
    fit.stats["seconds"] = {k: round(v, 3) for k, v in clock.items()}
    return fit


def fit_modes(
    images: Field,
    table: Table,
    prior: Prior,
    *,
    seed: int = 0,
    max_sweeps: int = 20,
    fit_sky: bool = True,
    search: bool = True,
    progress: bool = False,
    checkpoint: Checkpoint | None = None,
    starts: Starts | None = None,
) -> Sweeps:
    """Modes of every source, without draws: what :func:`fit_field` does first.

    Args:
        images: with usable pixels (:func:`astrozoo.survey.fields.usable_field`).
        table: the sources, with ``ra`` and ``dec`` [deg].
        search: look for companions in the residuals.
        starts: of an earlier fit of the same sources.
    """
    store = checkpoint or Checkpoint(None, {})
    job = Sweeps(images, table, prior, seed, progress, store)
    if starts is not None:
        starts.give(job)
    while search and job.state.searches < len([at for at in _SEARCHES if at < max_sweeps]):
        # before what is blended settles: a source that stands for two goes astray between them
        job.run(_SEARCHES[job.state.searches], fit_sky)
        # pairs need a corrected PSF
        stars = split_pairs(job) if job.state.sweep > _SEARCHES[0] else job.table[:0]
        more = companions(job)
        if len(more) + len(stars):
            table = vstack([job.table, more, stars], metadata_conflicts="silent")
            job = Sweeps(images, table, prior, seed, progress, store, earlier=job, stars=len(stars))
        else:
            job.state.searches = len(_SEARCHES) if job.state.searches else 1
    job.run(max_sweeps, fit_sky)
    job.state.double[examine_pairs(job)[0]] = True
    return job


def draw_posteriors(
    job: Sweeps, draws: int, chosen: Int[np.ndarray, "n"] | None = None
) -> tuple[FieldFit, float]:
    """The fit with its draws, and the seconds that these took, in whatever processes made them.

    Args:
        job: modes of all sources.
        draws: of each source.
        chosen: rows of the sources that get draws, and that the fit contains; all by default.
    """
    chosen = np.arange(len(job.sources)) if chosen is None else chosen
    n, nb, nc = len(chosen), len(job.images.bands), len(job.prior.bands)
    half_sizes = job.sources.half[chosen]
    arrays: dict[str, np.ndarray] = {
        "u": np.empty((n, draws, 6 + nc), np.float32), "is_star": np.empty((n, draws), np.float32),
        "k_hat": np.empty(n), "r_hat": np.empty(n), "ess": np.empty(n), "seconds": np.empty(n),
        "chi2": np.empty((n, nb)), "p_star": np.empty(n), "n_pixels": np.empty(n, int),
        "profile_error": np.empty((n, nc)), "sky_error": np.empty((n, nc)),
    }  # fmt: skip
    done, left = 0, max(round(_MAX_BY_CHAINS[0] * n), _MAX_BY_CHAINS[1])
    with progress_bar("drawing posteriors", n, job.progress) as report:
        for half in np.unique(half_sizes):
            of_size = np.flatnonzero(half_sizes == half)
            for i in range(0, len(of_size), _PART):
                places = of_size[i : i + _PART]
                rows = chosen[places]
                name = f"draws-{job.state.sweep}-{half}-{i}"
                part = job.checkpoint.load(name)
                if part is None:
                    started = time.perf_counter()
                    part = _posterior(job, rows, draws, left)
                    part["seconds"] = np.asarray((time.perf_counter() - started) / len(rows))
                    job.checkpoint.save(part, name)
                for key, values in arrays.items():
                    values[places] = part[key]
                done, left = done + len(rows), left - int(np.isfinite(part["r_hat"]).sum())
                report(done, "")
    flux_error = np.hypot(arrays["profile_error"], arrays["sky_error"])
    u, canvas = with_flux_error(arrays["u"], flux_error, job.prior.reference, job.seed), job.canvas
    left_over, beside = unmodelled(job)
    fit = FieldFit(
        field=job.images,
        detections=job.table if n == len(job.table) else job.table[chosen],
        prior=job.prior,
        draws={
            "is_star": arrays["is_star"],
            "offset": u[..., :2],
            "log_radius": u[..., 2],
            "ellipticity": u[..., 3:5],
            "dev_logit": u[..., 5],
            "log_flux": u[..., 6],
            "colour": u[..., 7:],
        },
        model=[canvas.unpadded(canvas.sky[k] + canvas.model[k], k) for k in range(len(canvas.model))],
        p_star=arrays["p_star"],
        k_hat=arrays["k_hat"],
        r_hat=arrays["r_hat"],
        ess=arrays["ess"],
        converged=(job.state.converged.numpy() & ~job.state.waiting)[chosen],
        chi2=arrays["chi2"],
        n_pixels=arrays["n_pixels"],
        half=half_sizes,
        flags={
            "outgrows_patch": job.state.outgrown[chosen],
            "maybe_double": job.state.double[chosen],
            "poor_profile": arrays["profile_error"].max(1) > 0,
            "unmodelled_light": beside[chosen],
        },
        left_over=left_over,
        stats={"sources": n, "sweeps": job.state.sweep, "evaluations": dict(job.state.counts)},
    )
    return fit, float(arrays["seconds"].sum())


def _posterior(job: Sweeps, rows: Int[np.ndarray, "b"], draws: int, most: int) -> dict[str, np.ndarray]:
    """Draws, their quality and goodness of fit of sources of one patch size, ``most`` of them by chains."""
    state = job.state
    patch, own_light = job.patch(rows)
    response = respond(job, rows, patch, own_light)
    typed = {}
    for name, star, _ in KINDS:
        density = job.density(patch, rows, star)
        mode, covariance = state.mode[name][rows], state.covariance[name][rows]
        possible = job.possible(rows, star)
        typed[name] = draw_type(density, mode, covariance, possible, seed=job.seed, response=response)
    quality = redraw(job, rows, typed, most)
    generator = generator_for(job.seed, int(rows[0]))
    p_star, is_star, u = mix_types(typed["star"], typed["galaxy"], draws, generator)
    chi2, n_pixels = _goodness(job, patch, own_light)
    return {
        "u": u.numpy(), "is_star": is_star.numpy(),
        **{name: values.numpy() for name, values in quality._asdict().items()},
        "chi2": chi2, "n_pixels": n_pixels, "p_star": p_star.numpy(),
        "profile_error": profile_error(patch, own_light, len(job.prior.bands)).numpy(),
        "sky_error": sky_error(patch, own_light, len(job.prior.bands)).numpy(),
    }  # fmt: skip


def _goodness(job: Sweeps, patch: Patch, own_light: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Reduced chi2 of each patch by band, and its number of pixels."""
    rate = patch.background + own_light
    terms = patch.mask * (patch.counts - rate) ** 2 / rate
    chi2 = np.full((len(own_light), len(job.images.bands)), np.nan)
    for b, band in enumerate(job.images.bands):
        chosen = [k for k, image in enumerate(job.images) if image.band == band]
        used = (patch.mask[:, chosen] > 0).sum((-2, -1))
        chi2[:, b] = torch.where(used > 0, terms[:, chosen].sum((-2, -1)) / used, torch.nan).numpy()
    return chi2, (patch.mask > 0).sum((-2, -1)).numpy()

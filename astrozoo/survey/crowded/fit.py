"""A crowded field: its joint mode, the prior learned from it, samples of whole catalogues, their consensus.

A large field is cut into blocks (:mod:`astrozoo.survey.crowded.blocks`). Where a catalogue states which
sources there are, their positions are held to it, and the samples are draws from the normal distribution at
the joint mode.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from jaxtyping import Float

from astrozoo.checkpoint import Checkpoint
from astrozoo.data.images import Field, GaussianMixture, crop, reference_image
from astrozoo.errors import InputError
from astrozoo.survey.crowded.blocks import Block, Mode, blocks_of, expected_images, join
from astrozoo.survey.crowded.consensus import consensus, given_sources
from astrozoo.survey.crowded.joint import Prior, Stars, laplace_draws
from astrozoo.survey.crowded.mode import fit_mode
from astrozoo.survey.crowded.prior import FieldPrior
from astrozoo.survey.crowded.sampler import STEPS, sample
from astrozoo.survey.crowded.samples import Samples
from astrozoo.survey.crowded.scene import Scene, Sources, expected
from astrozoo.survey.fields import check_pixels, fingerprint, good_pixels

__all__ = ["CrowdedFit", "fit_crowded"]

PSF_ERROR = 0.02
"""[1] Relative error of the PSF before it is corrected by bright stars, and where there are too few."""
FAINTEST = 4.0
"""[sigma] Signal to noise in the reference band of the faintest sources that may exist, in the noise of the
field's light. Fainter stars are most of the sources of a catalogue and of the cost of a sample, and their
light cannot be told from the sky's."""
BRIGHTEST = 10.0
"""[flux of the brightest source of the joint mode] Limit of fluxes."""
COMPLETE = 0.4
"""[1] Quantile of the mode's fluxes above which the mode is taken to be complete. Below it, the counts of the
mode fall."""
PILOT = 0.25
"""[1] Length of the pilot run from whose samples the prior is learned again, relative to the run itself."""
PILOT_KEPT = 10
"""[catalogues] Kept of each chain of the pilot run."""
OUTSIDE = 10.0
"""[px] Distance from the reference image to which sources of a catalogue are fitted: six sigma of the PSF.
Bright stars there have light on the image."""
POSITION_ERROR = 0.1
"""[px] SD of each coordinate of a catalogue that states none."""


@dataclass(frozen=True)
class CrowdedFit:
    """A fitted crowded field.

    Args:
        field: the images; pixels that were not used are not valid.
        blocks: its parts.
        samples: catalogues of the whole field; positions in pixels of the reference image.
        consensus: one catalogue (:func:`astrozoo.survey.crowded.consensus.consensus`).
        model: expected electrons in each image, averaged over catalogues.
        psf_error: relative error of the PSF at each pixel of each image.
        seconds: by stage.
    """

    field: Field
    blocks: tuple[Block, ...]
    samples: Samples
    consensus: Table
    model: list[Float[np.ndarray, "y x"]]
    psf_error: list[Float[np.ndarray, "y x"]]
    seconds: dict[str, float]

    @property
    def prior(self) -> FieldPrior:
        """That of the first block."""
        return self.blocks[0].prior

    def chi2(self) -> list[dict[str, Any]]:
        """Mean squared residual, in sigma, of good pixels: near 1 if the model is right.

        Returns:
            A row per band: with the variance that the fit assumes (Poisson noise, and the error of the PSF),
            with Poisson noise alone, and the number of residuals above 5 sigma of the former.
        """
        rows = []
        for band in self.field.bands:
            own, poisson = [], []
            for image, model, error, good in zip(
                self.field, self.model, self.psf_error, good_pixels(self.field), strict=True
            ):
                if image.band == band:
                    square = ((image.counts - model) ** 2)[good]
                    light = (error * (model - image.sky))[good]
                    poisson.append(square / model[good])
                    own.append(square / (model[good] + light**2))
            z2 = np.concatenate(own)
            rows.append(
                {
                    "band": band,
                    "pixels": len(z2),
                    "chi2 per pixel": _mean(z2),
                    "Poisson alone": _mean(np.concatenate(poisson)),
                    "pixels beyond 5 sigma": int((z2 > 25).sum()),
                }
            )
        return rows


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def fit_crowded(
    images: Field,
    catalog: Table | None = None,
    *,
    seed: int = 0,
    chains: int = 4,
    samples: int = 100,
    steps: int = STEPS,
    star_fraction: float | None = None,
    refit_psf: bool = True,
    progress: bool = True,
    checkpoint: Path | None = None,
) -> CrowdedFit:
    """Fit a crowded field.

    Args:
        images: the field.
        catalog: all sources, if they are known: ``ra``, ``dec`` [deg] and, optionally, ``position_error``
            [arcsec], the SD of each coordinate (:data:`POSITION_ERROR` without it). They are fitted as stars.
            Those up to :data:`OUTSIDE` off the reference image are fitted too, because their light is on it.
        seed: of the samples.
        chains: that are run from different starts.
        samples: catalogues kept of each chain.
        steps: moves per source of each chain.
        star_fraction: fraction of stars among the sources; 1 for stars only. It is learned from the field
            where not given.
        refit_psf: correct the PSFs by bright stars.
        progress: show progress on standard error.
        checkpoint: folder in which work in progress is saved. A fit that was interrupted continues from it.

    Raises:
        InputError: a number is out of range, pixels cannot be used, the catalogue is empty, or the checkpoint
            is of other work.
    """
    for name, value, least in (("chains", chains, 1), ("samples", samples, 4), ("steps", steps, 1)):
        if value < least:
            raise InputError(name, value, f"{least} or more")
    if star_fraction is not None and not 0 < star_fraction <= 1:
        raise InputError("star fraction", star_fraction, "above 0, at most 1")
    if catalog is not None and not len(catalog):
        raise InputError("catalogue of a crowded field", "no source", "at least one")
    check_pixels(images)
    settings = {"seed": seed, "chains": chains, "keep": samples, "steps": steps}
    given = None if catalog is None else given_positions(images, catalog)
    positions = () if given is None else given
    key = fingerprint(images, *settings.values(), star_fraction, refit_psf, *positions)
    clock: dict[str, float] = {"mode": 0.0, "sample": 0.0}
    blocks = []
    shape = reference_image(images).shape
    whole = (slice(0, shape[0]), slice(0, shape[1]))
    boxes = blocks_of(shape) if given is None else [(whole, whole)]
    for number, (core, box) in enumerate(boxes):
        part = crop(images, *box)
        stages = ("mode", "rounds", "pilot", "samples")
        paths = [_path(checkpoint, f"block-{number}-{stage}") for stage in stages]
        saved = Checkpoint(paths[0], {"field, seed and settings": key, "PSFs": "tables and Gaussians"})
        mode = _mode(part, given, refit_psf, star_fraction != 1, progress, saved, paths[1], settings)
        clock["mode"] += mode.seconds
        started = time.perf_counter()
        prior = _first_prior(mode, part, star_fraction)
        if mode.draws is not None:
            drawn = mode.draws
        else:
            prior, drawn = _sampled(mode, part, prior, settings, star_fraction, progress, paths[2:])
        clock["sample"] += time.perf_counter() - started
        blocks.append(Block(core, box, mode, prior, drawn))
    joined = join(blocks) if given is None else _on_image(blocks[0].samples, given[0], shape)
    started = time.perf_counter()
    table = consensus(joined) if given is None else given_sources(joined)
    clock["consensus"] = time.perf_counter() - started
    model, error, used = expected_images(images, blocks)
    fitted = tuple(replace(image, valid=mask) for image, mask in zip(images, used, strict=True))
    return CrowdedFit(replace(images, images=fitted), tuple(blocks), joined, table, model, error, clock)


def given_positions(images: Field, catalog: Table) -> tuple[Float[np.ndarray, "s 2"], Float[np.ndarray, "s"]]:
    """Positions of a catalogue and their errors [px of the reference image]."""
    wcs = reference_image(images).wcs
    xy = wcs.all_world2pix(np.asarray(catalog["ra"], float), np.asarray(catalog["dec"], float), 0)
    error = np.full(len(catalog), POSITION_ERROR)
    if "position_error" in catalog.colnames:
        scale = 3600 * float(np.sqrt(abs(np.linalg.det(wcs.pixel_scale_matrix))))
        error = np.asarray(catalog["position_error"], float) / scale
    return np.stack(xy, -1), error


def _on_image(samples: Samples, given: Float[np.ndarray, "s 2"], shape: tuple[int, int]) -> Samples:
    """Samples of the given sources on the reference image; the others were fitted for their light."""
    x, y = given.T
    inside = (x >= -0.5) & (x < shape[1] - 0.5) & (y >= -0.5) & (y < shape[0] - 0.5)
    rows = np.tile(inside, samples.chains * samples.length)
    parts = {name: getattr(samples, name)[rows] for name in ("chain", "sample", "xy", "flux", "shape")}
    return replace(samples, **parts)


def _path(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / f"{name}.npz"


def _mode(
    part: Field,
    given: tuple[np.ndarray, np.ndarray] | None,
    refit_psf: bool,
    galaxies: bool,
    progress: bool,
    saved: Checkpoint,
    rounds: Path | None,
    settings: dict[str, int],
) -> Mode:
    """The joint mode, or that of the checkpoint; with draws, if the positions are given.

    Rounds of a mode that is not finished are saved in ``rounds``.
    """
    scene = Scene.of(part, psf_error=PSF_ERROR if refit_psf else 0.0)
    arrays = saved.load()
    if arrays is None:
        started = time.perf_counter()
        xy, error = (None, 1.0) if given is None else given
        fit = fit_mode(
            scene,
            xy,
            position_error=error,
            galaxies=galaxies,
            refit_psf=refit_psf,
            progress=progress,
            checkpoint=rounds,
        )
        arrays = {name: getattr(fit.sources, name) for name in ("xy", "flux", "shape")}
        arrays |= {name: getattr(fit, name) for name in ("log_flux_sd", "xy_sd", "chi2")}
        arrays["psf_error"] = fit.scene.psf_error
        for k, (sky, psf) in enumerate(zip(fit.scene.sky, fit.scene.psf, strict=True)):
            arrays[f"sky{k}"], arrays[f"psf{k}"] = sky, psf
        # Fitted anew they would differ by rounding, which Markov chains enlarge.
        for k, gaussians in enumerate(fit.scene.mixture):
            arrays[f"weights{k}"], arrays[f"means{k}"] = gaussians.weights, gaussians.means
            arrays[f"covariances{k}"] = gaussians.covariances
        if given is not None:
            found = fit.sources
            stars = Stars(np.log(found.flux), found.xy, np.zeros((len(scene.band), 3)), found.shape)
            prior, count = Prior(fit.locus, *given), settings["chains"] * settings["keep"]
            draws = list(laplace_draws(fit.scene, stars, prior, count, settings["seed"]))
            arrays["drawn_log_flux"], arrays["drawn_xy"] = (
                np.stack(parts) for parts in zip(*draws, strict=True)
            )
        arrays["seconds"] = np.asarray(time.perf_counter() - started)
        saved.save(arrays)
    images = range(len(scene.band))
    fitted = replace(
        scene,
        sky=tuple(arrays[f"sky{k}"] for k in images),
        psf=tuple(arrays[f"psf{k}"] for k in images),
        psf_error=arrays["psf_error"],
        gaussians=tuple(
            GaussianMixture(arrays[f"weights{k}"], arrays[f"means{k}"], arrays[f"covariances{k}"])
            for k in images
        ),
    )
    return Mode(
        sources=Sources(arrays["xy"], arrays["flux"], arrays["shape"]),
        log_flux_sd=arrays["log_flux_sd"],
        xy_sd=arrays["xy_sd"],
        scene=fitted,
        survey_psf=scene.psf,
        chi2=arrays["chi2"],
        seconds=float(arrays["seconds"]),
        draws=_given_samples(arrays, part, fitted, settings) if given is not None else None,
    )


def _given_samples(
    arrays: dict[str, np.ndarray], part: Field, scene: Scene, settings: dict[str, int]
) -> Samples:
    """Draws about a joint mode, as samples of catalogues that all have the same sources."""
    log_flux, xy = arrays["drawn_log_flux"], arrays["drawn_xy"]
    count, sources, bands = log_flux.shape
    number = np.repeat(np.arange(count), sources)
    return Samples(
        chain=number // settings["keep"],
        sample=number % settings["keep"],
        xy=xy.reshape(-1, 2),
        flux=np.exp(log_flux).reshape(-1, bands),
        shape=np.full((len(number), 3), np.nan),
        bands=scene.bands,
        reference=scene.bands.index(reference_image(part).band),
        sky=np.zeros((settings["chains"], settings["keep"], len(scene.band), 3)),
        tally={},
    )


def _learned(
    mode: Mode,
    part: Field,
    star_fraction: float | None,
    flux: Float[np.ndarray, "s band"],
    shape: Float[np.ndarray, "s 3"],
    **more: Any,
) -> FieldPrior:
    """The prior of a block, learned from sources."""
    reference, sources = reference_image(part), mode.sources
    column = mode.scene.bands.index(reference.band)
    least = faintest_flux(mode.scene, sources, column)
    brightest = float(sources.flux[:, column].max(initial=least))
    prior = FieldPrior.learn(
        flux,
        shape,
        bands=mode.scene.bands,
        reference=column,
        area=float(np.prod(mode.scene.shape)),
        limits=(least, BRIGHTEST * max(brightest, 2 * least)),
        pixel_scale=mode.scene.pixel_scale,
        **more,
    )
    return prior if star_fraction is None else prior.with_star_fraction(star_fraction)


def _first_prior(mode: Mode, part: Field, star_fraction: float | None) -> FieldPrior:
    """The prior that is learned from the joint mode."""
    sources, column = mode.sources, mode.scene.bands.index(reference_image(part).band)
    least = faintest_flux(mode.scene, sources, column)
    fluxes = sources.flux[:, column]
    complete = float(np.quantile(fluxes, COMPLETE)) if len(sources) else least
    return _learned(
        mode,
        part,
        star_fraction,
        sources.flux,
        sources.shape,
        complete=max(least, complete),
        flux_sd=mode.log_flux_sd * sources.flux,
    )


def _sampled(
    mode: Mode,
    part: Field,
    prior: FieldPrior,
    settings: dict[str, int],
    star_fraction: float | None,
    progress: bool,
    paths: Sequence[Path | None],
) -> tuple[FieldPrior, Samples]:
    """Samples under the prior that a pilot run teaches."""
    scene = mode.scene
    pilot = sample(
        scene,
        mode.sources,
        prior,
        seed=settings["seed"],
        chains=settings["chains"],
        steps=max(1, int(PILOT * settings["steps"])),
        keep=PILOT_KEPT,
        progress=progress,
        checkpoint=paths[0],
    )
    inner = np.all((pilot.xy > -0.5) & (pilot.xy < np.array(scene.shape[::-1]) - 0.5), axis=1)
    weight = np.full(int(inner.sum()), 1 / (pilot.chains * pilot.length))
    prior = _learned(mode, part, star_fraction, pilot.flux[inner], pilot.shape[inner], weight=weight)
    start = pilot.sources(0, pilot.length - 1)
    return prior, sample(scene, start, prior, progress=progress, checkpoint=paths[1], **settings)


def faintest_flux(scene: Scene, sources: Sources, column: int) -> float:
    """Flux at which a star has a signal to noise of :data:`FAINTEST` in a band, at a median pixel [nMgy].

    The noise is that of the counts, which the light of all sources raises, and of the PSF's error.
    """
    model, information = expected(scene, sources), 0.0
    for k in (k for k, c in enumerate(scene.column) if c == column):
        light = model[k] - scene.sky[k]
        variance = np.maximum(model[k], 1.0) + (scene.psf_error[k] * light) ** 2
        good = scene.valid[k] if scene.valid[k].any() else np.ones(light.shape, bool)
        stamp = (scene.psf[k] ** 2).sum() / scene.oversampling**2  # sum over pixels of PSF^2
        information += float(np.median((scene.calibration[k] ** 2 / variance)[good])) * stamp
    return FAINTEST / float(np.sqrt(information))

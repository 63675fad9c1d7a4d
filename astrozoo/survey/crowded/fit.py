"""A crowded field: its joint mode, the prior learned from it, samples of whole catalogues, their consensus.

A large field is cut into blocks (:mod:`astrozoo.survey.crowded.blocks`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from jaxtyping import Bool, Float
from scipy.ndimage import binary_dilation

from astrozoo.checkpoint import Checkpoint
from astrozoo.data.images import Field, Image, crop, reference_image
from astrozoo.errors import InputError
from astrozoo.survey.crowded.blocks import Block, Mode, blocks_of, expected_images, join
from astrozoo.survey.crowded.consensus import consensus
from astrozoo.survey.crowded.mode import fit_mode
from astrozoo.survey.crowded.prior import FieldPrior
from astrozoo.survey.crowded.sampler import sample
from astrozoo.survey.crowded.samples import Samples
from astrozoo.survey.crowded.scene import Scene, Sources
from astrozoo.survey.fields import fingerprint

__all__ = ["CrowdedFit", "fit_crowded"]

PSF_ERROR = 0.02
"""[1] Relative error of the PSF before it is corrected by bright stars, and where there are too few."""
FAINTEST = 3.0
"""[sigma] Signal to noise in the reference band, of an isolated star, of the faintest sources that may exist.
Fainter ones are light that no image of several bands can tell from the sky."""
BRIGHTEST = 10.0
"""[flux of the brightest source of the joint mode] Limit of fluxes."""
COMPLETE = 0.4
"""[1] Quantile of the mode's fluxes above which the mode is taken to be complete. Below it, the counts of the
mode fall."""
PILOT = 0.25
"""[1] Length of the pilot run from whose samples the prior is learned again, relative to the run itself."""
PILOT_KEPT = 10
"""[catalogues] Kept of each chain of the pilot run."""
SATURATED_REACH = 3
"""[px] Distance from a saturated pixel within which goodness of fit is not judged: charge bleeds there."""


@dataclass(frozen=True)
class CrowdedFit:
    """A fitted crowded field.

    Args:
        field: the images.
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

    def good_pixels(self) -> list[Bool[np.ndarray, "y x"]]:
        """Valid pixels outside saturated cores."""
        grow = np.ones((3, 3))
        return [
            image.valid & ~binary_dilation(image.saturated, grow, iterations=SATURATED_REACH)
            for image in self.field
        ]

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
                self.field, self.model, self.psf_error, self.good_pixels(), strict=True
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
    *,
    seed: int = 0,
    chains: int = 4,
    samples: int = 100,
    steps: int = 4000,
    star_fraction: float | None = None,
    refit_psf: bool = True,
    progress: bool = True,
    checkpoint: Path | None = None,
) -> CrowdedFit:
    """Fit a crowded field.

    Args:
        images: the field.
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
        InputError: a number is out of range, the field has no valid pixels, or the checkpoint is of other
            work.
    """
    for name, value, least in (("chains", chains, 1), ("samples", samples, 4), ("steps", steps, 1)):
        if value < least:
            raise InputError(name, value, f"{least} or more")
    if not any(image.valid.any() for image in images):
        raise InputError(f"field {images.name!r}", "every pixel masked", "an image with valid pixels")
    settings = {"seed": seed, "chains": chains, "keep": samples, "steps": steps}
    key = fingerprint(images, *settings.values(), star_fraction, refit_psf)
    clock: dict[str, float] = {"mode": 0.0, "sample": 0.0}
    blocks = []
    for number, (core, box) in enumerate(blocks_of(reference_image(images).shape)):
        part = crop(images, *box)
        path = _path(checkpoint, f"block-{number}-mode")
        mode = _mode(part, refit_psf, progress, Checkpoint(path, {"field, seed and settings": key}))
        clock["mode"] += mode.seconds
        started = time.perf_counter()
        paths = [_path(checkpoint, f"block-{number}-{name}") for name in ("pilot", "samples")]
        prior, drawn = _sampled(mode, part, settings, star_fraction, progress, paths)
        clock["sample"] += time.perf_counter() - started
        blocks.append(Block(core, box, mode, prior, drawn))
    joined = join(blocks)
    started = time.perf_counter()
    table = consensus(joined)
    clock["consensus"] = time.perf_counter() - started
    model, error = expected_images(images, blocks)
    return CrowdedFit(images, tuple(blocks), joined, table, model, error, clock)


def _path(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / f"{name}.npz"


def _mode(part: Field, refit_psf: bool, progress: bool, saved: Checkpoint) -> Mode:
    """The joint mode, or that of the checkpoint."""
    scene = Scene.of(part, psf_error=PSF_ERROR if refit_psf else 0.0)
    arrays = saved.load()
    if arrays is None:
        started = time.perf_counter()
        fit = fit_mode(scene, refit_psf=refit_psf, progress=progress)
        arrays = {name: getattr(fit.sources, name) for name in ("xy", "flux", "shape")}
        arrays |= {name: getattr(fit, name) for name in ("log_flux_sd", "xy_sd", "chi2")}
        arrays["psf_error"] = fit.scene.psf_error
        for k, (sky, psf) in enumerate(zip(fit.scene.sky, fit.scene.psf, strict=True)):
            arrays[f"sky{k}"], arrays[f"psf{k}"] = sky, psf
        arrays["seconds"] = np.asarray(time.perf_counter() - started)
        saved.save(arrays)
    images = range(len(scene.band))
    fitted = scene.with_psf([arrays[f"psf{k}"] for k in images], arrays["psf_error"])
    return Mode(
        sources=Sources(arrays["xy"], arrays["flux"], arrays["shape"]),
        log_flux_sd=arrays["log_flux_sd"],
        xy_sd=arrays["xy_sd"],
        scene=replace(fitted, sky=tuple(arrays[f"sky{k}"] for k in images)),
        chi2=arrays["chi2"],
        seconds=float(arrays["seconds"]),
    )


def _sampled(
    mode: Mode,
    part: Field,
    settings: dict[str, int],
    star_fraction: float | None,
    progress: bool,
    paths: Sequence[Path | None],
) -> tuple[FieldPrior, Samples]:
    """Samples under a prior that is learned from the mode first, then from a pilot run."""
    reference = reference_image(part)
    scene, sources = mode.scene, mode.sources
    column = scene.bands.index(reference.band)
    least = faintest_flux(reference)
    brightest = float(sources.flux[:, column].max(initial=least))
    about: dict[str, Any] = {
        "bands": scene.bands,
        "reference": column,
        "area": float(np.prod(scene.shape)),
        "limits": (least, BRIGHTEST * max(brightest, 2 * least)),
        "pixel_scale": 3600 * float(np.sqrt(abs(np.linalg.det(reference.wcs.pixel_scale_matrix)))),
    }

    def learned(flux: np.ndarray, shape: np.ndarray, **more: Any) -> FieldPrior:
        prior = FieldPrior.learn(flux, shape, **about, **more)
        return prior if star_fraction is None else prior.with_star_fraction(star_fraction)

    complete = float(np.quantile(sources.flux[:, column], COMPLETE)) if len(sources) else least
    prior = learned(
        sources.flux,
        sources.shape,
        complete=max(least, complete),
        flux_sd=mode.log_flux_sd * sources.flux,
    )
    pilot_steps = max(1, int(PILOT * settings["steps"]))
    pilot = sample(
        scene,
        sources,
        prior,
        seed=settings["seed"],
        chains=settings["chains"],
        steps=pilot_steps,
        keep=PILOT_KEPT,
        progress=progress,
        checkpoint=paths[0],
    )
    inner = np.all((pilot.xy > -0.5) & (pilot.xy < np.array(scene.shape[::-1]) - 0.5), axis=1)
    weight = np.full(int(inner.sum()), 1 / (pilot.chains * pilot.length))
    prior = learned(pilot.flux[inner], pilot.shape[inner], weight=weight)
    start = pilot.sources(0, pilot.length - 1)
    return prior, sample(scene, start, prior, progress=progress, checkpoint=paths[1], **settings)


def faintest_flux(image: Image) -> float:
    """Flux at which an isolated star has a signal to noise of :data:`FAINTEST` [nMgy]."""
    stamp = image.psf.stamp((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2)
    area = 1 / ((stamp / stamp.sum()) ** 2).sum()
    good = image.valid if image.valid.any() else np.ones(image.shape, bool)
    sky, calibration = (float(np.median(values[good])) for values in (image.sky, image.calibration))
    return float(FAINTEST * np.sqrt(area * sky) / calibration)

"""The joint mode of a crowded field: how many sources, where, and how bright, all fitted together.

Stars are born where a score test promises that chi2 falls by more than a threshold, and removed where leaving
them out would raise it by less. The threshold falls in steps. After each change the fluxes of all stars are
solved for first (:mod:`astrozoo.survey.crowded.linear`), then all parameters move together
(:mod:`astrozoo.survey.crowded.joint`).

The mode is one catalogue. In a crowd the uncertainty is which sources exist, so its standard deviations, of
fluxes and positions given the list of sources, are too small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from astrozoo._content_hash import content_hash
from astrozoo.checkpoint import Checkpoint
from astrozoo.data.images import GaussianMixture
from astrozoo.errors import InputError
from astrozoo.infer.progress import progress_bar
from astrozoo.survey.crowded.births import births, significances, weakest
from astrozoo.survey.crowded.galaxies import with_galaxies
from astrozoo.survey.crowded.joint import Prior, Stars, far_light, improve, linearise
from astrozoo.survey.crowded.linear import plane_basis, solve_fluxes
from astrozoo.survey.crowded.locus import Locus, first_locus, learn_locus
from astrozoo.survey.crowded.psf_refit import refit
from astrozoo.survey.crowded.scene import Scene, Sources
from astrozoo.survey.crowded.stamps import close_pairs, make_stamps, reaches
from astrozoo.survey.crowded.uncertainty import standard_deviations

__all__ = ["THRESHOLDS", "ModeFit", "Round", "fit_mode"]

THRESHOLDS = (100.0, 60.0, 36.0, 25.0, 16.0, 12.0, 9.0)
"""Changes of chi2 that a birth must promise, in order. The brightest stars come first, so that their wings
are not taken for stars."""
_REFIT_AT = (100.0, 60.0, 36.0, 16.0, 9.0)
"""Thresholds after which the PSFs are corrected, from the first on: stars that are born of a PSF's error are
part of the model, and hide the error from later corrections."""
_PSF_ERROR = 0.05
"""Relative error of a PSF before it is corrected: psField's is 1.5 to 8 % in the field of M2."""
_GIVEN_CORRECTIONS = 3
"""Corrections of the PSFs where all stars are given."""
_REPEATS = 5
"""Limit of repetitions of the last threshold, each followed by a correction of the PSFs, where they are
corrected. A better PSF reveals stars, and these stars improve the PSF."""
_FALLING = 0.95
"""The repetitions end when no PSF's error falls below this fraction of what it was."""
_HYSTERESIS = 0.7
"""Deaths happen below this fraction of the births' threshold, or the same stars would be born and die for
ever."""
_ROUNDS = 4
"""Limit of rounds of births and deaths at one threshold."""
_FEW = 0.01
"""A threshold is done when fewer stars than this fraction of all are born."""
_STEPS, _LAST_STEPS = 3, 20
"""Gauss-Newton steps after births or deaths, and at the end."""
_LOW_QUANTILE = 0.1
"""Quantile of the counts at which the sky starts: stars cover most pixels of a crowded field."""
_FAINT = 0.3
"""[SD] Least flux in a band after the linear solution: zero has no logarithm."""


@dataclass(frozen=True)
class Round:
    """One round of the fit: threshold, stars, births, deaths, and chi2 per valid pixel."""

    threshold: float
    stars: int
    born: int
    died: int
    chi2: float


@dataclass(frozen=True)
class ModeFit:
    """A joint mode.

    Args:
        sources: all stars.
        log_flux_sd: SD of log fluxes, given which sources exist.
        xy_sd: SD of positions [px], likewise.
        significance: rise of chi2 if a source is left out.
        scene: with the fitted sky and the corrected PSFs.
        locus: colours of the field.
        chi2: per valid pixel, of each image, with the variance of the counts alone.
        trace: of the rounds.
    """

    sources: Sources
    log_flux_sd: Float[np.ndarray, "s band"]
    xy_sd: Float[np.ndarray, "s 2"]
    significance: Float[np.ndarray, "s"]
    scene: Scene
    locus: Locus
    chi2: Float[np.ndarray, "k"]
    trace: tuple[Round, ...] = field(default_factory=tuple)


def fit_mode(
    scene: Scene,
    positions: Float[np.ndarray, "s 2"] | None = None,
    *,
    position_error: float | Float[np.ndarray, "s"] = 0.1,
    grow: bool | None = None,
    galaxies: bool = True,
    refit_psf: bool = True,
    fluxes_first: bool = True,
    thresholds: tuple[float, ...] = THRESHOLDS,
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> ModeFit:
    """Fit all stars of a scene jointly.

    The fit is deterministic.

    Args:
        scene: the images.
        positions: of a catalogue [px of the reference image]; none by default.
        position_error: SD of the catalogue's positions in x and in y [px], one for all or one for each.
        grow: let stars be born and removed. By default only without a catalogue.
        galaxies: let stars become galaxies, where stars are born.
        refit_psf: correct the PSFs by the bright stars, and estimate the error that remains.
        fluxes_first: solve for all fluxes before positions move. Off only to show what it is for.
        thresholds: falling changes of chi2 for births.
        progress: show a bar.
        checkpoint: ``NAME.npz``, from which a killed fit continues exactly as if it had not been killed.

    Raises:
        InputError: positions are not finite pairs, an error is not positive, the thresholds do not fall,
            there is neither a catalogue nor growth, or the checkpoint is of another fit.
    """
    grow = positions is None if grow is None else grow
    _check(positions, position_error, thresholds, grow)
    start = np.zeros((0, 2)) if positions is None else np.asarray(positions, dtype=float)
    fit = _Fit(scene, start, position_error, refit_psf, fluxes_first, pinned=positions is not None)
    settings = f"{grow} {galaxies} {refit_psf} {fluxes_first} {thresholds}"
    known = content_hash((start, np.asarray(position_error, float)))
    saved = Checkpoint(checkpoint, {"scene": content_hash(scene), "catalogue": known, "settings": settings})
    if arrays := saved.load():
        fit.restore(arrays)
    elif len(start):
        fit.settle(_STEPS)
    falling = len(thresholds) - 1
    if refit_psf:
        thresholds = (*thresholds, *thresholds[-1:] * _REPEATS)
    total = len(thresholds) * _ROUNDS if grow else _GIVEN_CORRECTIONS
    with progress_bar("joint mode", total, progress) as report:
        if grow:
            for n, threshold in enumerate(thresholds[fit.level :], fit.level):
                for number in fit.rounds(threshold):
                    report(n * _ROUNDS + number, fit.text())
                    if saved.due:
                        saved.save(fit.arrays())
                if galaxies and n >= falling:
                    fit.find_galaxies(threshold)
                before = fit.scene.psf_error
                fit.learn(refit_psf and threshold in _REFIT_AT)
                if n >= falling and not (fit.scene.psf_error < _FALLING * before).any():
                    break
                fit.next_level()
        else:
            for n in range(fit.level, _GIVEN_CORRECTIONS):
                fit.settle(_LAST_STEPS)
                fit.learn(refit_psf)
                fit.next_level()
                report(n + 1, fit.text())
                if saved.due:
                    saved.save(fit.arrays())
        fit.settle(_LAST_STEPS)
    return fit.result()


def _check(
    positions: np.ndarray | None, error: float | np.ndarray, thresholds: tuple[float, ...], grow: bool
) -> None:
    if positions is not None:
        positions = np.asarray(positions)
        if positions.ndim != 2 or positions.shape[1] != 2 or not np.isfinite(positions).all():
            raise InputError("positions of a catalogue", f"shape {positions.shape}", "finite numbers, [s, 2]")
        if np.shape(error) not in ((), (len(positions),)):
            raise InputError("position errors", np.shape(error), f"one, or one for each of {len(positions)}")
    if not np.all(np.asarray(error) > 0):
        raise InputError("position error [px]", error, "positive numbers")
    if grow and (not thresholds or np.any(np.diff(thresholds) >= 0) or thresholds[-1] <= 0):
        raise InputError("thresholds of births", thresholds, "positive numbers that fall")
    if not grow and (positions is None or not len(positions)):
        raise InputError("joint mode without births", "no positions", "a catalogue")


class _Fit:
    """A fit in progress."""

    def __init__(
        self,
        scene: Scene,
        xy: Float[np.ndarray, "s 2"],
        position_error: float | np.ndarray,
        refit_psf: bool,
        fluxes_first: bool,
        pinned: bool,
    ) -> None:
        if refit_psf:
            scene = replace(scene, psf_error=np.maximum(scene.psf_error, _PSF_ERROR))
        self.scene, self.refit_psf, self.fluxes_first = scene, refit_psf, fluxes_first
        self.locus = first_locus(scene)
        self.catalogue = xy if pinned else np.zeros((0, 2))
        self.error = np.broadcast_to(np.asarray(position_error, float), len(self.catalogue)).copy()
        self.member = np.arange(len(self.catalogue))  # row of the catalogue, or -1 for a star that was born
        none = np.full((len(xy), 3), np.nan)
        self.stars = Stars(np.zeros((len(xy), len(scene.bands))), xy, _low_planes(scene), none)
        if len(xy):
            level = self._even_level(len(xy))
            self.stars = replace(self.stars, log_flux=np.tile(level, (len(xy), 1)))
        self.model = linearise(scene, self.stars, far_light(scene, self.stars))
        self.trace: list[Round] = []
        self.level = -1
        self.next_level()

    def next_level(self) -> None:
        """Go to the next threshold, or to the next correction of the PSFs where all stars are given."""
        self.level, self.round = self.level + 1, 0
        self.buried = np.zeros((0, 2))

    def arrays(self) -> dict[str, np.ndarray]:
        """The state between two rounds, for a checkpoint."""
        arrays = {name: getattr(self.stars, name) for name in ("log_flux", "xy", "planes", "shape")}
        arrays |= {name: getattr(self, name) for name in ("member", "buried")}
        arrays |= {"at": np.array([self.level, self.round]), "psf_error": self.scene.psf_error}
        arrays |= {"trace": np.array([astuple(r) for r in self.trace]).reshape(-1, 5)}
        arrays |= {"coefficients": self.locus.coefficients, "scatter": self.locus.scatter}
        arrays |= {"limits": np.array(self.locus.limits), "reach": self.model.stamps.reach}
        for k, (psf, mixture) in enumerate(zip(self.scene.psf, self.scene.mixture, strict=True)):
            arrays |= {f"psf{k}": psf, f"far{k}": self.model.far[k], f"weights{k}": mixture.weights}
            arrays |= {f"means{k}": mixture.means, f"covariances{k}": mixture.covariances}
        return arrays

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take the state of a checkpoint."""
        images = range(len(self.scene.band))
        self.scene = replace(
            self.scene,
            psf=tuple(arrays[f"psf{k}"] for k in images),
            psf_error=arrays["psf_error"],
            gaussians=tuple(
                GaussianMixture(arrays[f"weights{k}"], arrays[f"means{k}"], arrays[f"covariances{k}"])
                for k in images
            ),
        )
        self.stars = Stars(*(arrays[name] for name in ("log_flux", "xy", "planes", "shape")))
        low, high = arrays["limits"].tolist()
        self.locus = replace(
            self.locus,
            coefficients=arrays["coefficients"],
            scatter=arrays["scatter"],
            limits=(low, high),
        )
        self.member, self.buried = arrays["member"], arrays["buried"]
        self.level, self.round = arrays["at"].tolist()
        self.trace = [
            Round(threshold, int(stars), int(born), int(died), chi2)
            for threshold, stars, born, died, chi2 in arrays["trace"].tolist()
        ]
        far = [arrays[f"far{k}"] for k in images]
        self.model = linearise(self.scene, self.stars, far, arrays["reach"])

    def text(self) -> str:
        """For the progress bar."""
        return f"{len(self.stars)} stars, chi2 per pixel {self._chi2():.2f}"

    def rounds(self, threshold: float) -> Iterator[int]:
        """Rounds of births and deaths until few are born. The number of each is yielded after it."""
        while self.round < _ROUNDS:
            born = self._bear(threshold)
            self.settle(_STEPS)
            died = self._bury(_HYSTERESIS * threshold)
            if died:
                self.settle(_STEPS)
            self.trace.append(Round(threshold, len(self.stars), born, died, self._chi2()))
            number = self.round + 1
            self.round = _ROUNDS if born <= _FEW * len(self.stars) else number
            yield number

    def settle(self, steps: int) -> None:
        """Fluxes by non-negative least squares, then steps of all parameters."""
        if self.fluxes_first:
            self._solve_fluxes()
        self.stars, self.model = improve(self.scene, self.stars, self._prior(), steps)

    def find_galaxies(self, threshold: float) -> None:
        """Stars, alone or with their companions, become galaxies where that pays.

        Companions that are left over are then removed.
        """
        before = len(self.stars)
        self.stars, rows = with_galaxies(
            self.scene, self.stars, self.model, threshold, self.locus.reference, self.scene.pixel_scale
        )
        self.member = self.member[rows]
        self.settle(_STEPS)
        for _ in range(_ROUNDS if len(rows) < before else 0):
            if not self._bury(_HYSTERESIS * threshold):
                break
            self.settle(_STEPS)

    def learn(self, psf: bool) -> None:
        """Colours of the field, and the correction of the PSFs.

        An error of a PSF can only fall: what is estimated before all stars are born contains their light.
        """
        if not len(self.stars):
            return
        sd, _ = standard_deviations(self.scene, self.stars, self.model, self._prior())
        self.locus = learn_locus(self.locus, self.stars.log_flux, sd)
        if psf:
            corrected = refit(self._with_planes(), self.stars.sources())
            error = np.minimum(self.scene.psf_error, corrected.psf_error)
            self.scene = replace(self.scene, psf=corrected.psf, gaussians=None, psf_error=error)
            self.settle(_STEPS)

    def result(self) -> ModeFit:
        """The fit as it is now."""
        scene = self._with_planes()
        sd, xy_sd = standard_deviations(self.scene, self.stars, self.model, self._prior())
        chi2 = []
        for k, valid in enumerate(scene.valid):
            variance = np.maximum(self.model.sky[k] + self.model.light[k], 1.0)
            chi2.append((self.model.residual[k] ** 2 / variance).sum() / max(1, valid.sum()))
        return ModeFit(
            sources=self.stars.sources(),
            log_flux_sd=sd,
            xy_sd=xy_sd,
            significance=significances(self.scene, self.stars, self.model),
            scene=scene,
            locus=self.locus,
            chi2=np.array(chi2),
            trace=tuple(self.trace),
        )

    def _bear(self, threshold: float) -> int:
        xy, flux, _ = births(self.scene, self.stars, self.model, self.locus, threshold)
        if len(self.buried) and len(xy):
            distance = np.hypot(*(xy[:, None] - self.buried[None]).transpose(2, 0, 1))
            again = distance.min(axis=1) < 1
            xy, flux = xy[~again], flux[~again]
        level = np.log(flux)
        log_flux = level[:, None] + self.locus.ratio(level)
        self.stars = Stars(
            np.concatenate([self.stars.log_flux, log_flux]),
            np.concatenate([self.stars.xy, xy]),
            self.stars.planes,
            np.concatenate([self.stars.shape, np.full((len(xy), 3), np.nan)]),
        )
        self.member = np.concatenate([self.member, np.full(len(xy), -1)])
        return len(xy)

    def _bury(self, threshold: float) -> int:
        """Remove stars until none is under the threshold; catalogued stars stay."""
        significance = significances(self.scene, self.stars, self.model)
        significance[self.member >= 0] = np.inf
        dead = weakest(self.stars.xy, significance, threshold)
        self.buried = np.concatenate([self.buried, self.stars.xy[dead]])
        self.stars, self.member = self.stars.take(~dead), self.member[~dead]
        return int(dead.sum())

    def _prior(self) -> Prior:
        if not len(self.catalogue):
            return Prior(self.locus)
        known = self.member >= 0
        xy, error = self.stars.xy.copy(), np.full(len(known), 1e3)
        xy[known], error[known] = self.catalogue[self.member[known]], self.error[self.member[known]]
        return Prior(self.locus, xy, error)

    def _solve_fluxes(self) -> None:
        stars, scene = self.stars, self.scene
        stamps = make_stamps(scene, stars.xy, reaches(scene, stars.flux), stars.shape)
        far = far_light(scene, stars)
        pairs = close_pairs(stars.xy, 0.0, stamps.reach)
        variance = linearise(scene, stars, far)
        spread = [np.where(w > 0, 1 / np.maximum(w, 1e-300), 1.0) for w in variance.weight]
        flux, planes = solve_fluxes(scene, stamps, pairs, spread, far)
        itself = np.repeat(np.arange(len(stars))[:, None], 2, axis=1)
        inform = np.zeros_like(flux)
        for k, column in enumerate(scene.column):
            inform[:, column] += stamps.products(k, variance.weight[k], itself)[:, 0, 0]
        column = self.locus.reference
        level = np.log(np.maximum(flux[:, column], _FAINT / np.sqrt(np.maximum(inform[:, column], 1e-3))))
        typical = level[:, None] + self.locus.ratio(level)
        measured = inform * np.exp(2 * typical) > 1
        least = np.log(_FAINT / np.sqrt(np.maximum(inform, 1e-300)))
        log_flux = np.maximum(np.log(np.maximum(flux, 1e-300)), least)
        self.stars = replace(stars, log_flux=np.where(measured, log_flux, typical), planes=planes)

    def _even_level(self, count: int) -> Float[np.ndarray, "band"]:
        """Log fluxes that share all light above the sky evenly."""
        above = 0.0
        images = [k for k, column in enumerate(self.scene.column) if column == self.locus.reference]
        for k in images:
            light = (self.scene.counts[k] - self.scene.sky[k]) / self.scene.calibration[k]
            above += max(float(light[self.scene.valid[k]].sum()), 1e-3) / len(images)
        level = np.log(above / count)
        return level + self.locus.ratio(np.array([level]))[0]

    def _with_planes(self) -> Scene:
        planes = zip(self.scene.sky, self.stars.planes, strict=True)
        return replace(
            self.scene, sky=tuple(sky + np.tensordot(p, plane_basis(sky.shape), 1) for sky, p in planes)
        )

    def _chi2(self) -> float:
        return self.model.chi2() / max(1, sum(int(valid.sum()) for valid in self.scene.valid))


def _low_planes(scene: Scene) -> Float[np.ndarray, "k 3"]:
    """Constants that bring each sky to a low quantile of the counts above it."""
    planes = np.zeros((len(scene.band), 3))
    for k, valid in enumerate(scene.valid):
        if valid.any():
            planes[k, 0] = np.quantile((scene.counts[k] - scene.sky[k])[valid], _LOW_QUANTILE)
    return planes

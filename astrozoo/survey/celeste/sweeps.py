"""Block coordinate ascent over the sources of a field.

The overlap graph of the sources is coloured; all sources of one colour and patch size are fitted in one
batched trust-region call, as a star and as a galaxy, with the others' light in the background; then the next
colour. A source is fitted again only if a neighbour's light has changed noticeably.

References:
    Regier et al. 2019, Annals of Applied Statistics 13, 1884, section 5 (Cyclades scheduling).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import sep
import torch
from astropy.table import Table
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from astrozoo.data.images import Field
from astrozoo.infer.maximise import maximise
from astrozoo.infer.progress import progress_bar
from astrozoo.physics.profiles import axis_ratio_and_angle
from astrozoo.survey.celeste.canvas import dispersion
from astrozoo.survey.celeste.joint import settle
from astrozoo.survey.celeste.modes import BATCH, KINDS, Modes
from astrozoo.survey.celeste.planes import fit_planes
from astrozoo.survey.detect import detect
from astrozoo.types import Status

__all__ = ["Sweeps"]

_MODE_TOLERANCE = 0.05
"""Distance to a mode at which its fit stops [standard deviations]: small against any stated error."""
_NOTICEABLE_SKY = 0.03
"""Change of the sky above which all sources are fitted again [sigma of a pixel].

A source covers some 100 pixels, over which 0.03 sigma adds up to 0.3 of its flux error."""
_PSF_CANDIDATE_MARGIN = 5.0
"""A source is used to correct the PSF if it is a star, or if a galaxy is preferred by less than this [nat].

Excluding the doubtful ones would keep only the narrowest stars and bias the PSF low."""
_MAX_NEIGHBOUR_LIGHT = 0.03
"""Largest light of other sources where a star shines, relative to the star's, if it is to correct the PSF.

Light of neighbours looks like a wider or a narrower PSF."""
_MAX_NEEDLE_LENGTH = 2.0
"""Longest semi-major half-light axis of a thin galaxy [half sizes of its patch].

Of a longer one, most of the light is where nothing was measured."""
_MIN_AXIS_RATIO = 0.1
"""Axis ratio below which a galaxy is thin: that of the flattest discs seen edge-on."""
_SKY_CELL = 128
"""Side of a cell of the mesh on which the sky is corrected [px]: several times larger than most sources."""
_RESIDUAL_ERROR = 0.2
"""Error of the modelled light in the search for companions, relative to it.

It is five times that of the PSF, so that residuals of an imperfect PSF are not detected as sources."""
_RESIDUAL_SNR = 5.0
"""Signal to noise of a pixel, above which a residual may be a companion."""
_MIN_COMPANION_DISTANCE = 1.5
"""Smallest distance of a companion from a known source [px]: about the radius of the PSF's core."""


class Sweeps(Modes):
    """Passes over the sources that wait, and what is corrected on the way."""

    def run(self, most: int, fit_sky: bool) -> None:
        """Fit whatever waits, ``most`` passes at most; correct the sky before the first and after it."""
        state = self.state
        if fit_sky and not state.skies:
            self._correct_sky()
        if state.sweep == 0 and all(light is None for light in state.light):
            # so that the first source fitted does not take its neighbours' light for its own
            self.repaint(np.arange(len(self.sources)))
        colours = int(self.colour.max(initial=-1)) + 1
        with progress_bar("fitting sources", len(self.sources), self.progress) as report:
            while state.sweep < most and (state.sweep_in_progress or state.waiting.any()):
                state.sweep_in_progress = 1
                while state.colour < colours:
                    due = np.flatnonzero(state.waiting & (self.colour == state.colour))
                    for rows in self.sources.batches(due, BATCH):
                        self._fit(rows)
                        report(int((~state.waiting).sum()), f"sweep {state.sweep + 1}")
                        if self.checkpoint.due:
                            self._save()
                    state.colour += 1
                settle(self)
                out = self._rule_out(np.arange(len(self.sources)))
                before = {i: state.light[i] for i in out.tolist()}
                self.repaint(out)
                self.moved(out, before)
                if state.sweep == 0 and self.psf_planes is None:
                    if fit_sky:
                        self._correct_sky()
                    self._correct_psf()
                state.sweep, state.colour, state.sweep_in_progress = state.sweep + 1, 0, 0
                self._save()

    def _fit(self, rows: np.ndarray) -> None:
        state = self.state
        patch, light = self.patch(rows)
        ok = torch.ones(len(rows), dtype=torch.bool)
        # once all neighbours have been modelled, a galaxy that is out of the question stays so; a star costs
        # little, and may yet come into question as neighbours change
        lead = state.evidence["star"][rows] - state.evidence["galaxy"][rows]
        shut = ~self.possible(rows, star=False) & (state.sweep >= 2)
        for name, star, _ in KINDS:
            open_ = torch.nonzero(~shut | star)[:, 0]
            if not len(open_):
                continue
            density = self.density(patch, rows, star).take(open_)
            chosen = rows[open_.numpy()]
            optimum = maximise(
                density, state.mode[name][chosen], max_iterations=50, tolerance=_MODE_TOLERANCE
            )
            assert optimum.hessian is not None  # 11 dimensions are far below the dense limit
            covariance, log_det = _inverse(-optimum.hessian)
            state.mode[name][chosen], state.covariance[name][chosen] = optimum.w, covariance
            state.evidence[name][chosen] = optimum.value + 0.5 * (density.dim * np.log(2 * np.pi) + log_det)
            ok[open_] &= torch.tensor([s is Status.CONVERGED for s in optimum.statuses])
            for key, value in density.counts.items():
                state.counts[key] += value
        closed = rows[shut.numpy()]
        state.evidence["galaxy"][closed] = state.evidence["star"][closed] - lead[shut]
        self._rule_out(rows)
        state.converged[rows] = ok
        state.waiting[rows] = False
        self._show(rows, patch, light)
        self._mark_neighbours(rows, patch, light)

    def _rule_out(self, rows: np.ndarray) -> np.ndarray:
        """Rule out galaxies that are needles: they fit trails, bleeding columns and the light of a crowd.

        A needle is thinner than discs are, and most of its light is where nothing was measured.

        Returns:
            which of ``rows`` can now be stars only.
        """
        state = self.state
        scale = np.sqrt(np.abs(np.linalg.det(self.sources.jacobian[:, rows]))).min(0)  # px per arcsec
        shape = state.mode["galaxy"][rows, 2:5]
        axis_ratio, _ = axis_ratio_and_angle(shape[:, 1:])
        semi_major = scale * (shape[:, 0].exp() / axis_ratio.sqrt()).numpy()  # px
        thin = axis_ratio.numpy() < _MIN_AXIS_RATIO
        out = rows[thin & (semi_major > _MAX_NEEDLE_LENGTH * self.sources.half[rows])]
        star = state.mode["star"][out]
        typical = star.new_tensor((self.prior.log_radius_mean, 0.0, 0.0, 0.0)).expand(len(out), 4)
        state.mode["galaxy"][out] = torch.cat((star[:, :2], typical, star[:, 2:]), 1)
        state.evidence["galaxy"][out] = -torch.inf
        return out

    def _correct_sky(self) -> None:
        """Add to each image's sky what is left of its pixels on a coarse mesh (SEP's clipped background)."""
        canvas = self.canvas
        for k, image in enumerate(self.images):
            left = canvas.unpadded(canvas.counts[k] - canvas.sky[k] - canvas.model[k], k)
            if min(left.shape) < _SKY_CELL // 2:
                continue
            mesh = sep.Background(
                np.ascontiguousarray(left), mask=~image.valid, bw=_SKY_CELL, bh=_SKY_CELL, fw=3, fh=3
            )
            extra = torch.from_numpy(np.pad(mesh.back(), canvas.pad, mode="edge")).flatten()
            lowest = 0.5 * canvas.sky[k]
            canvas.sky[k] = torch.maximum(canvas.sky[k] + extra, lowest)
            if float(np.abs(mesh.back() / np.sqrt(image.sky)).max()) > _NOTICEABLE_SKY:
                self.state.waiting[:] = True
        self.state.skies += 1
        arrays = {f"sky_{k}": sky.numpy() for k, sky in enumerate(canvas.sky)}
        self.checkpoint.save(arrays, f"sky-{self.state.skies}")

    def _correct_psf(self) -> None:
        """Correct the width of each image's PSF, by a plane over the image that is fitted to its stars.

        With a PSF that is too narrow, every star looks like a small galaxy, and every small galaxy looks too
        large. Stars with noticeable light of neighbours are not used.
        """
        n_images, state = len(self.images.images), self.state
        delta, error = np.zeros((2, n_images, len(self.sources)))
        alone = torch.zeros(len(self.sources), dtype=torch.bool)
        for rows in self.sources.batches(np.arange(len(self.sources)), BATCH):
            patch, light = self.patch(rows)
            others = patch.background - self.canvas.gather(self.canvas.sky, rows)
            alone[rows] = (light * others).sum((-2, -1)) < _MAX_NEIGHBOUR_LIGHT * (light * light).sum(
                (-2, -1)
            )
            density = self.density(patch, rows, star=True)
            widths = density.psf_width(state.mode["star"][rows], state.covariance["star"][rows])
            delta[:, rows], error[:, rows] = (t.numpy().T for t in widths)
        stars = (
            (state.evidence["star"] > state.evidence["galaxy"] - _PSF_CANDIDATE_MARGIN)
            & state.converged
            & alone
        )
        planes = fit_planes([self._places(k) for k in range(n_images)], delta, error, stars.numpy())
        self._broaden(planes)
        state.waiting[:] = True

    def companions(self) -> Table:
        """Sources that are detected in the residuals: parts of blends that detection took for one source.

        Residuals are divided by a noise that grows with the modelled light, so that errors of the PSF are not
        detected as sources.
        """
        left = []
        for k, image in enumerate(self.images):
            sky = self.canvas.sky[k]
            expected = sky + self.canvas.model[k]
            model = self.canvas.unpadded(expected, k)
            scale = self.canvas.unpadded(dispersion(expected, sky, _RESIDUAL_ERROR).sqrt(), k)
            counts = np.where(image.valid, model + (image.counts - model) / scale, model)
            left.append(replace(image, counts=counts, sky=model))
        residual_sources = detect(Field(tuple(left), self.images.name), threshold=_RESIDUAL_SNR)
        if not len(residual_sources):
            return residual_sources
        xy = np.stack(
            self.images.images[0].wcs.all_world2pix(residual_sources["ra"], residual_sources["dec"], 0), -1
        )
        known = self.sources.xy[0]
        distance = cKDTree(known).query(xy)[0] if len(known) else np.full(len(residual_sources), np.inf)
        keep = (
            (distance > _MIN_COMPANION_DISTANCE)
            & ~np.asarray(residual_sources["saturated"], bool)
            & ~np.asarray(residual_sources["edge"], bool)
        )
        residual_sources["blended"] = True
        return residual_sources[keep]


def _inverse(curvature: Float[Tensor, "b d d"]) -> tuple[Float[Tensor, "b d d"], Float[Tensor, "b"]]:
    """Covariance and its log determinant; directions of no or wrong curvature get a unit variance."""
    values, vectors = torch.linalg.eigh(curvature)
    values = torch.where(values > 1e-2, values, torch.ones_like(values))
    return (vectors / values[:, None]) @ vectors.mT, -values.log().sum(-1)

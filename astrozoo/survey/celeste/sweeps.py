"""Block coordinate ascent over the sources of a field.

The overlap graph of the sources is coloured; all sources of one colour and patch size are fitted in one
batched trust-region call, as a star and as a galaxy, with the others' light in the background; then the next
colour. A source is fitted again only if a neighbour's light has changed noticeably.

References:
    Regier et al. 2019, Annals of Applied Statistics 13, 1884, section 5 (Cyclades scheduling).
"""

from __future__ import annotations

import numpy as np
import sep
import torch
from jaxtyping import Bool

from astrozoo.infer.maximise import maximise
from astrozoo.infer.progress import progress_bar
from astrozoo.physics.profiles import axis_ratio_and_angle
from astrozoo.survey.celeste.growth import MIN_AXIS_RATIO, grow
from astrozoo.survey.celeste.joint import settle
from astrozoo.survey.celeste.modes import BATCH, KINDS, Modes, inverse_curvature
from astrozoo.survey.celeste.planes import fit_planes
from astrozoo.survey.partition import HALF_SIZES
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
_SKY_CELL = 128
"""Side of a cell of the mesh on which the sky is corrected [px]: several times larger than most sources."""
_MAX_COVERED = 0.8
"""Largest fraction of an image's pixels that may be masked where its sky is corrected."""
_SETTLED_SKY = 0.01
"""Change of the sky below which it has settled under large sources [sigma of a pixel]: its statistical error.

A galaxy that covers 4,000 pixels changes by 0.6 of its flux error."""
_MAX_SKIES = 8
"""Largest number of corrections of the sky. In simulations it settles by the fifth; where a galaxy fills an
image, sky and wings can change in turn without end."""
_COVERED_LIGHT = 0.1
"""Light of a large source above which a pixel is not used to correct the sky [sigma of its noise]."""
_EXTENTS = 4.0
"""Radius within which the sky of a source is not used before its fit, in its rms extent.

It contains nine tenths of an exponential galaxy's light, and is the half size of a patch of its extent."""


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
        with progress_bar("fitting sources", len(self.sources), self.progress) as report:
            while state.sweep < most and (
                state.sweep_in_progress or state.waiting.any() or (fit_sky and self._sky_moves())
            ):
                state.sweep_in_progress = 1
                while state.colour <= self.colour.max(initial=-1):
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
                larger = grow(self) & (self.sources.half > HALF_SIZES[-1])
                if larger.any() and fit_sky and state.sweep:
                    self._correct_sky()
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
        known = torch.from_numpy(self.type_known[rows])
        shut = ~self.possible(rows, star=False) & ((state.sweep >= 2) | known)
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
            covariance, log_det = inverse_curvature(-optimum.hessian)
            state.mode[name][chosen], state.covariance[name][chosen] = optimum.w, covariance
            state.evidence[name][chosen] = optimum.value + 0.5 * (density.dim * np.log(2 * np.pi) + log_det)
            ok[open_] &= torch.tensor([s is Status.CONVERGED for s in optimum.statuses])
            for key, value in density.counts.items():
                state.counts[key] += value
        closed = rows[shut.numpy()]
        state.evidence["galaxy"][closed] = state.evidence["star"][closed] - lead[shut]
        self._rule_out(rows)
        state.converged[rows] = ok
        state.waiting[rows] = state.unsettled[rows] = False
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
        thin = axis_ratio.numpy() < MIN_AXIS_RATIO
        out = rows[thin & (semi_major > _MAX_NEEDLE_LENGTH * self.sources.half[rows])]
        star = state.mode["star"][out]
        typical = star.new_tensor((self.prior.log_radius_mean, 0.0, 0.0, 0.0)).expand(len(out), 4)
        state.mode["galaxy"][out] = torch.cat((star[:, :2], typical, star[:, 2:]), 1)
        state.evidence["galaxy"][out] = -torch.inf
        return out

    def _sky_moves(self) -> bool:
        """Correct the sky beside large sources, once all have settled; True if these need another fit.

        Their outermost light is like a change of the sky. Neither is right before the other is.
        """
        large = self.sources.half > HALF_SIZES[-1]
        possible = bool(large.any()) and self.state.skies < _MAX_SKIES
        moves = possible and self._correct_sky() > _SETTLED_SKY
        if moves:
            self.state.waiting |= large
        return moves

    def _correct_sky(self) -> float:
        """Add to each image's sky what is left of its pixels on a coarse mesh (SEP's clipped background).

        Pixels of large sources are left out, because errors of their models are as wide as the mesh. The sky
        of an image that they cover is not corrected.

        Returns:
            the largest change, in sigma of a pixel.
        """
        largest = 0.0
        canvas, covered = self.canvas, self._covered()
        for k, image in enumerate(self.images):
            left = canvas.unpadded(canvas.counts[k] - canvas.sky[k] - canvas.model[k], k)
            mask = ~image.valid | covered[k]
            if min(left.shape) < _SKY_CELL // 2 or mask.mean() > _MAX_COVERED:
                continue
            mesh = sep.Background(
                np.ascontiguousarray(left), mask=mask, bw=_SKY_CELL, bh=_SKY_CELL, fw=3, fh=3
            )
            lowest = 0.5 * canvas.sky[k]
            canvas.sky[k] = torch.maximum(canvas.sky[k] + canvas.framed(mesh.back()), lowest)
            largest = max(largest, float(np.abs(mesh.back() / np.sqrt(image.sky)).max()))
        if largest > _NOTICEABLE_SKY:
            self.state.waiting[:] = True
        self.state.skies += 1
        arrays = {f"sky_{k}": sky.numpy() for k, sky in enumerate(canvas.sky)}
        self.checkpoint.save(arrays, f"sky-{self.state.skies}")
        return largest

    def _covered(self) -> list[Bool[np.ndarray, "y x"]]:
        """For each image, the pixels of large sources: by their light, or before a fit by their extent."""
        canvas, state = self.canvas, self.state
        flats = [torch.zeros_like(model) for model in canvas.model]
        for row, light in state.whole.items():
            canvas.paint(np.array([row]), light[None], flats)
        covered = [
            canvas.unpadded(flat > _COVERED_LIGHT * sky.sqrt(), k)
            for k, (flat, sky) in enumerate(zip(flats, canvas.sky, strict=True))
        ]
        if "a" not in self.table.colnames:
            return covered
        radius = _EXTENTS * np.nan_to_num(np.asarray(self.table["a"], float))
        fitted = np.array([light is not None for light in state.light], bool)
        for index in np.flatnonzero((radius > HALF_SIZES[-1]) & ~fitted):
            for k, pixels in enumerate(covered):
                y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
                x0, y0 = self.sources.xy[k, index]
                pixels |= (x - x0) ** 2 + (y - y0) ** 2 < radius[index] ** 2
        return covered

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
            others = (patch.mask > 0) * (patch.background - self.canvas.gather(self.canvas.sky, rows))
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

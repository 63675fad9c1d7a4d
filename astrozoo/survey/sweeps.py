"""Block coordinate ascent over the sources of a field.

The overlap graph of the sources is coloured; all sources of one colour and patch size are fitted in one
batched trust-region call, as a star and as a galaxy, with the others' light in the background; then the next
colour. A source is fitted again only if a neighbour's light has changed noticeably.

References:
    Regier et al. 2019, Annals of Applied Statistics 13, 1884, section 5 (Cyclades scheduling).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import sep
import torch
from astropy.table import Table
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from astrozoo.data.images import Field
from astrozoo.infer import _common
from astrozoo.infer._maximise import maximise
from astrozoo.models.celeste import Patch, Prior, galaxy_images, star_images
from astrozoo.models.celeste_density import TypedDensity
from astrozoo.survey.checkpoint import Checkpoint
from astrozoo.survey.detect import detect
from astrozoo.survey.joint import settle
from astrozoo.survey.partition import (
    Canvas,
    Sources,
    colouring,
    dispersion,
    half_sizes,
    least_radius,
    neighbours,
    reach,
)
from astrozoo.survey.planes import Planes, fit_planes
from astrozoo.types import Status

__all__ = ["KINDS", "Sweeps"]

KINDS = (("galaxy", False, 6), ("star", True, 2))
"""Name of each type, whether it is the star, and how many parameters move or bend its image."""
_BATCH = 64
_NOTICEABLE = 0.1  # [sigma] a change of neighbours' light on a source's own that calls for another fit
_NEAR = 0.05  # [standard deviations] to a mode
_HOPELESS = 40.0  # [nats] by which a type's evidence must fall short to be ruled out for good
_NOTICEABLE_SKY = 0.03  # [sigma of a pixel] the same for a change of the sky
_ALONE = 0.03  # of a star's light, that of others where it shines
_LEAST_SATURATED = 1.0  # [arcsec] half-light radius of a galaxy whose core is masked
_SKY_CELL = 128  # [px]
_SURE = 10.0  # signal to noise of fluxes whose ratio is taken for a starting colour
_RESIDUAL_ERROR = 0.2  # of modelled light, in the search for companions
_RESIDUAL_SNR = 5.0
_CLOSEST = 1.5  # [px] to a known source


@dataclass
class _State:
    """What the sweeps work on: modes, inverse curvatures and evidences of both types of every source."""

    mode: dict[str, Tensor]
    covariance: dict[str, Tensor]
    evidence: dict[str, Tensor]
    converged: Tensor
    light: list[Tensor | None]
    waiting: np.ndarray
    sweep: int = 0
    colour: int = 0
    counts: dict[str, int] = field(
        default_factory=lambda: {"value": 0, "gradient": 0, "hvp": 0, "hessian": 0}
    )


class Sweeps:
    """The fit of a field as it stands: modes and evidences of both types of every source, and their light."""

    def __init__(
        self,
        images: Field,
        table: Table,
        prior: Prior,
        seed: int,
        progress: bool,
        checkpoint: Checkpoint,
        earlier: Sweeps | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.turn: int = 0 if earlier is None else earlier.turn + 1
        self.images, self.table, self.prior, self.seed, self.progress = images, table, prior, seed, progress
        ra, dec = np.asarray(table["ra"], float), np.asarray(table["dec"], float)
        extent = np.asarray(table["a"], float) if "a" in table.colnames else np.full(len(table), 2.0)
        self.sources = self._sized(Sources.locate(images, ra, dec, half_sizes(extent)))
        self.canvas = Canvas(images, self.sources, prior.bands)
        self.log_least_radius = torch.full((len(self.sources),), -torch.inf, dtype=torch.float64)
        self.adjacent = neighbours(self.sources)
        self.colour = colouring(self.adjacent)
        self.state, self.sky_corrected = self._start(), False
        self.psf_planes: Planes | None = None
        if earlier is not None:
            self._inherit(earlier)
        self._resume()

    def _sized(self, sources: Sources) -> Sources:
        """With patches that hold the wings of bright sources too."""
        flux = np.full((len(self.images.images), len(sources)), np.nan)
        for k, image in enumerate(self.images):
            if f"flux_{image.band}" in self.table.colnames:
                flux[k] = np.asarray(self.table[f"flux_{image.band}"], float)
        noise = np.array([np.sqrt(np.median(image.sky[image.valid])) for image in self.images])
        return replace(
            sources, half=np.maximum(sources.half, reach(sources, flux * sources.calibration, noise))
        )

    def _inherit(self, earlier: Sweeps) -> None:
        """Go on with an earlier job: what waited goes on waiting, and all near new sources."""
        n, state, before = len(earlier.sources), self.state, earlier.state
        for name, _, _ in KINDS:
            for part in ("mode", "covariance", "evidence"):
                getattr(state, part)[name][:n] = getattr(before, part)[name]
        state.converged[:n] = before.converged
        state.counts, state.sweep = before.counts, before.sweep
        self.canvas.sky, self.sky_corrected = earlier.canvas.sky, earlier.sky_corrected
        if earlier.psf_planes is not None:
            self._broaden(earlier.psf_planes)
        state.waiting[:n] = before.waiting
        for row in range(n, len(self.sources)):
            state.waiting[self.adjacent[row]] = True
        self.repaint(np.arange(len(self.sources)))

    def _resume(self) -> None:
        """Take up the work of a checkpoint: its state, its sky, and the light of what it had fitted."""
        held, sky, state = self.checkpoint.load(f"state-{self.turn}"), self.checkpoint.load("sky"), self.state
        psf = self.checkpoint.load("psf")
        if psf is not None and self.psf_planes is None:
            self._broaden(Planes(psf["slopes"], float(psf["scatter"]), psf["error"]))
        if sky is not None:
            self.sky_corrected = True
            self.canvas.sky = [torch.from_numpy(sky[f"sky_{k}"]) for k in range(len(self.canvas.sky))]
        if held is None:
            return
        for name, _, _ in KINDS:
            for part in ("mode", "covariance", "evidence"):
                getattr(state, part)[name] = torch.from_numpy(held[f"{part}_{name}"])
        state.converged, state.waiting = torch.from_numpy(held["converged"]), held["waiting"]
        state.sweep, state.colour = int(held["sweep"]), int(held["colour"])
        self.repaint(np.flatnonzero(held["fitted"]))

    def repaint(self, fitted: Int[np.ndarray, "n"]) -> None:
        """Paint the light of sources as their modes and evidences have it."""
        for rows in self.sources.batches(fitted, _BATCH):
            patch, own = self.patch(rows)
            light = self._light(patch, rows)
            self.canvas.paint(rows, light - own)
            for k, row in enumerate(rows):
                self.state.light[row] = light[k]

    def _save(self) -> None:
        state = self.state
        held = {
            f"{part}_{name}": getattr(state, part)[name].numpy()
            for name, _, _ in KINDS
            for part in ("mode", "covariance", "evidence")
        }
        held |= {
            "converged": state.converged.numpy(),
            "waiting": state.waiting,
            "sweep": np.asarray(state.sweep),
            "colour": np.asarray(state.colour),
            "fitted": np.array([light is not None for light in state.light], bool),
        }
        self.checkpoint.save(f"state-{self.turn}", held)

    def _start(self) -> _State:
        n, nb = len(self.sources), len(self.prior.bands)
        state = _State({}, {}, {}, torch.zeros(n, dtype=torch.bool), [None] * n, np.ones(n, bool))
        linear = self._start_fluxes()
        size = torch.full((n,), self.prior.log_radius_mean, dtype=torch.float64)
        if "half_light_radius" in self.table.colnames:
            seen = torch.from_numpy(np.asarray(self.table["half_light_radius"], float))
            size = torch.where(seen > 0.3, seen.clamp(max=20.0), 0.3).log()
        zero = torch.zeros(n, 1, dtype=torch.float64)
        shape = torch.cat((zero, zero, size[:, None], zero, zero, zero), 1)
        state.mode = {"star": torch.cat((zero, zero, linear), 1), "galaxy": torch.cat((shape, linear), 1)}
        for name, _, bending in KINDS:
            d = bending + nb
            state.covariance[name] = torch.eye(d, dtype=torch.float64).repeat(n, 1, 1)
            state.evidence[name] = torch.zeros(n, dtype=torch.float64)
        return state

    def _start_fluxes(self) -> Float[Tensor, "s band"]:
        """ln flux in the reference band and colours, from the table or from the pixels; positive by force."""
        n, bands = len(self.sources), self.prior.bands
        star, galaxy = self.prior.colour
        mean = (star.weights @ star.means + galaxy.weights @ galaxy.means) / 2
        flux = torch.full((n, len(bands)), torch.nan, dtype=torch.float64)
        error = torch.full_like(flux, torch.nan)
        for b, band in enumerate(bands):
            if f"fluxerr_{band}" in self.table.colnames:
                error[:, b] = torch.from_numpy(np.asarray(self.table[f"fluxerr_{band}"], float))
            if f"flux_{band}" in self.table.colnames:
                flux[:, b] = torch.from_numpy(np.asarray(self.table[f"flux_{band}"], float))
            elif band in self.images.bands:
                flux[:, b] = self._aperture(band)
        reference = torch.nan_to_num(flux[:, self.prior.reference], nan=1.0)
        if bands[self.prior.reference] not in self.images.bands:
            reference = torch.nan_to_num(flux, nan=0.0).amax(1)
        reference = reference.clamp(min=0.3)
        colour = mean.expand(n, -1).clone()
        measured = flux.clamp(min=0.3).log().diff(dim=1)
        # a noisy colour may start in another component of the prior's mixture, and stay there
        sure = flux > torch.where(error.isfinite(), _SURE * error, 5.0)
        good = sure[:, 1:] & sure[:, :-1]
        colour = torch.where(good, measured.clamp(-1.5, 3.5), colour)
        return torch.cat((reference.log()[:, None], colour), 1)

    def _aperture(self, band: str) -> Float[Tensor, "s"]:
        """Flux in a square of 11 px about each position [nMgy]."""
        total = torch.zeros(len(self.sources), dtype=torch.float64)
        seen = torch.zeros_like(total)
        for rows in self.sources.batches(np.arange(len(self.sources)), _BATCH):
            patch = self.canvas.patches(rows, torch.zeros((), dtype=torch.float64))
            inside = (patch.pixels.abs().amax(2) <= 5.5) * patch.mask
            for k, image in enumerate(self.images):
                if image.band == band:
                    excess = ((patch.counts - patch.background) * inside)[:, k].sum(-1)
                    total[rows] += excess / patch.calibration[:, k]
                    seen[rows] += 1
        return total / seen.clamp(min=1)

    def run(self, most: int, fit_sky: bool) -> None:
        """Fit whatever waits, ``most`` passes at most; correct the sky before the first and after it."""
        state = self.state
        if fit_sky and not self.sky_corrected:
            self._correct_sky()
        if state.sweep == 0 and all(light is None for light in state.light):
            # so that the first source fitted does not take its neighbours' light for its own
            self.repaint(np.arange(len(self.sources)))
        colours = int(self.colour.max(initial=-1)) + 1
        with _common.progress_bar("fitting sources", len(self.sources), self.progress) as report:
            while state.sweep < most and state.waiting.any():
                while state.colour < colours:
                    due = np.flatnonzero(state.waiting & (self.colour == state.colour))
                    for rows in self.sources.batches(due, _BATCH):
                        self._fit(rows)
                        report(int((~state.waiting).sum()), f"sweep {state.sweep + 1}")
                        if self.checkpoint.due:
                            self._save()
                    state.colour += 1
                settle(self)
                if state.sweep == 0 and self.psf_planes is None:
                    if fit_sky:
                        self._correct_sky()
                    self._correct_psf()
                state.sweep, state.colour = state.sweep + 1, 0
                self._save()

    def patch(self, rows: np.ndarray) -> tuple[Patch, Tensor]:
        """Patches of sources of one size, and the light that these sources have there."""
        n_pixels = (2 * int(self.sources.half[rows[0]]) + 1) ** 2
        blank = torch.zeros(len(self.images.images), n_pixels, dtype=torch.float64)
        own = torch.stack([blank if self.state.light[i] is None else self.state.light[i] for i in rows])
        return self.canvas.patches(rows, own), own

    def _fit(self, rows: np.ndarray) -> None:
        state = self.state
        patch, own = self.patch(rows)
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
            found = maximise(density, state.mode[name][chosen], max_iterations=50, tolerance=_NEAR)
            assert found.hessian is not None  # 11 dimensions are far below the dense limit
            covariance, log_det = _inverse(-found.hessian)
            state.mode[name][chosen], state.covariance[name][chosen] = found.w, covariance
            state.evidence[name][chosen] = found.value + 0.5 * (density.dim * np.log(2 * np.pi) + log_det)
            ok[open_] &= torch.tensor([s is Status.CONVERGED for s in found.statuses])
            for key, value in density.counts.items():
                state.counts[key] += value
        closed = rows[shut.numpy()]
        state.evidence["galaxy"][closed] = state.evidence["star"][closed] - lead[shut]
        state.converged[rows] = ok
        state.waiting[rows] = False
        self.repaint(rows)
        self._tell(rows, patch, own)

    def _tell(self, rows: np.ndarray, patch: Patch, before: Float[Tensor, "b image p"]) -> Bool[Tensor, "b"]:
        """Have those neighbours wait for another fit on whose light that of ``rows`` has changed noticeably.

        Changes count in units of the pixels' errors; a neighbour feels one as much as the pixel is bright in
        its own light.

        Args:
            before: the light of ``rows`` as their neighbours know it.

        Returns:
            which of ``rows`` have changed noticeably.
        """
        state = self.state
        light = torch.stack([state.light[i] for i in rows])  # type: ignore[misc]
        change = patch.mask * (light - before) ** 2 / (patch.background + before)
        noticeable = change.sum((-2, -1)) > _NOTICEABLE**2
        changed = rows[noticeable.numpy()]
        near = np.unique([j for i in changed for j in self.adjacent[i] if not state.waiting[j]]).astype(int)
        if len(near):
            for some, news in self.canvas.felt(rows, change, self.sources.batches(near, _BATCH)):
                light = torch.stack([state.light[j] for j in some])  # type: ignore[misc]
                profile = light / light.amax(-1, keepdim=True).clamp_min(torch.finfo(light.dtype).tiny)
                state.waiting[some] = ((news * profile).sum((-2, -1)) > _NOTICEABLE**2).numpy()
        return noticeable

    def moved(self, rows: Int[np.ndarray, "n"], before: Mapping[int, Tensor | None]) -> None:
        """Have sources wait for a fit that have changed noticeably without one, and those that feel it.

        Args:
            before: the light of each of ``rows``.
        """
        for some in self.sources.batches(rows, _BATCH):
            patch, _ = self.patch(some)
            noticeable = self._tell(some, patch, torch.stack([before[i] for i in some.tolist()]))  # type: ignore[misc]
            self.state.waiting[some] |= noticeable.numpy()

    def density(self, patch: Patch, rows: np.ndarray, star: bool) -> TypedDensity:
        """The density of sources of a type; galaxies are to be large enough to be told from stars."""
        least = None if star else self.log_least_radius[torch.from_numpy(rows)]
        return TypedDensity(patch, self.prior, star=star, log_least_radius=least)

    def possible(self, rows: np.ndarray, star: bool) -> Tensor:
        """Which sources may be of a type, as far as their last fits say."""
        lead = self.state.evidence["star"][rows] - self.state.evidence["galaxy"][rows]
        return (lead if star else -lead) >= -_HOPELESS

    def _light(self, patch: Patch, rows: np.ndarray) -> Float[Tensor, "b image p"]:
        """Expected electrons: the two types' images at their modes, by their probabilities."""
        state = self.state
        p_star = torch.sigmoid(state.evidence["star"][rows] - state.evidence["galaxy"][rows])
        total = torch.zeros_like(patch.counts)
        for name, star, _ in KINDS:
            u = state.mode[name][rows]
            density = self.density(patch, rows, star)
            image = (
                star_images(patch, u[:, :2])
                if star
                else galaxy_images(patch, u[:, :2], u[:, 2], u[:, 3:5], u[:, 5])
            )
            share = p_star if star else 1 - p_star
            total += (share[:, None] * density.electrons(u))[..., None] * image
        return total

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
        self.sky_corrected = True
        self.checkpoint.save("sky", {f"sky_{k}": sky.numpy() for k, sky in enumerate(canvas.sky)})

    def _correct_psf(self) -> None:
        """Widen or narrow each image's PSF, by a plane over the image, to what its stars say.

        A PSF said to be too narrow makes every star a small galaxy, and every small galaxy too large. Stars
        in the light of others are not asked: they look narrow or wide as that light is taken for theirs.
        """
        n_images, state = len(self.images.images), self.state
        delta, error = np.zeros((2, n_images, len(self.sources)))
        alone = torch.zeros(len(self.sources), dtype=torch.bool)
        for rows in self.sources.batches(np.arange(len(self.sources)), _BATCH):
            patch, own = self.patch(rows)
            others = patch.background - self.canvas.gather(self.canvas.sky, rows)
            alone[rows] = (own * others).sum((-2, -1)) < _ALONE * (own * own).sum((-2, -1))
            density = self.density(patch, rows, star=True)
            found = density.psf_width(state.mode["star"][rows], state.covariance["star"][rows])
            delta[:, rows], error[:, rows] = (t.numpy().T for t in found)
        stars = (state.evidence["star"] > state.evidence["galaxy"] - 5) & state.converged & alone
        planes = fit_planes([self._places(k) for k in range(n_images)], delta, error, stars.numpy())
        self._broaden(planes)
        state.waiting[:] = True
        self.checkpoint.save("psf", {name: np.asarray(held) for name, held in planes._asdict().items()})

    def _places(self, image: int) -> Float[np.ndarray, "s 3"]:
        """1, x, y of every source, from -1 to 1 over the image."""
        ny, nx = self.images.images[image].shape
        xy = 2 * (self.sources.xy[image] + 0.5) / (nx, ny) - 1
        return np.column_stack((np.ones(len(xy)), xy))

    def _broaden(self, planes: Planes) -> None:
        self.psf_planes = planes
        factor = 1 + np.stack([self._places(k) @ slope for k, slope in enumerate(planes.slopes)])
        covariances = self.sources.psf_covariances * factor.clip(0.5, 2.0)[..., None, None]
        self.sources = self.canvas.sources = replace(self.sources, psf_covariances=covariances)
        error = np.full(len(self.sources), np.inf)  # companions found later are faint
        error[: len(planes.error)] = planes.error
        least = least_radius(self.sources, planes.scatter, error)
        if "saturated" in self.table.colnames:  # wings alone do not tell a small size
            least = np.where(self.table["saturated"], np.maximum(least, _LEAST_SATURATED), least)
        self.log_least_radius = torch.from_numpy(least).log()

    def companions(self) -> Table:
        """Sources that show only in what the model leaves: blends that the first detection took for one.

        Residuals count in units of a noise that grows with the modelled light, so that errors of the PSF
        are not taken for sources.
        """
        left = []
        for k, image in enumerate(self.images):
            sky = self.canvas.sky[k]
            expected = sky + self.canvas.model[k]
            model = self.canvas.unpadded(expected, k)
            scale = self.canvas.unpadded(dispersion(expected, sky, _RESIDUAL_ERROR).sqrt(), k)
            counts = np.where(image.valid, model + (image.counts - model) / scale, model)
            left.append(replace(image, counts=counts, sky=model))
        found = detect(Field(tuple(left), self.images.name), threshold=_RESIDUAL_SNR)
        if not len(found):
            return found
        xy = np.stack(self.images.images[0].wcs.all_world2pix(found["ra"], found["dec"], 0), -1)
        known = self.sources.xy[0]
        distance = cKDTree(known).query(xy)[0] if len(known) else np.full(len(found), np.inf)
        keep = (
            (distance > _CLOSEST) & ~np.asarray(found["saturated"], bool) & ~np.asarray(found["edge"], bool)
        )
        found["blended"] = True
        return found[keep]


def _inverse(curvature: Float[Tensor, "b d d"]) -> tuple[Float[Tensor, "b d d"], Float[Tensor, "b"]]:
    """Covariance and its log determinant; directions of no or wrong curvature get a unit variance."""
    values, vectors = torch.linalg.eigh(curvature)
    values = torch.where(values > 1e-2, values, torch.ones_like(values))
    return (vectors / values[:, None]) @ vectors.mT, -values.log().sum(-1)

"""A fit of a field as it stands: modes and evidences of both types of every source, and their light."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from astropy.table import Table, vstack
from jaxtyping import Bool, Float, Int
from torch import Tensor

from astrozoo.checkpoint import Checkpoint
from astrozoo.data.images import Field
from astrozoo.errors import DataError
from astrozoo.models.celeste import Patch, Prior
from astrozoo.models.celeste_density import TypedDensity
from astrozoo.survey.celeste.canvas import Canvas, least_radius
from astrozoo.survey.celeste.cells import count_cells, offsets
from astrozoo.survey.celeste.planes import Planes
from astrozoo.survey.partition import HALF_SIZES, Sources, colouring, half_sizes, neighbours, reach

__all__ = ["BATCH", "KINDS", "LEAD_OF_STARS", "Modes", "inverse_curvature"]

KINDS = (("galaxy", False, 6), ("star", True, 2))
"""Name of each type, whether it is the star, and how many parameters move or bend its image."""
BATCH = 64
"""Sources of one patch size that are worked on at once."""
_NOTICEABLE = 0.1
"""Change of a neighbour's light, on the pixels of a source, above which the source is fitted again [sigma].

A tenth of a standard deviation is small against the error that any posterior states."""
_MAX_EVIDENCE_DEFICIT = 40.0
"""A type is ruled out if its log evidence is lower than the other type's by more than this [nat].

Its probability is then below 1e-17. Later changes of neighbours move evidences by far less."""
LEAD_OF_STARS = 60.0
"""Log evidence of a star above a galaxy that the parts of a pair of stars get [nat].

It rules galaxies out: with the other part fixed, a galaxy takes a part of its light, and the two drift away
from the pair."""
_LEAST_SATURATED = 1.0
"""Smallest half-light radius of a galaxy whose core is saturated, and so masked [arcsec].

The wings alone do not constrain a smaller one."""
_COMPANION = "companion_"
"""Prefix of the columns of companions in a checkpoint."""
_PSF = "psf_"
"""Prefix of the correction of the PSF in a checkpoint."""
_COUNTS = ("sweep", "colour", "searches", "skies", "sweep_in_progress")
_MIN_SHARE = 1e-9
"""Probability below which the light of a type is not computed: a billionth of the source's light."""
_PIXELS_AT_ONCE = 20_000
"""Pixels of a large patch that are rendered at once, so that the work stays in the cache."""
_MARKS = ("unsettled", "outgrown", "double", "examined")
"""Marks of sources in :class:`_State` that a checkpoint saves."""
_START_COLOUR_SNR = 10.0
"""Smallest signal to noise of two fluxes whose ratio is used as a starting colour.

A noisier colour may start in another component of the prior's mixture, and stay there."""


@dataclass
class _State:
    """What the sweeps work on: modes, inverse curvatures and evidences of both types of every source.

    Args:
        searches: how often companions have been looked for.
        skies: how often the sky has been corrected.
        sweep_in_progress: True between the first fit of a sweep and the end of its bookkeeping (joint steps,
            sky, PSF), so that a resumed run finishes the bookkeeping first.
        unsettled: True for sources that have not been fitted since their patch grew or they were split.
        outgrown: True for sources whose light goes on beyond the largest patch.
        double: True for sources that two stars explain better, but not clearly so.
        examined: True for sources that have been fitted as two stars.
        whole: light, for every pixel, of sources with large patches; ``light`` has one value per cell.
        seconds: spent on the fit, by all processes that worked on it.
    """

    mode: dict[str, Tensor]
    covariance: dict[str, Tensor]
    evidence: dict[str, Tensor]
    converged: Tensor
    light: list[Tensor | None]
    waiting: np.ndarray
    unsettled: np.ndarray
    outgrown: np.ndarray
    double: np.ndarray
    examined: np.ndarray
    whole: dict[int, Tensor] = field(default_factory=dict)
    sweep: int = 0
    colour: int = 0
    searches: int = 0
    skies: int = 0
    sweep_in_progress: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = field(
        default_factory=lambda: {"value": 0, "gradient": 0, "hvp": 0, "hessian": 0}
    )


class Modes:
    """Modes, curvatures, evidences and light of every source; saved in a checkpoint and resumed from it.

    Args:
        table: the sources; a checkpoint adds the companions that it knows of.
        earlier: a fit of the first sources of ``table``, which this one continues. Its canvas is reused.
        stars: number of sources at the end of ``table`` that can only be stars: second stars of pairs.
    """

    def __init__(
        self,
        images: Field,
        table: Table,
        prior: Prior,
        seed: int,
        progress: bool,
        checkpoint: Checkpoint,
        earlier: Modes | None = None,
        stars: int = 0,
    ) -> None:
        self._since = time.perf_counter()
        self.checkpoint = checkpoint
        self.detected: int = len(table) if earlier is None else earlier.detected
        saved = checkpoint.load("state") if earlier is None else None
        if saved is not None:
            table = _with_companions(table, saved)
        self.images, self.table, self.prior, self.seed, self.progress = images, table, prior, seed, progress
        ra, dec = np.asarray(table["ra"], float), np.asarray(table["dec"], float)
        extent = np.asarray(table["a"], float) if "a" in table.colnames else np.full(len(table), 2.0)
        self.sources = self._sized(Sources.locate(images, ra, dec, half_sizes(extent)))
        if earlier is None:
            self.canvas = Canvas(images, self.sources, prior.bands)
        else:
            self.canvas = earlier.canvas.of(self.sources)
        self.type_known = np.zeros(len(self.sources), bool)
        """True for sources whose type an earlier fit may have ruled out (:mod:`.starts`)."""
        self.log_least_radius = torch.full((len(self.sources),), -torch.inf, dtype=torch.float64)
        self.resize(self.sources.half)
        self.state = self._start()
        self.psf_planes: Planes | None = None
        if earlier is None:
            self._resume(saved)
        else:
            self._inherit(earlier, stars)
            self._save()

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

    def resize(self, half: Int[np.ndarray, "s"]) -> None:
        """Set patch sizes before any light is painted."""
        self.sources = self.canvas.sources = replace(self.sources, half=half)
        self.adjacent = neighbours(self.sources)
        self.colour = colouring(self.adjacent)

    def enlarge(self, half: Int[np.ndarray, "s"]) -> None:
        """Give sources larger patches. They, and all sources whose patches they overlap, wait for a fit."""
        state = self.state
        rows = np.flatnonzero(half > self.sources.half)
        for members in self.sources.batches(rows, BATCH):
            self.canvas.paint(members, -self._painted(members))
        self.resize(half)
        for row in rows.tolist():
            state.light[row] = None
            state.whole.pop(row, None)
            state.waiting[self.adjacent[row]] = True
        state.waiting[rows] = state.unsettled[rows] = True
        self.repaint(rows)

    def _inherit(self, earlier: Modes, stars: int) -> None:
        """Continue an earlier fit. Sources that waited still wait, and so do neighbours of new sources."""
        n, state, before = len(earlier.sources), self.state, earlier.state
        for name, _, _ in KINDS:
            for part in ("mode", "covariance", "evidence"):
                getattr(state, part)[name][:n] = getattr(before, part)[name]
        state.converged[:n], state.waiting[:n] = before.converged, before.waiting
        for mark in _MARKS:
            getattr(state, mark)[:n] = getattr(before, mark)
        state.whole = before.whole
        self.resize(np.concatenate((earlier.sources.half, self.sources.half[n:])))
        state.counts, state.sweep, state.searches = before.counts, before.sweep, before.searches + 1
        state.light[:n], state.skies = before.light, before.skies
        state.seconds = earlier.seconds()
        self._since = time.perf_counter()
        if earlier.psf_planes is not None:
            self._broaden(earlier.psf_planes)
        new = np.arange(n, len(self.sources))
        state.evidence["galaxy"][len(self.sources) - stars :] = -LEAD_OF_STARS
        for row in new:
            state.waiting[self.adjacent[row]] = True
        self.repaint(new)

    def _resume(self, saved: Mapping[str, np.ndarray] | None) -> None:
        """Restore a checkpoint: its state, its sky, and the light of the sources that it had fitted."""
        if saved is None:
            return
        state = self.state
        for count in _COUNTS:
            setattr(state, count, int(saved[count]))
        state.seconds = float(saved["seconds"])
        state.counts = dict(zip(state.counts, saved["evaluations"].tolist(), strict=True))
        if state.skies:
            sky = self.checkpoint.load(f"sky-{state.skies}")
            if sky is None:
                raise DataError(
                    f"{self.checkpoint.path}",
                    f"no part sky-{state.skies} beside it",
                    "all parts; remove the folder to begin anew",
                )
            self.canvas.sky = [torch.from_numpy(sky[f"sky_{k}"]) for k in range(len(self.canvas.sky))]
        if f"{_PSF}slopes" in saved:
            slopes, scatter, error = (saved[f"{_PSF}{name}"] for name in Planes._fields)
            self._broaden(Planes(slopes, float(scatter), error))
        for name, _, _ in KINDS:
            for part in ("mode", "covariance", "evidence"):
                getattr(state, part)[name] = torch.from_numpy(saved[f"{part}_{name}"])
        state.converged, state.waiting = torch.from_numpy(saved["converged"]), saved["waiting"]
        for mark in _MARKS:
            setattr(state, mark, saved[mark])
        self.resize(saved["half"])
        self.repaint(np.flatnonzero(saved["fitted"]))

    def repaint(self, fitted: Int[np.ndarray, "n"]) -> None:
        """Paint the light of sources as their modes and evidences have it."""
        for rows in self.sources.batches(fitted, BATCH):
            self._show(rows, *self.patch(rows))

    def _show(self, rows: np.ndarray, patch: Patch, own_light: Float[Tensor, "b image p"]) -> None:
        """Paint sources of one patch size, whose light was ``own_light``, as they now are."""
        state = self.state
        if self.sources.half[rows[0]] <= HALF_SIZES[-1]:
            light = self.light_at(patch, rows)
            self.canvas.paint(rows, light - own_light)
        else:
            whole = self._whole_light(rows)
            before = [state.whole.get(row, torch.zeros_like(whole[0])) for row in rows.tolist()]
            self.canvas.paint(rows, whole - torch.stack(before))
            state.whole |= dict(zip(rows.tolist(), whole, strict=True))
            light = self.canvas.in_cells(rows, whole)
        for k, row in enumerate(rows):
            state.light[row] = light[k]

    def _whole_light(self, rows: Int[np.ndarray, "b"]) -> Float[Tensor, "b image p"]:
        """Expected electrons of sources in every pixel of their large patches."""
        pixels = offsets(int(self.sources.half[rows[0]]))
        parts = pixels.split(_PIXELS_AT_ONCE, 1)
        return torch.cat([self.light_at(self.canvas.around(rows, part), rows) for part in parts], -1)

    def _painted(self, rows: Int[np.ndarray, "b"]) -> Float[Tensor, "b image p"]:
        """The light that sources have painted, in every pixel; zero where they have not."""
        light = self.state.whole if self.sources.half[rows[0]] > HALF_SIZES[-1] else self.state.light
        blank = torch.zeros(1, dtype=torch.float64)
        parts = [blank if self.state.light[i] is None else light[i] for i in rows.tolist()]
        return torch.stack(torch.broadcast_tensors(*parts))

    def seconds(self) -> float:
        """Spent on the fit so far, by all processes that worked on it."""
        now = time.perf_counter()
        self.state.seconds += now - self._since
        self._since = now
        return self.state.seconds

    def _save(self) -> None:
        state = self.state
        saved = {
            f"{part}_{name}": getattr(state, part)[name].numpy()
            for name, _, _ in KINDS
            for part in ("mode", "covariance", "evidence")
        }
        saved |= {
            "converged": state.converged.numpy(),
            "waiting": state.waiting,
            **{mark: getattr(state, mark) for mark in _MARKS},
            "half": self.sources.half,
            **{count: np.asarray(getattr(state, count)) for count in _COUNTS},
            "seconds": np.asarray(self.seconds()),
            "evaluations": np.array(list(state.counts.values())),
            "fitted": np.array([light is not None for light in state.light], bool),
        }
        if self.psf_planes is not None:
            saved |= {f"{_PSF}{name}": np.asarray(x) for name, x in self.psf_planes._asdict().items()}
        companions = self.table[self.detected :]
        if len(companions):
            saved |= {f"{_COMPANION}{name}": np.asarray(companions[name]) for name in companions.colnames}
        self.checkpoint.save(saved, "state")

    def _start(self) -> _State:
        n, nb = len(self.sources), len(self.prior.bands)
        state = _State(
            mode={},
            covariance={},
            evidence={},
            converged=torch.zeros(n, dtype=torch.bool),
            light=[None] * n,
            waiting=np.ones(n, bool),
            unsettled=np.zeros(n, bool),
            outgrown=np.zeros(n, bool),
            double=np.zeros(n, bool),
            examined=np.zeros(n, bool),
        )
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
        galaxy, star = self.prior.colour
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
        sure = flux > torch.where(error.isfinite(), _START_COLOUR_SNR * error, 5.0)
        good = sure[:, 1:] & sure[:, :-1]
        colour = torch.where(good, measured.clamp(-1.5, 3.5), colour)
        return torch.cat((reference.log()[:, None], colour), 1)

    def _aperture(self, band: str) -> Float[Tensor, "s"]:
        """Flux in a square of 11 px about each position [nMgy]."""
        total = torch.zeros(len(self.sources), dtype=torch.float64)
        seen = torch.zeros_like(total)
        for rows in self.sources.batches(np.arange(len(self.sources)), BATCH):
            patch = self.canvas.patches(rows, torch.zeros((), dtype=torch.float64))
            inside = (patch.pixels.abs().amax(2) <= 5.5) * patch.mask
            for k, image in enumerate(self.images):
                if image.band == band:
                    excess = ((patch.counts - patch.background) * inside)[:, k].sum(-1)
                    total[rows] += excess / patch.calibration[:, k]
                    seen[rows] += 1
        return total / seen.clamp(min=1)

    def patch(self, rows: np.ndarray) -> tuple[Patch, Tensor]:
        """Patches of sources of one size, and the light that these sources have there."""
        n_cells = count_cells(int(self.sources.half[rows[0]]))
        blank = torch.zeros(len(self.images.images), n_cells, dtype=torch.float64)
        own_light = torch.stack([blank if self.state.light[i] is None else self.state.light[i] for i in rows])
        return self.canvas.patches(rows, own_light), own_light

    def density(self, patch: Patch, rows: np.ndarray, star: bool) -> TypedDensity:
        """The density of sources of a type; galaxies must be large enough to differ from stars."""
        least = None if star else self.log_least_radius[torch.from_numpy(rows)]
        return TypedDensity(patch, self.prior, star=star, log_least_radius=least)

    def possible(self, rows: np.ndarray, star: bool) -> Tensor:
        """Which sources may be of a type, as far as their last fits say."""
        lead = self.state.evidence["star"][rows] - self.state.evidence["galaxy"][rows]
        return (lead if star else -lead) >= -_MAX_EVIDENCE_DEFICIT

    def p_star(self, rows: np.ndarray) -> Float[Tensor, "b"]:
        """Probability of a star, by the evidences of the last fits."""
        return torch.sigmoid(self.state.evidence["star"][rows] - self.state.evidence["galaxy"][rows])

    def light_at(self, patch: Patch, rows: np.ndarray) -> Float[Tensor, "b image p"]:
        """Expected electrons: the two types' images at their modes, by their probabilities."""
        state, p_star = self.state, self.p_star(rows)
        total = torch.zeros_like(patch.counts)
        for name, star, _ in KINDS:
            share = p_star if star else 1 - p_star
            if (share < _MIN_SHARE).all():
                continue
            u = state.mode[name][rows]
            density = self.density(patch, rows, star)
            image = density.images(u[:, : density.n_bending])
            total += (share[:, None] * density.electrons(u))[..., None] * image
        return total

    def _mark_neighbours(
        self, rows: np.ndarray, patch: Patch, before: Float[Tensor, "b image p"]
    ) -> Bool[Tensor, "b"]:
        """Mark the neighbours of ``rows`` that need another fit, because the light of ``rows`` has changed.

        Changes are in units of the pixels' errors. For each neighbour they are weighted by its light in the
        pixel, relative to its brightest pixel.

        Args:
            before: the light of ``rows`` that the fits of their neighbours used.

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
            for members, news in self.canvas.felt(rows, change, self.sources.batches(near, BATCH)):
                light = torch.stack([state.light[j] for j in members])  # type: ignore[misc]
                profile = light / light.amax(-1, keepdim=True).clamp_min(torch.finfo(light.dtype).tiny)
                state.waiting[members] = ((news * profile).sum((-2, -1)) > _NOTICEABLE**2).numpy()
        return noticeable

    def moved(self, rows: Int[np.ndarray, "n"], before: Mapping[int, Tensor | None]) -> None:
        """Mark sources that have changed noticeably without a fit, and their neighbours, for another fit.

        Args:
            before: the light of each of ``rows``.
        """
        for members in self.sources.batches(rows, BATCH):
            patch, _ = self.patch(members)
            light_before = torch.stack([before[i] for i in members.tolist()])  # type: ignore[misc]
            noticeable = self._mark_neighbours(members, patch, light_before)
            self.state.waiting[members] |= noticeable.numpy()

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
        error = np.full(len(self.sources), np.inf)  # companions are faint
        error[: len(planes.error)] = planes.error
        least = least_radius(self.sources, planes.scatter, error)
        if "saturated" in self.table.colnames:  # wings alone do not constrain a small size
            least = np.where(self.table["saturated"], np.maximum(least, _LEAST_SATURATED), least)
        self.log_least_radius = torch.from_numpy(least).log()


def _with_companions(table: Table, saved: Mapping[str, np.ndarray]) -> Table:
    """The sources of a checkpoint: those of the table, and the companions that were added later."""
    columns = {name.removeprefix(_COMPANION): x for name, x in saved.items() if name.startswith(_COMPANION)}
    return vstack([table, Table(columns)], metadata_conflicts="silent") if columns else table


def inverse_curvature(curvature: Float[Tensor, "b d d"]) -> tuple[Float[Tensor, "b d d"], Float[Tensor, "b"]]:
    """The covariance and its log determinant; directions of no or wrong curvature get a unit variance."""
    values, vectors = torch.linalg.eigh(curvature)
    values = torch.where(values > 1e-2, values, torch.ones_like(values))
    return (vectors / values[:, None]) @ vectors.mT, -values.log().sum(-1)

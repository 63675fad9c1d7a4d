"""All stars of a scene at once: log fluxes, positions and planes of the sky, by damped Gauss-Newton steps.

The normal equations are never formed: conjugate gradients need only their products with vectors, which are
sums and projections of stamps. The preconditioner is each star's block of them. The variance of a pixel comes
from the model, and is fixed within a step.

References:
    Nocedal & Wright 2006, Numerical Optimization, sections 7.1 and 10.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from astrozoo.survey.crowded.linear import plane_basis, variances
from astrozoo.survey.crowded.locus import Locus
from astrozoo.survey.crowded.scene import Scene, Sources, expected
from astrozoo.survey.crowded.stamps import Stamps, make_stamps, reaches

__all__ = ["Linearised", "Prior", "Stars", "far_light", "improve", "laplace_draws", "linearise"]

_TOLERANCE, _MAX_PRODUCTS = 0.05, 40
"""Relative residual at which conjugate gradients stop, and their limit: a step needs no more accuracy."""
_DRAW = (0.01, 300)
"""The same two limits for draws, whose covariance must be right."""
_MAX_STEP = (1.0, 0.4)
"""Largest change in one step of a log flux, and of a position [px]: a third of a PSF's sigma."""
_POSITION_SCALE = 0.3
"""[px] Damping treats a step of this size in a position as it does a step of 1 in a log flux."""
_DAMPING = (1e-3, 1e4)
"""Limits of the damping."""
_GAIN = (0.1, 0.25, 0.75)
"""Actual over predicted gain below which a step is refused, below which damping grows, and above which it
shrinks: the usual values of trust-region methods."""
_MARGIN = 3.0
"""[px] Distance outside the reference image to which stars may move; catalogued stars may be beyond it."""


@dataclass(frozen=True)
class Stars:
    """The parameters of a joint fit.

    Args:
        log_flux: [ln nMgy].
        xy: positions [px of the reference image].
        planes: added to the sky of each image [electrons], in the basis of
            :func:`astrozoo.survey.crowded.linear.plane_basis`.
        shape: of galaxies among them, NaN for stars (:class:`astrozoo.survey.crowded.scene.Sources`). Shapes
            do not move with the other parameters.
    """

    log_flux: Float[np.ndarray, "s band"]
    xy: Float[np.ndarray, "s 2"]
    planes: Float[np.ndarray, "k 3"]
    shape: Float[np.ndarray, "s 3"]

    def __len__(self) -> int:
        return len(self.xy)

    @property
    def flux(self) -> Float[np.ndarray, "s band"]:
        """[nMgy]."""
        return np.exp(self.log_flux)

    def take(self, chosen: np.ndarray) -> Stars:
        """The stars at a mask or an index array."""
        return replace(self, log_flux=self.log_flux[chosen], xy=self.xy[chosen], shape=self.shape[chosen])

    def sources(self) -> Sources:
        """As a catalogue."""
        return Sources(self.xy, self.flux, self.shape)


@dataclass(frozen=True)
class Prior:
    """What is known of stars beside the images.

    Args:
        locus: of colours.
        xy: catalogued positions of the stars, or None.
        position_error: SD of each catalogued position in x and in y [px].
    """

    locus: Locus
    xy: Float[np.ndarray, "s 2"] | None = None
    position_error: Float[np.ndarray, "s"] | None = None

    def pull(self, stars: Stars) -> tuple[Float[np.ndarray, "s band"], Float[np.ndarray, "s 2"]]:
        """Differences from the prior's mean, in log flux ratios to the reference band and in positions."""
        level = stars.log_flux[:, [self.locus.reference]]
        colour = stars.log_flux - level - self.locus.ratio(level[:, 0])
        return colour, np.zeros_like(stars.xy) if self.xy is None else stars.xy - self.xy

    @property
    def position_precision(self) -> Float[np.ndarray, "s 1"] | float:
        """[1/px^2]."""
        return 0.0 if self.position_error is None else 1 / self.position_error[:, None] ** 2

    def cost(self, stars: Stars) -> float:
        """Minus the log prior density, up to a constant."""
        colour, shift = self.pull(stars)
        curved = np.einsum("sb,bc,sc->", colour, self.locus.precision, colour)
        return 0.5 * float(curved + (self.position_precision * shift**2).sum())


@dataclass(frozen=True)
class Linearised:
    """A scene's model at some parameters.

    Args:
        stamps: of the stars.
        far: light of the stars beyond their stamps, per image [electrons].
        sky: with the plane and the light beyond the stamps, per image [electrons].
        light: of the stamps [electrons].
        weight: inverse variances, 0 in invalid pixels.
        residual: counts minus model, 0 in invalid pixels.
    """

    stamps: Stamps
    far: Sequence[Float[np.ndarray, "y x"]]
    sky: list[Float[np.ndarray, "y x"]]
    light: list[Float[np.ndarray, "y x"]]
    weight: list[Float[np.ndarray, "y x"]]
    residual: list[Float[np.ndarray, "y x"]]

    def chi2(self, weight: Sequence[np.ndarray] | None = None) -> float:
        """Sum of squared residuals, weighted by this model's weights or by others."""
        weight = self.weight if weight is None else weight
        return float(sum((w * r * r).sum() for w, r in zip(weight, self.residual, strict=True)))


def linearise(
    scene: Scene, stars: Stars, far: Sequence[np.ndarray], reach: Int[np.ndarray, "s"] | None = None
) -> Linearised:
    """The model of the stars, and its stamps.

    Args:
        scene: the images.
        stars: the parameters.
        far: light of the stars beyond their stamps (:func:`far_light`).
        reach: of the stamps [px]; by default that of the stars' fluxes.
    """
    flux = stars.flux
    reach = reaches(scene, flux) if reach is None else reach
    stamps = make_stamps(scene, stars.xy, reach, stars.shape)
    light = [stamps.light(k, flux[:, column]) for k, column in enumerate(scene.column)]
    sky = [
        scene.sky[k] + far[k] + np.tensordot(stars.planes[k], plane_basis(scene.counts[k].shape), 1)
        for k in range(len(light))
    ]
    variance = variances(scene, sky, light)
    return Linearised(
        stamps,
        far,
        sky,
        light,
        [valid / v for valid, v in zip(scene.valid, variance, strict=True)],
        [np.where(scene.valid[k], scene.counts[k] - sky[k] - light[k], 0.0) for k in range(len(scene.band))],
    )


def far_light(scene: Scene, stars: Stars) -> list[Float[np.ndarray, "y x"]]:
    """The light of stars beyond their stamps, in every image [electrons]."""
    flux = stars.flux
    stamps = make_stamps(scene, stars.xy, reaches(scene, flux), stars.shape)
    whole = expected(scene, stars.sources())
    return [
        whole[k] - scene.sky[k] - stamps.light(k, flux[:, column]) for k, column in enumerate(scene.column)
    ]


def improve(
    scene: Scene,
    stars: Stars,
    prior: Prior,
    steps: int,
    *,
    tolerance: float = 1e-4,
    damping: float = 0.3,
) -> tuple[Stars, Linearised]:
    """Gauss-Newton steps of all parameters together.

    Args:
        scene: the images.
        stars: the start.
        prior: of the colours and positions.
        steps: limit of their number.
        tolerance: relative gain of the cost below which the steps end.
        damping: at first.

    Returns:
        The best parameters, and the model there.
    """
    far, reach = far_light(scene, stars), reaches(scene, stars.flux)
    model = linearise(scene, stars, far, reach)
    for _ in range(steps):
        system = _System(scene, stars, model, prior)
        cost = 0.5 * model.chi2() + prior.cost(stars)
        step = system.solve(damping)
        trial = _moved(scene, stars, step)
        trial_model = linearise(scene, trial, far, reach)
        gain = cost - 0.5 * trial_model.chi2(model.weight) - prior.cost(trial)
        predicted = system.gain(step)
        if gain < _GAIN[1] * predicted:
            damping = min(4 * damping, _DAMPING[1])
        elif gain > _GAIN[2] * predicted:
            damping = max(damping / 4, _DAMPING[0])
        if gain > 0 and gain > _GAIN[0] * predicted:
            stars, model = trial, trial_model
        if abs(gain) < tolerance * cost:
            break
    return stars, model


@dataclass(frozen=True)
class _Step:
    """A direction in parameter space, and the linear algebra that conjugate gradients need."""

    log_flux: np.ndarray
    xy: np.ndarray
    planes: np.ndarray

    def add(self, scale: float, other: _Step) -> _Step:
        return _Step(
            self.log_flux + scale * other.log_flux,
            self.xy + scale * other.xy,
            self.planes + scale * other.planes,
        )

    def dot(self, other: _Step) -> float:
        return float(
            (self.log_flux * other.log_flux).sum()
            + (self.xy * other.xy).sum()
            + (self.planes * other.planes).sum()
        )


def _moved(scene: Scene, stars: Stars, step: _Step) -> Stars:
    limit, reach = _MAX_STEP
    length = np.hypot(*step.xy.T)[:, None]
    xy = stars.xy + step.xy * np.minimum(1, reach / np.maximum(length, 1e-12))
    corner = np.array(scene.shape[::-1]) - 1 + _MARGIN
    return replace(
        stars,
        log_flux=stars.log_flux + np.clip(step.log_flux, -limit, limit),
        xy=np.clip(xy, np.minimum(-_MARGIN, stars.xy), np.maximum(corner, stars.xy)),
        planes=stars.planes + step.planes,
    )


def laplace_draws(
    scene: Scene, stars: Stars, prior: Prior, count: int, seed: int
) -> Iterator[tuple[Float[np.ndarray, "s band"], Float[np.ndarray, "s 2"]]]:
    """Draws of log fluxes and positions from the normal distribution at a joint mode.

    Each is the solution of the Gauss-Newton system for a right-hand side of noise that has its curvature as
    covariance. A log flux has a prior SD of 1 about the mode, which bounds that of a star that is not seen.

    References:
        Papandreou & Yuille 2010, NIPS 23 (samples of a Gaussian by local perturbations).
    """
    model = linearise(scene, stars, far_light(scene, stars))
    system = _System(scene, stars, model, prior)
    for number in range(count):
        step = system.solve(1.0, system.noise(np.random.default_rng([seed, number])), *_DRAW)
        yield stars.log_flux + step.log_flux, stars.xy + step.xy


class _System:
    """The Gauss-Newton system at some parameters: its gradient, products, and solution."""

    def __init__(self, scene: Scene, stars: Stars, model: Linearised, prior: Prior) -> None:
        self.scene, self.model, self.prior = scene, model, prior
        self.flux = stars.flux
        self.bases = [plane_basis(counts.shape) for counts in scene.counts]
        colour, shift = prior.pull(stars)
        images = [w * r for w, r in zip(model.weight, model.residual, strict=True)]
        data = self._project(images)
        self.gradient = data.add(
            -1.0,
            _Step(
                colour @ prior.locus.precision,
                prior.position_precision * shift,
                np.zeros_like(stars.planes),
            ),
        )

    def _project(self, images: Sequence[np.ndarray]) -> _Step:
        """The transpose of the derivatives times images."""
        log_flux, xy = np.zeros_like(self.flux), np.zeros((len(self.flux), 2))
        planes = np.zeros((len(images), 3))
        for k, column in enumerate(self.scene.column):
            sums = self.flux[:, column, None] * self.model.stamps.project(k, images[k])
            log_flux[:, column] += sums[:, 0]
            xy += sums[:, 1:]
            planes[k] = np.tensordot(self.bases[k], images[k], 2)
        return _Step(log_flux, xy, planes)

    def product(self, step: _Step) -> _Step:
        """The curvature of the cost times a step, without damping."""
        images = []
        for k, column in enumerate(self.scene.column):
            coefficients = np.column_stack([step.log_flux[:, column], step.xy]) * self.flux[:, column, None]
            image = self.model.stamps.image(k, coefficients) + np.tensordot(step.planes[k], self.bases[k], 1)
            images.append(self.model.weight[k] * image)
        return self._project(images).add(
            1.0,
            _Step(
                step.log_flux @ self.prior.locus.precision,
                self.prior.position_precision * step.xy,
                np.zeros_like(step.planes),
            ),
        )

    def noise(self, rng: np.random.Generator) -> _Step:
        """A right-hand side whose covariance is the curvature of the cost with a damping of 1."""
        images = [np.sqrt(weight) * rng.standard_normal(weight.shape) for weight in self.model.weight]
        count, bands = self.flux.shape
        colour = rng.standard_normal((count, bands)) @ _root(self.prior.locus.precision)
        pinned = np.sqrt(self.prior.position_precision) * rng.standard_normal((count, 2))
        loose = rng.standard_normal((count, 2)) / _POSITION_SCALE
        damped = rng.standard_normal((count, bands))
        return self._project(images).add(
            1.0, _Step(colour + damped, pinned + loose, np.zeros((len(images), 3)))
        )

    def gain(self, step: _Step) -> float:
        """Predicted decrease of the cost."""
        return self.gradient.dot(step) - 0.5 * step.dot(self.product(step))

    def _preconditioner(self, damping: float) -> Callable[[_Step], _Step]:
        count, bands = self.flux.shape
        blocks = np.zeros((count, bands + 2, bands + 2))
        itself = np.repeat(np.arange(count)[:, None], 2, axis=1)
        planes = []
        for k, column in enumerate(self.scene.column):
            weight = self.model.weight[k]
            square = self.model.stamps.products(k, weight, itself) * self.flux[:, column, None, None] ** 2
            where = np.array([column, bands, bands + 1])
            blocks[:, where[:, None], where] += square
            basis = self.bases[k]
            planes.append(np.tensordot(weight * basis, basis, ((1, 2), (1, 2))) + 1e-12 * np.eye(3))
        blocks[:, :bands, :bands] += self.prior.locus.precision
        diagonal = np.arange(bands + 2)
        damped = damping * np.append(np.ones(bands), np.full(2, _POSITION_SCALE**-2))
        blocks[:, diagonal, diagonal] += damped
        pin = self.prior.position_precision
        blocks[:, diagonal[bands:], diagonal[bands:]] += pin
        inverse, inverse_planes = np.linalg.inv(blocks), np.linalg.inv(np.stack(planes))

        def apply(step: _Step) -> _Step:
            stacked = np.concatenate([step.log_flux, step.xy], axis=1)
            solved = np.einsum("sij,sj->si", inverse, stacked)
            plane = np.einsum("kij,kj->ki", inverse_planes, step.planes)
            return _Step(solved[:, :bands], solved[:, bands:], plane)

        return apply

    def solve(
        self,
        damping: float,
        right: _Step | None = None,
        tolerance: float = _TOLERANCE,
        products: int = _MAX_PRODUCTS,
    ) -> _Step:
        """The damped Gauss-Newton step, by preconditioned conjugate gradients.

        Args:
            damping: in units of a log flux.
            right: solves for this in place of the gradient.
            tolerance: relative residual at which the iteration ends.
            products: limit of its products.
        """
        precondition = self._preconditioner(damping)
        damped = _Step(
            np.full_like(self.flux, damping),
            np.full((len(self.flux), 2), damping * _POSITION_SCALE**-2),
            np.zeros((len(self.bases), 3)),
        )

        def product(step: _Step) -> _Step:
            extra = _Step(damped.log_flux * step.log_flux, damped.xy * step.xy, damped.planes * step.planes)
            return self.product(step).add(1.0, extra)

        residual = self.gradient if right is None else right
        solution = _Step(*(np.zeros_like(part) for part in (residual.log_flux, residual.xy, residual.planes)))
        direction = scaled = precondition(residual)
        size = first = residual.dot(scaled)
        for _ in range(products):
            if size <= tolerance**2 * first:
                break
            curved = product(direction)
            length = size / direction.dot(curved)
            solution = solution.add(length, direction)
            residual = residual.add(-length, curved)
            scaled = precondition(residual)
            previous, size = size, residual.dot(scaled)
            direction = scaled.add(size / previous, direction)
        return solution


def _root(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

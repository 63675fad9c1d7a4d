"""Celeste: stars and galaxies from multi-band survey images (Regier et al. 2015, 2016, 2019).

A source is a star or a galaxy. Given its type, it has a flux in the reference band, colours and a position. A
galaxy also has a size, an ellipticity and a mix of two profiles. The light of a source is convolved with each
image's PSF and added to the sky. A pixel is a Poisson count of electrons, over-dispersed if its weight is
below 1.

The model is that of one *patch* of sky: the pixels around one source, or around a few overlapping sources, in
any number of images (bands and epochs). Light of other sources is part of the patch's background. A survey is
a batch of patches.

References:
    Regier et al. 2019, Annals of Applied Statistics 13, 1884 (model); Regier et al. 2015, ICML.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import resources
from itertools import pairwise
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import constraints

from astrozoo.errors import InputError, UnknownNameError
from astrozoo.physics.gaussians import MixturePsf, render
from astrozoo.physics.profiles import galaxy_rings, ring_covariance
from astrozoo.types import Problem

__all__ = [
    "Celeste",
    "ColourPrior",
    "Patch",
    "Prior",
    "QuasiPoisson",
    "band_matrix",
    "galaxy_images",
    "load_prior",
    "log_band_flux",
    "problem",
    "simulate",
    "star_images",
]

_SITES = ("is_star", "log_flux", "colour", "offset", "log_radius", "ellipticity", "dev_logit")
"""Latent sites of a source."""
_CALIBRATION = (150.0, 800.0, 900.0, 650.0, 130.0)
"""[electron/nMgy] Calibration of simulated patches in u, g, r, i, z: that of SDSS at its usual depth."""
_SKY = (75.0, 380.0, 700.0, 950.0, 550.0)
"""[electron/px] Sky of simulated patches in u, g, r, i, z."""
_PSF_VARIANCE = (2.2, 1.9, 1.6, 1.5, 1.6)
"""[px^2] Variance of the PSF's core in simulated patches in u, g, r, i, z."""
_PIXEL = 0.396
"""[arcsec/px] Pixel scale of SDSS."""


class Patch(NamedTuple):
    """Pixels of one patch of sky in ``image`` images, and the anchors of its ``source`` sources.

    Attributes:
        counts: electrons.
        background: expected electrons from everything except the sources: sky, read noise, neighbours.
        mask: weight of the pixel: 1 if it is used, 0 if it is not (or is padding). A weight between them is 1
            / dispersion of a quasi-Poisson count, whose variance is the mean divided by the weight.
        pixels: (x, y) of the pixels' centres, relative to the reference position in that image [px].
        calibration: electrons per nanomaggy.
        band: index of each image's band among the prior's bands.
        jacobian: d(x, y) [px] / d(east, north) [arcsec] at the reference position.
        psf_weights, psf_means, psf_covariances: the PSF as Gaussians ([1], [px], (xx, xy, yy) [px^2]).
        anchor: (east, north) offset of each source's prior position from the reference position [arcsec].
    """

    counts: Float[Tensor, "image pixel"]
    background: Float[Tensor, "image pixel"]
    mask: Float[Tensor, "image pixel"]
    pixels: Float[Tensor, "image 2 pixel"]
    calibration: Float[Tensor, "image"]
    band: Int[Tensor, "image"]
    jacobian: Float[Tensor, "image 2 2"]
    psf_weights: Float[Tensor, "image k"]
    psf_means: Float[Tensor, "image k 2"]
    psf_covariances: Float[Tensor, "image k 3"]
    anchor: Float[Tensor, "source 2"]

    @property
    def psf(self) -> MixturePsf:
        """The three PSF tensors together."""
        return MixturePsf(self.psf_weights, self.psf_means, self.psf_covariances)


class ColourPrior(NamedTuple):
    """A Gaussian mixture over ln(flux[k + 1] / flux[k])."""

    weights: Float[Tensor, "m"]
    means: Float[Tensor, "m colour"]
    covariances: Float[Tensor, "m colour colour"]


@dataclass(frozen=True)
class Prior:
    """Parameters of the prior of a source. In a pair, the first is that of galaxies, the second of stars.

    Args:
        bands: band names; colours are ln ratios of fluxes in adjacent bands.
        reference: index of the band of ``log_flux``.
        prob_star: probability of a star.
        log_flux_mean, log_flux_sd: mean and SD of ln(flux [nMgy]) in the reference band, (galaxy, star).
        colour: mixtures, (galaxy, star).
        log_radius_mean, log_radius_sd: mean and SD of ln(half-light radius [arcsec]), see
            :mod:`astrozoo.physics.profiles`.
        ellipticity_sd: SD of each component of the ellipticity.
        dev_logit_sd: SD of the logit of the de Vaucouleurs fraction, whose mean is 0. Above 1.4, the prior of
            the fraction is U-shaped.
        position_sd: SD of each coordinate about the anchor [arcsec].
    """

    bands: tuple[str, ...]
    reference: int
    prob_star: float
    log_flux_mean: tuple[float, float]
    log_flux_sd: tuple[float, float]
    colour: tuple[ColourPrior, ColourPrior]
    log_radius_mean: float
    log_radius_sd: float
    ellipticity_sd: float
    dev_logit_sd: float
    position_sd: float

    def to(self, like: Tensor) -> Prior:
        """The same prior with tensors of the dtype and device of ``like``."""
        galaxy, star = (ColourPrior(*(t.to(like) for t in c)) for c in self.colour)
        return replace(self, colour=(galaxy, star))


PRIORS = ("stripe82", "regier2019")
"""Names of the package's priors for the five SDSS bands, files ``celeste_priors_<name>.json``."""


@cache
def load_prior(name: str = "stripe82") -> Prior:
    """A prior of the package.

    ``stripe82`` is fitted to co-add catalogues by ``experiments/fit_celeste_priors.py``. ``regier2019`` is
    the prior of the published code, for comparison with its published accuracy; its distributions of axis
    ratios and profiles are converted to our parameters.

    Raises:
        UnknownNameError: there is no prior of that name.
    """
    if name not in PRIORS:
        raise UnknownNameError("prior", name, PRIORS)
    stored = json.loads(
        resources.files("astrozoo.models").joinpath(f"celeste_priors_{name}.json").read_text()
    )

    def mixture(entry: dict[str, Any]) -> ColourPrior:
        return ColourPrior(
            *(torch.tensor(entry[k], dtype=torch.float64) for k in ("weights", "means", "covariances"))
        )

    return Prior(
        bands=tuple(stored["bands"]),
        reference=stored["bands"].index(stored["reference_band"]),
        prob_star=stored["prob_star"],
        log_flux_mean=(stored["log_flux"]["galaxy"]["mean"], stored["log_flux"]["star"]["mean"]),
        log_flux_sd=(stored["log_flux"]["galaxy"]["sd"], stored["log_flux"]["star"]["sd"]),
        colour=(mixture(stored["colour"]["galaxy"]), mixture(stored["colour"]["star"])),
        log_radius_mean=stored["log_radius_arcsec"]["mean"],
        log_radius_sd=stored["log_radius_arcsec"]["sd"],
        ellipticity_sd=stored["ellipticity"]["sd"],
        dev_logit_sd=stored["dev_logit"]["sd"],
        position_sd=stored["position_arcsec"]["sd"],
    )


def log_band_flux(
    log_flux: Float[Tensor, "*b"], colour: Float[Tensor, "*b colour"], reference: int
) -> Float[Tensor, "*b band"]:
    """ln(flux) in every band, from ln(flux) in the reference band and the colours."""
    zero = torch.zeros_like(log_flux)[..., None]
    ladder = torch.cat((zero, torch.cumsum(colour, -1)), -1)
    return log_flux[..., None] + ladder - ladder[..., reference : reference + 1]


class NormalMixture(dist.MixtureSameFamily):
    """A mixture of normals that declares its support, which Pyro's samplers and guides need."""

    support = constraints.real_vector


class QuasiPoisson(dist.Poisson):
    """A Poisson count with a weighted log probability: the quasi-likelihood of dispersion 1 / weight.

    References:
        Wedderburn 1974, Biometrika 61, 439.
    """

    def __init__(self, rate: Tensor, weight: Tensor) -> None:
        self.weight = weight
        super().__init__(rate, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> QuasiPoisson:
        return QuasiPoisson(self.rate.expand(batch_shape), self.weight.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.weight * super().log_prob(value)


def band_matrix(bands: int, reference: int, like: Tensor) -> Float[Tensor, "band parameter"]:
    """The matrix of :func:`log_band_flux`: d ln(flux) / d (log_flux, colours)."""
    ladder = torch.tril(like.new_ones(bands, bands - 1), -1)
    return torch.cat((like.new_ones(bands, 1), ladder - ladder[reference]), 1)


@dataclass(frozen=True, eq=False)
class Celeste:
    """The generative model of one patch.

    Latent sites, each with a leading axis of sources: ``is_star``; ``log_flux`` [ln nMgy];
    ``colour`` [ln ratio of adjacent bands]; ``offset`` (east, north) [arcsec]; and, used for galaxies
    only, ``log_radius`` [ln arcsec], ``ellipticity``, ``dev_logit`` (logit of the de Vaucouleurs fraction).
    """

    prior: Prior

    def __call__(self, patch: Patch) -> None:
        prior = self.prior.to(patch.counts)
        n_sources = patch.anchor.shape[-2]
        new = patch.counts.new_tensor
        with pyro.plate("source", n_sources):
            is_star = pyro.sample("is_star", dist.Bernoulli(new(prior.prob_star)))
            mean, sd = _by_type(is_star, new(prior.log_flux_mean)), _by_type(is_star, new(prior.log_flux_sd))
            log_flux = pyro.sample("log_flux", dist.Normal(mean, sd))
            colour = pyro.sample("colour", _colour_prior(is_star, prior))
            offset = pyro.sample("offset", dist.Normal(patch.anchor, prior.position_sd).to_event(1))
            log_radius = pyro.sample(
                "log_radius", dist.Normal(new(prior.log_radius_mean), prior.log_radius_sd)
            )
            ellipticity = pyro.sample(
                "ellipticity", dist.Normal(new((0.0, 0.0)), prior.ellipticity_sd).to_event(1)
            )
            dev_logit = pyro.sample("dev_logit", dist.Normal(new(0.0), prior.dev_logit_sd))
        star = star_images(patch, offset)
        galaxy = galaxy_images(patch, offset, log_radius, ellipticity, dev_logit)
        shape = torch.where(is_star[..., None, None] > 0.5, star, galaxy)
        flux = log_band_flux(log_flux, colour, prior.reference).exp()[..., patch.band]  # [source, image]
        light = patch.calibration[..., None] * (flux[..., None] * shape).sum(-3)  # [image, pixel]
        with (
            pyro.plate("image", patch.counts.shape[-2], dim=-2),
            pyro.plate("pixel", patch.counts.shape[-1], dim=-1),
        ):
            pyro.sample("counts", QuasiPoisson(patch.background + light, patch.mask), obs=patch.counts)


def star_images(patch: Patch, offset: Float[Tensor, "*s 2"]) -> Float[Tensor, "*s image pixel"]:
    """Unit-flux images of stars at offsets [arcsec] from the reference position."""
    mu = (patch.jacobian @ offset[..., None, :, None]).squeeze(-1)  # [s, image, 2]
    one, zero = patch.counts.new_ones(1), patch.counts.new_zeros(1)
    return render(patch.pixels, mu, zero.expand(3), one, zero, patch.psf)


def galaxy_images(
    patch: Patch,
    offset: Float[Tensor, "*s 2"],
    log_radius: Float[Tensor, "*s"],
    ellipticity: Float[Tensor, "*s 2"],
    dev_logit: Float[Tensor, "*s"],
) -> Float[Tensor, "*s image pixel"]:
    """Unit-flux images of galaxies at offsets [arcsec] from the reference position."""
    groups, variances = galaxy_rings(patch.counts.dtype, patch.counts.device)
    mu = (patch.jacobian @ offset[..., None, :, None]).squeeze(-1)  # [s, image, 2]
    q = ring_covariance(log_radius[..., None], ellipticity[..., None, :], patch.jacobian)
    dev_fraction = torch.sigmoid(dev_logit)[..., None]
    amplitudes = dev_fraction * groups[0] + (1 - dev_fraction) * groups[1]
    return render(patch.pixels, mu, q, amplitudes[..., None, :], variances, patch.psf)


_OF_SOURCES = ("anchor",)
"""Fields of a patch with an element for each source."""
_PIXEL_AXES = {"counts": 1, "background": 1, "mask": 1, "pixels": 2}
"""Fields of a patch with an element for each pixel, and the axis of the pixels."""
_PLATES = {
    "image": {f"patch.{name}": 0 for name in Patch._fields if name not in _OF_SOURCES},
    "pixel": {f"patch.{name}": axis for name, axis in _PIXEL_AXES.items()},
}
"""For each plate of the data, the axis of each tensor of a patch that it indexes."""


def problem(patch: Patch, *, prior: Prior | None = None) -> Problem:
    """The Celeste problem of one patch, or of a batch of patches (a leading axis on every tensor).

    Sources start at their anchors, with typical shapes, and with the fluxes and colours of stars at the
    anchors.
    """
    prior = prior or load_prior()
    batch = patch.counts.shape[0] if patch.counts.ndim == 3 else None
    anchor = patch.anchor
    ones = torch.ones_like(anchor[..., 0])
    photometry = partial(_forced_photometry, prior=prior.to(anchor))
    linear = (photometry if batch is None else torch.func.vmap(photometry))(patch)
    start = {
        "log_flux": linear[..., 0],
        "colour": linear[..., 1:],
        "offset": anchor.clone(),
        "log_radius": prior.log_radius_mean * ones,
        "ellipticity": torch.zeros_like(anchor),
        "dev_logit": torch.zeros_like(ones),
    }
    from_colours = [f"{a}-{b}" for a, b in pairwise(prior.bands)]
    return Problem(
        Celeste(prior),
        (patch,),
        name="celeste",
        batch=batch,
        data_plates=_PLATES,
        start=start,
        dims={
            "is_star": ("source",),
            "log_flux": ("source",),
            "colour": ("source", "colour"),
            "offset": ("source", "axis"),
            "log_radius": ("source",),
            "ellipticity": ("source", "component"),
            "dev_logit": ("source",),
        },
        coords={"colour": from_colours, "axis": ["east", "north"], "component": ["eta1", "eta2"]},
        guides={name: f"astrozoo.guides.celeste:{name}" for name in ("structured", "mean_field", "point")},
        objectives={"delta": "astrozoo.guides.celeste:delta_elbo"},
    )


def _forced_photometry(patch: Patch, prior: Prior) -> Float[Tensor, "source parameter"]:
    """``log_flux`` and colours of stars at the anchors, by least squares and the prior's first two moments.

    A variational fit that starts far from these converges to a wide component of the prior's mixture.
    """
    images = patch.calibration[:, None] * star_images(patch, patch.anchor)  # [source, image, pixel]
    in_band = nn.functional.one_hot(patch.band, len(prior.bands)).to(images)  # [image, band]
    weight = patch.mask / patch.background.clamp(min=1.0)
    precision = torch.einsum("sip,ip,tip,ib->bst", images, weight, images, in_band)
    pull = torch.einsum("sip,ip,ib->bs", images, weight * (patch.counts - patch.background), in_band)
    diagonal = precision.diagonal(dim1=-2, dim2=-1)
    ridge = torch.where(diagonal > 0, 1e-6 * diagonal, 1.0)  # for bands without pixels, and shared anchors
    covariance = torch.linalg.inv(precision + torch.diag_embed(ridge))  # [band, s, s]
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    flux = (covariance @ pull[..., None]).squeeze(-1)
    log_precision = torch.where(flux > sd, (flux / sd).square(), 0.0).T  # [source, band] of ln flux
    bands = band_matrix(len(prior.bands), prior.reference, images)
    mean, covariance = _one_normal(prior)
    precision = torch.linalg.inv(covariance)
    right = (
        torch.einsum("bi,sb->si", bands, log_precision * torch.maximum(flux, sd).log().T) + precision @ mean
    )
    return torch.linalg.solve(torch.einsum("bi,sb,bj->sij", bands, log_precision, bands) + precision, right)


def _one_normal(prior: Prior) -> tuple[Float[Tensor, "parameter"], Float[Tensor, "parameter parameter"]]:
    """Mean and covariance of ``log_flux`` and colours under the prior, over both types."""
    weights, means, covariances = [], [], []
    for kind, colour in enumerate(prior.colour):
        weights.append(colour.weights * (prior.prob_star if kind else 1 - prior.prob_star))
        means.append(nn.functional.pad(colour.means, (1, 0), value=prior.log_flux_mean[kind]))
        covariance = nn.functional.pad(colour.covariances, (1, 0, 1, 0))
        covariance[:, 0, 0] = prior.log_flux_sd[kind] ** 2
        covariances.append(covariance)
    weight, component_means = torch.cat(weights), torch.cat(means)
    mean = weight @ component_means
    deviation = component_means - mean
    spread = torch.cat(covariances) + deviation[:, :, None] * deviation[:, None, :]
    return mean, torch.einsum("m,mij->ij", weight, spread)


def simulate(
    seed: int = 0, *, sources: int = 1, size: int = 21, snr_floor: float = 20.0, prior: Prior | None = None
) -> tuple[Patch, dict[str, Tensor]]:
    """A patch drawn from the model, at the depth of SDSS, in five bands, with a PSF of two Gaussians.

    (For images that do *not* come from the model, see :func:`astrozoo.data.simulate.simulate_field`.)

    Args:
        seed: seed of all draws.
        sources: number of sources, near the middle of the patch.
        size: pixels along a side.
        snr_floor: least signal-to-noise of a star with the flux of a source in the reference band. Fluxes are
            drawn again until all reach it.
        prior: by default, the default of :func:`load_prior`.

    Returns:
        The patch, and the latents by site name, each with a leading axis of sources.
    """
    prior = prior or load_prior()
    g = torch.Generator().manual_seed(seed)
    float64 = torch.float64
    grid = torch.arange(size, dtype=float64) - size // 2
    yy, xx = torch.meshgrid(grid, grid, indexing="ij")
    n_bands, n_pixels = len(prior.bands), size * size
    calibration = torch.tensor(_CALIBRATION, dtype=float64)
    sky = torch.tensor(_SKY, dtype=float64)
    jitter = 0.3 * torch.randn(n_bands, 2, generator=g, dtype=float64)
    width = (
        torch.tensor(_PSF_VARIANCE, dtype=float64)[:, None, None]
        * torch.tensor([1.0, 3.5], dtype=float64)[:, None]
    )
    spread = 0.0 if sources == 1 else 2.0
    patch = Patch(
        counts=torch.zeros(n_bands, n_pixels, dtype=float64),
        background=sky[:, None].expand(-1, n_pixels).clone(),
        mask=torch.ones(n_bands, n_pixels, dtype=float64),
        pixels=torch.stack((xx.flatten(), yy.flatten())) - jitter[:, :, None],
        calibration=calibration,
        band=torch.arange(n_bands),
        jacobian=torch.tensor([[-1.0, 0.0], [0.0, 1.0]], dtype=float64).expand(n_bands, 2, 2) / _PIXEL,
        psf_weights=torch.tensor([0.8, 0.2], dtype=float64).expand(n_bands, 2).clone(),
        psf_means=torch.zeros(n_bands, 2, 2, dtype=float64),
        psf_covariances=width * torch.tensor([1.0, 0.0, 1.0], dtype=float64),
        anchor=spread * torch.randn(sources, 2, generator=g, dtype=float64),
    )
    noise = float(sky[prior.reference] * 4 * math.pi * _PSF_VARIANCE[prior.reference]) ** 0.5
    floor = math.log(snr_floor * noise / float(calibration[prior.reference]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=g)))
        for _ in range(10_000):
            trace = pyro.poutine.trace(pyro.poutine.uncondition(Celeste(prior))).get_trace(patch)
            drawn: dict[str, Tensor] = {name: trace.nodes[name]["value"] for name in (*_SITES, "counts")}  # type: ignore[misc]
            if bool((drawn["log_flux"] > floor).all()):
                return patch._replace(counts=drawn.pop("counts")), drawn
    raise InputError("snr_floor", snr_floor, "one that the prior's fluxes reach")


def _by_type(is_star: Tensor, values: Float[Tensor, "2"]) -> Tensor:
    return torch.where(is_star > 0.5, values[1], values[0])


def _colour_prior(is_star: Tensor, prior: Prior) -> NormalMixture:
    size = max(len(mixture.weights) for mixture in prior.colour)
    galaxy, star = (_of_size(mixture, size) for mixture in prior.colour)

    def chosen(g: Tensor, s: Tensor) -> Tensor:
        return torch.where(is_star.reshape(is_star.shape + (1,) * g.ndim) > 0.5, s, g)

    weights, means = chosen(galaxy.weights, star.weights), chosen(galaxy.means, star.means)
    tril = chosen(torch.linalg.cholesky(galaxy.covariances), torch.linalg.cholesky(star.covariances))
    return NormalMixture(dist.Categorical(weights), dist.MultivariateNormal(means, scale_tril=tril))


def _of_size(mixture: ColourPrior, size: int) -> ColourPrior:
    """The same density with ``size`` components: the last is split into equal copies."""
    last = len(mixture.weights) - 1
    index = torch.arange(size, device=mixture.weights.device).clamp(max=last)
    copies = torch.where(index == last, size - last, 1)
    return ColourPrior(mixture.weights[index] / copies, mixture.means[index], mixture.covariances[index])

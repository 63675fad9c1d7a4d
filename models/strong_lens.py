"""Strong lenses: a galaxy that bends the light of one behind it into arcs.

Rays are traced back through the mass of the lens to the source; what they find there, with the light of the
lens itself, is averaged over pixels, blurred by the PSF, and seen with Gaussian or Poisson noise. Mass: an
elliptical power law, an isothermal ellipsoid or sphere, with external shear and any number of NFW subhalos.
Light: Sersic profiles, or a source whose image a decoder makes from a latent vector.

Conventions are those of :mod:`astrozoo.physics.lensing`; positions are relative to the centre of the image.

References:
    Gu et al. 2022, ApJ 935, 49 (GIGA-Lens: the model with its 22 parameters, its priors);
    Chianese, Coogan et al. 2020, MNRAS 496, 381 (sources from a decoder).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import constraints

from astrozoo.data.lens_image import LensImage
from astrozoo.data.lenses import read as read_lens
from astrozoo.errors import InputError, UnknownNameError
from astrozoo.models.learned_source import LATENT
from astrozoo.models.learned_source import load as load_source
from astrozoo.physics import imaging, lensing, light
from astrozoo.types import Problem

__all__ = [
    "SETTINGS",
    "Exposure",
    "Prior",
    "StrongLens",
    "TruncatedNormal",
    "observe",
    "problem",
    "read",
    "simulate",
    "stack",
]


_PIXELS_PER_RADIUS = 7.0
"""The middle of the half-light radii of the galaxies that the learned source was trained on [px]."""
_DISC = 11.96
"""Flux of an exponential disc over its squared effective radius and the brightness there."""


class Exposure(NamedTuple):
    """Images of one lens on one grid of pixels, in ``band`` bands.

    Attributes:
        image: [unit].
        psf: at the scale of whole pixels, summing to 1.
        variance: of the noise that does not depend on the model [unit^2].
        gain: the rest of the noise's variance over the model [unit]: 1 / exposure; 0 where there is none.
        mask: True where a pixel is used.
        pixel_scale: [arcsec].
    """

    image: Float[Tensor, "band y x"]
    psf: Float[Tensor, "band k k"]
    variance: Float[Tensor, "band y x"]
    gain: Float[Tensor, "band"]
    mask: Bool[Tensor, "band y x"]
    pixel_scale: Float[Tensor, ""]

    def total_variance(self, model: Float[Tensor, "band y x"]) -> Float[Tensor, "band y x"]:
        """Of the noise about a model's image [unit^2]."""
        return self.variance + self.gain[:, None, None] * model.clamp_min(0.0)


@dataclass(frozen=True)
class Prior:
    """What is believed of a lens before it is seen; the defaults are GIGA-Lens's.

    Args:
        position: where the lens is expected [arcsec]; centres scatter about it.
        einstein_radius: median [arcsec] and SD of its ln.
        slope: mean, SD, least and greatest of the three-dimensional density slope.
        ellipticity, centre, shear: SDs of each component of the mass's (centre in arcsec).
        lens_radius, source_radius: median [arcsec] and SD of ln.
        lens_index, source_index: least and greatest Sersic index.
        lens_ellipticity, source_ellipticity: SD and greatest size of each component.
        lens_centre, source_centre: SD of each coordinate [arcsec].
        lens_amplitude, source_amplitude: median [unit / arcsec^2] and SD of ln.
        subhalo_log_mass: least and greatest log10 M200 [solar masses].
        subhalo_reach: half the side of the square about ``position`` that they are in [arcsec].
    """

    position: tuple[float, float] = (0.0, 0.0)
    einstein_radius: tuple[float, float] = (1.25, 0.25)
    slope: tuple[float, float, float, float] = (2.0, 0.25, 1.0, 3.0)
    ellipticity: float = 0.1
    centre: float = 0.05
    shear: float = 0.05
    lens_radius: tuple[float, float] = (1.0, 0.15)
    lens_index: tuple[float, float] = (2.0, 6.0)
    lens_ellipticity: tuple[float, float] = (0.1, 0.3)
    lens_centre: float = 0.05
    lens_amplitude: tuple[float, float] = (500.0, 0.3)
    source_radius: tuple[float, float] = (0.25, 0.15)
    source_index: tuple[float, float] = (0.5, 4.0)
    source_ellipticity: tuple[float, float] = (0.15, 0.5)
    source_centre: float = 0.25
    source_amplitude: tuple[float, float] = (150.0, 0.5)
    subhalo_log_mass: tuple[float, float] = (7.0, 10.5)
    subhalo_reach: float = 2.0


class TruncatedNormal(dist.TorchDistribution):
    """A normal between two bounds, on every element of ``like``'s shape."""

    arg_constraints: Mapping[str, Any] = {}

    def __init__(self, like: Tensor, mean: float, sd: float, low: float, high: float) -> None:
        self.like, self.numbers = like, (mean, sd, low, high)
        self.ends = tuple(0.5 * (1 + math.erf((end - mean) / sd / math.sqrt(2))) for end in (low, high))
        super().__init__(like.shape, validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.interval(*self.numbers[2:])

    def expand(self, batch_shape: Any, _instance: Any = None) -> TruncatedNormal:
        return TruncatedNormal(self.like.expand(batch_shape), *self.numbers)

    def log_prob(self, value: Tensor) -> Tensor:
        mean, sd, _, _ = self.numbers
        low, high = self.ends
        return -0.5 * ((value - mean) / sd) ** 2 - math.log(sd * math.sqrt(2 * math.pi) * (high - low))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        mean, sd, least, most = self.numbers
        low, high = self.ends
        shape = (*sample_shape, *self.like.shape)
        u = torch.rand(shape, dtype=self.like.dtype, device=self.like.device)
        return (mean + sd * torch.special.ndtri(low + (high - low) * u)).clamp(least, most)


@dataclass(frozen=True, eq=False)
class StrongLens:
    """The generative model of one lens.

    Latent sites: ``einstein_radius`` [arcsec], ``slope``, ``ellipticity``, ``centre`` [arcsec] and ``shear``
    of the mass, as far as the settings leave them free; of the lens's light and of the source's (``lens_``
    and ``source_``) ``radius`` [arcsec], ``index``, ``ellipticity``, ``centre`` [arcsec] and ``amplitude``
    [unit / arcsec^2], one per band; ``subhalo_log_mass`` and ``subhalo_position`` [arcsec]. A learned source
    has a ``source_latent`` in place of index and ellipticity, standard normals that a flow turns into the
    decoder's latents; its radius is the typical half-light radius of the decoder's galaxies, its amplitude
    that of an exponential disc of this radius and the same flux.

    Args:
        mass: "epl", "sie" or "sis".
        shear: whether there is external shear.
        centred: whether the mass is exactly at the prior's position.
        lens_light: whether the lens shines.
        source: "sersic", or "learned" (:mod:`astrozoo.models.learned_source`).
        noise: "gaussian", or "poisson" (counts of electrons; the exposure must have a gain).
        supersample: rays per pixel and axis.
        subhalos: how many.
        redshifts: of lens and source, to turn subhalos' masses into angles.
        concentration: of subhalos, r200 over scale radius.
        terms: of the power law's series, see :func:`astrozoo.physics.lensing.epl`.
    """

    mass: Literal["epl", "sie", "sis"] = "epl"
    shear: bool = True
    centred: bool = False
    lens_light: bool = True
    source: Literal["sersic", "learned"] = "sersic"
    noise: Literal["gaussian", "poisson"] = "gaussian"
    supersample: int = 1
    subhalos: int = 0
    redshifts: tuple[float, float] = (0.5, 1.5)
    concentration: float = 15.0
    terms: int = 18
    prior: Prior = field(default_factory=Prior)

    def __call__(self, data: Exposure) -> None:
        values = self.draw(data)
        model = self.render(values, data)
        bands, ny, nx = model.shape
        with pyro.plate("band", bands, dim=-3), pyro.plate("y", ny, dim=-2), pyro.plate("x", nx, dim=-1):
            if self.noise == "poisson":
                gain = data.gain[:, None, None]
                sky = data.variance / gain
                counted = dist.Poisson((model + sky) / gain, validate_args=False).mask(data.mask)
                pyro.sample("image", counted, obs=(data.image + sky) / gain)
            else:
                normal = dist.Normal(model, data.total_variance(model).sqrt()).mask(data.mask)
                pyro.sample("image", normal, obs=data.image)

    def draw(self, data: Exposure) -> dict[str, Tensor]:
        """The latent sites."""
        prior, new = self.prior, data.image.new_tensor
        two, bands, here = new((0.0, 0.0)), torch.ones_like(data.gain), new(prior.position)
        free: dict[str, Any] = {"einstein_radius": _log_normal(new(1.0), prior.einstein_radius)}
        if self.mass == "epl":
            free["slope"] = TruncatedNormal(new(0.0), *prior.slope)
        if self.mass != "sis":
            free["ellipticity"] = dist.Normal(two, prior.ellipticity).to_event(1)
        if not self.centred:
            free["centre"] = dist.Normal(here, prior.centre).to_event(1)
        if self.shear:
            free["shear"] = dist.Normal(two, prior.shear).to_event(1)
        for name in ("lens", "source") if self.lens_light else ("source",):
            free[f"{name}_radius"] = _log_normal(new(1.0), getattr(prior, f"{name}_radius"))
            if name == "source" and self.source == "learned":
                free["source_latent"] = dist.Normal(new(0.0).expand(LATENT), 1.0).to_event(1)
            else:
                low, high = getattr(prior, f"{name}_index")
                free[f"{name}_index"] = dist.Uniform(new(low), new(high), validate_args=False)
                sd, most = getattr(prior, f"{name}_ellipticity")
                free[f"{name}_ellipticity"] = TruncatedNormal(two, 0.0, sd, -most, most).to_event(1)
            free[f"{name}_centre"] = dist.Normal(here, getattr(prior, f"{name}_centre")).to_event(1)
            free[f"{name}_amplitude"] = _log_normal(bands, getattr(prior, f"{name}_amplitude")).to_event(1)
        if self.subhalos:
            many, reach = new(0.0).expand(self.subhalos), prior.subhalo_reach
            low, high = prior.subhalo_log_mass
            free["subhalo_log_mass"] = dist.Uniform(many + low, many + high, validate_args=False).to_event(1)
            box = here.expand(self.subhalos, 2)
            free["subhalo_position"] = dist.Uniform(box - reach, box + reach, validate_args=False).to_event(2)
        return {name: pyro.sample(name, prior_of) for name, prior_of in free.items()}

    def deflection(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> lensing.Deflection:
        """Of all mass, at points of the sky [arcsec]."""
        radius = values["einstein_radius"]
        centre = values.get("centre", x.new_tensor(self.prior.position))
        if self.mass == "sis":
            ax, ay = lensing.sis(x, y, radius, centre)
        else:
            slope = values.get("slope", torch.full_like(radius, 2.0))
            ax, ay = lensing.epl(x, y, radius, slope, values["ellipticity"], centre, self.terms)
        if self.shear:
            px, py = self.prior.position
            gx, gy = lensing.shear(x - px, y - py, values["shear"])
            ax, ay = ax + gx, ay + gy
        if self.subhalos:
            mass = 10 ** values["subhalo_log_mass"]
            concentration = torch.full_like(mass, self.concentration)
            scales = lensing.nfw_of_mass(mass, concentration, *self.redshifts)
            hx, hy = lensing.halos(lensing.nfw, x, y, *scales, values["subhalo_position"])
            ax, ay = ax + hx, ay + hy
        return ax, ay

    def source_light(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Float[Tensor, "*grid"]:
        """Surface brightness of the source, in units of its amplitude, at points behind the lens [arcsec]."""
        radius, centre = values["source_radius"], values["source_centre"]
        if self.source == "sersic":
            shape = (values[f"source_{part}"] for part in ("index", "ellipticity"))
            return light.sersic(x, y, torch.ones_like(radius), radius, *shape, centre)
        decoder, prior = _learned(x.dtype, x.device)
        image = decoder(prior.transforms[0](values["source_latent"]))
        brightness = _DISC * _PIXELS_PER_RADIUS**2 * image
        return light.interpolate(x, y, brightness, radius / _PIXELS_PER_RADIUS, centre)

    def render(
        self,
        values: Mapping[str, Tensor],
        data: Exposure,
        parts: tuple[Literal["lens", "source"], ...] = ("lens", "source"),
    ) -> Float[Tensor, "band y x"]:
        """The noiseless image [unit] of given latents, or of only the lens's or the source's light."""
        ny, nx = data.image.shape[-2:]
        x, y = imaging.pixel_grid((ny, nx), data.pixel_scale, self.supersample)
        total = torch.zeros((1, *x.shape), dtype=x.dtype, device=x.device)
        if "lens" in parts and self.lens_light:
            shape = (values[f"lens_{part}"] for part in ("radius", "index", "ellipticity", "centre"))
            lens = light.sersic(x, y, torch.ones_like(values["lens_radius"]), *shape)
            total = total + values["lens_amplitude"][:, None, None] * lens
        if "source" in parts:
            ax, ay = self.deflection(values, x, y)
            source = self.source_light(values, x - ax, y - ay)
            total = total + values["source_amplitude"][:, None, None] * source
        pixels = imaging.downsample(total, self.supersample) * data.pixel_scale**2
        return imaging.convolve(pixels, data.psf)


SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "gigalens": {},
    "compact": {"centred": True, "lens_light": False},
    "talk": {
        "mass": "sis", "shear": False, "centred": True, "lens_light": False, "source": "learned",
        "noise": "poisson",
    },
}  # fmt: skip
"""Named settings of :class:`StrongLens`: "gigalens", the 22 parameters of that demo; "compact", 13 of them
(lens light subtracted, its centre known: Einstein radius, slope, ellipticity, shear and a Sersic source);
"talk", one Einstein radius, with a learned source and Poisson noise."""


def observe(*bands: LensImage, dtype: torch.dtype = torch.float64) -> Exposure:
    """The tensors of one lens in one band or several (on one grid; one image per band).

    Raises:
        InputError: for images of different shapes or pixel scales.
    """
    if not bands:
        raise InputError("images of a lens", "none", "at least one")
    first = bands[0]
    for other in bands[1:]:
        grid = (other.shape, other.pixel_scale, other.psf.shape)
        if grid != (first.shape, first.pixel_scale, first.psf.shape):
            expected = f"the grid of {first.name!r}, {(first.shape, first.pixel_scale, first.psf.shape)}"
            raise InputError(f"lens image {other.name!r}", grid, f"{expected} (shape, pixel scale, PSF)")

    def stacked(arrays: Sequence[Any]) -> Tensor:
        return torch.stack([torch.as_tensor(a, dtype=dtype) for a in arrays])

    variances = [
        torch.full(b.shape, b.background_rms**2) if b.background_rms else torch.as_tensor(b.noise) ** 2
        for b in bands
    ]
    return Exposure(
        image=stacked([b.image for b in bands]),
        psf=stacked([b.psf for b in bands]),
        variance=stacked(variances),
        gain=torch.tensor([1 / b.exposure if b.exposure else 0.0 for b in bands], dtype=dtype),
        mask=torch.stack([torch.as_tensor(b.mask) for b in bands]),
        pixel_scale=torch.tensor(first.pixel_scale, dtype=dtype),
    )


def stack(exposures: Sequence[Exposure]) -> Exposure:
    """Several lenses as one batch: a leading axis on every tensor.

    Raises:
        InputError: where their shapes differ.
    """
    shapes = {tuple(tuple(t.shape) for t in e) for e in exposures}
    if len(shapes) != 1:
        raise InputError("a batch of lenses", f"shapes {sorted(shapes)}", "images and PSFs of one shape")
    return Exposure(*map(torch.stack, zip(*exposures, strict=True)))


def problem(
    data: LensImage | Exposure | Sequence[LensImage], *, setting: str = "gigalens", **settings: Any
) -> Problem:
    """The problem of one lens, or of a batch of lenses.

    Args:
        data: a LensImage, a sequence of LensImages (a batch of lenses in one band each), or an Exposure: of
            one lens (:func:`observe`), or a batch (:func:`stack`).
        setting: a name of :data:`SETTINGS`.
        settings: of :class:`StrongLens`, in place of the named ones.

    Raises:
        UnknownNameError: for an unknown setting.
        InputError: where the prior and the image do not fit each other.
    """
    model = _model(setting, settings)
    if isinstance(data, LensImage):
        data = observe(data)
    elif not isinstance(data, Exposure):
        data = stack([observe(image) for image in data])
    _check(model, data)
    batch = len(data.image) if data.image.ndim == 4 else None
    start = _start(model, data, batch)
    axes = {name: ("component",) for name in start if name.endswith(("ellipticity", "shear"))}
    axes |= {name: ("axis",) for name in start if name.endswith("centre")}
    axes |= {name: ("band",) for name in start if name.endswith("amplitude")}
    axes |= {"subhalo_log_mass": ("subhalo",), "subhalo_position": ("subhalo", "axis")}
    return Problem(
        model,
        (data,),
        name="strong_lens",
        batch=batch,
        data_plates=("band", "y", "x"),
        start=start,
        dims={name: axis for name, axis in axes.items() if name in start},
        coords={"component": ["1", "2"], "axis": ["x", "y"]},
        guides={name: f"astrozoo.guides.strong_lens:{name}" for name in ("full_rank", "flow", "structured")},
    )


def read(path: str | Path) -> LensImage:
    """A lens from a file or folder; see :func:`astrozoo.data.lenses.read`.

    Raises:
        DataError: there is nothing there, or no lens.
    """
    return read_lens(path)


def simulate(
    seed: int = 0, *, setting: str = "gigalens", size: int = 40, pixel_scale: float = 0.12, **settings: Any
) -> tuple[LensImage, dict[str, Tensor]]:
    """One lens drawn from the model itself: its prior, its light, its noise; a Gaussian PSF.

    (For images that do *not* come from the model, see :func:`astrozoo.data.simulate_lens.simulate_lens`.)

    Args:
        seed: of every draw.
        size: pixels along a side.
        pixel_scale: [arcsec].
        setting, settings: as of :func:`problem`.

    Returns:
        the image, and the latents by site name.
    """
    model = _model(setting, settings)
    g = torch.Generator().manual_seed(seed)
    steps = torch.arange(-4, 5, dtype=torch.float64)
    bell = torch.exp(-(steps**2) / 2 / 1.1**2)
    psf = bell[:, None] * bell / bell.sum() ** 2
    blank = LensImage(
        image=np.zeros((size, size)), psf=psf.numpy(), pixel_scale=pixel_scale,
        background_rms=0.4, exposure=100.0, name=f"simulated {seed}",
    )  # fmt: skip
    data = observe(blank)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=g)))
        trace = pyro.poutine.trace(model.draw).get_trace(data)
    truth: dict[str, Tensor] = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}
    clean = model.render(truth, data)
    if model.noise == "poisson":
        gain = data.gain[:, None, None]
        sky = data.variance / gain
        image = torch.poisson((clean + sky) / gain, generator=g) * gain - sky
    else:
        noise = torch.randn(clean.shape, generator=g, dtype=clean.dtype)
        image = clean + data.total_variance(clean).sqrt() * noise
    return replace(blank, image=image[0].numpy()), truth


def _model(setting: str, settings: Mapping[str, Any]) -> StrongLens:
    if setting not in SETTINGS:
        raise UnknownNameError("setting of strong_lens", setting, SETTINGS)
    for name in settings:
        if name not in StrongLens.__dataclass_fields__:
            raise UnknownNameError("option of strong_lens", name, StrongLens.__dataclass_fields__)
    model = StrongLens(**{**SETTINGS[setting], **settings})
    for name, known in _CHOICES.items():
        if getattr(model, name) not in known:
            raise InputError(name, repr(getattr(model, name)), f"one of {', '.join(known)}")
    for name, least in (("supersample", 1), ("subhalos", 0), ("terms", 2)):
        if getattr(model, name) < least:
            raise InputError(name, getattr(model, name), f"at least {least}")
    return model


def _check(model: StrongLens, data: Exposure) -> None:
    """Whether the prior, the noise and the images fit each other."""
    image, psf, prior = data.image, data.psf, model.prior
    if data.mask.shape != image.shape or data.variance.shape != image.shape:
        got = f"mask {tuple(data.mask.shape)}, variance {tuple(data.variance.shape)}"
        raise InputError("exposure", got, f"the shape of the image, {tuple(image.shape)}")
    if psf.shape[-1] % 2 == 0 or psf.shape[-2] % 2 == 0 or max(psf.shape[-2:]) > min(image.shape[-2:]):
        raise InputError("psf", f"shape {tuple(psf.shape)}", "odd sides, no larger than the image")
    if not bool((data.variance[data.mask] > 0).all()):
        raise InputError("variance", "unmasked pixels that are not positive", "positive variances")
    if model.noise == "poisson" and not bool((data.gain > 0).all()):
        raise InputError("noise='poisson'", "a noise map", "images with background_rms and exposure")
    half = float((0.5 * min(image.shape[-2:]) * data.pixel_scale).min())
    if not 0 < prior.einstein_radius[0] < half:
        raise InputError(
            "prior's einstein_radius", f"a median of {prior.einstein_radius[0]} arcsec",
            f"one inside the frame, between 0 and {half:.4g} arcsec",
        )  # fmt: skip
    if max(map(abs, prior.position)) >= half:
        expected = f"coordinates within {half:.4g} arcsec of the centre of the image"
        raise InputError("prior's position of the lens", prior.position, expected)


_CHOICES = {
    "mass": ("epl", "sie", "sis"),
    "source": ("sersic", "learned"),
    "noise": ("gaussian", "poisson"),
}


@cache
def _learned(dtype: torch.dtype, device: torch.device) -> Any:
    return load_source(dtype=dtype, device=device)


def _log_normal(one: Tensor, median_and_sd: tuple[float, float]) -> dist.LogNormal:
    median, sd = median_and_sd
    return dist.LogNormal(math.log(median) * one, sd, validate_args=False)


def _start(model: StrongLens, data: Exposure, batch: int | None) -> dict[str, Tensor]:
    """Medians of the priors; subhalos in a ring and light."""
    one = data if batch is None else Exposure(*(t[0] for t in data))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trace = pyro.poutine.trace(model.draw).get_trace(one)
    prior = model.prior
    start: dict[str, Tensor] = {}
    for name in trace.stochastic_nodes:
        value: Tensor = trace.nodes[name]["value"]
        if name.endswith(("einstein_radius", "amplitude")) or name in ("lens_radius", "source_radius"):
            start[name] = torch.full_like(value, getattr(prior, name)[0])
        elif name.endswith("index"):
            start[name] = torch.full_like(value, sum(getattr(prior, name)) / 2)
        elif name == "slope":
            start[name] = torch.full_like(value, prior.slope[0])
        elif name == "subhalo_log_mass":
            low, high = prior.subhalo_log_mass
            start[name] = torch.full_like(value, low + 0.3 * (high - low))
        elif name == "subhalo_position":
            angle = torch.arange(model.subhalos, dtype=value.dtype) * (math.pi * (3 - math.sqrt(5)))
            ring = torch.stack((torch.cos(angle), torch.sin(angle)), -1)
            start[name] = value.new_tensor(prior.position) + 0.5 * prior.subhalo_reach * ring.to(value)
        elif name.endswith("centre"):
            start[name] = value.new_tensor(prior.position).expand_as(value).clone()
        else:
            start[name] = torch.zeros_like(value)
    if batch is None:
        return start
    return {name: value.expand(batch, *value.shape).clone() for name, value in start.items()}

"""Strong lenses: a galaxy whose gravity bends the light of a galaxy behind it into arcs.

The model traces rays back through the mass of the lens to the source. It adds the source's brightness there
to the lens's light, averages over pixels, convolves with the PSF, and has Gaussian or Poisson noise. The mass
is an elliptical power law, an isothermal ellipsoid or an isothermal sphere, with external shear and any
number of NFW subhalos. The light is that of Sersic profiles, or of a source whose image a decoder makes from
latents.

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
from typing import Any, Literal, Unpack

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from astrozoo._trained import Trained
from astrozoo.data.lens_image import LensImage
from astrozoo.data.lenses import Stated
from astrozoo.data.lenses import read as read_lens
from astrozoo.data.weights import load_weights
from astrozoo.errors import InputError, UnknownNameError
from astrozoo.models.learned_source import LATENT
from astrozoo.models.learned_source import load as load_source
from astrozoo.models.lens_cut import cut_out
from astrozoo.models.lens_exposure import Exposure, observe, stack
from astrozoo.models.lens_guess import guess
from astrozoo.models.lens_prior import Prior, Scales, TruncatedNormal, log_normal, prior_of
from astrozoo.models.lens_starts import Proposals
from astrozoo.physics import imaging, lensing, light
from astrozoo.types import Problem

__all__ = [
    "SETTINGS",
    "Exposure",
    "Prior",
    "Scales",
    "StrongLens",
    "TruncatedNormal",
    "observe",
    "problem",
    "read",
    "simulate",
    "stack",
]


_PIXELS_PER_RADIUS = 7.0
"""[px] Middle of the range of half-light radii of the galaxies that the learned source was trained on."""
_DISC = 11.96
"""[1] Flux of an exponential disc, divided by its squared half-light radius and its brightness there."""


@dataclass(frozen=True, eq=False)
class StrongLens:
    """The generative model of one lens.

    Latent sites, some of which a setting removes:

    * mass: ``einstein_radius`` [arcsec], ``slope``, ``ellipticity``, ``centre`` [arcsec], ``shear``;
    * light, with the prefixes ``lens_`` and ``source_``: ``radius`` [arcsec], ``index``, ``ellipticity``,
      ``centre`` [arcsec], and one ``amplitude`` per band [unit / arcsec^2];
    * subhalos: ``subhalo_log_mass``, ``subhalo_position`` [arcsec].

    A learned source has a ``source_latent`` instead of an index and an ellipticity. These are standard
    normals, which a flow transforms into the decoder's latents. Its radius is the typical half-light radius
    of the decoder's galaxies, and its amplitude is that of an exponential disc with this radius and the same
    flux.

    Args:
        mass: "epl", "sie" or "sis".
        shear: whether there is external shear.
        centred: whether the mass is exactly at the prior's position (at the origin, if it has none).
        lens_light: whether the lens emits light.
        source: "sersic", or "learned" (:mod:`astrozoo.models.learned_source`).
        source_weights: weights of the learned source, from :func:`astrozoo.load_weights`. None: those of the
            package.
        noise: "gaussian", or "poisson" (counts of electrons; the exposure must have a gain).
        supersample: rays per pixel and axis.
        subhalos: number of subhalos.
        redshifts: of lens and source, which convert masses of subhalos into angles.
        concentration: of the subhalos: r200, divided by the scale radius.
        terms: terms of the power law's series, see :func:`astrozoo.physics.lensing.epl`.
    """

    mass: Literal["epl", "sie", "sis"] = "epl"
    shear: bool = True
    centred: bool = False
    lens_light: bool = True
    source: Literal["sersic", "learned"] = "sersic"
    source_weights: Trained | None = None
    noise: Literal["gaussian", "poisson"] = "gaussian"
    supersample: int = 1
    subhalos: int = 0
    redshifts: tuple[float, float] = (0.5, 1.5)
    concentration: float = 15.0
    terms: int = 18
    prior: Prior = field(default_factory=Prior)

    def __call__(self, data: Exposure, scales: Scales | None = None) -> None:
        image = self.render(self.draw(data, scales), data)
        bands, ny, nx = image.shape
        with pyro.plate("band", bands, dim=-3), pyro.plate("y", ny, dim=-2), pyro.plate("x", nx, dim=-1):
            pixels, seen = self.pixels_of(image, data)
            pyro.sample("image", pixels, obs=seen)

    def pixels_of(self, image: Float[Tensor, "band y x"], data: Exposure) -> tuple[Any, Tensor]:
        """The distribution of each pixel for a noiseless image, and what was observed, in its unit."""
        if self.noise == "poisson":
            gain = data.gain[:, None, None]
            sky = data.variance / gain
            photons = dist.Poisson((image + sky) / gain, validate_args=False)
            return photons.mask(data.mask), (data.image + sky) / gain
        normal = dist.Normal(image, data.total_variance(image).sqrt())
        return normal.mask(data.mask), data.image

    def draw(self, data: Exposure, scales: Scales | None = None) -> dict[str, Tensor]:
        """Sample the latent sites."""
        return {name: pyro.sample(name, prior) for name, prior in self.sites(data, scales).items()}

    def median(self, name: str, data: Exposure, scales: Scales | None = None) -> Tensor:
        """A median of the prior: the constant, or that of the image."""
        constant = self.prior.median(name)
        if constant is not None:
            return data.image.new_tensor(constant)
        if scales is None:
            raise InputError(f"prior's {name}", "a median from the image", "scales of the image as well")
        return getattr(scales, name)

    def sites(self, data: Exposure, scales: Scales | None = None) -> dict[str, Any]:
        """The prior of each latent site.

        Args:
            scales: those of the image; needed if the prior takes something from it.

        Raises:
            InputError: they are needed, and missing.
        """
        prior, new = self.prior, data.image.new_tensor

        def log_normal_of(name: str, ones: Tensor) -> dist.LogNormal:
            return log_normal(ones, self.median(name, data, scales), getattr(prior, name)[1])

        two, bands, here = new((0.0, 0.0)), torch.ones_like(data.gain), self.median("position", data, scales)
        free: dict[str, Any] = {"einstein_radius": log_normal_of("einstein_radius", new(1.0))}
        if self.mass == "epl":
            free["slope"] = TruncatedNormal(new(0.0), *prior.slope)
        if self.mass != "sis":
            free["ellipticity"] = dist.Normal(two, prior.ellipticity).to_event(1)
        if not self.centred:
            free["centre"] = dist.Normal(here, prior.centre).to_event(1)
        if self.shear:
            free["shear"] = dist.Normal(two, prior.shear).to_event(1)
        for name in ("lens", "source") if self.lens_light else ("source",):
            free[f"{name}_radius"] = log_normal_of(f"{name}_radius", new(1.0))
            if name == "source" and self.source == "learned":
                free["source_latent"] = dist.Normal(new(0.0).expand(LATENT), 1.0).to_event(1)
            else:
                low, high = getattr(prior, f"{name}_index")
                free[f"{name}_index"] = dist.Uniform(new(low), new(high), validate_args=False)
                sd, most = getattr(prior, f"{name}_ellipticity")
                free[f"{name}_ellipticity"] = TruncatedNormal(two, 0.0, sd, -most, most).to_event(1)
            free[f"{name}_centre"] = dist.Normal(here, getattr(prior, f"{name}_centre")).to_event(1)
            free[f"{name}_amplitude"] = log_normal_of(f"{name}_amplitude", bands).to_event(1)
        if self.subhalos:
            many, reach = new(0.0).expand(self.subhalos), prior.subhalo_reach
            low, high = prior.subhalo_log_mass
            free["subhalo_log_mass"] = dist.Uniform(many + low, many + high, validate_args=False).to_event(1)
            box = here.expand(self.subhalos, 2)
            free["subhalo_position"] = dist.Uniform(box - reach, box + reach, validate_args=False).to_event(2)
        return free

    @property
    def _fixed(self) -> tuple[float, float]:
        """The point that the shear leaves where it is, and a mass that is ``centred`` is at [arcsec]."""
        return self.prior.position or (0.0, 0.0)

    def deflection(self, values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> lensing.Deflection:
        """Deflection by all mass, at points of the image plane [arcsec]."""
        radius = values["einstein_radius"]
        centre = values.get("centre", x.new_tensor(self._fixed))
        if self.mass == "sis":
            ax, ay = lensing.sis(x, y, radius, centre)
        else:
            slope = values.get("slope", torch.full_like(radius, 2.0))
            ax, ay = lensing.epl(x, y, radius, slope, values["ellipticity"], centre, self.terms)
        if self.shear:
            px, py = self._fixed
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
        """The source's brightness in units of its amplitude, at points of the source plane [arcsec]."""
        radius, centre = values["source_radius"], values["source_centre"]
        if self.source == "sersic":
            index, ellipticity = values["source_index"], values["source_ellipticity"]
            return light.sersic(x, y, torch.ones_like(radius), radius, index, ellipticity, centre)
        decoder, prior = _learned(self.source_weights, x.dtype, x.device)
        image = decoder(prior.push(values["source_latent"]))
        brightness = _DISC * _PIXELS_PER_RADIUS**2 * image
        return light.interpolate(x, y, brightness, radius / _PIXELS_PER_RADIUS, centre)

    def render(
        self,
        values: Mapping[str, Tensor],
        data: Exposure,
        parts: tuple[Literal["lens", "source"], ...] = ("lens", "source"),
    ) -> Float[Tensor, "band y x"]:
        """The noiseless image for given latents [unit]: of all light, or of the lens or the source alone."""
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
"""Named settings of :class:`StrongLens`.

* "gigalens": the 22 parameters of the GIGA-Lens demo.
* "compact": 13 of them, for an image without the lens's light and a lens with a known centre: Einstein
    radius,
  slope, ellipticity, shear and a Sersic source.
* "talk": the Einstein radius of an isothermal sphere, a learned source and Poisson noise.
"""


def problem(
    data: LensImage | Exposure | Sequence[LensImage],
    *,
    setting: str = "gigalens",
    prior: Prior | str | Path | None = None,
    **settings: Any,
) -> Problem:
    """The problem of one lens, or of a batch of lenses.

    Args:
        data: a LensImage, a sequence of LensImages (a batch of lenses, each in one band), or an Exposure of
            one lens (:func:`observe`) or of a batch (:func:`stack`).
        setting: a name of :data:`SETTINGS`.
        prior: a Prior, "image", "gigalens", or a TOML file (:func:`~.lens_prior.prior_of`). "image", the
            default, takes its medians from each image: a search for arcs, in units of the image.
        settings: options of :class:`StrongLens`, which override those of the named setting.
            ``source_weights`` may also be the path of a file that ``astrozoo train strong_lens`` wrote.

    Raises:
        UnknownNameError: the setting or an option is unknown.
        InputError: the prior and the image are inconsistent.
        DataError: the file of weights is missing, corrupt, or of another model; or that of the prior is.
    """
    model = _model(setting, {**settings, "prior": prior_of(prior)})
    if isinstance(data, LensImage):
        data = observe(data)
    elif not isinstance(data, Exposure):
        data = stack([observe(image) for image in data])
    data.check()
    batch = len(data.image) if data.image.ndim == 4 else None
    args: tuple[Any, ...] = (data,)
    proposals = None
    if model.prior.from_image:
        guesses = [guess(row, model.lens_light) for row in data.rows()]
        rows = [one.scales(row) for one, row in zip(guesses, data.rows(), strict=True)]
        args = (data, Scales(*map(torch.stack, zip(*rows, strict=True))) if batch else rows[0])
        proposals = Proposals(model, data.rows(), tuple(rows), tuple(guesses), batch is not None)
    _check(model, data, args[1:])
    start = _start(model, args, batch)
    axes: dict[str, tuple[str, ...]] = {
        name: ("component",) for name in start if name.endswith(("ellipticity", "shear"))
    }
    axes |= {name: ("axis",) for name in start if name.endswith("centre")}
    axes |= {name: ("band",) for name in start if name.endswith("amplitude")}
    axes |= {"subhalo_log_mass": ("subhalo",), "subhalo_position": ("subhalo", "axis")}
    return Problem(
        model,
        args,
        name="strong_lens",
        batch=batch,
        start=start,
        dims={name: axis for name, axis in axes.items() if name in start},
        coords={"component": ["1", "2"], "axis": ["x", "y"]},
        images=("image",),
        proposals=proposals,
        guides={"structured": "astrozoo.guides.strong_lens:structured"},
    )


def read(
    path: str | Path, *, crop: float | None = None, core: float | None = None, **stated: Unpack[Stated]
) -> LensImage:
    """A lens from a file or folder, cut to the part that a model explains.

    Args:
        path: the file or folder.
        crop: side of the square around the lens that is kept [arcsec]; 0 keeps all. By default the arcs
            decide (:func:`~.lens_cut.cut_out`).
        core: radius around the lens's centre in which pixels are masked [arcsec]. By default it is the
            radius within which no Sersic profile follows the light of the lens; often 0.
        stated: what the names and headers of the files do not tell (:class:`astrozoo.data.lenses.Stated`).

    Raises:
        DataError: the path does not exist, or is not a lens.
        InputError: the square is smaller than the PSF.
        UnknownNameError: an unknown keyword.
    """
    return cut_out(read_lens(path, **stated), crop, core)


def simulate(
    seed: int = 0,
    *,
    setting: str = "gigalens",
    size: int = 32,
    pixel_scale: float = 0.15,
    prior: Prior | str | Path = "gigalens",
    **settings: Any,
) -> tuple[LensImage, dict[str, Tensor]]:
    """A lens drawn from the model: latents from the prior, then the image and its noise. The PSF is Gaussian.

    (For images that do *not* come from the model, see :func:`astrozoo.data.simulate_lens.simulate_lens`.)

    Args:
        seed: seed of all draws.
        setting: see :func:`problem`.
        size: pixels along a side.
        pixel_scale: side of a pixel [arcsec].
        prior: see :func:`problem`; one without medians from the image.
        settings: see :func:`problem`.

    Returns:
        The image, and the latents by site name.

    Raises:
        InputError: as :func:`problem`, and for a prior that needs an image.
    """
    model = _model(setting, {**settings, "prior": prior_of(prior)})
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
    nodes: Any = trace.nodes
    truth: dict[str, Tensor] = {name: nodes[name]["value"] for name in trace.stochastic_nodes}
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
    chosen = {**SETTINGS[setting], **settings}
    weights = chosen.get("source_weights")
    if isinstance(weights, str | Path):
        chosen["source_weights"] = load_weights(weights)
    model = StrongLens(**chosen)
    if model.source_weights is not None:
        if model.source != "learned":
            raise InputError("source_weights", f"source={model.source!r}", "source='learned'")
        load_source(weights=model.source_weights)  # raises an error now if they are of another model
    for name, known in _CHOICES.items():
        if getattr(model, name) not in known:
            raise InputError(name, repr(getattr(model, name)), f"one of {', '.join(known)}")
    for name, minimum in (("supersample", 1), ("subhalos", 0), ("terms", 2)):
        if getattr(model, name) < minimum:
            raise InputError(name, getattr(model, name), f"at least {minimum}")
    return model


def _check(model: StrongLens, data: Exposure, scales: Sequence[Scales]) -> None:
    """Raise an error if the prior, the noise and the images are inconsistent."""
    if model.noise == "poisson" and not bool((data.gain > 0).all()):
        raise InputError("noise='poisson'", "a noise map", "images with background_rms and exposure")
    half = float((0.5 * min(data.image.shape[-2:]) * data.pixel_scale).min())
    radius = model.median("einstein_radius", data, *scales).max()
    if not 0 < radius < half:
        raise InputError(
            "prior's einstein_radius", f"a median of {float(radius):.4g} arcsec",
            f"one inside the frame, between 0 and {half:.4g} arcsec",
        )  # fmt: skip
    position = model.median("position", data, *scales)
    if position.abs().max() >= half:
        expected = f"coordinates within {half:.4g} arcsec of the centre of the image"
        raise InputError("prior's position of the lens", position.tolist(), expected)


_CHOICES = {
    "mass": ("epl", "sie", "sis"),
    "source": ("sersic", "learned"),
    "noise": ("gaussian", "poisson"),
}


@cache
def _learned(weights: Trained | None, dtype: torch.dtype, device: torch.device) -> Any:
    return load_source(weights=weights or "learned_source", dtype=dtype, device=device)


def _start(model: StrongLens, args: tuple[Any, ...], batch: int | None) -> dict[str, Tensor]:
    """Medians of the priors. Subhalos start with a low mass, on a ring."""
    rows = [tree_map(lambda leaf, i=i: leaf[i], args) for i in range(batch)] if batch else [args]
    starts = [_start_of_one(model, *row) for row in rows]
    if not batch:
        return starts[0]
    return {name: torch.stack([start[name] for start in starts]) for name in starts[0]}


def _start_of_one(model: StrongLens, data: Exposure, scales: Scales | None = None) -> dict[str, Tensor]:
    prior, start = model.prior, dict[str, Tensor]()
    for name, site in model.sites(data, scales).items():
        blank = data.image.new_zeros(site.batch_shape + site.event_shape)
        if name in Scales._fields:
            start[name] = blank + model.median(name, data, scales)
        elif name.endswith("index"):
            start[name] = blank + sum(getattr(prior, name)) / 2
        elif name == "slope":
            start[name] = blank + prior.slope[0]
        elif name == "subhalo_log_mass":
            low, high = prior.subhalo_log_mass
            start[name] = blank + low + 0.3 * (high - low)
        elif name == "subhalo_position":
            angle = torch.arange(model.subhalos, dtype=blank.dtype) * (math.pi * (3 - math.sqrt(5)))
            ring = torch.stack((torch.cos(angle), torch.sin(angle)), -1)
            start[name] = model.median("position", data, scales) + 0.5 * prior.subhalo_reach * ring.to(blank)
        elif name.endswith("centre"):
            start[name] = blank + model.median("position", data, scales)
        else:
            start[name] = blank
    return start

"""Galaxies of the zoo's models as GalSim objects, in Python and in GalSim's YAML configuration.

In Python::

    galaxy = GalSimGalaxy("learned_source", galsim.BaseDeviate(1), pixel_scale=0.05, flux=100.0)
    image = galsim.Convolve(galaxy.shear(g1=0.02), psf).drawImage(scale=0.2)

In a configuration file::

    modules: [astrozoo.galsim_galaxy]
    gal:
      type: GalSimGalaxy
      model: learned_source
      pixel_scale: 0.05
      flux: 100

Any model whose module has a function ``generator`` can be used: it returns a :class:`Generator`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import galsim
import numpy as np
import torch
from galsim.config import GetAllParams, GetRNG, RegisterObjectType
from jaxtyping import Float
from torch import Tensor

from astrozoo.entry import resolve
from astrozoo.errors import InputError

__all__ = ["GalSimGalaxy", "Generator"]

_TAPER = 0.1
"""[side of a stamp] Width of the border in which a stamp falls to 0. Networks leave up to 0.8 % of the peak
at the edge, and a step there rings in GalSim's Fourier transforms."""


class Generator(Protocol):
    """What draws noiseless, deconvolved galaxies from a model.

    Attributes:
        size: side of a stamp [px].
        pixel_scale: of a stamp [arcsec]. None if the model knows no angles; the user then gives one.
        inputs: conditional input -> the range that the model was trained in. All of them must be given.
    """

    @property
    def size(self) -> int: ...

    @property
    def pixel_scale(self) -> float | None: ...

    @property
    def inputs(self) -> Mapping[str, tuple[float, float]]: ...

    def draw(self, random: torch.Generator, inputs: Mapping[str, float]) -> Float[Tensor, "y x"]:
        """A galaxy: surface brightness at pixel centres, times the area of a pixel."""
        ...


class GalSimGalaxy(galsim.InterpolatedImage):
    """A galaxy drawn from a model. It has no PSF and no noise.

    The stamp's edge is tapered to 0. The flux is kept.

    Args:
        model: an entry of the zoo, or a generator.
        rng: GalSim's generator, which decides the galaxy. By default a random one.
        flux: of the galaxy; by default what the model gives it.
        pixel_scale: of the stamp, in place of the model's [arcsec].
        gsparams: accuracy of GalSim's rendering.
        inputs: values of the model's conditional inputs.

    Attributes:
        stamp_size: side of the stamp [px].
        pixel_size: [arcsec].

    Raises:
        InputError: the model draws no galaxies, an input is missing or unknown, there is no pixel scale, or
            the flux is not positive.
    """

    def __init__(
        self,
        model: str | Generator,
        rng: galsim.BaseDeviate | None = None,
        *,
        flux: float | None = None,
        pixel_scale: float | None = None,
        gsparams: galsim.GSParams | None = None,
        **inputs: float,
    ) -> None:
        generator = _load(model) if isinstance(model, str) else model
        scale = generator.pixel_scale if pixel_scale is None else pixel_scale
        if scale is None or not scale > 0:
            raise InputError("pixel_scale [arcsec]", scale, "a positive number (this model has no default)")
        if flux is not None and not flux > 0:
            raise InputError("flux", flux, "a positive number")
        _check_inputs(generator.inputs, inputs)
        random = torch.Generator().manual_seed(_seed(rng))
        with torch.no_grad():
            stamp = generator.draw(random, inputs).double().numpy()
        tapered = stamp * _taper(generator.size)
        super().__init__(
            galsim.Image(tapered), scale=scale, flux=stamp.sum() if flux is None else flux, gsparams=gsparams
        )
        self.stamp_size, self.pixel_size = generator.size, scale


@functools.lru_cache
def _load(name: str) -> Generator:
    try:
        return resolve(f"astrozoo.models.{name}:generator")()
    except InputError as error:
        raise InputError("model", repr(name), "a model that draws galaxies") from error


def _seed(rng: galsim.BaseDeviate | None) -> int:
    """A 64-bit seed of two values of GalSim's generator."""
    if rng is None:
        rng = galsim.BaseDeviate()
    if not isinstance(rng, galsim.BaseDeviate):
        raise InputError("rng", type(rng).__name__, "a galsim.BaseDeviate")
    return (rng.raw() << 32) | rng.raw()


def _check_inputs(trained: Mapping[str, tuple[float, float]], given: Mapping[str, float]) -> None:
    """Refuse missing and unknown inputs; warn of those outside the range that the model was trained in."""
    if set(trained) != set(given):
        ranges = ", ".join(f"{name} ({low:.4g} to {high:.4g})" for name, (low, high) in trained.items())
        expected = f"exactly {ranges}" if trained else "none"
        raise InputError("conditional inputs", ", ".join(given) or "none", expected)
    for name, (low, high) in trained.items():
        if not low <= given[name] <= high:
            text = f"{name}: got {given[name]:g}, outside {low:g} to {high:g}, which the model was trained on"
            warnings.warn(text, stacklevel=3)


@functools.lru_cache
def _taper(size: int) -> Float[np.ndarray, "y x"]:
    """A window of 1 that falls to 0 at the edge as a raised cosine."""
    distance = (np.arange(size) + 0.5) / (_TAPER * size)
    distance = np.minimum(distance, distance[::-1])
    edge = np.where(distance < 1, 0.5 - 0.5 * np.cos(np.pi * np.minimum(distance, 1)), 1.0)
    return np.outer(edge, edge)


def _build(
    config: dict[str, Any], base: dict[str, Any], ignore: list[str], gsparams: dict[str, Any], logger: Any
) -> tuple[GalSimGalaxy, bool]:
    """GalSim's configuration calls this. A new galaxy is drawn for each object."""
    required = {"model": str}
    optional: dict[str, type] = {"flux": float, "pixel_scale": float}
    model = galsim.config.ParseValue(config, "model", base, str)[0]
    inputs = dict.fromkeys(_load(model).inputs, float)
    values, _ = GetAllParams(config, base, req=required | inputs, opt=optional, ignore=ignore)
    rng = GetRNG(config, base, logger, "GalSimGalaxy")
    params = galsim.GSParams(**gsparams) if gsparams else None
    return GalSimGalaxy(values.pop("model"), rng, gsparams=params, **values), False


RegisterObjectType("GalSimGalaxy", _build)

"""The prior of a strong lens."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from astrozoo.errors import DataError, InputError, UnknownNameError

__all__ = ["GIGALENS", "IMAGE", "NAMED", "Prior", "Scales", "TruncatedNormal", "log_normal", "prior_of"]


class Scales(NamedTuple):
    """What a prior takes from the image (:func:`astrozoo.models.lens_guess.guess`).

    Attributes:
        position: expected position of the lens [arcsec].
        einstein_radius, lens_radius, source_radius: medians [arcsec].
        lens_amplitude, source_amplitude: medians [unit / arcsec^2].
    """

    position: Float[Tensor, "2"]
    einstein_radius: Float[Tensor, ""]
    lens_radius: Float[Tensor, ""]
    lens_amplitude: Float[Tensor, "band"]
    source_radius: Float[Tensor, ""]
    source_amplitude: Float[Tensor, "band"]


@dataclass(frozen=True)
class Prior:
    """Parameters of the prior of a strong lens. The defaults are those of GIGA-Lens.

    Args:
        position: expected position of the lens [arcsec], the mean of the centres. None: from the image.
        einstein_radius: median [arcsec] and SD of its ln. A median of None, here and below: from the image.
        slope: mean, SD, minimum and maximum of the slope of the three-dimensional density.
        ellipticity, centre, shear: SD of each component, for the mass (centre in arcsec).
        lens_radius, source_radius: median [arcsec] and SD of its ln.
        lens_index, source_index: minimum and maximum of the Sersic index.
        lens_ellipticity, source_ellipticity: SD and greatest absolute value of each component.
        lens_centre, source_centre: SD of each coordinate [arcsec].
        lens_amplitude, source_amplitude: median [unit / arcsec^2] and SD of its ln.
        subhalo_log_mass: minimum and maximum of log10 M200 [solar masses].
        subhalo_reach: half the side of the square of subhalo positions, centred on ``position`` [arcsec].
    """

    position: tuple[float, float] | None = (0.0, 0.0)
    einstein_radius: tuple[float | None, float] = (1.25, 0.25)
    slope: tuple[float, float, float, float] = (2.0, 0.25, 1.0, 3.0)
    ellipticity: float = 0.1
    centre: float = 0.05
    shear: float = 0.05
    lens_radius: tuple[float | None, float] = (1.0, 0.15)
    lens_index: tuple[float, float] = (2.0, 6.0)
    lens_ellipticity: tuple[float, float] = (0.1, 0.3)
    lens_centre: float = 0.05
    lens_amplitude: tuple[float | None, float] = (500.0, 0.3)
    source_radius: tuple[float | None, float] = (0.25, 0.15)
    source_index: tuple[float, float] = (0.5, 4.0)
    source_ellipticity: tuple[float, float] = (0.15, 0.5)
    source_centre: float = 0.25
    source_amplitude: tuple[float | None, float] = (150.0, 0.5)
    subhalo_log_mass: tuple[float, float] = (7.0, 10.5)
    subhalo_reach: float = 2.0

    @property
    def from_image(self) -> bool:
        """Whether something is taken from the image."""
        return any(self.median(name) is None for name in Scales._fields)

    def median(self, name: str) -> Any:
        """The constant in place of a field of :class:`Scales`; None if it comes from the image."""
        value = getattr(self, name)
        return value if name == "position" else value[0]


GIGALENS = Prior()
"""The prior of the GIGA-Lens benchmark, in its units."""
IMAGE = Prior(
    position=None,
    einstein_radius=(None, 0.25),
    slope=(2.0, 0.15, 1.2, 2.8),
    ellipticity=0.15,
    lens_radius=(None, 0.7),
    lens_index=(0.5, 8.0),
    lens_ellipticity=(0.2, 0.6),
    lens_amplitude=(None, 1.5),
    source_radius=(None, 0.7),
    source_index=(0.5, 5.0),
    source_ellipticity=(0.2, 0.6),
    source_centre=0.35,
    source_amplitude=(None, 1.5),
)
"""A wide prior whose medians come from the image. Its SDs are those of SLACS lenses or wider: ellipticities
of mass and slopes (Auger et al. 2010, ApJ 724, 511: slope 2.08 +- 0.16), sizes and indices of galaxies."""
NAMED = {"image": IMAGE, "gigalens": GIGALENS}
"""Priors that :func:`prior_of` knows by name."""


def prior_of(text: str | Path | Prior | None) -> Prior:
    """A prior by its name, "image" or "gigalens", or from a TOML file with some fields of :class:`Prior`.

    Fields that the file lacks are those of "image". The word "image" stands for a median that comes from it::

        einstein_radius = [1.4, 0.05]
        source_amplitude = ["image", 0.5]

    Raises:
        DataError: there is no such file, or it is not TOML.
        UnknownNameError: a field is unknown.
        InputError: a field has a value of the wrong kind.
    """
    if text is None:
        return IMAGE
    if isinstance(text, Prior):
        return text
    if str(text) in NAMED:
        return NAMED[str(text)]
    path = Path(text)
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"prior {path}", "no such file", f"{', '.join(NAMED)}, or a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"prior {path}", f"unreadable ({error})", "a TOML file") from error
    return replace(IMAGE, **_checked(read))


def _checked(read: Mapping[str, Any]) -> dict[str, Any]:
    """Values of fields, with lists as tuples and "image" as None."""
    known = {f.name: getattr(GIGALENS, f.name) for f in fields(Prior)}
    out: dict[str, Any] = {}
    for name, value in read.items():
        if name not in known:
            raise UnknownNameError("field of a prior", name, known)
        like = known[name]
        numbers = value if isinstance(value, list) else [value]
        size = len(like) if isinstance(like, tuple) else 1
        median = name in Scales._fields
        if name == "position" and value == "image":
            out[name] = None
            continue
        kinds = [
            isinstance(x, int | float) or (median and x == "image" and i == 0) for i, x in enumerate(numbers)
        ]
        if len(numbers) != size or not all(kinds):
            raise InputError(f"prior's {name}", value, f"{size} numbers, as {like}")
        spread = [x for x in numbers if isinstance(x, int | float)][-1]
        if name != "position" and not spread > 0:
            raise InputError(f"prior's {name}", value, "a positive SD (or greatest value)")
        parsed = tuple(None if x == "image" else float(x) for x in numbers)
        out[name] = parsed if isinstance(like, tuple) else parsed[0]
    return out


class TruncatedNormal(dist.TorchDistribution):
    """A normal truncated to an interval, independently for each element of ``like``."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

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
        mean, sd, minimum, maximum = self.numbers
        low, high = self.ends
        shape = (*sample_shape, *self.like.shape)
        u = torch.rand(shape, dtype=self.like.dtype, device=self.like.device)
        return (mean + sd * torch.special.ndtri(low + (high - low) * u)).clamp(minimum, maximum)


def log_normal(ones: Tensor, median: float | Tensor, sd: float) -> dist.LogNormal:
    """A log-normal for each element of ``ones``, a tensor of ones, by its median and the SD of its ln."""
    location = median.log() if isinstance(median, Tensor) else math.log(median)
    return dist.LogNormal(location * ones, sd, validate_args=False)

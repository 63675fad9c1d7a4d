"""Stamps of lenses and of what is mistaken for lenses, in batches on torch: data to train a finder on.

Galaxies are Sersic profiles with knots, spirals and rings with a closed form. A lens is a singular isothermal
ellipsoid with external shear. Its image and those of the other kinds consist of the same parts: a central
galaxy, a bluer part whose signal-to-noise ratio is drawn from one range for all kinds, and neighbours. Light
is sampled twice per pixel and axis, and convolved with a Moffat PSF of its own in each band. Neighbouring
pixels have correlated noise, as in co-adds.

References:
    Kormann, Schneider & Bartelmann 1994, A&A 284, 285 (the deflection); Lanusse et al. 2018, MNRAS 473, 3895
    (the training set).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from astrozoo.data.lens_survey import KINDS, LensSurvey
from astrozoo.errors import InputError

__all__ = ["LensTruth", "SimulatedStamps", "sie_deflection", "simulate_lens_stamps"]

_SUBSAMPLES = 2
"""Samples per pixel and axis. The PSF, at least 1.5 px wide, smooths what lies between."""
_MARGIN = 6
"""[px] Border that is rendered and cut off, so that light which leaves one side does not enter at the
other."""
_CHUNK = 128
"""Stamps that are rendered at once, which limits memory to 0.3 GB."""
_KNOTS = 5
"""Most knots of a lensed galaxy."""
_NEIGHBOURS = 4
"""Most neighbours of a stamp."""
_NEIGHBOUR_CHANCE = 0.4
"""Probability of each of them."""
_COMPANIONS = 4
"""Most blue companions of the kind "companions"; uniform from 1."""
_NON_LENSES = (0.2, 0.3, 0.2, 0.15, 0.15)
"""Fractions of the kinds that are no lenses, in the order of :data:`KINDS`."""


class LensTruth(NamedTuple):
    """What is known of each stamp.

    Attributes:
        kind: position in :data:`~astrozoo.data.lens_survey.KINDS`; 0 is a lens.
        einstein_radius: [arcsec]; NaN where there is no lens.
        snr: signal-to-noise ratio of the arcs, or of the blue part, of all bands together.
        pixel_scale: [arcsec].
        fwhm: of the PSF, mean over bands [arcsec].
    """

    kind: Int[Tensor, "n"]
    einstein_radius: Float[Tensor, "n"]
    snr: Float[Tensor, "n"]
    pixel_scale: Float[Tensor, "n"]
    fwhm: Float[Tensor, "n"]


class SimulatedStamps(NamedTuple):
    """Stamps with their truth.

    Attributes:
        image: [unit of the survey's noise]; NaN in pixels without data.
        truth: see :class:`LensTruth`.
    """

    image: Float[Tensor, "n band y x"]
    truth: LensTruth


def simulate_lens_stamps(
    survey: LensSurvey,
    count: int,
    *,
    seed: int,
    lenses: float = 0.5,
    kinds: Sequence[str] | None = None,
) -> SimulatedStamps:
    """Stamps of a survey, of which a fraction are lenses. Stamp ``i`` depends on the seed and on ``i`` alone,
    but for the last digits of float32.

    Args:
        survey: see :class:`~astrozoo.data.lens_survey.LensSurvey`.
        count: number of stamps.
        seed: of all random numbers.
        lenses: probability that a stamp is a lens.
        kinds: kinds to draw from with equal probability, in place of ``lenses``.

    Raises:
        InputError: there are no stamps, a probability is outside [0, 1], or a kind is unknown.
    """
    if count < 1:
        raise InputError("count", count, "1 or more stamps")
    if not 0 <= lenses <= 1:
        raise InputError("lenses", lenses, "a fraction from 0 to 1")
    unknown = sorted(set(kinds or ()) - set(KINDS))
    if unknown:
        raise InputError("kinds", unknown, f"some of {', '.join(KINDS)}")
    fractions = torch.tensor((lenses, *((1 - lenses) * f for f in _NON_LENSES)))
    if kinds is not None:
        fractions = torch.tensor([float(kind in kinds) / len(set(kinds)) for kind in KINDS])
    parts = []
    for first in range(0, count, _CHUNK):
        drawing = _Drawing(survey, torch.Generator().manual_seed(1_000_003 * seed + first))
        image, truth = drawing.stamps(fractions)
        parts.append((image, *truth))
    image, *columns = (torch.cat(column)[:count] for column in zip(*parts, strict=True))
    return SimulatedStamps(image, LensTruth(*columns))


def sie_deflection(
    x: Float[Tensor, "*n"],
    y: Float[Tensor, "*n"],
    einstein_radius: Float[Tensor, "*n"],
    ratio: Float[Tensor, "*n"],
    angle: Float[Tensor, "*n"],
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Deflection of a singular isothermal ellipsoid at the origin [arcsec].

    Args:
        x, y: [arcsec].
        einstein_radius: of the intermediate axis [arcsec].
        ratio: axis ratio, below 1.
        angle: of the major axis from +x [rad].
    """
    cos, sin = angle.cos(), angle.sin()
    u, v = cos * x + sin * y, cos * y - sin * x
    f = (1 - ratio**2).sqrt()
    psi = (ratio**2 * u**2 + v**2).clamp_min(1e-12).sqrt()
    strength = einstein_radius * ratio.sqrt() / f
    au, av = strength * torch.atan(f * u / psi), strength * torch.atanh(f * v / psi)
    return cos * au - sin * av, sin * au + cos * av


class _Drawing:
    """One chunk of stamps, with its random numbers."""

    def __init__(self, survey: LensSurvey, generator: torch.Generator) -> None:
        self.survey, self.generator, self.n = survey, generator, _CHUNK
        side = survey.size + 2 * _MARGIN
        self.samples = side * _SUBSAMPLES
        self.scale = self.uniform(survey.pixel_scale)
        step = (torch.arange(self.samples) - (self.samples - 1) / 2) / _SUBSAMPLES
        self.x = (step * self.scale[:, None])[:, None, :].expand(-1, self.samples, -1)
        self.y = (step * self.scale[:, None])[:, :, None].expand(-1, -1, self.samples)

    def only(self, chosen: Bool[Tensor, "n"]) -> _Drawing:
        """The chosen stamps alone."""
        part = copy.copy(self)
        part.scale, part.x, part.y = self.scale[chosen], self.x[chosen], self.y[chosen]
        part.n = int(chosen.sum())
        return part

    def uniform(self, between: tuple[float, float], *shape: int) -> Tensor:
        low, high = between
        return low + (high - low) * torch.rand(self.n, *shape, generator=self.generator)

    def log_uniform(self, between: tuple[float, float], *shape: int) -> Tensor:
        low, high = between
        return self.uniform((math.log(low), math.log(high)), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.n, *shape, generator=self.generator)

    def stamps(self, fractions: Tensor) -> tuple[Tensor, LensTruth]:
        """Images with their truth."""
        survey = self.survey
        kind = torch.multinomial(fractions, self.n, replacement=True, generator=self.generator)
        radius = self.log_uniform(survey.einstein_radius)
        central, ratio, angle = self.central(kind)
        blue = self.blue_part(kind, radius, ratio, angle)
        red_colour, blue_colour = self.colours(kind)
        zero_point = 10 ** (0.4 * (30 - self.uniform(survey.magnitude)))
        central = central * zero_point[:, None, None]
        noise = self.noise_sd()
        psf = self.transfer()
        seen = self.observed(blue[:, None] * blue_colour[:, :, None, None], psf)
        wanted = torch.where(kind == KINDS.index("plain"), 0.0, self.log_uniform(survey.snr))
        unit = (seen / noise[:, :, None, None]).square().sum((1, 2, 3)).sqrt().clamp_min(1e-20)
        seen = seen * (wanted / unit)[:, None, None, None]
        rest = central[:, None] * red_colour[:, :, None, None] + self.neighbours()
        clean = seen + self.observed(rest, psf)
        image = self.noisy(clean, noise)
        truth = LensTruth(
            kind, torch.where(kind == 0, radius, torch.nan), wanted, self.scale, self.width.mean(1)
        )
        return image, truth

    def colours(self, kind: Tensor) -> tuple[Tensor, Tensor]:
        """Fluxes in each band of the central galaxy and of the blue part, relative to the last band."""
        red = 1 + 0.12 * self.normal()
        spread = self.uniform((0.2, 1.1))  # half of the spirals, rings and mergers have bulges that are bluer
        bluer = (kind >= KINDS.index("spiral")) & (self.uniform((0, 1)) < 0.5)
        red = torch.where(bluer, spread, red)
        blue = torch.where(self.uniform((0, 1)) < 0.85, 0.1 + 0.2 * self.normal(), self.uniform((0.0, 1.0)))
        merging = kind == KINDS.index("merger")
        blue = torch.where(merging & (self.uniform((0, 1)) < 0.6), red - 0.3 * self.uniform((0, 1)), blue)
        return self.fluxes(red), self.fluxes(blue)

    def fluxes(self, redness: Tensor) -> Float[Tensor, "n band"]:
        """Flux in each band over that in the last one, of galaxies from blue (0) to red (1)."""
        red, blue = torch.tensor(self.survey.red), torch.tensor(self.survey.blue)
        magnitude = blue + redness[:, None] * (red - blue) + 0.06 * self.normal(len(red))
        return 10 ** (-0.4 * magnitude)

    def sersic(
        self, radius: Tensor, index: Tensor, ratio: Tensor, angle: Tensor, x: Tensor, y: Tensor
    ) -> Float[Tensor, "n y x"]:
        """A Sersic profile of unit flux, at offsets ``x`` and ``y`` from its centre [arcsec].

        The centre is softened over a quarter of a pixel: a cusp would depend on where the samples are.
        """
        cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
        q = ratio[:, None, None]
        u, v = cos * x + sin * y, cos * y - sin * x
        b = 1.9992 * index - 0.3271
        r2 = q * u**2 + v**2 / q + (self.scale[:, None, None] / 4) ** 2
        power = (r2 / radius[:, None, None] ** 2) ** (0.5 / index)[:, None, None]
        total = 2 * math.pi * index * radius**2 * b ** (-2 * index) * torch.lgamma(2 * index).exp()
        return torch.exp(-b[:, None, None] * power) / total[:, None, None]

    def central(self, kind: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The central galaxy with unit flux, and its axis ratio and angle; for a merger both nuclei."""
        radius = self.log_uniform(self.survey.radius)
        index, ratio, angle = self.uniform((2.5, 5.5)), self.uniform((0.55, 1.0)), self.uniform((0, math.pi))
        centre = 0.3 * self.scale[:, None] * self.normal(2)
        light = self.sersic(radius, index, ratio, angle, *self.from_centre(centre))
        merging = kind == KINDS.index("merger")
        part = self.only(merging)
        second = part.sersic(
            radius[merging] * part.uniform((0.4, 1.0)),
            part.uniform((1.0, 4.0)),
            part.uniform((0.5, 1.0)),
            part.uniform((0, math.pi)),
            *part.from_centre(part.around(part.uniform((0.6, 3.0)))),
        )
        share = part.uniform((0.1, 0.5))[:, None, None]
        light[merging] = (1 - share) * light[merging] + share * second
        return light, ratio, angle

    def from_centre(self, centre: Float[Tensor, "n 2"]) -> tuple[Tensor, Tensor]:
        return self.x - centre[:, 0, None, None], self.y - centre[:, 1, None, None]

    def around(self, radius: Tensor) -> Float[Tensor, "n 2"]:
        """Points in random directions at these distances from the middle."""
        angle = self.uniform((0, 2 * math.pi))
        return torch.stack((radius * angle.cos(), radius * angle.sin()), 1)

    def blue_part(self, kind: Tensor, radius: Tensor, ratio: Tensor, angle: Tensor) -> Float[Tensor, "n y x"]:
        """The arcs of a lens, or what other kinds have in their place."""
        light = torch.zeros_like(self.x)
        for k, name in enumerate(KINDS):
            chosen = kind == k
            part = self.only(chosen)
            if name == "lens":
                light[chosen] = part.arcs(radius[chosen], ratio[chosen], angle[chosen])
            elif name == "companions":
                light[chosen] = part.companions()
            elif name == "spiral":
                light[chosen] = part.spiral()
            elif name == "ring":
                light[chosen] = part.ring()
            elif name == "merger":
                light[chosen] = part.tails()
        return light

    def arcs(self, radius: Tensor, ratio: Tensor, angle: Tensor) -> Float[Tensor, "n y x"]:
        """A galaxy behind the lens. The mass follows the light of the lens but for some scatter."""
        q = (ratio + 0.08 * self.normal()).clamp(0.5, 0.98)
        turned = angle + 0.15 * self.normal()
        ax, ay = sie_deflection(self.x, self.y, *(p[:, None, None] for p in (radius, q, turned)))
        g1, g2 = (0.05 * self.normal(2)).clamp(-0.15, 0.15)[:, :, None, None].unbind(1)
        x, y = self.x - ax - g1 * self.x - g2 * self.y, self.y - ay - g2 * self.x + g1 * self.y
        place = self.around(radius * 0.55 * self.uniform((0, 1)).sqrt())
        x, y = x - place[:, 0, None, None], y - place[:, 1, None, None]
        size = self.log_uniform((0.08, 0.45))
        shape = self.uniform((0.3, 1.0)), self.uniform((0, math.pi))
        light = self.sersic(size, self.uniform((0.7, 2.5)), *shape, x, y)
        knots = torch.zeros_like(light)
        for _ in range(_KNOTS):
            at = size[:, None] * self.normal(2)
            width = (size * self.uniform((0.08, 0.25)))[:, None, None]
            share = torch.where(self.uniform((0, 1)) < 0.5, self.uniform((0, 1)), 0.0)[:, None, None]
            r2 = (x - at[:, 0, None, None]) ** 2 + (y - at[:, 1, None, None]) ** 2
            knots = knots + share * torch.exp(-r2 / (2 * width**2)) / (2 * math.pi * width**2)
        return light + 0.15 * knots

    def companions(self) -> Float[Tensor, "n y x"]:
        """One to four galaxies around the centre, of the sizes and distances of images of a lensed source."""
        light = torch.zeros_like(self.x)
        count = torch.randint(1, _COMPANIONS + 1, (self.n,), generator=self.generator)
        for k in range(_COMPANIONS):
            place = self.around(self.log_uniform((0.8, 4.0)))
            drawn = self.sersic(
                self.log_uniform((0.15, 0.7)),
                self.uniform((0.7, 2.5)),
                self.uniform((0.3, 1.0)),
                self.uniform((0, math.pi)),
                *self.from_centre(place),
            )
            share = torch.where(k < count, self.log_uniform((0.15, 1.0)), 0.0)
            light = light + share[:, None, None] * drawn
        return light

    def tilted(self, least: float) -> tuple[Tensor, Tensor]:
        """Radius [arcsec] and azimuth in the plane of a disc whose axis ratio is at least ``least``."""
        ratio, angle = self.uniform((least, 1.0))[:, None, None], self.uniform((0, math.pi))[:, None, None]
        centre = 0.05 * self.normal(2)
        x, y = self.from_centre(centre)
        u, v = angle.cos() * x + angle.sin() * y, (angle.cos() * y - angle.sin() * x) / ratio
        return (u**2 + v**2 + 1e-6).sqrt(), torch.atan2(v, u)

    def spiral(self) -> Float[Tensor, "n y x"]:
        """A disc with two to four logarithmic arms."""
        r, azimuth = self.tilted(0.3)
        length = self.log_uniform((0.4, 1.6))[:, None, None]
        arms = torch.randint(2, 5, (self.n,), generator=self.generator)[:, None, None]
        pitch = torch.tan(self.uniform((0.15, 0.6)))[:, None, None]
        phase = (
            arms * (azimuth - torch.log(r / length) / pitch) + self.uniform((0, 2 * math.pi))[:, None, None]
        )
        contrast = self.uniform((0.3, 3.0))[:, None, None]
        wave = torch.exp(contrast * (phase.cos() - 1))
        inner = 1 - torch.exp(-((r / length) ** 2))
        return torch.exp(-r / length) * (0.15 + wave) * inner

    def ring(self) -> Float[Tensor, "n y x"]:
        """A ring galaxy: a ring whose light changes smoothly with the azimuth, and a disc inside."""
        r, azimuth = self.tilted(0.4)
        radius = self.log_uniform(self.survey.einstein_radius)
        width = (radius * self.uniform((0.1, 0.35)))[:, None, None]
        ring = torch.exp(-0.5 * ((r - radius[:, None, None]) / width) ** 2)
        uneven = 1 + self.uniform((0, 0.8))[:, None, None] * torch.cos(
            azimuth + self.uniform((0, 6.3))[:, None, None]
        )
        disc = self.uniform((0, 0.5))[:, None, None] * torch.exp(-((r / radius[:, None, None]) ** 2))
        return ring * uneven + disc

    def tails(self) -> Float[Tensor, "n y x"]:
        """Two tidal tails: parts of circles around points beside the centre."""
        light = torch.zeros_like(self.x)
        for _ in range(2):
            bend = self.log_uniform((1.2, 5.0))
            centre = self.around(bend * self.uniform((0.5, 1.1)))
            x, y = self.from_centre(centre)
            r, azimuth = (x**2 + y**2 + 1e-6).sqrt(), torch.atan2(y, x)
            width = self.log_uniform((0.12, 0.5))[:, None, None]
            middle = torch.atan2(-centre[:, 1], -centre[:, 0]) + 0.8 * self.normal()
            turn = torch.remainder(azimuth - middle[:, None, None] + math.pi, 2 * math.pi) - math.pi
            along = torch.exp(-0.5 * (turn / self.uniform((0.2, 0.9))[:, None, None]) ** 2)
            across = torch.exp(-0.5 * ((r - bend[:, None, None]) / width) ** 2)
            light = light + self.uniform((0.2, 1.0))[:, None, None] * along * across
        return light

    def neighbours(self) -> Float[Tensor, "n band y x"]:
        """Galaxies anywhere in the stamp, the same for all kinds."""
        survey = self.survey
        total = torch.zeros(self.n, len(survey.bands), self.samples, self.samples)
        half = survey.size / 2 * self.scale
        for _ in range(_NEIGHBOURS):
            chosen = self.uniform((0, 1)) < _NEIGHBOUR_CHANCE
            part = self.only(chosen)
            place = (2 * part.uniform((0, 1), 2) - 1) * half[chosen, None]
            light = part.sersic(
                part.log_uniform((0.08, 0.7)),
                part.uniform((0.7, 4.0)),
                part.uniform((0.3, 1.0)),
                part.uniform((0, math.pi)),
                *part.from_centre(place),
            )
            flux = 10 ** (0.4 * (30 - part.uniform(survey.neighbour_magnitude)))
            colour = part.fluxes(part.uniform((-0.1, 1.2))) * flux[:, None]
            total[chosen] += colour[:, :, None, None] * light[:, None]
        return total

    def transfer(self) -> Tensor:
        """Fourier transforms of the PSFs: slightly elliptical Moffat profiles."""
        survey = self.survey
        low, high = (torch.tensor(side) for side in zip(*survey.fwhm, strict=True))
        share = (self.uniform((0, 1)) + 0.15 * self.normal(len(low)).T).T.clamp(0, 1)
        self.width = low + (high - low) * share
        beta = self.uniform((2.5, 4.5))[:, None, None, None]
        core = self.width[:, :, None, None] / (2 * (2 ** (1 / beta) - 1).sqrt())
        ratio, angle = self.uniform((0.88, 1.0))[:, None, None], self.uniform((0, math.pi))[:, None, None]
        middle = self.scale[:, None, None] / (2 * _SUBSAMPLES)  # the grid has no sample in its middle
        x, y = self.x - middle, self.y - middle
        u, v = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
        r2 = (ratio * u**2 + v**2 / ratio)[:, None]
        psf = (1 + r2 / core**2) ** (-beta)
        psf = psf / psf.sum((2, 3), keepdim=True)
        return torch.fft.rfft2(torch.fft.ifftshift(psf, dim=(-2, -1)))

    def observed(self, light: Tensor, transfer: Tensor) -> Float[Tensor, "n band size size"]:
        """Flux in each pixel, seen through the PSF; ``light`` is per square arcsec."""
        seen = torch.fft.irfft2(torch.fft.rfft2(light) * transfer, s=light.shape[-2:])
        side = self.samples // _SUBSAMPLES
        pixels = seen.unflatten(-1, (side, -1)).mean(-1).unflatten(-2, (side, -1)).mean(-2)
        inside = slice(_MARGIN, side - _MARGIN)
        return pixels[..., inside, inside] * (self.scale**2)[:, None, None, None]

    def noise_sd(self) -> Float[Tensor, "n band"]:
        survey = self.survey
        common, own = self.normal(1), self.normal(len(survey.bands))
        return torch.tensor(survey.noise) * (survey.noise_scatter * (common + own / 3)).exp()

    def noisy(self, clean: Tensor, noise: Tensor) -> Float[Tensor, "n band size size"]:
        """The image with sky and photon noise, correlated in half of the stamps, and gaps in a few."""
        gain = self.log_uniform(self.survey.gain)[:, None, None, None]
        sd = (noise[:, :, None, None] ** 2 + clean.clamp_min(0) / gain).sqrt()
        white = self.normal(*clean.shape[1:])
        mixed = torch.where(self.uniform((0, 1)) < 0.5, self.uniform((0.0, 0.25)), 0.0)[:, None, None, None]
        around = white.roll(1, -1) + white.roll(-1, -1) + white.roll(1, -2) + white.roll(-1, -2)
        correlated = (white + mixed * around) / (1 + 4 * mixed**2).sqrt()
        image = clean + sd * correlated
        return torch.where(self.gaps(image.shape), torch.nan, image)

    def gaps(self, shape: torch.Size) -> Bool[Tensor, "n band y x"]:
        """Pixels without data: in a few stamps a strip at one side, in one band or in all."""
        side = shape[-1]
        strip = torch.arange(side) < self.uniform((1, side / 8))[:, None]
        across = torch.where(
            (self.uniform((0, 1)) < 0.5)[:, None, None],
            strip[:, None, :].expand(-1, side, -1),
            strip[:, :, None].expand(-1, -1, side),
        )
        across = torch.where((self.uniform((0, 1)) < 0.5)[:, None, None], across.flip(-2, -1), across)
        bands = self.uniform((0, 1), shape[1]) < 0.5
        some = self.uniform((0, 1)) < self.survey.missing
        return across[:, None] & (bands & some[:, None])[:, :, None, None]

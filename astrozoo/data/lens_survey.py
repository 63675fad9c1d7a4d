"""How stamps of lenses and of galaxies that are mistaken for lenses are observed: :class:`LensSurvey`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from astrozoo.errors import InputError

__all__ = ["KINDS", "SURVEYS", "LensSurvey"]

KINDS = ("lens", "plain", "companions", "spiral", "ring", "merger")
"""Kinds of stamps. "lens" is a red galaxy with the arcs of a galaxy behind it. The others are no lenses: a
red galaxy alone, one with blue companions around it, a spiral, a ring galaxy, and a merger with tidal
arms."""

Range = tuple[float, float]


@dataclass(frozen=True)
class LensSurvey:
    """A survey, and the galaxies in its stamps. Defaults are those of ground-based images in g, r and i.

    Noise and magnitudes are those of the Dark Energy Survey's co-adds, whose zero point is 30.

    Args:
        size: side of a stamp [px].
        bands: their names.
        pixel_scale: range of the side of a pixel [arcsec]. Several values let the weights serve several
            surveys.
        fwhm: range of the width of the PSF in each band [arcsec].
        noise: SD of a pixel's noise in each band.
        noise_scatter: SD of ln(noise), of all bands together; a third of it in each band alone.
        red, blue: magnitudes of a red and of a blue galaxy in each band, minus that in the reddest band.
        magnitude: range of the magnitude of the central galaxy in the last band.
        neighbour_magnitude: the same for other galaxies in the stamp.
        radius: range of the half-light radius of the central galaxy [arcsec]; its logarithm is uniform.
        einstein_radius: range [arcsec]; ln(radius) is uniform.
        snr: range of the signal-to-noise ratio of the arcs, or of the blue part of a galaxy that is no lens,
            of all bands together; its logarithm is uniform.
        gain: range of electrons per unit of flux; its logarithm is uniform.
        missing: fraction of stamps in which a part has no data.
    """

    size: int = 48
    bands: tuple[str, ...] = ("g", "r", "i")
    pixel_scale: Range = (0.19, 0.27)
    fwhm: tuple[Range, ...] = ((0.7, 1.35), (0.65, 1.15), (0.6, 1.05))
    noise: tuple[float, ...] = (2.4, 3.4, 6.3)
    noise_scatter: float = 0.3
    red: tuple[float, ...] = (2.4, 0.75, 0.0)
    blue: tuple[float, ...] = (0.25, 0.12, 0.0)
    magnitude: Range = (18.3, 20.8)
    neighbour_magnitude: Range = (20.5, 24.0)
    radius: Range = (0.45, 2.0)
    einstein_radius: Range = (0.8, 3.0)
    snr: Range = (15.0, 200.0)
    gain: Range = (2.0, 20.0)
    missing: float = 0.03

    def __post_init__(self) -> None:
        counts = {len(x) for x in (self.fwhm, self.noise, self.red, self.blue)}
        if not self.bands or counts != {len(self.bands)}:
            got = f"{len(self.bands)} bands, and PSFs, noise and colours of {sorted(counts)}"
            raise InputError("survey", got, "one of each per band")
        if self.size < 16 or self.size % 8:
            raise InputError("size", self.size, "a multiple of 8, 16 or more")


SURVEYS: Mapping[str, LensSurvey] = {
    "ground": LensSurvey(),
    "space": LensSurvey(
        size=64,
        bands=("VIS",),
        pixel_scale=(0.1, 0.1),
        fwhm=((0.15, 0.2),),
        noise=(0.8,),
        red=(0.5,),
        blue=(0.1,),
        magnitude=(19.0, 22.0),
        neighbour_magnitude=(21.5, 25.5),
        radius=(0.3, 1.5),
        einstein_radius=(0.5, 2.4),
        gain=(5.0, 50.0),
    ),
}
"""Surveys by name: g, r and i from the ground, and one wide band of a space telescope such as Euclid."""

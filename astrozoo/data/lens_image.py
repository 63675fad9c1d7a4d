"""An image of a strong lens with its noise, PSF and mask: the input of every lens model of the zoo.

Pixels are counted as in :mod:`astrozoo.data.images`: ``image[y, x]``, 0-based, integers at pixel centres.
Angular coordinates have their origin at the centre of the array, x to the right and y up [arcsec].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from astropy import units
from jaxtyping import Bool, Float

from astrozoo.errors import InputError

__all__ = ["LensImage"]

_PSF_SUM = 1e-3
"""Greatest difference of a PSF's sum from 1: a larger one would bias every flux by that fraction."""


@dataclass(frozen=True, eq=False)
class LensImage:
    """One image of a lens in one band, sky-subtracted, with its noise, PSF and mask.

    The noise is given in one of two ways: as a map, or as ``background_rms`` and ``exposure``, which give a
    variance of ``background_rms**2 + max(model, 0) / exposure``. In masked pixels, values of the image that
    are not finite become 0, and values of the noise map that are not positive become 1. Otherwise they would
    make gradients NaN.

    Args:
        image: [unit] per pixel.
        psf: kernel with the image's pixel scale, square, of odd side, no larger than the image, summing to
            1. It is applied to an image whose light is already averaged over pixels.
        pixel_scale: side of a pixel [arcsec].
        noise: standard deviations [unit].
        background_rms: standard deviation of the background [unit]; with ``exposure``, in place of ``noise``.
        exposure: electrons per [unit]: the effective exposure time [s] if the unit is electrons per second.
        mask: True where the pixel is used; None for all.
        arc: True on the arcs, for scores and for cutting; None if they are not marked.
        unit: of a pixel's value, as :class:`astropy.units.Unit` reads it; "" if it is unknown.
        band: filter name.
        name: shown in messages and reports.
        provenance: where each part comes from, in words, for reports.

    Raises:
        InputError: a wrong shape; no noise, or both kinds; where the mask is True, noise that is not positive
            or values that are not finite; a mask without a True; a PSF that is missing, even-sized, too large
            or not normalised; or an unknown unit. The message names the image and the field.
    """

    image: Float[np.ndarray, "y x"]
    psf: Float[np.ndarray, "k k"]
    pixel_scale: float
    noise: Float[np.ndarray, "y x"] | None = None
    background_rms: float | None = None
    exposure: float | None = None
    mask: Bool[np.ndarray, "y x"] = None  # type: ignore[assignment]  # __post_init__ makes it an array
    arc: Bool[np.ndarray, "y x"] | None = None
    unit: str = "electron/s"
    band: str = ""
    name: str = "lens"
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        image = self._array("image", float, "a 2-d array")
        if image.ndim != 2 or not image.size:
            raise self._error("image", f"shape {image.shape}", "a 2-d array")
        mask = np.ones(image.shape, bool) if self.mask is None else self._mask("mask", image.shape)
        if not mask.any():
            raise self._error("mask", "no pixel to use", "True where a pixel is used")
        if not np.isfinite(image[mask]).all():
            bad = int((~np.isfinite(image[mask])).sum())
            raise self._error(
                "image", f"{bad} unmasked pixels that are not finite", "finite values, or a mask"
            )
        if not (isinstance(self.pixel_scale, int | float) and 0 < self.pixel_scale < np.inf):
            raise self._error("pixel_scale", self.pixel_scale, "a positive number [arcsec]")
        try:
            units.Unit(self.unit)
        except (ValueError, TypeError) as error:
            expected = "a unit that astropy knows, such as 'electron/s', 'adu', 'uJy'"
            raise self._error("unit", repr(self.unit), expected) from error
        set_ = object.__setattr__
        set_(self, "psf", self._checked_psf(image.shape))
        set_(self, "noise", self._checked_noise(mask))
        set_(self, "image", np.where(mask | np.isfinite(image), image, 0.0))
        set_(self, "mask", mask)
        if self.arc is not None:
            set_(self, "arc", self._mask("arc", image.shape))

    def _error(self, what: str, got: object, expected: str) -> InputError:
        return InputError(f"lens image {self.name!r}: {what}", got, expected)

    def _array(self, what: str, dtype: Any, expected: str) -> np.ndarray:
        value = getattr(self, what)
        if value is None:
            raise self._error(what, None, expected)
        try:
            return np.ascontiguousarray(value, dtype=dtype)
        except (TypeError, ValueError) as error:
            raise self._error(what, type(value).__name__, expected) from error

    def _mask(self, what: str, shape: tuple[int, ...]) -> np.ndarray:
        mask = np.asarray(getattr(self, what))
        if mask.shape != shape:
            raise self._error(what, f"shape {mask.shape}", f"the shape of the image, {shape}")
        if mask.dtype != bool:
            raise self._error(what, f"dtype {mask.dtype}", "booleans, True where the pixel is used")
        return mask

    def _checked_psf(self, shape: tuple[int, ...]) -> np.ndarray:
        psf = self._array("psf", float, "a PSF: a square of odd side, summing to 1")
        if psf.ndim != 2 or psf.shape[0] != psf.shape[1] or psf.shape[0] % 2 == 0:
            raise self._error("psf", f"shape {psf.shape}", "a square of odd side")
        if psf.shape[0] > min(shape):
            raise self._error("psf", f"shape {psf.shape}", f"one no larger than the image, {shape}")
        if not np.isfinite(psf).all():
            raise self._error("psf", "values that are not finite", "finite values")
        if abs(psf.sum() - 1) > _PSF_SUM:
            raise self._error(
                "psf", f"a sum of {psf.sum():.6g}", f"1 within {_PSF_SUM:g}: divide it by its sum"
            )
        return psf

    def _checked_noise(self, mask: np.ndarray) -> np.ndarray | None:
        model = (self.background_rms, self.exposure)
        if (self.noise is None) == (model == (None, None)):
            got = "neither" if self.noise is None else "both"
            raise self._error("noise", got, "a noise map, or background_rms and exposure")
        if self.noise is None:
            for what, value in zip(("background_rms", "exposure"), model, strict=True):
                if value is None or not np.isfinite(value) or value <= 0:
                    raise self._error(what, value, "a positive number")
            return None
        noise = self._array("noise", float, "a map of standard deviations")
        if noise.shape != mask.shape:
            raise self._error("noise", f"shape {noise.shape}", f"the shape of the image, {mask.shape}")
        good = np.isfinite(noise) & (noise > 0)
        if not good[mask].all():
            bad = int((~good[mask]).sum())
            raise self._error(
                "noise", f"{bad} unmasked pixels that are not positive", "standard deviations > 0"
            )
        return np.where(good, noise, 1.0)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Outer edges (left, right, bottom, top) [arcsec], as matplotlib's ``imshow`` takes them."""
        y, x = (0.5 * n * self.pixel_scale for n in self.shape)
        return -x, x, -y, y

    def coordinates(self) -> tuple[Float[np.ndarray, "y x"], Float[np.ndarray, "y x"]]:
        """x and y of every pixel's centre [arcsec]."""
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(float)
        middle_y, middle_x = ((n - 1) / 2 for n in self.shape)
        return (x - middle_x) * self.pixel_scale, (y - middle_y) * self.pixel_scale

    def sigma(self, model: Float[np.ndarray, "y x"] | None = None) -> Float[np.ndarray, "y x"]:
        """Standard deviations of the noise [unit].

        If they depend on the model's image and ``model`` is None, they are computed from the observed image.
        """
        if self.noise is not None:
            return self.noise
        assert self.background_rms is not None
        assert self.exposure is not None
        light = self.image if model is None else model
        return np.sqrt(self.background_rms**2 + np.maximum(light, 0.0) / self.exposure)

    def crop(self, size: int, *, centre: tuple[int, int] | None = None) -> LensImage:
        """The ``size`` x ``size`` pixels around a pixel (row, column); by default the middle of the image.

        With an even size, that pixel is the one just above and right of the box's middle.

        Raises:
            InputError: the box leaves the image, or is smaller than the PSF.
        """
        row, column = (n // 2 for n in self.shape) if centre is None else centre
        y, x = row - size // 2, column - size // 2
        if size < 1 or min(y, x) < 0 or y + size > self.shape[0] or x + size > self.shape[1]:
            raise self._error("crop", f"{size} pixels around {(row, column)}", f"a box inside {self.shape}")
        return self.cut(slice(y, y + size), slice(x, x + size))

    def cut(self, rows: slice, columns: slice) -> LensImage:
        """The given rows and columns.

        Raises:
            InputError: they are smaller than the PSF.
        """
        parts: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows, columns]
            for name in ("image", "noise", "mask", "arc")
        }
        return replace(self, **parts)

    def trim_psf(self, size: int) -> LensImage:
        """The same image with the middle ``size`` x ``size`` pixels of the PSF, normalised again.

        Raises:
            InputError: the size is even or larger than the PSF.
        """
        cut = (len(self.psf) - size) // 2
        if size < 1 or size % 2 == 0 or cut < 0:
            raise self._error("psf size", size, f"an odd number up to {len(self.psf)}")
        psf = self.psf[cut : cut + size, cut : cut + size]
        return replace(self, psf=psf / psf.sum())

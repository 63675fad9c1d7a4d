"""Stamps of single galaxies with the PSF and the noise of each exposure, from files.

A galaxy may have several exposures: other bands, pixel scales and instruments.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from astrozoo.data.fits_file import open_fits
from astrozoo.data.lenses import bands_of
from astrozoo.data.lenses import read as read_image
from astrozoo.errors import DataError, InputError

__all__ = ["Galaxy", "PsfStamp", "read_galaxies"]

_PSF_SUM = 0.02
"""Largest difference of the sum of a PSF from 1. PSFs that are cut at their edges differ by about a
percent."""
_LEAST_SIDE = 8
"""[px] Least side of a stamp: a smaller one shows no galaxy."""


@dataclass(frozen=True, eq=False)
class PsfStamp:
    """One exposure of one galaxy. The sky is subtracted.

    Args:
        image: values of the pixels [unit]. The galaxy is near the middle, ``(side - 1) / 2``.
        psf: of the image's pixel scale, with the pixel, of unit sum; its origin is the middle of its array.
        noise: standard deviation of the noise [unit], one number or a map.
        pixel_scale: side of a pixel [arcsec].
        mask: True where a pixel is used; by default everywhere.
        correlation: correlation function of the noise, lag 0 in the middle. None: white noise.
        zero_point: magnitude of a flux of 1. Exposures of one galaxy are compared by it.
        name: for messages and reports.

    Raises:
        InputError: shapes, values or sizes are wrong; the message says which.
    """

    image: Float[np.ndarray, "y x"]
    psf: Float[np.ndarray, "k l"]
    noise: float | Float[np.ndarray, "y x"]
    pixel_scale: float
    mask: Bool[np.ndarray, "y x"] | None = None
    correlation: Float[np.ndarray, "m n"] | None = None
    zero_point: float = 0.0
    name: str = "galaxy"

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        image, psf = (np.asarray(x, np.float64) for x in (self.image, self.psf))
        if image.ndim != 2 or min(image.shape) < _LEAST_SIDE:
            raise self._error("image", f"shape {image.shape}", f"a 2-d image of {_LEAST_SIDE} px or more")
        if psf.ndim != 2 or not psf.size:
            raise self._error("PSF", f"shape {psf.shape}", "a 2-d image")
        if psf.shape[0] > image.shape[0] or psf.shape[1] > image.shape[1]:
            expected = f"one no larger than the stamp, {image.shape}: cut it (cut_psf), or use a larger stamp"
            raise self._error("PSF", f"shape {psf.shape}", expected)
        if not np.isfinite(psf).all() or abs(psf.sum() - 1) > _PSF_SUM:
            expected = f"finite values with a sum of 1 within {_PSF_SUM:g}: divide it by its sum"
            raise self._error("PSF", f"a sum of {psf.sum():.6g}", expected)
        mask = np.ones(image.shape, bool) if self.mask is None else np.asarray(self.mask)
        if mask.shape != image.shape or mask.dtype != bool or not mask.any():
            got = f"shape {mask.shape} of {mask.dtype} with {int(mask.sum())} pixels to use"
            raise self._error("mask", got, f"booleans of shape {image.shape}, True where a pixel is used")
        if not np.isfinite(image[mask]).all():
            bad = int((~np.isfinite(image[mask])).sum())
            raise self._error("image", f"{bad} pixels that are not finite", "finite values, or a mask")
        noise = np.asarray(self.noise, np.float64)
        if noise.ndim and noise.shape != image.shape:
            raise self._error("noise", f"shape {noise.shape}", f"a number, or a map of shape {image.shape}")
        noise = np.broadcast_to(noise, image.shape)
        good = np.isfinite(noise) & (noise > 0)
        if not good[mask].all():
            bad = int((~good[mask]).sum())
            got = f"{bad} unmasked pixels that are zero, negative or not finite"
            raise self._error("noise", got, "standard deviations above 0")
        if not 0 < self.pixel_scale < np.inf:
            raise self._error("pixel_scale", self.pixel_scale, "a positive number [arcsec]")
        if not np.isfinite(self.zero_point):
            raise self._error("zero_point", self.zero_point, "a number")
        if self.correlation is not None and not mask.all():
            got = f"{int((~mask).sum())} masked pixels"
            raise self._error("correlated noise", got, "no mask: cut the stamp, or state white noise")
        set_(self, "image", np.where(mask, image, 0.0))
        set_(self, "psf", psf / psf.sum())
        set_(self, "noise", np.where(good, noise, 1.0))
        set_(self, "mask", mask)

    def _error(self, what: str, got: object, expected: str) -> InputError:
        return InputError(f"stamp {self.name!r}: {what}", got, expected)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.image.shape[0], self.image.shape[1]


@dataclass(frozen=True, eq=False)
class Galaxy:
    """All exposures of one galaxy.

    Args:
        exposures: their centres are the same point of the sky, and north is up in all or in none.
        name: for messages and reports.
        provenance: what was done to the data -> a line.

    Raises:
        InputError: there is no exposure.
    """

    exposures: tuple[PsfStamp, ...]
    name: str = "galaxy"
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.exposures:
            raise InputError(f"galaxy {self.name!r}", "no exposure", "at least one")


def cut_psf(psf: Float[np.ndarray, "k l"], shape: Sequence[int]) -> Float[np.ndarray, "k l"]:
    """The middle of a PSF, no larger than a shape; its origin stays in the middle. The sum is 1 again."""
    for axis, most in enumerate(shape):
        spare = psf.shape[axis] - most
        if spare > 0:
            side = (spare + 1) // 2
            psf = np.take(psf, range(side, psf.shape[axis] - side), axis)
    return psf / psf.sum()


def cut_stamp(stamp: PsfStamp, size: int) -> PsfStamp:
    """The middle of a stamp and of its PSF, with sides of at most ``size`` px, or one less."""
    cuts = [slice((max(n - size, 0) + 1) // 2, n - (max(n - size, 0) + 1) // 2) for n in stamp.shape]
    rows, columns = cuts
    image = stamp.image[rows, columns]
    noise = np.broadcast_to(stamp.noise, stamp.shape)[rows, columns]
    mask = None if stamp.mask is None else stamp.mask[rows, columns]
    return replace(stamp, image=image, noise=noise, mask=mask, psf=cut_psf(stamp.psf, image.shape))


def read_galaxies(
    path: Path,
    *,
    first: int = 0,
    count: int | None = None,
    size: int | None = None,
    pixel_scale: float | None = None,
    noise: float | None = None,
) -> list[Galaxy]:
    """Galaxies of a file or a folder.

    * A folder with a GalSim catalogue ``real_galaxy_catalog*.fits``: its galaxies, with the noise's variance
      and correlation function.
    * A file ``.npz`` with ``image`` and ``psf``, ``[(n,) y, x]``, with ``noise`` (numbers or maps) and
      ``pixel_scale``, and perhaps ``mask`` (1: used), ``correlation`` and ``zero_point``.
    * A folder with files ``NAME_im.npy``, ``NAME_psf.npy``, ``NAME_sig.npy`` and perhaps ``NAME_mask.npy``
      (1: not used), as pysersic's examples are.
    * Other FITS files or folders of one galaxy: see :func:`astrozoo.data.lenses.read`. Each band is an
      exposure.

    A PSF that is larger than its stamp is cut, and the provenance says so.

    Args:
        first, count: the part of the galaxies that is read; all by default.
        size: largest side of a stamp [px]; larger ones are cut around their middle.
        pixel_scale: [arcsec]; needed where the file does not state it.
        noise: standard deviation of the noise, in place of that of the file [unit].

    Raises:
        DataError: there is no such file, it is unreadable, or a part is missing.
        InputError: the stamps are not valid (:class:`PsfStamp`).
    """
    if not path.exists():
        raise DataError(str(path), "no such file or folder", "stamps of galaxies")
    catalogues = sorted(path.glob("real_galaxy_catalog*.fits")) if path.is_dir() else []
    if catalogues:
        parts = _of_catalogue(path, catalogues[0])
    elif path.suffix == ".npz":
        parts = _of_npz(path)
    elif path.is_dir() and any(path.glob("*_im.npy")):
        parts = _of_npy(path)
    else:
        parts = [_of_fits(path, pixel_scale)]
    chosen = parts[first : None if count is None else first + count]
    if not chosen:
        raise DataError(str(path), f"{len(parts)} galaxies", f"more than {first}")
    return [_galaxy(exposures, size, pixel_scale, noise) for exposures in chosen]


def _galaxy(
    exposures: Sequence[Mapping[str, Any]], size: int | None, pixel_scale: float | None, noise: float | None
) -> Galaxy:
    """The galaxy of the keywords of its stamps."""
    stamps, provenance = [], {}
    for given in exposures:
        values = dict(given)
        if noise is not None:
            values["noise"] = noise
        if pixel_scale is not None:
            values["pixel_scale"] = pixel_scale
        for what, flag in (("noise", "--noise"), ("pixel_scale", "--pixel-scale")):
            if values.get(what) is None:
                raise DataError(f"stamp {values['name']!r}: {what}", "none", f"it in the file, or {flag}")
        shape, before = np.shape(values["image"]), np.shape(values["psf"])
        values["psf"] = cut_psf(np.asarray(values["psf"], np.float64), shape)
        if values["psf"].shape != before:
            provenance[f"PSF of {values['name']}"] = f"cut from {before} to {values['psf'].shape} px"
        stamp = PsfStamp(**values)
        if size is not None and max(stamp.shape) > size:
            cut = cut_stamp(stamp, size)
            provenance[f"stamp {stamp.name}"] = f"cut from {stamp.shape} to {cut.shape} px"
            stamp = cut
        stamps.append(stamp)
    return Galaxy(tuple(stamps), stamps[0].name, provenance)


def _of_catalogue(folder: Path, path: Path) -> list[list[dict[str, Any]]]:
    """Galaxies of a GalSim ``RealGalaxyCatalog``."""
    with open_fits(path) as hdus:
        rows = [dict(zip(hdus[1].columns.names, row, strict=True)) for row in hdus[1].data]
    planes: dict[str, list[np.ndarray | None]] = {}

    def plane(name: str, hdu: int) -> np.ndarray:
        if name not in planes:
            with open_fits(folder / name) as hdus:
                planes[name] = [None if h.data is None else np.array(h.data, np.float64) for h in hdus]
        found = planes[name][hdu] if hdu < len(planes[name]) else None
        if found is None:
            raise DataError(str(folder / name), f"no image in HDU {hdu}", "one, as the catalogue says")
        return found

    galaxies = []
    for row in rows:
        correlation = plane(str(row["NOISE_FILENAME"]).strip(), 0)
        galaxies.append(
            [
                {
                    "image": plane(str(row["GAL_FILENAME"]).strip(), int(row["GAL_HDU"])),
                    "psf": plane(str(row["PSF_FILENAME"]).strip(), int(row["PSF_HDU"])),
                    "noise": float(row["NOISE_VARIANCE"]) ** 0.5,
                    "pixel_scale": float(row["PIXEL_SCALE"]),
                    "correlation": correlation,
                    "name": str(row["IDENT"]),
                }
            ]
        )
    return galaxies


def _of_npz(path: Path) -> list[list[dict[str, Any]]]:
    try:
        # of a corrupt file that it opens itself, NumPy leaves the stream open
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(str(path), f"{type(error).__name__}: {error}", "a complete NumPy file") from error
    for name in ("image", "psf"):
        if name not in arrays or arrays[name].ndim not in (2, 3):
            got = f"shape {arrays[name].shape}" if name in arrays else f"arrays {sorted(arrays)}"
            raise DataError(f"{path}: {name}", got, f"{name} [(n,) y, x]")
    one = arrays["image"].ndim == 2
    images = arrays["image"][None] if one else arrays["image"]
    count = len(images)

    def of_galaxy(name: str, axes: int, i: int) -> Any:
        """The part of an array that belongs to a galaxy; an array without their axis is that of all."""
        if name not in arrays:
            return None
        array = arrays[name]
        if one or array.ndim == axes:
            return array
        if array.ndim != axes + 1 or len(array) != count:
            raise DataError(f"{path}: {name}", f"shape {array.shape}", f"{count} along the first axis")
        return array[i]

    galaxies = []
    for i, image in enumerate(images):
        # one noise map for all galaxies would have the shape of a stamp
        noise = arrays.get("noise")
        maps = noise is not None and noise.shape[-2:] == image.shape
        stamp = {"image": image, "psf": of_galaxy("psf", 2, i), "name": f"{path.stem}[{i}]"}
        stamp["noise"] = of_galaxy("noise", 2 if maps else 0, i)
        for name, axes in (("pixel_scale", 0), ("zero_point", 0)):
            value = of_galaxy(name, axes, i)
            if value is not None:
                stamp[name] = float(value)
        mask, correlation = of_galaxy("mask", 2, i), of_galaxy("correlation", 2, i)
        stamp["mask"] = None if mask is None else np.asarray(mask) != 0
        stamp["correlation"] = correlation
        galaxies.append([stamp])
    return galaxies


def _of_npy(folder: Path) -> list[list[dict[str, Any]]]:
    galaxies = []
    for image in sorted(folder.glob("*_im.npy")):
        name = image.name.removesuffix("_im.npy")
        parts = {part: folder / f"{name}_{part}.npy" for part in ("im", "psf", "sig", "mask")}
        arrays: dict[str, np.ndarray] = {}
        for part, path in parts.items():
            if path.is_file():
                try:
                    arrays[part] = np.load(path, allow_pickle=False)
                except (OSError, ValueError, EOFError) as error:
                    got = f"{type(error).__name__}: {error}"
                    raise DataError(str(path), got, "a complete NumPy file") from error
        if "psf" not in arrays:
            raise DataError(str(parts["psf"]), "no such file", f"the PSF of {name}")
        mask = None if "mask" not in arrays else arrays["mask"] == 0
        stamp = {"image": arrays["im"], "psf": arrays["psf"], "noise": arrays.get("sig"), "name": name}
        galaxies.append([stamp | {"mask": mask}])
    return galaxies


def _of_fits(path: Path, pixel_scale: float | None) -> list[dict[str, Any]]:
    exposures = []
    bands: list[str | None] = [*bands_of(path)]
    for band in bands or [None]:
        image = read_image(path, band=band, pixel_scale=pixel_scale)
        exposures.append(
            {
                "image": image.image,
                "psf": image.psf,
                "noise": image.sigma(),
                "pixel_scale": image.pixel_scale,
                "mask": image.mask,
                "name": f"{image.name} {band}" if band else image.name,
            }
        )
    return exposures

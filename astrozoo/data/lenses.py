"""Readers of strong lenses: FITS files of any telescope, the GIGA-Lens demo, and astrozoo's own format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from astropy.io import fits
from jaxtyping import Bool, Float
from regions import PixCoord, PixelRegion, Regions

from astrozoo._files import replacing
from astrozoo.data.lens_files import Plane, checked_shape, choose, named_plane, planes_of
from astrozoo.data.lens_image import LensImage
from astrozoo.data.lens_noise import noise_from_exposure, noise_from_weight
from astrozoo.data.lens_units import pixel_scale_of, unit_of
from astrozoo.errors import DataError, UnknownNameError

__all__ = ["LensImage", "Stated", "bands_of", "read", "read_gigalens", "region_mask", "write"]

_NO_DATA = 1e4
"""[median noise] Pixels with this much noise or more are masked: archives mark missing data so (the noise of
the brightest pixel of a galaxy is below 100 medians)."""
_MAGZERO_OF_MICROJANSKY = 23.9
"""[mag] AB magnitude of 1 microjansky."""
_FEW = 0.2
"""Largest fraction of the frame that a mask of bad pixels may cover to be recognised as such."""
_PSF_WINGS = -0.02
"""[peak] The lowest value of a PSF: deeper ones are no noise, but a picture of something else."""
_FORMAT = "ASTROZOO-LENS-1"
"""Value of the FORMAT keyword in files of :func:`write`."""


class Stated(TypedDict, total=False):
    """What a user states about the files of a lens, where their names and headers do not tell.

    Planes are ``FILE``, ``FILE[3]`` or ``FILE[SCI]``. A noise map holds standard deviations, and a weight map
    inverse variances or exposure times.
    """

    band: str | None
    """Needed where the files have several bands and none is VIS."""
    image: str | None
    noise: str | None
    weight: str | None
    psf: str | None
    mask: str | None
    good: int | None
    """The value of ``mask`` in pixels to use, 0 or 1. By default it is deduced."""
    pixel_scale: float | None
    """[arcsec] It replaces that of the header."""
    unit: str | None
    """Unit of the image. It replaces ``BUNIT``."""
    exposure: float | None
    """Electrons per unit of the image. It replaces a noise map: the background's noise is then measured in
    the image."""


def read(path: str | Path, **stated: Unpack[Stated]) -> LensImage:
    """A lens from a file or a folder. Names and contents decide what is what.

    * FITS files, alone or in a folder: the roles of their planes come from the names of files and extensions
      (:mod:`astrozoo.data.lens_files`). The fields of :class:`Stated` name what is not recognised.
    * A FITS file of :func:`write`.
    * A folder with ``demo.npy`` and ``psf.npy``: :func:`read_gigalens`.

    A folder may also hold DS9 regions in image coordinates: ``mask.reg`` marks the pixels to use, and
    ``arcmask.reg`` the arcs. If it holds a ``cutout.fits`` that is a part of the image, the image is cut to
    that part, to which the regions ``cutout_likelihood_mask.reg`` and ``cutout_arcmask.reg`` then belong.
    An image with ``MAGZERO`` in its header is converted to microjansky, so that bands can be compared.

    Raises:
        DataError: a file is missing or unreadable, or a plane or a card that is needed is missing or
            ambiguous. The message names the flag that supplies it.
        InputError: the planes do not make a valid lens image.
        UnknownNameError: a keyword is no field of :class:`Stated`.
    """
    for name in stated:
        if name not in Stated.__annotations__:
            raise UnknownNameError("keyword of a lens", name, Stated.__annotations__)
    path = Path(path)
    if not path.exists():
        raise DataError(str(path), "no such file or folder", "a lens")
    if path.is_dir() and (path / "demo.npy").is_file():
        return read_gigalens(path)
    folder = path if path.is_dir() else path.parent
    planes = planes_of(path)
    if path.is_file() and planes and planes[0].header.get("FORMAT") == _FORMAT:
        return _read_astrozoo(path)
    flags = {role: stated.get(role) for role in ("image", "noise", "weight", "psf", "mask")}
    for role, text in flags.items():
        if text is not None:
            others = [p for p in planes if p.role != role]
            planes = [*others, replace(named_plane(str(text), folder), role=role)]
    band = _band(planes, stated.get("band"), path)
    roles = {role: choose(planes, role, band) for role in (*flags, "variance", "flags")}
    if flags["image"] is not None:
        roles["image"] = next(p for p in planes if p.role == "image")
    if any(stated.get(name) is not None for name in ("noise", "weight", "exposure")):
        roles |= {role: None for role in ("noise", "variance", "weight") if flags.get(role) is None}
    for role in ("image", "psf"):
        if roles[role] is None:
            got = f"no {role} among {', '.join(p.address for p in planes) or 'no 2-d planes'}"
            raise DataError(str(path), got, f"one; name it with --{role} FILE[HDU]")
    return _cut_and_masked(_assembled(path, roles, band, stated), folder, planes)


def bands_of(path: str | Path) -> list[str]:
    """The bands of the images in a file or folder, VIS first.

    Raises:
        DataError: as :func:`read`.
    """
    bands = {plane.band for plane in planes_of(Path(path)) if plane.role == "image" and plane.band}
    return sorted(bands, key=lambda band: (band != "VIS", band))


def write(lens: LensImage, path: str | Path) -> Path:
    """Write one FITS file that :func:`read` reads back exactly. It is written under a temporary name first.

    Raises:
        OutputError: if it cannot be written. A file already at ``path`` is then left as it was.
    """
    path = Path(path)
    header = fits.Header()
    header["FORMAT"] = _FORMAT
    header["NAME"], header["BAND"], header["BUNIT"] = lens.name, lens.band, lens.unit
    header["PIXSCALE"] = (lens.pixel_scale, "[arcsec]")
    if lens.noise is None:
        header["BACKRMS"], header["EXPOSURE"] = lens.background_rms, lens.exposure
    planes = [fits.PrimaryHDU(lens.image, header), fits.ImageHDU(lens.psf, name="PSF")]
    if lens.noise is not None:
        planes.append(fits.ImageHDU(lens.noise, name="NOISE"))
    for what in ("mask", "arc"):
        if getattr(lens, what) is not None:
            planes.append(fits.ImageHDU(getattr(lens, what).astype(np.uint8), name=what.upper()))
    with replacing(path) as partial:
        fits.HDUList(planes).writeto(partial, overwrite=True)
    return path


def _read_astrozoo(path: Path) -> LensImage:
    planes = planes_of(path)
    header = planes[0].header
    arrays: dict[str, Any] = {plane.name: plane.data for plane in planes[1:]}
    try:
        return LensImage(
            image=planes[0].data,
            psf=arrays["PSF"],
            pixel_scale=header["PIXSCALE"],
            noise=arrays.get("NOISE"),
            background_rms=header.get("BACKRMS"),
            exposure=header.get("EXPOSURE"),
            mask=arrays["MASK"].astype(bool),
            arc=arrays["ARC"].astype(bool) if "ARC" in arrays else None,
            unit=header["BUNIT"],
            band=header["BAND"],
            name=header["NAME"],
        )
    except KeyError as error:
        raise DataError(
            str(path), f"no keyword or extension {error}", "a lens written by astrozoo"
        ) from error


def read_gigalens(folder: str | Path) -> LensImage:
    """The GIGA-Lens demo, a folder of ``demo.npy`` and ``psf.npy``.

    Pixels are 0.065 arcsec wide. The variance of a pixel is 0.2^2 + model / 100.

    Raises:
        DataError: a file is missing or is not an array.

    References:
        Gu et al. 2022, ApJ 935, 49.
    """
    arrays = []
    for name in ("demo.npy", "psf.npy"):
        path = Path(folder) / name
        try:
            arrays.append(np.load(path, allow_pickle=False).astype(float))
        except (OSError, ValueError) as error:
            raise DataError(str(path), f"no array ({error})", "the GIGA-Lens demo") from error
    return LensImage(
        image=arrays[0],
        psf=arrays[1],
        pixel_scale=0.065,
        background_rms=0.2,
        exposure=100.0,
        name="gigalens demo",
    )


def region_mask(path: str | Path, shape: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """True in the regions of a DS9 file in image coordinates.

    A region is a hole if it is marked as excluded, or if its centre lies in a larger region.

    Raises:
        DataError: the file does not exist, is not readable as regions, or is in celestial coordinates.
    """
    try:
        all_regions = Regions.read(str(path), format="ds9")
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"unreadable ({error})", "DS9 regions") from error
    if not len(all_regions) or not all(isinstance(region, PixelRegion) for region in all_regions):
        raise DataError(
            str(path), [type(region).__name__ for region in all_regions], "DS9 regions, `image` ones"
        )
    mask = np.zeros(shape, bool)
    larger: list[Any] = []
    for region in sorted(all_regions, key=lambda region: -region.area):
        inside = region.to_mask(mode="center").to_image(shape)
        if inside is None:
            continue  # outside the image
        row, column = region.bounding_box.center
        hole = any(outer.contains(PixCoord(column, row)) for outer in larger)
        if hole or not region.meta.get("include", True):
            mask &= ~inside.astype(bool)
        else:
            mask |= inside.astype(bool)
        larger.append(region)
    return mask


def _band(planes: Sequence[Plane], band: str | None, path: Path) -> str:
    """The band to read."""
    known = sorted({p.band for p in planes if p.role == "image" and p.band}, key=lambda b: (b != "VIS", b))
    if band is not None:
        found = next((b for b in known if b.lower() == band.lower()), None)
        if found is None and known:
            raise DataError(str(path), f"band {band!r}", f"one of {', '.join(known)}")
        return found or band
    if len(known) > 1 and known[0] != "VIS":
        raise DataError(str(path), f"images in the bands {', '.join(known)}", "one; name it with --band")
    return known[0] if known else ""


def _assembled(path: Path, roles: dict[str, Plane | None], band: str, stated: Stated) -> LensImage:
    """The lens image of planes by role."""
    plane, kernel = roles["image"], roles["psf"]
    assert plane is not None
    assert kernel is not None
    pixels, shape = plane.data, (plane.data.shape[0], plane.data.shape[1])
    origin = {"image": plane.address, "PSF": kernel.address}
    unit, origin["unit"] = unit_of(plane, stated.get("unit"))
    scale, origin["pixel scale"] = pixel_scale_of(plane, stated.get("pixel_scale"))
    sigma, origin["noise"] = _noise(roles, shape, unit, stated.get("exposure"), path)
    used = np.isfinite(pixels) & np.isfinite(sigma) & (sigma > 0)
    if used.any():
        used &= sigma < _NO_DATA * np.quantile(sigma[used], 0.1)
    for role in ("flags", "mask"):
        marked = roles[role]
        if marked is not None:
            inside, meaning = _used(marked, role, stated.get("good"), shape)
            used &= inside
            origin[role] = f"{marked.address}: {meaning}"
    factor = 1.0
    if "MAGZERO" in plane.header:
        zero_point = plane.header["MAGZERO"]
        if not isinstance(zero_point, int | float):
            raise DataError(f"card MAGZERO of {plane.address}", repr(zero_point), "a magnitude")
        factor, unit = 10 ** (0.4 * (_MAGZERO_OF_MICROJANSKY - zero_point)), "uJy"
        origin["unit"] = f"uJy, by MAGZERO {zero_point:g}"
    return LensImage(
        image=pixels * factor,
        noise=np.where(used, sigma, 1.0) * factor,
        psf=_centred_psf(kernel, shape),
        pixel_scale=scale,
        mask=used,
        unit=unit,
        band=band,
        name=path.name.split(".")[0] if path.is_file() else path.name,
        provenance=origin,
    )


def _noise(
    roles: dict[str, Plane | None], shape: tuple[int, int], unit: str, exposure: float | None, path: Path
) -> tuple[Float[np.ndarray, "y x"], str]:
    """Standard deviations, and where they come from."""
    image, noise, variance, weight = (roles[role] for role in ("image", "noise", "variance", "weight"))
    assert image is not None
    if noise is not None:
        return checked_shape(noise, shape, "noise"), noise.address
    if variance is not None:
        values = checked_shape(variance, shape, "variance")
        return np.sqrt(np.where(values > 0, values, np.nan)), f"{variance.address}: variances"
    if weight is not None:
        sigma, meaning = noise_from_weight(
            checked_shape(weight, shape, "weight"), image.data, unit, weight.address, _exposure_time(image)
        )
        return sigma, f"{weight.address}: {meaning}"
    if exposure is not None:
        return noise_from_exposure(
            image.data, exposure
        ), f"measured background, {exposure:g} electrons a unit"
    raise DataError(
        str(path),
        "no noise, variance or weight map",
        "one; name it with --noise or --weight FILE[HDU], or give --exposure",
    )


def _exposure_time(plane: Plane) -> float | None:
    """[s] That of the header; None if it has none."""
    cards = (plane.header.get(card) for card in ("EXPTIME", "TEXPTIME", "EXPOSURE"))
    return next((float(value) for value in cards if isinstance(value, int | float) and value > 0), None)


def _used(
    plane: Plane, role: str, good: int | None, shape: tuple[int, int]
) -> tuple[Bool[np.ndarray, "y x"], str]:
    """Where pixels are used, and which values mean that.

    Of flags, 0. Of a mask, the value that is given; else the value in the middle, if it is another than in
    the corners; else, if nearly all pixels have one value, that value.

    Raises:
        DataError: it cannot be deduced.
    """
    marked = checked_shape(plane, shape, role) != 0
    if role == "mask" and good is not None:
        return marked == bool(good), f"{good} marks pixels to use"
    share = float(marked.mean())
    if role == "flags":
        return ~marked, f"0 marks pixels to use ({share:.1%} flagged)"
    ny, nx = (max(n // 8, 1) for n in shape)
    middle = marked[3 * ny : -3 * ny or None, 3 * nx : -3 * nx or None].mean() > 0.5
    corners = np.mean([marked[:ny, :nx], marked[-ny:, :nx], marked[:ny, -nx:], marked[-ny:, -nx:]]) > 0.5
    if middle != corners:
        value = middle
    elif min(share, 1 - share) <= _FEW:
        value = share > 0.5
    else:
        expected = "a mask that tells which pixels to use; say so with --good 0 or --good 1"
        raise DataError(plane.address, f"{share:.0%} of pixels marked, neither middle nor corners", expected)
    return marked == value, f"{int(value)} marks pixels to use ({np.mean(marked != value):.1%} masked)"


def _centred_psf(plane: Plane, shape: tuple[int, int]) -> Float[np.ndarray, "k k"]:
    """A PSF of odd side, around its brightest pixel, that sums to 1 and is no larger than the image.

    Raises:
        DataError: it is no image of a point: negative, not finite, or brightest off its middle.
    """
    psf = plane.data
    if not np.isfinite(psf).all() or psf.sum() <= 0 or psf.min() < _PSF_WINGS * psf.max():
        raise DataError(
            plane.address, f"values from {psf.min():.3g} to {psf.max():.3g}", "the image of a point"
        )
    y, x = (int(i) for i in np.unravel_index(psf.argmax(), psf.shape))
    if max(abs(y - (psf.shape[0] - 1) / 2), abs(x - (psf.shape[1] - 1) / 2)) > 1.5:
        got = f"a peak at row {y}, column {x} of {psf.shape}"
        raise DataError(plane.address, got, "a PSF whose peak is in the middle")
    half = min(y, x, psf.shape[0] - 1 - y, psf.shape[1] - 1 - x, (min(shape) - 1) // 2)
    cut = psf[y - half : y + half + 1, x - half : x + half + 1]
    return cut / cut.sum()


def _cut_and_masked(lens: LensImage, folder: Path, planes: Sequence[Plane]) -> LensImage:
    """The lens with the regions of its folder; cut to its ``cutout.fits``, if there is one."""
    cutout = folder / "cutout.fits"
    part = next((p for p in planes if p.file == cutout), None)
    prefix = ""
    if part is not None and part.address != lens.provenance["image"] and part.data.shape < lens.shape:
        reference = next((p for p in planes if p.role == "image" and p.band == "VIS"), None)
        whole = lens.image if reference is None else reference.data
        y, x = _locate(part.data, whole, str(cutout))
        lens = lens.cut(y, x)
        prefix = "cutout_"
    mask_file = folder / (f"{prefix}likelihood_mask.reg" if prefix else "mask.reg")
    if mask_file.is_file():
        lens = replace(lens, mask=lens.mask & region_mask(mask_file, lens.shape))
    arc_file = folder / f"{prefix}arcmask.reg"
    if arc_file.is_file():
        lens = replace(lens, arc=region_mask(arc_file, lens.shape))
    return lens


def _locate(part: np.ndarray, whole: np.ndarray, what: str) -> tuple[slice, slice]:
    """The rows and columns of ``whole`` that equal ``part``. Candidates match its brightest pixel."""
    peak = np.unravel_index(part.argmax(), part.shape)
    for y, x in np.argwhere(np.isclose(whole, part.max(), rtol=1e-6)) - peak:
        box = (slice(y, y + part.shape[0]), slice(x, x + part.shape[1]))
        if min(y, x) >= 0 and whole[box].shape == part.shape and np.allclose(whole[box], part, rtol=1e-5):
            return box
    raise DataError(what, f"{part.shape} pixels that are not in the image", "a part of it")

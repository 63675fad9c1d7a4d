"""Readers of the Sloan Digital Sky Survey: corrected frames, Stripe-82 stamps and catalogues.

Frames are images in nanomaggies without the sky. The reader computes the electrons that the detector counted
from the frame's calibration and sky: ``electrons = (frame / calibration + sky) * gain``.

References:
    SDSS data model, ``frame``, ``psField`` and ``fpM`` files (https://data.sdss.org/datamodel).
    Lupton, Gunn & Szalay 1999, AJ 118, 1406 (asinh magnitudes).
"""

from __future__ import annotations

import re
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from astropy.io import fits
from astropy.stats import sigma_clip
from astropy.table import Table
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS
from jaxtyping import Bool, Float

from astrozoo.data.eigen_psf import EigenPsf, wing_of_profile
from astrozoo.data.fits_file import open_fits, unpacked
from astrozoo.data.images import Field, GaussianMixture, Image, check_overlap
from astrozoo.data.psf import MixturePsf
from astrozoo.data.wcs import celestial_wcs
from astrozoo.errors import DataError, InputError

__all__ = ["read_catalog", "read_field", "read_stamps"]

_BANDS = "ugriz"
_NOISE_CELL = 64
"""[px] Side of the cells in which the scatter of the sky is measured."""
_CLIPPED_VARIANCE = 0.9733
"""Variance of a unit normal that is clipped at 3 sigma; measured variances are divided by it."""
_SUFFIX = r"\.fits?(?:\.bz2|\.gz)?"
_FRAME = re.compile(r"frame-([ugriz])-(\d{6})-(\d)-(\d{4})" + _SUFFIX)
_BAD_PLANES = ("S_MASK_INTERP", "S_MASK_SATUR", "S_MASK_NOTCHECKED", "S_MASK_GHOST", "S_MASK_CR")
_COMPLETE = "a complete SDSS file"
_COADD_SOFTENING = {"u": 1.0e-11, "g": 0.43e-11, "r": 0.81e-11, "i": 1.4e-11, "z": 3.7e-11}
"""[maggies] Softening b of the asinh magnitudes of Stripe 82's co-add, by band."""


def read_field(
    folder: str | Path,
    *,
    run: int | None = None,
    camcol: int | None = None,
    field: int | None = None,
    bands: str = _BANDS,
    masks: bool = True,
) -> Field:
    """One SDSS field from its ``frame``, ``psField`` and ``fpM`` files.

    A pixel is invalid if the survey marked it as interpolated, saturated, not checked, a ghost or hit by a
    cosmic ray. It is also invalid if its value is not finite or its counts are negative; such counts are
    replaced by the sky, so that every number in the field is finite.

    Args:
        folder: the folder of the files (``.fit`` or ``.fits``, plain, ``.gz`` or ``.bz2``).
        run: survey run; only needed if the folder holds several fields.
        camcol: camera column; likewise.
        field: number of the field in the run; likewise.
        bands: the bands to read, in this order.
        masks: read the ``fpM`` masks. Without them, bad and saturated pixels count as valid.

    Raises:
        DataError: a file is missing, truncated or not of its format, or two bands do not show the same sky;
            the message names the file.
        InputError: a band is unknown, or the folder holds several fields that match.
    """
    folder = Path(folder)
    if not bands or set(bands) - set(_BANDS) or len(set(bands)) != len(bands):
        raise InputError("SDSS bands", repr(bands), f"different letters of {_BANDS!r}")
    number, column, position = _identify(folder, run, camcol, field)
    tag = f"{number:06d}-{column}-{position:04d}"
    psf_path = _find(folder, f"psField-{tag}")
    psfs, gains, dark_variances = _read_psf_field(psf_path, bands)
    paths = {band: _find(folder, f"frame-{band}-{tag}") for band in bands}
    mask_paths = {
        band: _find(folder, f"fpM-{number:06d}-{band}{column}-{position:04d}") if masks else None
        for band in bands
    }
    images = []
    with ThreadPoolExecutor(len(bands)) as pool:  # decompression is most of the work and releases the GIL
        packed = {b: pool.submit(unpacked, path) for b, path in paths.items() if path.suffix == ".bz2"}
        for band, path in paths.items():
            noise = gains[band], dark_variances[band]
            images.append(_read_frame(path, mask_paths[band], band, *noise, psfs[band], packed.get(band)))
    meta = {"survey": "SDSS", "run": str(number), "camcol": str(column), "field": str(position)}
    sky = Field(tuple(images), name=f"sdss-{tag}", meta=meta | {"masks": str(masks)})
    check_overlap(sky)
    return sky


def read_stamps(folder: str | Path, name: str, *, bands: str = _BANDS) -> Field:
    """Every epoch and band of a Stripe-82 stamp: ``stamp-<band>-<name>*.fits`` (or ``.gz``).

    Each file alternates images [nanomaggies, sky-subtracted] and their inverse variances. Electrons follow
    from the headers' ``CALIB`` (nanomaggies per count), ``SKY``, ``GAIN`` and ``DARKVAR``. The variance that
    they imply agrees with the published inverse variance within 1.5 % in each of 35 stamps. The stamps are
    resampled, so their noise is correlated, and its variance from pixel to pixel is 0.55 to 1.2 (median 0.81)
    of that value. An inverse variance of 0 marks an invalid pixel; saturated pixels are not marked
    separately. The PSF is the headers' mixture of 3 Gaussians, with its weights (which sum to 1.01 to 1.11)
    normalised.

    Raises:
        DataError: a band is missing, or a file is truncated or lacks a header card.
    """
    folder = Path(folder)
    images = []
    for band in bands:
        path = _find(folder, f"stamp-{band}-{name}*")
        with open_fits(path, _COMPLETE) as hdus:
            if len(hdus) % 2:
                raise DataError(str(path), f"{len(hdus)} HDUs", "pairs of an image and its inverse variance")
            images += [
                _stamp_image(path, band, hdus[k], np.asarray(hdus[k + 1].data, float))
                for k in range(0, len(hdus), 2)
            ]
    return Field(tuple(images), name=f"stamp-{name}", meta={"survey": "SDSS", "stamp": name})


def read_catalog(path: str | Path) -> Table:
    """An SDSS catalogue, with the same column names for each kind of file.

    Columns that the file lacks are left out. It reads ``photoObj`` files, Stripe-82 co-add tables (whose
    asinh magnitudes are converted to fluxes with the co-add's softening) and the tables that come with
    stamps.

    Returns:
        ``ra``, ``dec`` [deg]; ``is_star``; ``psfflux_b``, ``devflux_b``, ``expflux_b`` [nanomaggies] per
        band b; ``fracdev`` (de Vaucouleurs fraction, r band); ``dev_radius``, ``exp_radius`` (half-light,
        arcsec, r band), ``dev_ab``, ``exp_ab`` (axis ratio), ``dev_phi``, ``exp_phi`` (position angle,
        degrees east of north). Missing values are NaN.

    Raises:
        DataError: the file does not exist, is not a FITS table, or has no ra and dec.
    """
    path = Path(path)
    with open_fits(path, _COMPLETE) as hdus:
        if len(hdus) < 2 or not isinstance(hdus[1], fits.BinTableHDU):
            raise DataError(str(path), "no table in HDU 1", "an SDSS catalogue")
        names = {name.lower(): name for name in hdus[1].columns.names}
        raw = {low: np.array(hdus[1].data[name]) for low, name in names.items()}
    if not {"ra", "dec"} <= raw.keys():
        raise DataError(str(path), f"columns {', '.join(sorted(raw)[:8])} ...", "columns ra and dec")
    table = Table(
        {"ra": raw["ra"].astype(float), "dec": raw["dec"].astype(float)}, meta={"source": path.name}
    )
    if "objc_type" in raw:
        table["is_star"] = raw["objc_type"] == 6
    elif "probpsf" in raw:
        table["is_star"] = raw["probpsf"] > 0.5
    elif "is_star" in raw:
        table["is_star"] = raw["is_star"] != 0
    for kind in ("psf", "dev", "exp"):
        for index, band in enumerate(_BANDS):
            flux = _catalog_flux(raw, kind, band, index)
            if flux is not None:
                table[f"{kind}flux_{band}"] = flux
    for new, old in _SHAPES.items():
        values = next((raw[name] for name in old if name in raw), None)
        if values is not None:
            table[new] = _missing_to_nan(values[:, 2] if values.ndim == 2 else values)
    return table


_SHAPES = {
    "fracdev": ("fracdev_r", "fracdev", "frac_dev"),
    "dev_radius": ("devrad_r", "theta_dev"),
    "exp_radius": ("exprad_r", "theta_exp"),
    "dev_ab": ("devab_r", "ab_dev"),
    "exp_ab": ("expab_r", "ab_exp"),
    "dev_phi": ("devphi_r", "phi_dev_deg", "phi_dev"),
    "exp_phi": ("expphi_r", "phi_exp_deg", "phi_exp"),
}


def _catalog_flux(raw: dict[str, np.ndarray], kind: str, band: str, index: int) -> np.ndarray | None:
    if f"{kind}flux" in raw:
        return _missing_to_nan(raw[f"{kind}flux"][:, index])
    if f"{kind}flux_{band}" in raw:
        return _missing_to_nan(raw[f"{kind}flux_{band}"])
    if f"{kind}mag_{band}" in raw:
        softening = _COADD_SOFTENING[band]
        magnitude = _missing_to_nan(raw[f"{kind}mag_{band}"])
        return 1e9 * 2 * softening * np.sinh(-magnitude * np.log(10) / 2.5 - np.log(softening))
    return None


def _missing_to_nan(values: np.ndarray) -> np.ndarray:
    values = values.astype(float)
    return np.where(values <= -9999, np.nan, values)


def _identify(folder: Path, run: int | None, camcol: int | None, field: int | None) -> tuple[int, int, int]:
    if not folder.is_dir():
        raise DataError(str(folder), "no such folder", "a folder of SDSS frames")
    matches = [match for path in folder.iterdir() if (match := _FRAME.fullmatch(path.name))]
    fields = {(int(match[2]), int(match[3]), int(match[4])) for match in matches}
    wanted = {
        key
        for key in fields
        if all(want is None or want == number for want, number in zip((run, camcol, field), key, strict=True))
    }
    if not wanted:
        raise DataError(
            str(folder), f"fields {sorted(fields)}", f"frames of run {run}, camcol {camcol}, field {field}"
        )
    if len(wanted) > 1:
        raise InputError(
            f"SDSS field in {folder}", f"several: {sorted(wanted)}", "run, camcol and field of one"
        )
    return wanted.pop()


def _find(folder: Path, stem: str) -> Path:
    pattern = re.compile(re.escape(stem).replace(r"\*", r"[^/]*") + _SUFFIX)
    paths = (
        sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name)) if folder.is_dir() else []
    )
    if not paths:
        raise DataError(
            str(folder / f"{stem}.fits"), "no such file", "this file, as .fit or .fits (.gz, .bz2)"
        )
    return paths[0]


def _read_frame(
    path: Path,
    mask_path: Path | None,
    band: str,
    gain: float,
    dark_variance: float,
    psf: EigenPsf,
    opened: Future[BinaryIO] | None,
) -> Image:
    with open_fits(path, _COMPLETE, stream=opened) as hdus:
        if len(hdus) < 3:
            raise DataError(str(path), f"{len(hdus)} HDUs", "image, calibration and sky (3 HDUs or more)")
        unit = str(hdus[0].header.get("BUNIT", "nanomaggy"))
        if not unit.lower().startswith(("nanomagg", "nmgy")):
            raise DataError(str(path), f"pixels in {unit!r}", "a sky-subtracted frame in nanomaggies")
        flux = np.asarray(hdus[0].data, dtype=float)
        nanomaggies_per_count = np.asarray(hdus[1].data, dtype=float)
        coarse, x, y = (np.asarray(hdus[2].data[name][0], float) for name in ("ALLSKY", "XINTERP", "YINTERP"))
        wcs = celestial_wcs(hdus[0].header, str(path))
    if flux.ndim != 2 or nanomaggies_per_count.shape != flux.shape[1:] or (len(y), len(x)) != flux.shape:
        got = f"image {flux.shape}, calibration {nanomaggies_per_count.shape}, sky {len(y), len(x)}"
        raise DataError(str(path), got, "one calibration per column and one sky position per row and column")
    if not (np.isfinite(nanomaggies_per_count).all() and (nanomaggies_per_count > 0).all()):
        raise DataError(str(path), "a calibration that is not positive", "positive nanomaggies per count")
    sky = _interpolate(_interpolate(coarse, y).T, x).T * gain
    calibration = np.broadcast_to(gain / nanomaggies_per_count, flux.shape).copy()
    bad, saturated = np.zeros(flux.shape, bool), np.zeros(flux.shape, bool)
    if mask_path is not None:
        bad, saturated = _read_masks(mask_path, flux.shape)
    electrons = flux * calibration + sky
    noise = _read_noise(electrons, sky, ~bad, gain**2 * dark_variance)
    return _image(band, electrons, sky, noise, calibration, ~bad, saturated, wcs, psf, path)


def _read_noise(
    electrons: Float[np.ndarray, "y x"],
    sky: Float[np.ndarray, "y x"],
    good: Bool[np.ndarray, "y x"],
    published: float,
) -> float:
    """Read-noise variance [electrons^2]: the variance of empty sky, minus that of Poisson noise.

    The pipeline's dark variance is that of the chip when it was characterised. The noise of a frame can
    differ (in band u of run 2583, camcol 2, it is half of it). The clipped variance is therefore measured in
    cells of 64 px. The result is the median over the third of the cells that clipping changed least, which
    are the emptiest. A frame of fewer than 16 cells has the published variance.
    """
    ny, nx = (n // _NOISE_CELL for n in electrons.shape)
    if ny * nx < 16:
        return published
    cut = (slice(ny * _NOISE_CELL), slice(nx * _NOISE_CELL))

    def cells(array: np.ndarray) -> np.ndarray:
        blocks = array[cut].reshape(ny, _NOISE_CELL, nx, _NOISE_CELL).swapaxes(1, 2)
        return blocks.reshape(ny * nx, -1)

    excess = np.where(cells(good), cells(electrons - sky), np.nan)
    usable = np.isfinite(excess).mean(1) > 0.5
    excess, level = excess[usable], cells(sky)[usable].mean(1)
    if len(excess) < 16:
        return published
    with warnings.catch_warnings():
        # Masked pixels are NaN: sigma_clip leaves them out, as intended, and warns.
        warnings.simplefilter("ignore", AstropyUserWarning)
        clipped = sigma_clip(excess, sigma=3, maxiters=10, axis=1, masked=False)
    clipped_fraction = np.isnan(clipped).mean(1) - np.isnan(excess).mean(1)
    empty = clipped_fraction <= np.percentile(clipped_fraction, 33)
    variance = np.nanvar(clipped, axis=1)[empty] / _CLIPPED_VARIANCE
    return max(float(np.median(variance - level[empty])), 0.0)


def _image(
    band: str,
    electrons: Float[np.ndarray, "y x"],
    sky: Float[np.ndarray, "y x"],
    noise: float,
    calibration: Float[np.ndarray, "y x"],
    valid: Bool[np.ndarray, "y x"],
    saturated: Bool[np.ndarray, "y x"],
    wcs: WCS,
    psf: EigenPsf | MixturePsf,
    path: Path,
    name: str = "",
) -> Image:
    if not np.isfinite(sky).all() or (sky + noise).min() <= 0:
        raise DataError(str(path), f"a sky of {sky.min()} electrons or more", "a finite sky above zero")
    broken = ~np.isfinite(electrons) | (electrons + noise < 0)
    counts = np.where(broken, sky, electrons) + noise
    return Image(
        band,
        counts,
        sky + noise,
        calibration,
        valid & ~broken,
        saturated,
        wcs,
        psf,
        name or path.name.split(".fit")[0],
    )


def _interpolate(
    table: Float[np.ndarray, "n m"], position: Float[np.ndarray, "k"]
) -> Float[np.ndarray, "k m"]:
    """Rows of a table, interpolated linearly at fractional positions; beyond an end, the row at that end."""
    position = np.clip(position, 0, len(table) - 1)
    low = np.minimum(position.astype(int), len(table) - 2)
    fraction = (position - low)[:, None]
    return (1 - fraction) * table[low] + fraction * table[low + 1]


def _read_masks(
    path: Path, shape: tuple[int, ...]
) -> tuple[Bool[np.ndarray, "y x"], Bool[np.ndarray, "y x"]]:
    """(bad, saturated) from an fpM file: each plane has a table of spans (row, first and last column)."""
    bad, saturated = np.zeros(shape, bool), np.zeros(shape, bool)
    with open_fits(path, _COMPLETE) as hdus:
        header = hdus[0].header
        if (header["MASKROWS"], header["MASKCOLS"]) != shape:
            raise DataError(str(path), f"a mask of {header['MASKROWS'], header['MASKCOLS']}", f"of {shape}")
        planes = {row[1].strip(): row[2] for row in hdus[len(hdus) - 1].data}
        for name in _BAD_PLANES:
            for spans in hdus[planes[name] + 1].data["s"] if hdus[planes[name] + 1].data is not None else ():
                for row, first, last in np.frombuffer(np.asarray(spans, np.uint8).tobytes(), ">i2").reshape(
                    -1, 3
                ):
                    bad[row, first : last + 1] = True
                    if name == "S_MASK_SATUR":
                        saturated[row, first : last + 1] = True
    return bad, saturated


def _read_psf_field(path: Path, bands: str) -> tuple[dict[str, EigenPsf], dict[str, float], dict[str, float]]:
    """PSF, gain [electrons per count] and dark variance [counts^2] of each band."""
    psfs = {}
    with open_fits(path, _COMPLETE) as hdus:
        if len(hdus) < 7:
            raise DataError(
                str(path), f"{len(hdus)} HDUs", "five PSFs and the field's table (7 HDUs or more)"
            )
        fields = hdus[6].data[0]
        gains = {band: float(fields["gain"][_BANDS.index(band)]) for band in bands}
        dark_variances = {band: float(fields["dark_variance"][_BANDS.index(band)]) for band in bands}
        wings = _wings(fields)
        for band in bands:
            table = hdus[_BANDS.index(band) + 1].data
            coefficients = np.array(table["c"], dtype=float)
            for k, row in enumerate(table):
                coefficients[k, row["nrow_b"] :] = 0
                coefficients[k, :, row["ncol_b"] :] = 0
            images = [np.reshape(row["RROWS"], (row["RNROW"], row["RNCOL"])).astype(float) for row in table]
            psfs[band] = EigenPsf(np.array(images), coefficients, wing=wings[_BANDS.index(band)])
    for band in bands:
        if not (gains[band] > 0 and dark_variances[band] >= 0):
            got = f"gain {gains[band]}, dark variance {dark_variances[band]} in {band}"
            raise DataError(str(path), got, "a positive gain and a variance of 0 or more")
    return psfs, gains, dark_variances


def _wings(fields: fits.FITS_record) -> list[tuple[float, float] | None]:
    """The wing of each band's PSF. A band without a fitted power law has the median of the other bands."""
    columns = ("psf_sigma1", "psf_sigma2", "psf_b", "psf_p0", "psf_beta", "psf_sigmap")
    if not set(columns) <= set(fields.array.columns.names):
        return [None] * len(_BANDS)
    wings = [
        wing_of_profile(*values)
        for values in zip(*(np.asarray(fields[c], float) for c in columns), strict=True)
    ]
    fitted = [wing for wing in wings if wing is not None]
    typical = (
        (float(np.median([w for w, _ in fitted])), float(np.median([s for _, s in fitted])))
        if fitted
        else None
    )
    return [wing or typical for wing in wings]


def _stamp_image(
    path: Path, band: str, hdu: fits.ImageHDU, inverse_variance: Float[np.ndarray, "y x"]
) -> Image:
    header, flux = hdu.header, np.asarray(hdu.data, dtype=float)
    gain, per_count = float(header["GAIN"]), float(header["CALIB"])
    if flux.shape != inverse_variance.shape or not (gain > 0 and per_count > 0):
        got = f"image {flux.shape}, inverse variance {inverse_variance.shape}, GAIN {gain}, CALIB {per_count}"
        raise DataError(str(path), got, "equal shapes and positive GAIN and CALIB")
    p = np.array([float(header[f"PSF_P{k}"]) for k in range(18)])
    xx, yy, xy = p[9:].reshape(3, 3).T
    covariances = np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -2)
    mixture = GaussianMixture(p[:3] / p[:3].sum(), p[3:9].reshape(3, 2), covariances)
    calibration = np.full(flux.shape, gain / per_count)
    sky = np.full(flux.shape, float(header["SKY"]) * gain)
    noise = float(header["DARKVAR"]) * gain**2
    name = f"{band}-{int(header['RUN']):06d}-{header['CAMCOL']}-{int(header['FIELD']):04d}"
    valid, saturated = inverse_variance > 0, np.zeros(flux.shape, bool)
    wcs = celestial_wcs(header, str(path))
    return _image(
        band,
        flux * calibration + sky,
        sky,
        noise,
        calibration,
        valid,
        saturated,
        wcs,
        MixturePsf(mixture),
        path,
        name,
    )

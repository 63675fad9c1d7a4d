"""The PSF that a description of images names, as a PSF of the image's pixels."""

from __future__ import annotations

import galsim
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from jaxtyping import Float

from astrozoo.data.arrays import read_array, read_number
from astrozoo.data.description import PsfDescription
from astrozoo.data.images import GaussianMixture, Psf
from astrozoo.data.psf import MixturePsf, PixelPsf, WingedPsf
from astrozoo.data.psfex import read_psfex
from astrozoo.data.wcs import pixel_scale
from astrozoo.errors import DataError

__all__ = ["described_psf", "odd_stamp"]

_MOFFAT_REACH = 12.0
"""[FWHM] Side of the stamp of a Moffat profile, which then contains all but 1 % of the light of beta 2.5."""
_LARGEST_STAMP = 101
"""[px] Largest side of a stamp that mixtures are fitted to. A fit takes time as its square."""


def described_psf(
    psf: PsfDescription, where: str, header: fits.Header, wcs: WCS, shape: tuple[int, int], plane: int | None
) -> Psf:
    """The PSF of an image.

    Args:
        psf: its description.
        where: the description's entry, for messages.
        header, wcs, shape: of the image.
        plane: of the image in its cube; the same is taken of a cube of stamps.

    Raises:
        DataError: the file is not what it should be, a header card is missing or not positive, or a width in
            arcsec is given for pixels that are not square.
    """
    in_arcsec = psf.kind == "gaussians" or (psf.kind == "moffat" and not psf.in_pixels)
    in_arcsec = in_arcsec or psf.wing is not None
    scale = pixel_scale(wcs, f"{where}: psf: {psf.kind} in arcsec") if in_arcsec else 1.0
    if psf.kind == "gaussians":
        weights, sigmas = np.array(psf.weights), np.array(psf.sigmas) / scale
        covariances = sigmas[:, None, None] ** 2 * np.eye(2)
        return MixturePsf(GaussianMixture(weights / weights.sum(), np.zeros((len(weights), 2)), covariances))
    if psf.kind == "moffat":
        fwhm = read_number(psf.fwhm, header, f"{where}: psf: moffat: fwhm", above=0) / scale
        return PixelPsf(_moffat(psf, fwhm))
    assert psf.at is not None
    if psf.kind == "psfex":
        return read_psfex(psf.at.file, shape=shape, row=psf.row, origin=psf.origin)
    stamp, _ = read_array(psf.at, plane=plane)
    stamp = odd_stamp(stamp, f"{where}: psf: stamp {psf.at}", oversampling=psf.oversampling)
    return PixelPsf(stamp) if psf.wing is None else WingedPsf(stamp, psf.wing[0], psf.wing[1] / scale)


def _moffat(psf: PsfDescription, fwhm: float) -> Float[np.ndarray, "n n"]:
    """The stamp of a Moffat profile as stars have it in the image; ``fwhm`` in pixels."""
    turn = galsim.Shear(q=psf.axis_ratio, beta=psf.angle * galsim.degrees)
    profile = galsim.Moffat(beta=psf.beta, fwhm=fwhm).shear(turn)
    size = min(int(np.ceil(_MOFFAT_REACH * fwhm)) // 2 * 2 + 1, _LARGEST_STAMP)
    size = max(size, 11)
    return profile.drawImage(nx=size, ny=size, scale=1.0, method="no_pixel", dtype=float).array


def odd_stamp(
    stamp: Float[np.ndarray, "y x"], what: str, *, oversampling: float = 1.0
) -> Float[np.ndarray, "n n"]:
    """A stamp of odd, equal sides in the image's pixels, whose middle is that of the PSF.

    Sides that are even or not equal are resampled about the brightest pixel's neighbourhood; NaN becomes 0.

    Raises:
        DataError: the stamp has no light.
    """
    stamp = np.nan_to_num(np.asarray(stamp, float), nan=0.0, posinf=0.0, neginf=0.0)
    if stamp.ndim != 2 or min(stamp.shape) < 3 or stamp.sum() <= 0:
        raise DataError(what, f"shape {stamp.shape}, sum {stamp.sum():.3g}", "an image of a star")
    ny, nx = stamp.shape
    if oversampling == 1 and ny == nx and ny % 2 and ny <= _LARGEST_STAMP:
        return stamp / stamp.sum()
    y, x = _centre(stamp)
    image = galsim.InterpolatedImage(galsim.Image(stamp), scale=1 / oversampling, x_interpolant="lanczos3")
    shift = (np.array([x, y]) - (np.array([nx, ny]) - 1) / 2) / oversampling
    size = min(int(min(ny, nx) / oversampling - 1) // 2 * 2 + 1, _LARGEST_STAMP)
    centred = image.shift(*(-shift))
    out = centred.drawImage(nx=size, ny=size, scale=1.0, method="no_pixel", dtype=float).array
    return out / out.sum()


def _centre(stamp: Float[np.ndarray, "y x"]) -> tuple[float, float]:
    """Centroid (row, column) of the pixels within 3 px of the brightest, above half of it."""
    row, column = np.unravel_index(stamp.argmax(), stamp.shape)
    y, x = np.indices(stamp.shape)
    core = np.where((np.hypot(y - row, x - column) < 3.5) & (stamp > 0.3 * stamp.max()), stamp, 0)
    return float((core * y).sum() / core.sum()), float((core * x).sum() / core.sum())

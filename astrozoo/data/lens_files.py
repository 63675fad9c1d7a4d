"""Which plane of a delivery of FITS files is the image, the noise, the PSF or the mask of a lens.

A plane is one two-dimensional HDU. Its role comes from the words in the name of its extension, or else of its
file: ``F814W_sci.fits``, ``VIS_BGSUB``, ``noise_map_scaled.fits``, extensions ``SCI``, ``ERR``, ``WHT``. A
plane without such a word has the role that its content leaves: a small square with its peak in the middle is
a PSF, the only plane that is left is the image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from astropy.io import fits
from jaxtyping import Float

from astrozoo.data.fits_file import open_fits
from astrozoo.errors import DataError, InputError

__all__ = ["ROLES", "Plane", "checked_shape", "choose", "named_plane", "planes_of"]

ROLES: dict[str, frozenset[str]] = {
    "psf": frozenset({"psf", "psfs", "kernel", "prf", "epsf"}),
    "noise": frozenset(
        {"noise", "rms", "err", "error", "errors", "sigma", "std", "stddev", "sd", "uncert", "uncertainty"}
    ),
    "variance": frozenset({"var", "variance"}),
    "weight": frozenset({"wht", "weight", "weights", "ivar", "invvar", "ivm", "wt"}),
    "flags": frozenset({"dq", "flag", "flags", "flg", "badpix", "bpm", "bad"}),
    "mask": frozenset({"mask", "msk"}),
    "other": frozenset(
        {"con", "ctx", "exp", "seg", "segmentation", "model", "residual", "bkg", "background"}
    ),
    "image": frozenset(
        {"sci", "science", "image", "img", "data", "flux", "bgsub", "cutout", "drz", "drc", "counts", "lens"}
    ),
}
"""Words of names, by the role that they give; where a name has words of several, the first role counts."""

_BAND = re.compile(r"^(f\d{3,4}[a-z]{1,2}\d?|vis|nir[yjh]|[ugrizyjhk])$")
"""Words that name a band: HST and JWST filters, VIS, one letter."""
_SUFFIXES = (".fits", ".fit", ".fits.gz", ".fits.bz2", ".fits.fz")


@dataclass(frozen=True, eq=False)
class Plane:
    """One two-dimensional HDU of a FITS file.

    Attributes:
        data: its values.
        header: its own header, with the cards of the primary header that it lacks.
        file, hdu: where it is; ``hdu`` is its position.
        name: of the extension ("" if it has none).
        role: a key of :data:`ROLES`, or "" if its name gives none.
        band: that its name gives, in capitals, or "".
    """

    data: Float[np.ndarray, "y x"]
    header: fits.Header
    file: Path
    hdu: int
    name: str
    role: str
    band: str

    @property
    def address(self) -> str:
        """As the flags of the command take it."""
        return f"{self.file.name}[{self.name or self.hdu}]"


def planes_of(path: Path) -> list[Plane]:
    """All planes of a FITS file, or of all FITS files of a folder (not of folders in it).

    Raises:
        DataError: there is no FITS file, or one is truncated or not FITS.
    """
    if path.is_file():
        return _with_roles_of_content(_planes_of_file(path))
    files = sorted(p for p in path.iterdir() if p.name.lower().endswith(_SUFFIXES))
    if not files:
        contents = sorted(p.name for p in path.iterdir())[:6]
        raise DataError(str(path), f"a folder of {contents}", "FITS files of a lens, or demo.npy and psf.npy")
    return _with_roles_of_content([plane for file in files for plane in _planes_of_file(file)])


def named_plane(text: str, folder: Path) -> Plane:
    """The plane that a flag names: ``FILE``, ``FILE[3]`` or ``FILE[SCI]``.

    Args:
        text: the flag's value. A file is looked for in ``folder``, then in the current folder.
        folder: of the data.

    Raises:
        DataError: there is no such file or plane.
    """
    match = re.fullmatch(r"(.+?)(?:\[([^\]]+)\])?", text)
    assert match is not None
    name, which = match.groups()
    path = next((p for p in (folder / name, Path(name)) if p.is_file()), None)
    if path is None:
        raise DataError(text, "no such file", f"a FITS file in {folder} or in the current folder")
    planes = _planes_of_file(path)
    if which is not None:
        planes = [p for p in planes if which.lower() in (str(p.hdu), p.name.lower())]
    if not planes:
        expected = ", ".join(plane.address for plane in _planes_of_file(path)) or "a 2-d plane"
        raise DataError(text, "no such 2-d plane", expected)
    return planes[0]


def choose(planes: Sequence[Plane], role: str, band: str) -> Plane | None:
    """The plane of a role in a band; None if there is none.

    A plane without a band serves every band. Of several, the one with the shortest name counts, so that
    ``image.fits`` goes before ``image_lens_subtracted.fits``.

    Raises:
        DataError: several planes have equally short names.
    """
    fitting = [p for p in planes if p.role == role and p.band in ("", band)]
    own = [p for p in fitting if p.band == band]
    fitting = own or fitting
    if len(fitting) < 2:
        return next(iter(fitting), None)
    lengths = [len(_words(p.name or _stem(p.file))) for p in fitting]
    shortest = [p for p, n in zip(fitting, lengths, strict=True) if n == min(lengths)]
    if len(shortest) > 1:
        got = ", ".join(plane.address for plane in shortest)
        raise DataError(f"{role} of the lens", f"several: {got}", f"one; name it with --{role} FILE[HDU]")
    return shortest[0]


def _planes_of_file(path: Path) -> list[Plane]:
    """Planes of a file with the roles that names give."""
    planes = []
    with open_fits(path) as hdus:
        primary = hdus[0].header
        for i, hdu in enumerate(hdus):
            if not (hdu.is_image and hdu.data is not None and hdu.data.squeeze().ndim == 2):
                continue
            header = hdu.header.copy()
            header.update({k: v for k, v in primary.items() if _inherits(k) and k not in header})
            name = str(hdu.header.get("EXTNAME", ""))
            role, band = _role(name, path), _band(name, path, header)
            planes.append(Plane(hdu.data.squeeze().astype(float), header, path, i, name, role, band))
    return planes


def _inherits(card: str) -> bool:
    structural = ("SIMPLE", "BITPIX", "EXTEND", "EXTNAME", "COMMENT", "HISTORY", "CHECKSUM", "DATASUM", "")
    return card not in structural and not card.startswith("NAXIS")


def _with_roles_of_content(planes: list[Plane]) -> list[Plane]:
    """Roles of planes whose names give none: PSFs first, then the only one left, or the first of a file."""
    given = {p.role for p in planes}
    if "psf" not in given:
        planes = [replace(p, role="psf") if not p.role and _is_psf(p, planes) else p for p in planes]
    nameless = [p for p in planes if not p.role]
    if "image" in given or not nameless:
        return planes
    one_file = len({p.file for p in planes}) == 1
    image = nameless[0] if len(nameless) == 1 or (one_file and nameless[0].hdu == 0) else None
    return [replace(p, role="image") if p is image else p for p in planes]


def _is_psf(plane: Plane, others: Iterable[Plane]) -> bool:
    """Whether a plane looks like a PSF: a square, smaller than another plane, brightest in its middle."""
    ny, nx = plane.data.shape
    larger = any(min(p.data.shape) > max(ny, nx) for p in others)
    if ny != nx or not larger or not np.isfinite(plane.data).all():
        return False
    peak = np.array(np.unravel_index(plane.data.argmax(), plane.data.shape))
    return bool((np.abs(peak - (ny - 1) / 2) <= 1).all())


def _role(name: str, path: Path) -> str:
    """By the name of the extension; without words of a role there, by that of the file."""
    for text in (name, _stem(path)):
        words = set(_words(text))
        role = next((role for role, known in ROLES.items() if words & known), "")
        if role:
            return role
    return ""


def _band(name: str, path: Path, header: fits.Header) -> str:
    """By the name of the extension, of the file, or the header's ``FILTER`` cards."""
    cards = " ".join(str(header.get(card, "")) for card in ("FILTER", "FILTER1", "FILTER2", "BAND"))
    for text in (name, _stem(path), cards):
        words = _words(text)
        joined = [*words, *(a + b for a, b in pairwise(words))]
        bands = [w for w in joined if _BAND.match(w)]
        if bands:
            longest = max(bands, key=len)
            return f"NIR_{longest[-1]}".upper() if longest.startswith("nir") else longest.upper()
    return ""


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", text.lower()) if word]


def _stem(path: Path) -> str:
    lower = path.name.lower()
    return next((path.name[: -len(s)] for s in sorted(_SUFFIXES, key=len)[::-1] if lower.endswith(s)), lower)


def checked_shape(plane: Plane, shape: tuple[int, int], role: str) -> Float[np.ndarray, "y x"]:
    """The values of a plane that must cover the image.

    Raises:
        InputError: its shape is another.
    """
    if plane.data.shape != shape:
        raise InputError(
            f"{role} {plane.address}", f"shape {plane.data.shape}", f"that of the image, {shape}"
        )
    return plane.data

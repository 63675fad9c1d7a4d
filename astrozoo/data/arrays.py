"""Arrays and numbers that a description of images names: in FITS files, NumPy files and header cards."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from astropy.io import fits
from jaxtyping import Float

from astrozoo.data.description import ArrayAt, Cards, Number
from astrozoo.data.fits_file import open_fits
from astrozoo.errors import DataError

__all__ = ["band_names", "has_array", "read_array", "read_number", "read_text"]


def read_array(at: ArrayAt, *, plane: int | None = None) -> tuple[Float[np.ndarray, "y x"], fits.Header]:
    """An image and its header (which has the primary header's cards too); of a NumPy file, an empty header.

    Args:
        at: where it is.
        plane: of a cube, where ``at`` does not say which.

    Raises:
        DataError: the file is truncated or corrupt, or has no such array of two axes.
    """
    numpy_file = at.file.suffix in (".npy", ".npz")
    array, header = (_numpy(at), fits.Header()) if numpy_file else _fits(at)
    if array.ndim == 3 and len(array) == 1 and at.plane is None:
        array = array[0]
    if array.ndim == 3:
        index = plane if at.plane is None else at.plane
        if index is None or not 0 <= index < len(array):
            raise DataError(str(at), f"{len(array)} planes", f"plane: which of them, from 0 (got {index})")
        array = array[index]
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiub":
        got = f"shape {array.shape} of {array.dtype}"
        raise DataError(str(at), got, "an image of numbers with two axes")
    return np.array(array, dtype=array.dtype.newbyteorder("=")), header


def _numpy(at: ArrayAt) -> np.ndarray:
    try:
        content = np.load(at.file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            names = list(content.files)
            name = at.array or (names[0] if len(names) == 1 else "")
            if name not in names:
                got = f"no array {name!r}" if name else "several arrays"
                raise DataError(str(at), got, f"array: one of {', '.join(names)}")
            return np.asarray(content[name])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(str(at.file), f"{type(error).__name__}: {error}", "a complete NumPy file") from error


def _fits(at: ArrayAt) -> tuple[np.ndarray, fits.Header]:
    with open_fits(at.file) as hdus:
        images = [hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS", 0) >= 2]
        if at.hdu is None:
            if not images:
                raise DataError(str(at.file), "no image in any HDU", "an image")
            chosen = images[0]
        else:
            known = [hdu.name or str(k) for k, hdu in enumerate(hdus)]
            if not (at.hdu in hdus if isinstance(at.hdu, str) else 0 <= at.hdu < len(hdus)):
                raise DataError(str(at.file), f"no HDU {at.hdu!r}", f"one of {', '.join(known)}")
            chosen = hdus[at.hdu]
        if chosen not in images:
            raise DataError(str(at), "no image", "an HDU with an image of two axes or more")
        header = chosen.header.copy()
        header.extend(hdus[0].header, unique=True, update=False)
        return np.asarray(chosen.data), header


def read_number(number: Number, header: fits.Header, what: str, *, above: float | None = None) -> float:
    """A number, or the mean of the header cards that are named and present.

    Raises:
        DataError: the header has none of the cards, or the value is not a finite number above ``above``.
    """
    if isinstance(number, Cards):
        found = {name: header[name] for name in number.names if name in header}
        if not found:
            raise DataError(what, f"a header without {', '.join(number.names)}", "one of these cards")
        try:
            value = float(np.mean([float(v) for v in found.values()]))
        except (TypeError, ValueError) as error:
            raise DataError(what, f"cards {found}", "numbers") from error
    else:
        value, found = number, {}
    if not np.isfinite(value) or (above is not None and value <= above):
        got = f"{value}" + (f" ({', '.join(found)})" if found else "")
        raise DataError(what, got, "a finite number" + (f" above {above:g}" if above is not None else ""))
    return value


def read_text(text: str | Cards, header: fits.Header, what: str, file_name: str) -> str:
    """A text, or that of the first header card that is present, replaced as its description says.

    A card whose replacement is empty (a clear filter) is passed over. Without any card, a text that is part
    of the file's name is taken.

    Raises:
        DataError: the header has none of the cards, nor the file's name any of the texts.
    """
    if isinstance(text, str):
        return text
    for name in text.names:
        value = str(header.get(name, "")).strip()
        if value:
            first = value.split()[0]
            replaced = text.values.get(value, text.values.get(first, first))
            if replaced:
                return replaced
    named = [new for old, new in text.values.items() if new and old in file_name]
    if named:
        return named[-1]
    raise DataError(what, f"a header without {', '.join(text.names)}", "one of these cards")


def has_array(file: Path, array: str) -> bool:
    """Whether a file has the array of a name; a file other than an ``.npz`` has one array without a name.

    Raises:
        DataError: the file is truncated or corrupt.
    """
    if file.suffix != ".npz":
        return not array
    try:
        with np.load(file, allow_pickle=False) as content:
            return array in content.files
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(str(file), f"{type(error).__name__}: {error}", "a complete NumPy file") from error


def band_names(at: ArrayAt, card: str, array: str, what: str) -> list[str]:
    """The bands of a cube's planes: the letters or words of a header card, or an array of an ``.npz``.

    Raises:
        DataError: the file has no such card or array.
    """
    if array:
        names = _numpy(ArrayAt(at.file, array=array))
        if names.ndim != 1 or names.dtype.kind != "U":
            raise DataError(f"{at.file}[{array}]", f"shape {names.shape} of {names.dtype}", "a list of bands")
        return [str(name) for name in names]
    with open_fits(at.file) as hdus:
        texts = [str(hdu.header[card]).strip() for hdu in hdus if card in hdu.header]
    if not texts or not texts[0]:
        raise DataError(what, f"a header without {card or 'card'}", "a card with the bands of the planes")
    words = texts[0].replace(",", " ").split()
    return words if len(words) > 1 else list(texts[0])

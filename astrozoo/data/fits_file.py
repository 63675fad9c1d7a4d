"""FITS files that are opened so that every fault of the file becomes one clear error."""

from __future__ import annotations

import bz2
import gzip
import io
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from astropy.io import fits

from astrozoo.errors import DataError, InputError

__all__ = ["open_fits", "unpacked"]

_FAULTS = (
    OSError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    fits.VerifyError,
    zlib.error,
    UserWarning,
)
"""Exceptions of astropy and of decompression that mean that a file is truncated or corrupt."""


def unpacked(path: Path) -> BinaryIO:
    """A stream of a file. Compressed files are decompressed whole.

    Each seek back in a bzip2 file would decompress it again. Of a truncated gzip file, astropy would drop the
    last HDUs without an error.
    """
    if path.suffix == ".bz2":
        return io.BytesIO(bz2.decompress(path.read_bytes()))
    if path.suffix == ".gz":
        return io.BytesIO(gzip.decompress(path.read_bytes()))
    return path.open("rb")


@contextmanager
def open_fits(
    path: Path, expected: str = "a complete FITS file", *, stream: Future[BinaryIO] | None = None
) -> Iterator[fits.HDUList]:
    """The HDUs of a FITS file (plain, gzip, bzip2 or fpack).

    Args:
        path: of the file.
        expected: completes the message of an error.
        stream: the file's content, where another thread decompresses it (:func:`unpacked`).

    Raises:
        DataError: the file does not exist, or anything fails while its HDUs are read inside the ``with``
            block, such as a truncated file or a missing card. The message names the file.
    """
    if not path.is_file():
        raise DataError(str(path), "no such file", "a FITS file")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="File may have been truncated")
            # We open the stream: astropy would not close the file after a truncated header.
            with (
                unpacked(path) if stream is None else stream.result() as content,
                fits.open(content, memmap=False, lazy_load_hdus=False) as hdus,
            ):
                yield hdus
    except (DataError, InputError):
        raise
    except _FAULTS as error:
        raise DataError(str(path), f"{type(error).__name__}: {error}", expected) from error

"""Survey data by name, from the local data folder or else from the survey's archive.

Checksums are of the *decompressed* files: archives serve the same FITS file plain or compressed, and
compressing it again changes every byte. Downloads are cached in pooch's folder for ``astrozoo``.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

import pooch

from astrozoo.data import root
from astrozoo.errors import DataError, UnknownNameError

__all__ = ["datasets", "fetch"]


@dataclass(frozen=True)
class _Remote:
    """A file in an archive, and the SHA-256 of its decompressed content."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class _DataSet:
    summary: str
    local: str  # its folder under the local data root
    files: tuple[_Remote, ...]


_FRAMES = "https://data.sdss.org/sas/dr17/eboss/photoObj/frames/301/2583/2/frame-{}-002583-2-0136.fits.bz2"
_OBJECTS = "https://data.sdss.org/sas/dr17/eboss/photo/redux/301/2583/objcs/2/"
_DATASETS = {
    "sdss-2583-2-136": _DataSet(
        "SDSS Stripe 82, run 2583 camcol 2 field 136, ugriz: frames, PSFs and masks (18 MB; M2 is in it)",
        "sdss/frame_2583_2_136",
        (
            _Remote(_FRAMES.format("u"), "fe6009a652cfa0fd39b661a2ffa8ef3c41afe99d8c4e88842d0815aa5ac35efb"),
            _Remote(_FRAMES.format("g"), "8e14e7e77bcabc50dc9c9fad848ac79e4adf7184a36816f0de3b4dc6bc4ca1dc"),
            _Remote(_FRAMES.format("r"), "09ca40d8f5e7254a0c3c152427b63bd97169a48edc882f4aa18f11412e8ace9f"),
            _Remote(_FRAMES.format("i"), "3dcf1691403ccc3f1635f981b8512c3ae0d85cbbd86a3a5ef95a77def91fceae"),
            _Remote(_FRAMES.format("z"), "a054291b279f6d1e36538ad76daf514bbb85452a571f9a5a1d3c9485a0ceeb73"),
            _Remote(
                _OBJECTS + "psField-002583-2-0136.fit",
                "3d24d270c12dcd8429357a81433d0151d3a6e8739401b18273d4bfc206bcd7bd",
            ),
            _Remote(
                _OBJECTS + "fpM-002583-u2-0136.fit.gz",
                "ae59d8c491620c50357c63b74e3337167fee9735e27bf2b1ed8eeacc4c087fa7",
            ),
            _Remote(
                _OBJECTS + "fpM-002583-g2-0136.fit.gz",
                "81d12f8ba895dbc2fb7b05a30dcb6a601dcac9562bbb4a50ef3394035945202c",
            ),
            _Remote(
                _OBJECTS + "fpM-002583-r2-0136.fit.gz",
                "09d7a4991ed4220761c934c382d1c3c20818126b84980c83a271bee92259808c",
            ),
            _Remote(
                _OBJECTS + "fpM-002583-i2-0136.fit.gz",
                "086cbdcccbb0af4cfadb32373e73bba7c419bbb202a4ff2cd7f9b2f928ad22ee",
            ),
            _Remote(
                _OBJECTS + "fpM-002583-z2-0136.fit.gz",
                "beba55423c788536963b2899308a5e31a2dad94468fd1b4108382bb6017d4765",
            ),
        ),
    ),
}


def datasets() -> dict[str, str]:
    """Names that :func:`fetch` knows, each with a summary."""
    return {name: entry.summary for name, entry in _DATASETS.items()}


def fetch(name: str, *, progress: bool = True) -> Path:
    """The folder of a data set. Files that are not on this machine are downloaded.

    Args:
        name: one of :func:`datasets`.
        progress: show a progress bar for each download.

    Raises:
        UnknownNameError: there is no data set of that name.
        DataError: the archive cannot be reached, or a file does not match its checksum.
    """
    if name not in _DATASETS:
        raise UnknownNameError("data set", name, _DATASETS)
    entry, local = _DATASETS[name], root()
    if local is not None and (local / entry.local).is_dir():
        return local / entry.local
    folder = Path(pooch.os_cache("astrozoo")) / name
    for remote in entry.files:
        if not (folder / remote.name).is_file():
            _download(remote, folder, name, progress)
    return folder


def _download(remote: _Remote, folder: Path, name: str, progress: bool) -> None:
    """Download one file under a temporary name, and rename it after its checksum is verified."""
    pending = f"{remote.name}.part"
    try:
        pooch.retrieve(remote.url, known_hash=None, fname=pending, path=folder, progressbar=progress)
    except OSError as error:
        expected = (
            "a connection to the archive (offline? put the files in a folder and name it in ASTROZOO_DATA)"
        )
        raise DataError(
            f"data set {name!r}: {remote.url}", f"{type(error).__name__}: {error}", expected
        ) from error
    try:
        content = _decompressed(folder / pending, remote.name)
    except (OSError, EOFError) as error:
        got = f"{type(error).__name__}: {error}"
        (folder / pending).unlink()
        raise DataError(f"data set {name!r}: {remote.url}", got, "a whole compressed file") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != remote.sha256:
        (folder / pending).unlink()
        raise DataError(
            f"data set {name!r}: {remote.url}", f"SHA-256 {digest}", f"{remote.sha256} (decompressed)"
        )
    (folder / pending).rename(folder / remote.name)


def _decompressed(path: Path, name: str) -> bytes:
    content = path.read_bytes()
    if name.endswith(".bz2"):
        return bz2.decompress(content)
    return gzip.decompress(content) if name.endswith(".gz") else content

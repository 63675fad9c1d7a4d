"""Trained weights by name or path: from the package, or downloaded and verified."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pooch

from astrozoo._trained import Trained
from astrozoo.errors import DataError, UnknownNameError

__all__ = ["load_weights", "weights"]


@dataclass(frozen=True)
class _Weights:
    """One file of weights.

    Args:
        summary: shown in lists.
        sha256: checksum of the file.
        package: package that ships the file; empty if it is downloaded.
        name: name of the shipped file.
        url: address of the file if it is downloaded.
    """

    summary: str
    sha256: str
    package: str = ""
    name: str = ""
    url: str = ""


_WEIGHTS = {
    "psf_vae": _Weights(
        "decoder of galaxies without PSF (16 latents), and the encoder of stamps with their PSFs",
        "14c291d85e234196e68c154230c351006a04d025b77d212d29a2ba326542f53f",
        package="astrozoo.models",
        name="psf_vae.safetensors",
    ),
    "latent_flow": _Weights(
        "prior of the 16 latents of psf_vae given a galaxy's half-light radius, magnitude and redshift",
        "75b4abd75afcae868e1fe559c05030ad09daef307ceb0ba05b31df609c82585e",
        package="astrozoo.models",
        name="latent_flow.safetensors",
    ),
    "latent_flow_unconditional": _Weights(
        "prior of the 16 latents of psf_vae",
        "b3483d5bac4fea1e3d72f7e1fa9b50b1fb7c218421ef19e39647a95604345632",
        package="astrozoo.models",
        name="latent_flow_unconditional.safetensors",
    ),
    "galaxy_vae": _Weights(
        "decoder and encoder of galaxies (69 x 69 pixels, 8 latents), each pixel with a mean and a variance",
        "e515ef3e1462f217826a207a70eaa742470c63448cef6aa50ff69f4964fede3b",
        package="astrozoo.models",
        name="galaxy_vae.safetensors",
    ),
    "kappa_residual": _Weights(
        "energy of the hybrid prior of mass maps: what halo maps have beyond a log-normal field",
        "3584487c82d5e6bbc183bdd72666839d48d85d79f407607d8f4deca1a28adb49",
        package="astrozoo.models",
        name="kappa_residual.safetensors",
    ),
    "two_moons": _Weights(
        "energy of points of two interleaved half circles",
        "fca9d4a35ce5a1c17da3b920e6d2f555f69ddd06214430771216e2e70718f6a1",
        package="astrozoo.models",
        name="two_moons.safetensors",
    ),
    "lens_finder": _Weights(
        "network that tells strong lenses in g, r and i from the ground, and the labelled stamps it rests on",
        "375a0994106d92bf7cbcc795425e55df3bf2fbcad1b8f1b82b5668729151f6e8",
        package="astrozoo.models",
        name="lens_finder.safetensors",
    ),
    "learned_source": _Weights(
        "decoder of galaxies (64 x 64 pixels, 32 latents) and the flow over its latents",
        "7649ce1732e381364954fede027ee9063e344c0caf5ae1256a10dc1aa2f5a56e",
        package="astrozoo.models",
        name="learned_source.safetensors",
    ),
}


def weights() -> dict[str, str]:
    """Names that :func:`load_weights` knows, each with a summary."""
    return {name: entry.summary for name, entry in _WEIGHTS.items()}


def load_weights(source: str | Path) -> Trained:
    """Trained weights, with the record of their training.

    Args:
        source: the path of a file (it ends in ``.safetensors``), or one of :func:`weights`.

    Raises:
        UnknownNameError: there are no weights of that name.
        DataError: the file is missing, corrupt or of another version, or does not match its checksum.
    """
    if Path(source).suffix == ".safetensors":
        return Trained.load(source)
    if source not in _WEIGHTS:
        raise UnknownNameError("weights", str(source), _WEIGHTS)
    entry = _WEIGHTS[str(source)]
    path = _path(entry, str(source))
    if not path.is_file():
        raise DataError(str(path), "no such file", f"the weights {source!r}: install astrozoo again")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != entry.sha256:
        raise DataError(str(path), f"SHA-256 {digest}", f"{entry.sha256} (a damaged or another file)")
    return Trained.load(path)


def _path(entry: _Weights, name: str) -> Path:
    if entry.package:
        return Path(str(files(entry.package).joinpath(entry.name)))
    folder = Path(pooch.os_cache("astrozoo")) / "weights"
    try:
        fetched = pooch.retrieve(
            entry.url, known_hash=f"sha256:{entry.sha256}", fname=f"{name}.safetensors", path=folder
        )
    except (OSError, ValueError) as error:
        expected = "a connection, and a file with the right checksum"
        raise DataError(
            f"weights {name!r}: {entry.url}", f"{type(error).__name__}: {error}", expected
        ) from error
    return Path(fetched)

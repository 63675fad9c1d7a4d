"""Images of any survey: from a description, from a survey's own files, or recognised by their headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from astropy.io import fits

from astrozoo.data.described import read_described, read_images_of
from astrozoo.data.description_file import load_description, parse_images
from astrozoo.data.fits_file import open_fits
from astrozoo.data.images import Field
from astrozoo.data.sdss import read_field
from astrozoo.errors import DataError, InputError, UnknownNameError

__all__ = ["check_survey", "read_images", "surveys"]

_DESCRIPTIONS = (".yaml", ".yml", ".csv", ".ecsv", ".tsv")
_IMAGES = re.compile(r".*\.(fits?|fits?\.(gz|bz2|fz)|npz)$")
_FRAMES = re.compile(r"frame-[ugriz]-\d+-\d-\d+\.fits?(\.bz2|\.gz)?$")


@cache
def surveys() -> dict[str, dict[str, Any]]:
    """The ready descriptions, by name: a ``summary``, how files are recognised, and the images' keys."""
    text = files("astrozoo.data").joinpath("surveys.yaml").read_text(encoding="utf-8")
    sdss = {"summary": "SDSS frames with their psField and fpM files, in one folder"}
    return {"sdss": sdss, **yaml.safe_load(text)}


def check_survey(name: str) -> None:
    """Raise unless there is a ready description of that name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in surveys():
        raise UnknownNameError("survey", name, surveys())


def read_images(path: str | Path, survey: str | None = None) -> Field:
    """A field from any files that a description or a survey's ready description explains.

    Args:
        path: a description (YAML, or a table with one image per row); a folder with one description; a folder
            of one SDSS field; or images of a survey of :func:`surveys`, in one file or a folder.
        survey: name of the ready description. By default it is recognised by the files' headers. For a
            description it gives the defaults, as the key ``survey`` in it does.

    Raises:
        UnknownNameError: there is no such survey.
        DataError: nothing at the path can be read; the message names the file and the key.
    """
    path = Path(path)
    if survey is not None:
        check_survey(survey)
    if not path.exists():
        raise DataError(str(path), "nothing there", "a description of images, or a survey's files")
    if path.is_dir():
        described = sorted(p for p in path.iterdir() if p.suffix in _DESCRIPTIONS[:2])
        if survey in (None, "sdss") and any(_FRAMES.fullmatch(p.name) for p in path.iterdir()):
            return read_field(path)
        if survey == "sdss" or not (described or any(_IMAGES.fullmatch(p.name) for p in path.iterdir())):
            return read_field(path)  # raises the error that says which files a folder of SDSS has
        if len(described) == 1:
            path = described[0]
        elif described:
            got = f"{len(described)} descriptions ({', '.join(p.name for p in described)})"
            raise DataError(str(path), got, "the name of one of them")
    if path.suffix in _DESCRIPTIONS:
        return _described(path, survey)
    return _survey_files(path, survey)


def _described(path: Path, survey: str | None) -> Field:
    named = load_description(path).get("survey")
    if named is not None:
        if not isinstance(named, str) or named not in surveys() or named == "sdss":
            known = ", ".join(name for name in surveys() if name != "sdss")
            raise DataError(f"{path}: survey", repr(named), f"one of {known}")
        if survey not in (None, named):
            raise InputError("survey", survey, f"{named}, as {path} says")
    name = named or survey
    ready = {} if name is None else surveys()[name].get("image", {})
    return read_described(path, ready=ready)


def _survey_files(path: Path, survey: str | None) -> Field:
    """The images of a survey among the files of a folder, or of one file."""
    folder = path if path.is_dir() else path.parent
    candidates = sorted(p for p in path.iterdir() if _IMAGES.fullmatch(p.name)) if path.is_dir() else [path]
    chosen: dict[Path, str] = {}
    for candidate in candidates:
        name = _recognised(candidate, survey)
        if name is not None:
            chosen[candidate] = name
    if survey is not None and not path.is_dir():
        chosen = {path: survey}
    if not chosen:
        known = "; ".join(f"{name}: {entry['summary']}" for name, entry in surveys().items())
        got = f"{len(candidates)} files of no known survey" if survey is None else f"no images of {survey}"
        raise DataError(str(path), got, f"a description (.yaml) of the images, or --survey. Known: {known}")
    if len(set(chosen.values())) > 1:
        got = ", ".join(f"{p.name} of {name}" for p, name in chosen.items())
        raise DataError(str(path), got, "images of one survey, or --survey")
    name = next(iter(chosen.values()))
    entry = surveys()[name]
    images = [
        {**ready, "file": p.name} for p in chosen for ready in entry.get("images", [entry.get("image")])
    ]
    descriptions = parse_images({"images": images}, folder, f"survey {name}")
    return read_images_of(descriptions, path.name.split(".")[0], name)


def _recognised(path: Path, survey: str | None) -> str | None:
    """The survey that a file is of, among all or as the one given."""
    wanted = {survey: surveys()[survey]} if survey is not None else surveys()
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = set(content.files)
        except (OSError, ValueError) as error:
            raise DataError(str(path), f"{type(error).__name__}: {error}", "a complete .npz file") from error
        headers: list[fits.Header] = []
    else:
        with open_fits(path) as hdus:
            headers, arrays = [hdu.header for hdu in hdus], set()
    return next((name for name, entry in wanted.items() if _fits_in(entry, headers, arrays)), None)


def _fits_in(entry: Mapping[str, Any], headers: list[fits.Header], arrays: set[str]) -> bool:
    rules = entry.get("recognise", {})
    cards, needed = rules.get("cards", {}), set(rules.get("arrays", ()))
    if not rules or not needed <= arrays or (bool(needed) != bool(arrays)):
        return False
    names = {str(header.get("EXTNAME", "")).strip() for header in headers}
    if "extension" in rules and rules["extension"] not in names:
        return False
    return all(
        any(card in header and re.fullmatch(value, str(header[card]).strip()) for header in headers)
        for card, value in cards.items()
    )

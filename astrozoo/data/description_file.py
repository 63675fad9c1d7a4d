"""Descriptions of images that users write: a YAML file, or a table with one image per row.

Everything is checked before any pixel is read: each error names the entry and the key.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from astrozoo.data.arrays import band_names, has_array
from astrozoo.data.description import (
    ArrayAt,
    Cards,
    ImageDescription,
    MaskDescription,
    NoiseDescription,
    Number,
    PsfDescription,
)
from astrozoo.errors import DataError

__all__ = ["IMAGE_KEYS", "load_description", "parse_images", "stem_of"]

_NOISE_KINDS = ("sigma", "variance", "inverse_variance", "weight")
_PSF_KINDS = ("stamp", "psfex", "gaussians", "moffat")
_TOP = ("name", "survey", "defaults", "images")
_REPLACED = ("psf", "noise", "sky")
"""Keys whose mapping replaces that of the defaults. Other mappings are merged key by key."""


def load_description(path: Path) -> dict[str, Any]:
    """The content of a description: of a YAML file, or of a table with one image per row.

    In a table, a column's name is a key, or keys with dots (``psf.moffat.fwhm``); cells are YAML values, and
    empty cells are left out.

    Raises:
        DataError: no such file, or it is not of that form; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"{type(error).__name__}: {error}", "a description of images") from error
    try:
        content = (
            {"images": _rows(text)} if path.suffix in (".csv", ".ecsv", ".tsv") else yaml.safe_load(text)
        )
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise DataError(str(path), f"{line}{getattr(error, 'problem', error)}", "YAML") from error
    if isinstance(content, list):
        content = {"images": content}
    if not isinstance(content, dict):
        raise DataError(str(path), type(content).__name__, "a mapping with the key 'images'")
    return content


def _rows(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        return []
    separator = next((s for s in "\t,;" if s in lines[0]), " ")
    images = []
    for row in csv.DictReader(io.StringIO("\n".join(lines)), delimiter=separator, skipinitialspace=True):
        entry: dict[str, Any] = {}
        for column, cell in row.items():
            if column is None or cell is None or not cell.strip():
                continue
            *parents, last = column.strip().split(".")
            inner = entry
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = yaml.safe_load(cell)
        images.append(entry)
    return images


def parse_images(
    content: Mapping[str, Any], folder: Path, what: str, ready: Mapping[str, Any] | None = None
) -> list[ImageDescription]:
    """Check a description, and spread its defaults and cubes over one description per image.

    Args:
        content: as from :func:`load_description`.
        folder: names of files are relative to it.
        what: the description's name in messages.
        ready: defaults of its survey.

    Raises:
        DataError: a key is unknown or missing, a value is of the wrong kind, or a file does not exist. The
            message names the entry and the key.
    """
    top = _Keys(content, what, folder)
    top.known(_TOP)
    defaults = _merged(ready or {}, top.mapping("defaults"))
    entries = content.get("images")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{what}: images", repr(entries), "a list with at least one image")
    images: list[ImageDescription] = []
    for k, entry in enumerate(entries):
        where = f"{what}: images[{k}]"
        if not isinstance(entry, Mapping):
            raise DataError(where, repr(entry), "a mapping of keys")
        images += _image(_Keys(_filled_in(_merged(defaults, entry), folder), where, folder))
    return images


def _merged(defaults: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(defaults)
    for key, value in entry.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merged(out[key], value) if both and key not in _REPLACED else value
    return out


def stem_of(name: str) -> str:
    """A file's name without its folder and its endings (.fits.gz, .npz)."""
    return Path(name).name.split(".fit")[0].removesuffix(".npz").removesuffix(".npy")


def _filled_in(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """With names of files that depend on that of the image, and without optional files that do not exist."""
    image, hdu = values.get("file"), values.get("hdu")
    if not isinstance(image, str):
        return values

    def fill(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        out = {key: fill(inner) for key, inner in value.items()}
        name = out.get("file")
        if isinstance(name, str):
            out["file"] = name.replace("{stem}", stem_of(image))
            if "/" not in name and "/" in image:
                out["file"] = f"{image.rpartition('/')[0]}/{out['file']}"
        elif isinstance(name, Mapping) and isinstance(pair := name.get("replace"), list) and len(pair) == 2:
            out["file"] = image.replace(str(pair[0]), str(pair[1]))
        if out.get("hdu") == "same":
            out["hdu"] = hdu
        return {key: inner for key, inner in out.items() if inner is not None}

    filled = {key: fill(value) for key, value in values.items()}
    for key in ("mask", "noise"):
        value = filled.get(key)
        if isinstance(value, dict) and value.pop("optional", False):
            at = next((inner for inner in value.values() if isinstance(inner, Mapping)), value)
            at = value if key == "mask" else at
            path = folder / str(at.get("file", image))
            if not (path.is_file() and has_array(path, str(at.get("array", "")))):
                del filled[key]
    return filled


class _Keys:
    """A mapping of a description, whose values are taken with a check of their kind."""

    def __init__(
        self, values: Mapping[str, Any], where: str, folder: Path, image: ArrayAt | None = None
    ) -> None:
        self.values, self.where, self.folder, self.image = values, where, folder, image

    def error(self, key: str, got: object, expected: str) -> DataError:
        return DataError(f"{self.where}: {key}" if key else self.where, got, expected)

    def known(self, keys: Sequence[str]) -> None:
        for key in self.values:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise self.error("", f"the key {key!r}", f"{hint}keys among {', '.join(keys)}")

    def inside(self, key: str, value: Mapping[str, Any]) -> _Keys:
        return _Keys(value, f"{self.where}: {key}", self.folder, self.image)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(key, repr(value), "a mapping of keys")
        return value or {}

    def text(self, key: str, default: str = "") -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise self.error(key, repr(value), "a text")
        return str(value)

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self.error(key, repr(value), "true or false")
        return value

    def real(self, key: str, default: float | None = None, *, above: float | None = None) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, "nothing" if value is None else repr(value), "a number")
        if not abs(value) < float("inf") or (above is not None and not value > above):
            raise self.error(
                key, value, "a finite number" + (f" above {above:g}" if above is not None else "")
            )
        return float(value)

    def number(self, key: str, *, above: float | None = None) -> Number | None:
        """A number, or the names of header cards."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            return Cards((value,))
        if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
            return Cards(tuple(value))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, repr(value), "a number, the name of a header card, or a list of names")
        return self.real(key, above=above)

    def number_or_array(self, key: str, *, above: float | None = None) -> Number | ArrayAt | None:
        if isinstance(self.values.get(key), Mapping):
            return self.array(key)
        return self.number(key, above=above)

    def array(self, key: str, *, extra: Sequence[str] = ()) -> ArrayAt:
        """The array at a key: a file's name, or a mapping of file, hdu, array and plane."""
        value = self.values.get(key)
        if isinstance(value, str):
            value = {"file": value}
        if not isinstance(value, Mapping):
            got = "nothing" if value is None else repr(value)
            raise self.error(key, got, "a file, or a mapping of file, hdu, array, plane")
        inner = self.inside(key, value)
        inner.known(("file", "hdu", "array", "plane", *extra))
        return inner.location()

    def location(self) -> ArrayAt:
        """The array that this mapping's file, hdu, array and plane name; the image's file by default."""
        name = self.values.get("file")
        if name is None and self.image is None:
            raise self.error("file", "nothing", "the name of a file")
        if name is not None and not isinstance(name, str):
            raise self.error("file", repr(name), "the name of a file")
        hdu, plane = self.values.get("hdu"), self.values.get("plane")
        if isinstance(hdu, bool) or not isinstance(hdu, int | str | None):
            raise self.error("hdu", repr(hdu), "the number or name of an HDU")
        if isinstance(plane, bool) or not isinstance(plane, int | None):
            raise self.error("plane", repr(plane), "the index of a plane, from 0")
        path = self.image.file if name is None and self.image else self._file(str(name))
        return ArrayAt(path, hdu, self.text("array"), plane)

    def _file(self, name: str) -> Path:
        path = self.folder / Path(name).expanduser()
        if any(letter in name for letter in "*?["):
            matches = sorted(path.parent.glob(path.name))
            if len(matches) != 1:
                got = f"{len(matches)} files of the name {path}"
                raise self.error("file", got, "exactly one")
            return matches[0]
        if not path.is_file():
            raise self.error("file", f"no file {path}", "an existing file")
        return path


IMAGE_KEYS = (
    "file", "hdu", "array", "plane", "band", "bands", "name", "unit", "zero_point", "zero_point_per_second",
    "calibration", "wavelength", "exposure", "gain", "sky", "sky_subtracted", "read_noise", "noise",
    "noise_correlation", "mask", "saturation", "psf", "wcs",
)  # fmt: skip
"""Keys of an image; docs/images_of_any_survey.md explains them."""


def _image(keys: _Keys) -> Iterator[ImageDescription]:
    """The images of one entry: several if it names ``bands``, the planes of cubes."""
    keys.known(IMAGE_KEYS)
    if ("band" in keys.values) == ("bands" in keys.values):
        got = "both" if "band" in keys.values else "neither"
        raise keys.error("band or bands", got, "one of them")
    bands: list[str | Cards]
    cube = "bands" in keys.values
    if not cube:
        bands = [_band(keys, keys.values["band"])]
    else:
        names = keys.values["bands"]
        if isinstance(names, Mapping):
            inner = keys.inside("bands", names)
            inner.known(("card", "array"))
            names = band_names(keys.location(), inner.text("card"), inner.text("array"), inner.where)
        names = list(names) if isinstance(names, str) else names
        if not isinstance(names, list) or not names:
            raise keys.error("bands", repr(names), "a list of bands, one for each plane")
        bands = [_band(keys, name) for name in names]
    for plane, band in enumerate(bands):
        values = dict(keys.values)
        if cube:
            values["plane"] = plane
        one = _Keys(values, keys.where + (f" ({band})" if cube else ""), keys.folder)
        one.image = one.location()
        yield _one_image(one, band)


def _band(keys: _Keys, value: object) -> str | Cards:
    if isinstance(value, Mapping):
        inner = keys.inside("band", value)
        inner.known(("card", "names"))
        cards = inner.number("card")
        if not isinstance(cards, Cards):
            raise inner.error("card", repr(cards), "the name of a header card, or a list of names")
        return Cards(cards.names, {str(k): str(v or "") for k, v in inner.mapping("names").items()})
    if not isinstance(value, str) or not value.strip():
        raise keys.error("band", repr(value), "a name such as 'r', or {card: FILTER}")
    return value.strip()


def _one_image(keys: _Keys, band: str | Cards) -> ImageDescription:
    assert keys.image is not None
    zero_point = "hst" if keys.values.get("zero_point") == "hst" else keys.number("zero_point")
    sky = None if keys.values.get("sky") == "measure" else keys.number_or_array("sky")
    read_noise = keys.number("read_noise", above=-1e-12)
    measured = keys.values.get("noise_correlation") == "measure"
    correlation = None if measured else keys.real("noise_correlation", 1.0, above=0)
    return ImageDescription(
        where=keys.where,
        image=keys.image,
        band=band,
        psf=_psf(keys),
        unit=keys.text("unit"),
        zero_point=zero_point,
        zero_point_per_second=keys.flag("zero_point_per_second"),
        calibration=keys.number_or_array("calibration", above=0),
        wavelength=keys.real("wavelength", above=0) if "wavelength" in keys.values else None,
        exposure=keys.number_or_array("exposure", above=0),
        gain=keys.number_or_array("gain", above=0),
        sky=sky,
        sky_subtracted=keys.flag("sky_subtracted"),
        read_noise=0.0 if read_noise is None else read_noise,
        noise=_noise(keys),
        noise_correlation=correlation,
        mask=_mask(keys),
        saturation=keys.number("saturation"),
        wcs=_wcs(keys),
        name=keys.text("name"),
    )


def _noise(keys: _Keys) -> NoiseDescription | None:
    value = keys.mapping("noise")
    if not value:
        return None
    kinds = [kind for kind in _NOISE_KINDS if kind in value]
    if len(kinds) != 1 or len(value) != 1:
        raise keys.error("noise", f"keys {', '.join(map(str, value))}", f"one of {', '.join(_NOISE_KINDS)}")
    return NoiseDescription(keys.inside("noise", value).array(kinds[0]), kinds[0])


def _mask(keys: _Keys) -> MaskDescription | None:
    value = keys.mapping("mask")
    if not value:
        return None
    inner = keys.inside("mask", value)
    inner.known(("file", "hdu", "array", "plane", "good", "bad", "saturated", "codes", "planes"))
    if ("good" in value) == ("bad" in value):
        got = "both" if "good" in value else "neither"
        raise inner.error(
            "good or bad", got, "the value of good pixels, or the bits that are bad ('any': all)"
        )
    good = value.get("good")
    if good is not None and not isinstance(good, int):
        raise inner.error("good", repr(good), "a whole number, or true or false")
    planes = inner.mapping("planes")
    if not all(isinstance(bit, int) for bit in planes.values()):
        raise inner.error("planes", repr(dict(planes)), "a whole number for each name")
    bad = value.get("bad")
    return MaskDescription(
        at=inner.location(),
        good=None if good is None else int(good),
        bad=None if bad is None or bad == "any" else _bits(inner, "bad"),
        saturated=_bits(inner, "saturated") if "saturated" in value else (),
        codes=inner.flag("codes"),
        planes={str(name): int(bit) for name, bit in planes.items()},
    )


def _bits(keys: _Keys, key: str) -> tuple[int | str, ...]:
    value = keys.values.get(key)
    bits = value if isinstance(value, list) else [value]
    if not all(isinstance(bit, int | str) and not isinstance(bit, bool) for bit in bits):
        raise keys.error(key, repr(value), "numbers of bits from 0 (with codes: values), or names of planes")
    return tuple(bits)


def _psf(keys: _Keys) -> PsfDescription:
    value = keys.mapping("psf")
    kinds = [kind for kind in _PSF_KINDS if kind in value]
    if len(kinds) != 1 or len(value) != 1:
        got = f"keys {', '.join(map(str, value))}" if value else "nothing"
        raise keys.error("psf", got, f"one of {', '.join(_PSF_KINDS)}")
    kind, inner = kinds[0], keys.inside("psf", value)
    content = value[kind]
    if kind in ("stamp", "psfex"):
        extra = ("oversampling", "wing") if kind == "stamp" else ("row", "origin")
        at = inner.array(kind, extra=extra)
        options = inner.inside(kind, content if isinstance(content, Mapping) else {})
        row = options.values.get("row", 0)
        if isinstance(row, bool) or not isinstance(row, int | str):
            raise options.error("row", repr(row), "the index of a row, or a ccdname")
        oversampling = options.real("oversampling", 1.0, above=0)
        origin, wing = _pair(options, "origin"), _wing(options)
        return PsfDescription(kind, at, row=row, origin=origin, oversampling=oversampling, wing=wing)
    if not isinstance(content, Mapping):
        raise inner.error(kind, repr(content), "a mapping of keys")
    shape = inner.inside(kind, content)
    if kind == "gaussians":
        shape.known(("weights", "sigmas"))
        weights, sigmas = (_positive(shape, key) for key in ("weights", "sigmas"))
        if len(weights) != len(sigmas):
            raise shape.error("sigmas", f"{len(sigmas)} values", f"{len(weights)}, one for each weight")
        return PsfDescription(kind, weights=weights, sigmas=sigmas)
    shape.known(("fwhm", "fwhm_pixels", "beta", "axis_ratio", "angle"))
    in_pixels = "fwhm_pixels" in content
    fwhm = shape.number("fwhm_pixels" if in_pixels else "fwhm", above=0)
    if fwhm is None or (in_pixels and "fwhm" in content):
        got = "nothing" if fwhm is None else "fwhm_pixels too"
        raise shape.error("fwhm", got, "the full width at half maximum: fwhm [arcsec] or fwhm_pixels")
    ratio = shape.real("axis_ratio", 1.0, above=0)
    if ratio > 1:
        raise shape.error("axis_ratio", ratio, "minor over major axis, at most 1")
    beta = shape.real("beta", 3.5, above=1)
    angle = shape.real("angle", 0.0)
    return PsfDescription(kind, fwhm=fwhm, in_pixels=in_pixels, beta=beta, axis_ratio=ratio, angle=angle)


def _wing(keys: _Keys) -> tuple[float, float] | None:
    value = keys.mapping("wing")
    if not value:
        return None
    inner = keys.inside("wing", value)
    inner.known(("fraction", "sigma"))
    fraction, sigma = inner.real("fraction", above=0), inner.real("sigma", above=0)
    if fraction >= 1:
        raise inner.error("fraction", fraction, "a fraction of the light, below 1")
    return fraction, sigma


def _pair(keys: _Keys, key: str) -> tuple[float, float]:
    value = keys.values.get(key, [0.0, 0.0])
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(x, int | float) for x in value)):
        raise keys.error(key, repr(value), "[x, y]")
    return float(value[0]), float(value[1])


def _positive(keys: _Keys, key: str) -> tuple[float, ...]:
    value = keys.values.get(key)
    items = value if isinstance(value, list) else [value]
    numbers = [float(x) for x in items if isinstance(x, int | float) and not isinstance(x, bool) and x > 0]
    if not items or len(numbers) != len(items):
        raise keys.error(key, repr(value), "positive numbers")
    return tuple(numbers)


def _wcs(keys: _Keys) -> ArrayAt | Mapping[str, float] | None:
    value = keys.mapping("wcs")
    if not value:
        return None
    inner = keys.inside("wcs", value)
    if "pixel_scale" not in value:
        inner.known(("file", "hdu"))
        return inner.location()
    inner.known(("pixel_scale", "ra", "dec", "rotation"))
    out = {"scale": inner.real("pixel_scale", above=0)}
    return out | {key: inner.real(key) for key in ("ra", "dec", "rotation") if key in value}

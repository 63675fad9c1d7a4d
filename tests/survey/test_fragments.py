"""A large galaxy is one source; stars and satellites on top of it are not lost."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from astrozoo.data.described import read_described
from astrozoo.data.images import Field
from astrozoo.data.simulate import simulate_field
from astrozoo.survey import detect as detection
from astrozoo.survey.detect import detect

SCALE = 0.396
"""[arcsec/px] Of the simulated fields."""


def sources(rows: list[dict[str, float]]) -> Table:
    """Rows with x, y [px], r [mag], and for galaxies radius [arcsec], sersic and axis_ratio."""
    table = Table({name: [row[name] for row in rows] for name in ("x", "y")})
    table["is_star"] = ["radius" not in row for row in rows]
    for name in ("radius", "sersic", "axis_ratio", "angle"):
        table[name] = [row.get(name, 30.0 if name == "angle" else np.nan) for row in rows]
    table["dev_fraction"] = np.where(table["is_star"], np.nan, 0.5)
    for band, relative in {"u": 0.2, "g": 0.5, "r": 1.0, "i": 1.4, "z": 1.7}.items():
        table[f"flux_{band}"] = [relative * 10 ** (0.4 * (22.5 - row["r"])) for row in rows]
    return table


def field_of(rows: list[dict[str, float]], side: int) -> tuple[Field, Table]:
    return simulate_field(sources=sources(rows), seed=0, shape=(side, side), bands="gri")


def distances(table: Table, truth: Table) -> np.ndarray:
    """For each true source, the distance of the nearest detection [px]."""
    apart = np.hypot(*(np.subtract.outer(np.asarray(truth[c]), np.asarray(table[c])) for c in "xy"))
    return apart.min(1)


@pytest.mark.parametrize(
    ("radius", "sersic", "axis_ratio", "r"), [(10.0, 2.5, 0.4, 14.5), (15.0, 1.0, 0.8, 15.5)]
)
def test_a_large_galaxy_is_one_source(radius, sersic, axis_ratio, r, monkeypatch):
    galaxy = {"x": 150.2, "y": 149.7, "r": r, "radius": radius, "sersic": sersic, "axis_ratio": axis_ratio}
    images, _ = field_of([galaxy], 300)
    table = detect(images)
    assert len(table) == 1
    assert not table["blended"][0]
    monkeypatch.setattr(detection, "join_fragments", lambda light, photons, o, segments, psf: (o, segments))
    assert len(detect(images)) > 1


def test_stars_and_satellites_on_a_galaxy_are_sources():
    galaxy = {"x": 150.2, "y": 149.7, "r": 14.5, "radius": 10.0, "sersic": 1.0, "axis_ratio": 0.8}
    bright = {"x": 163.0, "y": 150.0, "r": 18.5}
    faint = {"x": 150.0, "y": 186.0, "r": 20.0}
    satellite = {"x": 110.0, "y": 150.0, "r": 18.5, "radius": 1.5, "sersic": 1.0, "axis_ratio": 0.7}
    images, truth = field_of([galaxy, bright, faint, satellite], 300)
    table = detect(images)
    assert len(table) == 4
    assert (distances(table, truth) < 2.0).all()


def test_a_crowd_keeps_its_stars():
    """Unresolved stars between bright ones make large objects, whose parts are not fragments."""
    rng = np.random.default_rng(5)
    rows = [{"x": x, "y": y, "r": r} for x, y, r in rng.normal((60, 60, 17.5), (14, 14, 0.8), (160, 3))]
    images, _ = field_of(rows, 120)
    joined = []
    original = detection.join_fragments

    def counting(light, photons, objects, segments, psf):
        out = original(light, photons, objects, segments, psf)
        joined.append(len(objects) - len(out[0]))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection, "join_fragments", counting)
        table = detect(images)
    assert len(table) > 30
    assert joined == [0]


def test_a_real_dwarf_galaxy_is_one_source(data_root, tmp_path):
    """IC 3478 in SDSS's r, of which SEP alone makes ten fragments."""
    path = data_root / "single_galaxies" / "ic3478rss_256.fits.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    (tmp_path / "images.yaml").write_text(
        f"images:\n  - file: {path}\n    unit: adu\n    gain: 4.725\n    read_noise: 4.3\n    sky: 130.14\n"
        "    sky_subtracted: true\n    zero_point: 28.3\n    psf: {moffat: {fwhm: 1.2, beta: 3.0}}\n"
        "    band: r\n"
    )
    table = detect(read_described(tmp_path / "images.yaml"))
    reach = np.hypot(table["x"] - 127.85, table["y"] - 128.10)  # imfit's centre, counted from 0
    assert reach.min() < 2.0
    # within two half-light radii: the galaxy and the star at (92.5, 189)
    assert (reach < 2 * 1.68 * 20.5).sum() <= 3

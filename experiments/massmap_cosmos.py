"""The mass map of the COSMOS field with its uncertainty, from the shear catalogue.

    python -m experiments.massmap_cosmos --out DIR [--method hmc] [--draws N] [--modes-only]

Reads ``weak_lensing/cosmos/cosmos_full_shear_catalog.npz`` (417,117 galaxies) in ASTROZOO_DATA, and writes
what ``astrozoo run mass_map`` writes, ``summary.json`` and ``cosmos.png``. The table of E and B modes is
printed for both directions that the x axis of the catalogue's components may have: with the wrong one E and B
modes mix.
The same command continues a run that was stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from astropy.io import fits
from astropy.table import Table
from matplotlib.figure import Figure

from astrozoo._files import write_json
from astrozoo.data import root
from astrozoo.errors import DataError
from astrozoo.massmap.job import run
from astrozoo.massmap.pictures import map_figure, mode_rows, peak_rows
from astrozoo.models import mass_map


def catalogue(folder: Path) -> Path:
    """A FITS table of the catalogue, written to ``folder``: the file has positions in 1e-7 deg."""
    data = root()
    path = None if data is None else data / "weak_lensing/cosmos/cosmos_full_shear_catalog.npz"
    if path is None or not path.is_file():
        raise DataError("ASTROZOO_DATA", "no weak_lensing/cosmos", "the shear catalogue of COSMOS")
    out = folder / "catalogue.fits"
    with np.load(path) as packed:
        columns = {name: packed[f"{name}_1e7"] * 1e-7 for name in ("ra", "dec")}
        columns |= {name: packed[name].astype(float) for name in ("e1", "e2", "w")}
    Table(columns).write(out, overwrite=True)
    return out


def picture(data: mass_map.ShearMaps, folder: Path) -> Figure:
    """The six maps of the report."""
    with fits.open(folder / "kappa.fits") as hdus:
        maps = {hdu.name: np.asarray(hdu.data, float) for hdu in hdus[1:]}
    with fits.open(folder / "kappa_draws.fits") as hdus:
        draw = np.asarray(hdus["DRAWS"].data[-1], float)
    found, _ = peak_rows(data.pixels, data.pixel, maps, data.wcs)
    return map_figure(data.pixels, data.pixel, maps, draw, found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="hmc")
    parser.add_argument("--draws", type=int, default=100, help="of each of 4 chains")
    parser.add_argument("--modes-only", action="store_true", help="only the table of E and B modes")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    path = catalogue(chosen.out)
    modes: dict[str, Any] = {}
    for axis in ("west", "east"):
        data = mass_map.read(path, x_axis=axis)
        modes[axis] = mode_rows(data.pixels, data.pixel, 0)
        print(axis, json.dumps(modes[axis]), flush=True)
    if chosen.modes_only:
        return
    axis = min(modes, key=lambda name: modes[name][1]["variance / that of noise"])
    began, cpu = time.perf_counter(), time.process_time()
    outcome = run(out=chosen.out, path=path, method=chosen.method, draws=chosen.draws, x_axis=axis)
    cost = {"CPU seconds": time.process_time() - cpu, "seconds": time.perf_counter() - began}
    summary = {
        "x axis": axis,
        "modes": modes,
        "status": str(outcome.result.status),
        **outcome.summary,
        **cost,
    }
    write_json(summary, chosen.out / "summary.json")
    data = mass_map.read(path, x_axis=axis)
    picture(data, chosen.out).savefig(chosen.out / "cosmos.png", dpi=70)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()

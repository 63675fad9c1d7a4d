"""What ``astrozoo run deblend`` does: from a cut-out to the images and fluxes of its sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from jaxtyping import Float

from astrozoo import data, registry
from astrozoo._files import replacing
from astrozoo._jobs import CHECKPOINT, unless_interrupted, with_data
from astrozoo.data.scene_files import read_scene
from astrozoo.data.scenes import Scene
from astrozoo.data.simulate_blends import simulate_blend
from astrozoo.deblending import pictures
from astrozoo.deblending.sources import Deblended, catalogue, deblended, write_scene
from astrozoo.errors import InputError
from astrozoo.infer import infer
from astrozoo.types import Outcome, Page, Problem, Result

__all__ = ["DEMO_FILE", "run"]

DEMO_FILE = Path("hsc_blends") / "psf_unmatched_sim.npz"
"""The demonstration, below the folder of local data: a simulated scene in six bands with three stars and two
galaxies, and its truth."""
_DEMO_GAIN = 1.0
"""[electron / unit] Of that scene, whose pixels are counts of photons."""


def run(
    *,
    out: Path,
    path: Path | None = None,
    demo: bool = False,
    method: str = "laplace",
    guide: str = "full_rank",
    seed: int = 0,
    device: str = "cpu",
    **options: Any,
) -> Outcome:
    """Read a scene, fit it, and write ``scene.fits``, ``catalog.parquet`` and the report.

    Args:
        out: folder, which exists.
        path: see :func:`astrozoo.data.scene_files.read_scene`. Without it, the demonstration.
        demo: the demonstration.
        options: those of the entry's ``reading`` and ``settings``.

    Raises:
        InputError: options that do not fit together or do not fit the data.
        DataError: files that are missing or unreadable.
    """
    entry = registry.get("deblend")
    reading, settings = entry.split(options)
    truth = None
    if path is not None:
        scene = entry.read(path, **reading)
        origin = str(path)
    else:
        given = [name for name, value in reading.items() if value]
        if given:
            flag = next(option.flag for option in entry.reading if option.name == given[0])
            raise InputError(flag, reading[given[0]], f"{flag} with --data only")
        scene, truth, origin = demonstration(seed)
    print(f"{origin}: {len(scene.sources)} sources, bands {', '.join(scene.bands)}")
    problem = entry.problem(scene, **settings).to(device=device)
    result = unless_interrupted(_inferred(entry, problem, method, guide, seed, out))
    parts = deblended(scene, problem, result)
    table = catalogue(scene, problem, result, parts)
    write_scene(out / "scene.fits", scene, parts, table)
    with replacing(out / "catalog.parquet") as partial:
        table.write(partial, format="parquet", overwrite=True)
    pages, summary = _pages(scene, parts, table, truth)
    files = {
        "scene.fits": "data, model, each source with its SD, covariance of the fluxes, catalogue",
        "catalog.parquet": "one row per source",
    }
    summary = {"data": origin, "prior": settings.get("prior", "sersic"), "sources": len(table), **summary}
    return Outcome(with_data(problem, result), pages, summary, files)


def demonstration(seed: int) -> tuple[Scene, Float[np.ndarray, "source band"], str]:
    """A simulated scene, its true fluxes inside the image, and one line on where it comes from."""
    folder = data.root()
    path = None if folder is None else folder / DEMO_FILE
    if path is None or not path.is_file():
        scene, images = simulate_blend(seed)
        return (
            scene,
            images.sum((2, 3)),
            f"demonstration: {scene.name} ({DEMO_FILE.name} is not in the local data)",
        )
    scene = read_scene(path, gain=_DEMO_GAIN)
    with np.load(path, allow_pickle=False) as file:
        rows = file["catalog"]
    places = np.stack((rows["x"], rows["y"]), 1)
    there = np.stack((scene.sources["x"], scene.sources["y"]), 1)
    owner = np.hypot(*(places[:, None] - there).T).argmin(0)
    truth = np.zeros((len(there), len(scene.bands)))
    for row, source in zip(rows, owner, strict=True):
        truth[source] += [row[f"intensity_{band}"].sum() for band in scene.bands]
    return scene, truth, f"demonstration: the simulated scene {path.name} with its truth"


def _inferred(
    entry: registry.Entry, problem: Problem, method: str, guide: str, seed: int, out: Path
) -> Result:
    settings = dict(entry.options.get(method, {}))
    if method == "hmc":
        settings["precondition"] = infer(problem, "laplace", seed=seed, **entry.options["laplace"])
    (out / CHECKPOINT).mkdir(exist_ok=True)
    checkpoint = out / CHECKPOINT / f"{method}.npz"
    return infer(problem, method, guide, seed=seed, checkpoint=checkpoint, **settings)


def _pages(
    scene: Scene, parts: Deblended, table: Table, truth: Float[np.ndarray, "source band"] | None
) -> tuple[list[Page], dict[str, Any]]:
    """The sections of the report, and what they say in short."""
    rows = [{name: _shown(row[name]) for name in table.colnames} for row in table]
    notes = list(scene.notes)
    unused = [band for band in scene.bands if band not in parts.bands]
    if unused:
        notes.append(
            f"No pixel of band {', '.join(unused)} is used: the band is left out, its fluxes are NaN."
        )
    pages = [
        Page("Scene", [(pictures.scene_figure(scene, parts), pictures.SCENE), *notes]),
        Page("Residuals", [(pictures.bands_figure(scene, parts), pictures.BANDS)]),
        Page("Sources", [(pictures.sources_figure(scene, parts), pictures.SOURCES), rows]),
        Page("Fluxes", [(pictures.flux_figure(parts, truth), pictures.FLUXES)]),
    ]
    summary: dict[str, Any] = {"largest chi2 of a source": round(float(np.nanmax(parts.chi2)), 3)}
    if truth is not None:
        compared = _against(parts, truth)
        pages.append(Page("Simulated truth", [_TRUTH, compared]))
        errors = np.array([row["relative error"] for row in compared])
        inside = np.array([abs(row["error / SD"]) < 1 for row in compared])
        summary["median |relative flux error|"] = round(float(np.median(np.abs(errors))), 4)
        summary["fluxes within 1 SD"] = f"{inside.sum()} of {len(inside)}"
    return pages, summary


_TRUTH = "True fluxes are sums over the image. So light of the model beyond the edges is left out here."


def _against(parts: Deblended, truth: Float[np.ndarray, "source band"]) -> list[dict[str, Any]]:
    inside = parts.images.sum((2, 3))
    whole = parts.fluxes.mean(0)
    rows = []
    for i, j in np.ndindex(*truth.shape):
        share = inside[i, j] / whole[i, j]
        draws = parts.fluxes[:, i, j] * share
        rows.append(
            {
                "source": i,
                "band": parts.bands[j],
                "true flux": _shown(truth[i, j]),
                "flux in the image": _shown(np.median(draws)),
                "relative error": round(float(np.median(draws) / truth[i, j] - 1), 4),
                "error / SD": round(float((np.median(draws) - truth[i, j]) / draws.std()), 2),
            }
        )
    return rows


def _shown(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float | np.floating) else value

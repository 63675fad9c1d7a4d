"""What ``astrozoo survey celeste`` does: many fields in, one catalogue and a report out.

There are three stages of tasks: fields are scanned, boxes of the first tiling are fitted, boxes of the second
tiling are fitted again, from the first fits, with draws. Each task leaves one file. A run that was stopped
continues with the tasks that have none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from astropy.table import Table

from astrozoo._files import write_json
from astrozoo.data.simulate_sky import SimulatedSky
from astrozoo.diagnostics.report import write_rows
from astrozoo.errors import DataError, InputError
from astrozoo.survey.catalogue import write_catalogue
from astrozoo.survey.celeste import box as tasks
from astrozoo.survey.celeste.box import LEARNED, MARGIN
from astrozoo.survey.celeste.field_prior import prior_of_field
from astrozoo.survey.celeste.job import DRAWS
from astrozoo.survey.celeste.population import Fluxes, learn
from astrozoo.survey.celeste.survey_pages import write_report
from astrozoo.survey.sky.engine import cluster, run_tasks
from astrozoo.survey.sky.hats import write_hats
from astrozoo.survey.sky.inputs import Spec, list_fields, read_spec, simulated_fields
from astrozoo.survey.sky.progress import Progress
from astrozoo.survey.sky.store import Store
from astrozoo.survey.sky.tiling import Box, Tiling, divide

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["survey"]

HEIGHT = 0.2
"""[deg] Height of the zones of both tilings: some 1,800 pixels of SDSS, above which no box is needed."""
_LEVELS = 3
"""How often a cell may be divided: boxes are at least 90 arcsec wide, several times their margin."""
BOX_SECONDS = 120.0
"""[s] Predicted time of a box: long against what a task costs the scheduler (a millisecond) and against
reading a field (seconds), short against what a dead worker loses."""
SECONDS_PER_SOURCE = 0.2
"""[s] Both fits and the draws of a source in five bands: that of a field's fit (docs/celeste.md). It has
not been measured in a survey."""
SECONDS_PER_PIXEL = 2e-6
"""[s] What a box costs for each pixel of its images, in all stages: a guess."""
_FITS_ROWS = 200_000
"""Largest number of sources for which one FITS table is written too."""
_LEARN_FROM = 20_000
"""Largest number of sources that the prior is learned from: its errors are then below a per cent."""


class _Field(NamedTuple):
    """A scanned field: its spec, its bounds (ra, width, dec, dec) [deg], and what the scan counted."""

    spec: Spec
    bounds: tuple[float, float, float, float]
    about: dict[str, Any]


def survey(
    *,
    out: Path,
    path: Path | None = None,
    demo: bool = False,
    seed: int = 0,
    workers: int = 2,
    scheduler: str | None = None,
    memory: str | None = None,
    survey: str | None = None,
    sweeps: int = 20,
    draws: int | None = None,
    box_seconds: float | None = None,
    sky: SimulatedSky | None = None,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Fit all sources of many fields, and write the catalogue, a report and ``summary.json``.

    Args:
        out: folder, which exists. Work in progress is in ``out/work``; it is removed at the end if nothing
            failed.
        path: of the fields (:func:`astrozoo.survey.sky.inputs.list_fields`).
        demo: a simulated sky in place of files: ``sky``, or four small fields.
        workers, scheduler, memory: where tasks run (:func:`astrozoo.survey.sky.engine.cluster`).
        survey: name of the ready description of all fields.
        sweeps, draws: as of one field.
        box_seconds: predicted time of a box, above which it is divided [s]; by default :data:`BOX_SECONDS`,
            or a tenth of it for the small simulated sky.

    Returns:
        what ``summary.json`` contains; ``failures`` is a list of the tasks that failed.

    Raises:
        InputError: neither or both of ``path`` and ``demo``, or work of another survey in ``out``.
        DataError: there is no field, or no field can be read.
        OutputError: results cannot be written.
    """
    if demo == (path is not None):
        raise InputError("survey", "both --data and --demo" if demo else "neither", "--data or --demo")
    truth = (sky or SimulatedSky(seed=seed)) if demo else None
    specs = simulated_fields(truth) if truth is not None else list_fields(path, survey)  # type: ignore[arg-type]
    most = box_seconds or (BOX_SECONDS / 10 if demo else BOX_SECONDS)
    settings: dict[str, Any] = {"seed": seed, "sweeps": sweeps, "draws": draws or DRAWS}
    key = {"model": "celeste", **settings, "box seconds": most, "height": HEIGHT}
    key["fields"] = {spec["name"]: {k: v for k, v in spec.items() if k != "name"} for spec in specs}
    store = Store(out / "work", key)
    again = store.forgive()
    if again:
        say(f"{again} tasks that failed before are tried again")
    started = time.perf_counter()
    with cluster(workers, scheduler, memory) as client:
        n = len(client.scheduler_info(n_workers=-1)["workers"])
        say(f"{len(specs)} fields; {n} workers; dashboard {client.dashboard_link}")
        run = _Run(client, store, settings, progress)
        fields = run.scan(specs)
        if not fields:
            reasons = "; ".join(f"{f['name']}: {f['reason']}" for f in store.failures()[:3])
            raise DataError(str(path), f"no field that can be read ({reasons})", "at least one")
        first = _boxes(fields, store, 0, most)
        second = _boxes(fields, store, 1, most)
        say(f"{len(first)} boxes, then {len(second)} shifted ones")
        run.first(first, fields)
        learned = _learned(store, fields)
        run.second(second, first, fields, learned)
    summary = _results(out, store, learned, truth)
    summary |= {"fields": len(fields), "workers": n, "seconds": round(time.perf_counter() - started, 1)}
    write_json(summary, out / "summary.json")
    if not summary["failures"]:
        store.remove()
    return summary


class _Run:
    """The stages of a survey on a cluster."""

    def __init__(self, client: Client, store: Store, settings: Mapping[str, Any], progress: bool) -> None:
        self.client, self.store, self.settings, self.progress = client, store, settings, progress

    def _stage(
        self,
        stage: str,
        suffix: str,
        function: Callable[..., Any],
        names: list[str],
        keywords: Callable[[str], dict[str, Any]],
    ) -> None:
        """Run the tasks of a stage that have no result yet."""
        done = self.store.done(stage, suffix)
        todo = [name for name in names if name not in done]

        def send() -> Iterator[tuple[str, dict[str, Any]]]:
            for name in todo:
                yield name, {**keywords(name), "out": self.store.path(stage, name, suffix)}

        with Progress(stage, len(names), len(names) - len(todo), self.progress) as report:
            for ended in run_tasks(self.client, function, send()):
                if ended.error:
                    self.store.fail(stage, ended.name, ended.error)
                report(ended)

    def scan(self, specs: list[Spec]) -> list[_Field]:
        """The fields that can be read."""
        by_name = {spec["name"]: spec for spec in specs}
        heights = (HEIGHT, HEIGHT)
        self._stage(
            "fields",
            ".npz",
            tasks.scan,
            list(by_name),
            lambda name: {"spec": by_name[name], "heights": heights},
        )
        fields = []
        for name in sorted(self.store.done("fields", ".npz")):
            with np.load(self.store.path("fields", name, ".npz"), allow_pickle=False) as archive:
                about = json.loads(str(archive["about"]))
                fields.append(_Field(by_name[name], tuple(archive["bounds"].tolist()), about))
        return fields

    def first(self, boxes: list[Box], fields: list[_Field]) -> None:
        """Fit the boxes of the first tiling."""
        tiling = Tiling(HEIGHT)

        def keywords(name: str) -> dict[str, Any]:
            specs = _specs_near(tiling, Box.named(name), fields)
            return {"box": name, "height": HEIGHT, "specs": specs, "settings": self.settings}

        self._stage("first", ".npz", tasks.first_fit, [box.name for box in boxes], keywords)

    def second(
        self, boxes: list[Box], first: list[Box], fields: list[_Field], learned: Mapping[str, Any] | None
    ) -> None:
        """Fit the boxes of the second tiling, but those whose first fits all failed."""
        tiling, before = Tiling(HEIGHT, shifted=True), Tiling(HEIGHT)
        done = self.store.done("first", ".npz")
        edges = [(box, before.bounds(box)) for box in first if box.name in done]

        def keywords(name: str) -> dict[str, Any]:
            bounds = tiling.bounds(Box.named(name))
            near = [box.name for box, other in edges if _overlap(bounds, other, 2 * MARGIN / 3600)]
            return {
                "box": name,
                "height": HEIGHT,
                "first": {at: str(self.store.path("first", at, ".npz")) for at in near},
                "specs": _specs_near(tiling, Box.named(name), fields),
                "settings": self.settings,
                "learned": learned,
            }

        self._redo(boxes, tiling, done)
        self._stage("second", ".parquet", tasks.second_fit, [box.name for box in boxes], keywords)

    def _redo(self, boxes: list[Box], tiling: Tiling, done: set[str]) -> None:
        """Remove results of boxes that were fitted before first fits that they need had succeeded."""
        path = self.store.path("first", "used", ".json")
        used = set(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else done
        late = [Tiling(HEIGHT).bounds(Box.named(name)) for name in done - used]
        for box in boxes if late else []:
            bounds = tiling.bounds(box)
            if any(_overlap(bounds, other, 2 * MARGIN / 3600) for other in late):
                self.store.path("second", box.name, ".parquet").unlink(missing_ok=True)
        path.write_text(json.dumps(sorted(done)), encoding="utf-8")


def _boxes(fields: list[_Field], store: Store, tiling: int, most: float) -> list[Box]:
    """The boxes of a tiling that contain all pixels of the fields, divided by their predicted cost."""
    places, costs = [], []
    for field in fields:
        with np.load(store.path("fields", field.spec["name"], ".npz"), allow_pickle=False) as archive:
            area, sources = archive[f"area_{tiling}"], archive[f"sources_{tiling}"]
        places += [area, sources]
        costs.append(np.full(len(area), field.about["cell_pixels"] * SECONDS_PER_PIXEL))
        # an image more costs each source as much as the first
        costs.append(np.full(len(sources), SECONDS_PER_SOURCE * field.about["images"] / 5))
    cost = np.concatenate(costs)
    return divide(np.concatenate(places), lambda rows: float(cost[rows].sum()), most, levels=_LEVELS)


def _overlap(a: tuple[float, ...], b: tuple[float, ...], margin: float) -> bool:
    """Whether two ranges (ra, width, dec, dec) [deg] overlap, one of them widened by a margin."""
    if a[2] - margin > b[3] or b[2] - margin > a[3]:
        return False
    high = max(abs(x) for x in (*a[2:], *b[2:]))
    aside = margin / np.cos(np.deg2rad(min(high, 89.9)))
    return (b[0] - a[0] + aside) % 360 <= a[1] + 2 * aside or (a[0] - b[0] + aside) % 360 <= b[1] + 2 * aside


def _specs_near(tiling: Tiling, box: Box, fields: list[_Field]) -> list[Spec]:
    bounds = tiling.bounds(box)
    return [field.spec for field in fields if _overlap(bounds, field.bounds, MARGIN / 3600)]


def _learned(store: Store, fields: list[_Field]) -> dict[str, Any] | None:
    """The fraction of stars and the luminosity functions of all first fits, which are then kept in a file.

    None where boxes had different priors, because their fields differ in depth.
    """
    path = store.path("first", "learned", ".json")
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    parts: list[list[np.ndarray]] = []
    priors = []
    for name in sorted(store.done("first", ".npz")):
        with np.load(store.path("first", name, ".npz"), allow_pickle=False) as archive:
            if "inside" not in archive.files or not archive["inside"].any():
                continue
            inside = archive["inside"]
            parts.append([archive[f"fluxes_{column}"][inside] for column in Fluxes._fields])
            priors.append(archive["prior"])
        if sum(len(part[0]) for part in parts) > _LEARN_FROM:
            break
    if not parts or np.ptp(np.stack(priors), axis=0).max() > 0:
        return None
    prior = prior_of_field(read_spec(fields[0].spec))
    start = np.array([prior.prob_star, *prior.log_flux_mean, *prior.log_flux_sd])
    if np.abs(start - priors[0]).max() > 0:
        return None
    new = learn(prior, Fluxes(*(np.concatenate(column) for column in zip(*parts, strict=True))))
    learned = {name: getattr(new, name) for name in LEARNED}
    write_json(learned, path)
    return json.loads(path.read_text(encoding="utf-8"))


def _results(
    out: Path, store: Store, learned: Mapping[str, Any] | None, sky: SimulatedSky | None
) -> dict[str, Any]:
    """Write the catalogue, the failures and the report."""
    parts = [store.path("second", name, ".parquet") for name in sorted(store.done("second", ".parquet"))]
    parts = [part for part in parts if pq.read_metadata(part).num_rows]
    failures = store.failures()
    write_rows(failures or [{"stage": "", "name": "", "reason": ""}], out / "failures.csv")
    total = write_hats(parts, out / "catalog", "celeste") if parts else 0
    summary: dict[str, Any] = {"sources": total, "boxes": len(parts), "failures": failures}
    if learned is not None:
        summary["star fraction of the prior"] = round(float(learned["prob_star"]), 3)
    table = Table()
    if 0 < total <= _FITS_ROWS:
        table = read_hats(out / "catalog")
        plain = table.copy()
        plain.remove_column("_healpix_29")
        write_catalogue(plain, out / "catalog.fits")
    return summary | write_report(out, table, failures, None if sky is None else sky.truth())


def read_hats(folder: Path) -> Table:
    """The rows of a HATS catalogue that fits into memory, with the units that its columns had."""
    files = sorted(folder.glob("dataset/Norder=*/Dir=*/Npix=*.parquet"))
    table = Table()
    arrow = pq.ParquetDataset(files, partitioning=None).read()
    for field in arrow.schema:
        values = arrow[field.name].to_numpy()
        table[field.name] = values.astype(str) if values.dtype == object else values
        about = field.metadata or {}
        if b"unit" in about and about[b"unit"] != b"nmgy":
            table[field.name].unit = about[b"unit"].decode()
        if b"description" in about:
            table[field.name].description = about[b"description"].decode()
    return table

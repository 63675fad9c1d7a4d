"""Crowded fields with known truth: how well each step of the crowded way does.

    python experiments/crowded_fields.py --seeds 5 --out crowded            # all of the table, hours
    python experiments/crowded_fields.py --quick --out crowded              # one small field, minutes

GalSim renders a globular cluster of M2's density (:mod:`astrozoo.data.simulate_crowded`). Each field is
fitted in up to six ways: the joint mode with the PSF known; the sampler from there; both with a PSF that is
4 % too wide and has no wings, and must be learned; and fluxes at exact positions, with and without the
solution of the linear problem first. The scores of all fields together are written as a table (``OUT.md``),
and those of each field as ``OUT.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from astrozoo.data.images import Field
from astrozoo.data.simulate_crowded import blurred_psf, simulate_cluster
from astrozoo.diagnostics.crowded_scoring import BORDER, score_crowded
from astrozoo.survey.crowded.fit import fit_crowded
from astrozoo.survey.crowded.mode import ModeFit, fit_mode
from astrozoo.survey.crowded.sampler import STEPS
from astrozoo.survey.crowded.scene import Scene

WAYS = ("known", "learned", "positions")
GIVEN = 0.05
"""SD of the positions that are given as exact [px]."""
ROWS = (
    ("F1, published rule", ("published rule", "F1")),
    ("true positive rate", ("published rule", "true positive rate")),
    ("precision", ("published rule", "precision")),
    ("F1, 1 px, no flux condition", ("1 px", "F1")),
    ("precision of r < 18", ("bright", "precision")),
    ("true positive rate of r < 18", ("bright", "true positive rate")),
    ("stars called galaxies, r < 21", ("stars called galaxies",)),
    ("chi2 per pixel in r", ("chi2 r",)),
    ("seconds per source", ("seconds per source",)),
)


def of_mode(fit: ModeFit) -> Table:
    """A joint mode as a catalogue, with the intervals of its Laplace approximation."""
    table = Table({"x": fit.sources.xy[:, 0], "y": fit.sources.xy[:, 1]})
    table["p_star"] = fit.sources.is_star.astype(float)
    for b, band in enumerate(fit.scene.bands):
        flux, sd = fit.sources.flux[:, b], fit.log_flux_sd[:, b]
        table[f"flux_{band}"] = flux
        for name, z in (("q025", -1.96), ("q16", -0.994), ("q84", 0.994), ("q975", 1.96)):
            table[f"flux_{band}_{name}"] = flux * np.exp(z * sd)
    return table


def scored(truth: Table, table: Table, shape: tuple[int, int], **more: float) -> dict[str, Any]:
    return score_crowded(truth, table, shape) | more


def sampled(
    images: Field, truth: Table, options: argparse.Namespace, seed: int, refit: bool
) -> dict[str, Any]:
    """Scores of the joint mode and of the sampler, of one field."""
    began = time.perf_counter()
    fit = fit_crowded(
        images,
        seed=seed,
        chains=options.chains,
        samples=options.samples,
        steps=options.steps,
        refit_psf=refit,
        progress=True,
    )
    seconds = time.perf_counter() - began
    shape = images.images[0].shape
    (block,) = fit.blocks
    mode = block.mode
    r = mode.scene.band.index("r")
    cost = {"seconds per source": mode.seconds / max(1, len(mode.sources))}
    scores = {"joint mode": scored(truth, of_mode(mode), shape, **{"chi2 r": float(mode.chi2[r])}, **cost)}
    chi2 = next(row for row in fit.chi2() if row["band"] == "r")["chi2 per pixel"]
    cost = {"seconds per source": seconds / max(1, len(fit.consensus))}
    scores["sampler"] = scored(truth, fit.consensus, shape, **{"chi2 r": float(chi2)}, **cost)
    names, mixing = fit.samples.mixing()
    scores["sampler"]["r_hat"] = dict(zip(names, mixing.r_hat[0].tolist(), strict=True))
    return scores


def at_positions(images: Field, truth: Table, seed: int, first: bool) -> dict[str, Any]:
    """Fluxes and displacements of stars at positions that are given."""
    rng = np.random.default_rng((seed, 2))
    exact = np.column_stack([truth["x"], truth["y"]])
    given = exact + GIVEN * rng.standard_normal(exact.shape)
    scene = Scene.of(images)
    fit = fit_mode(scene, given, position_error=GIVEN, refit_psf=False, fluxes_first=first)
    table = of_mode(fit)
    shape = images.images[0].shape
    inner = np.all((exact > BORDER) & (exact < np.array(shape[::-1]) - BORDER), axis=1)
    moved = (fit.sources.xy - given)[inner]
    magnitude = 22.5 - 2.5 * np.log10(truth["flux_r"])
    right = np.abs(-2.5 * np.log10(table["flux_r"] / truth["flux_r"])) < 0.5
    scores = {"displacement / error": float(np.sqrt((moved**2).mean()) / GIVEN)}
    scores |= {f"chi2 {band}": float(chi2) for band, chi2 in zip(scene.band, fit.chi2, strict=True)}
    scores |= {"within .5 mag": float(right[inner].mean())}
    scores |= {"total flux / truth": float(table["flux_r"][inner].sum() / truth["flux_r"][inner].sum())}
    for row in score_crowded(truth, table, shape)["coverage"]:
        if row["band"] == "r":
            scores |= {"68 % intervals": row["68%"], "95 % intervals": row["95%"]}
    return scores | {"faintest": float(magnitude.max())}


def measure(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """All scores of one field."""
    images, truth = simulate_cluster(
        seed=seed, shape=(options.box, options.box), bands=options.bands, faintest=options.faintest
    )
    print(f"seed {seed}: {len(truth)} sources", flush=True)
    record: dict[str, Any] = {"seed": seed, "sources": len(truth)}
    for way in options.ways.split(","):
        if way == "positions":
            for first in (True, False):
                name = "positions given" + ("" if first else ", without the linear solution")
                record[name] = at_positions(images, truth, seed, first)
        else:
            seen = images if way == "known" else blurred_psf(images)
            scores = sampled(seen, truth, options, seed, refit=way == "learned")
            record |= {f"{name}, PSF {way}": score for name, score in scores.items()}
        print(f"seed {seed}, {way}: done", flush=True)
    return record


def value_at(score: dict[str, Any], path: tuple[str, ...]) -> float:
    for name in path:
        score = score.get(name, {})
    return float(score) if isinstance(score, int | float) else np.nan


def averaged(values: list[float]) -> str:
    known = np.array(values)[np.isfinite(values)]
    if not len(known):
        return ""
    error = f" ± {known.std(ddof=1) / np.sqrt(len(known)):.3f}" if len(known) > 1 else ""
    return f"{known.mean():.3f}{error}"


def intervals(records: list[dict[str, Any]], column: str) -> list[tuple[str, str]]:
    """Coverage by band, and reliability by bin, pooled over the fields."""
    rows = []
    bands = {row["band"]: None for r in records for row in r[column].get("coverage", ())}
    for band in bands:
        for level in ("68%", "95%"):
            pairs = [
                (row[level], row["n"])
                for r in records
                for row in r[column]["coverage"]
                if row["band"] == band
            ]
            share, n = np.array(pairs).T
            rows.append((f"{level} intervals of {band}", f"{np.average(share, weights=n):.3f}"))
    bins = [r[column]["reliability"] for r in records if "reliability" in r[column]]
    for same in zip(*bins, strict=True):
        used = [row for row in same if row["n"]]
        if used:
            n = [row["n"] for row in used]
            stated, found = (np.average([row[k] for row in used], weights=n) for k in ("stated", "found"))
            text = f"{stated:.2f} → {found:.2f} ({sum(n)})"
            rows.append((f"p(exists) {same[0]['from']:g}-{same[0]['to']:g}: stated → found (n)", text))
    return rows


def markdown(records: list[dict[str, Any]]) -> str:
    """The scores of all fields as tables."""
    names = [name for name, value in records[0].items() if isinstance(value, dict)]
    full = [name for name in names if "published rule" in records[0][name]]
    lines = []
    if full:
        table = {
            label: [averaged([value_at(r[c], path) for r in records]) for c in full] for label, path in ROWS
        }
        for k, column in enumerate(full):
            for label, text in intervals(records, column):
                table.setdefault(label, [""] * len(full))[k] = text
        lines += [f"| | {' | '.join(full)} |", "|---" * (len(full) + 1) + "|"]
        lines += [f"| {label} | {' | '.join(cells)} |" for label, cells in table.items()]
    given = [name for name in names if name not in full]
    if given:
        lines += ["", f"| | {' | '.join(given)} |", "|---" * (len(given) + 1) + "|"]
        for label in records[0][given[0]]:
            cells = [averaged([value_at(r[column], (label,)) for r in records]) for column in given]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of fields")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--box", type=int, default=106, help="side of a field [px]")
    parser.add_argument("--bands", default="gri")
    parser.add_argument("--faintest", type=float, default=22.3, help="r of the faintest stars")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"some of {', '.join(WAYS)}")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--samples", type=int, default=100, help="catalogues kept of each chain")
    parser.add_argument("--steps", type=int, default=STEPS, help="moves per source and chain")
    parser.add_argument("--quick", action="store_true", help="one field of 53 px, two chains")
    parser.add_argument("--out", type=Path, required=True, help="stem of the two files")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.box, options.chains, options.samples = 1, 53, 2, 40
    records: list[dict[str, Any]] = []
    for seed in range(options.first, options.first + options.seeds):
        records.append(measure(seed, options))
        options.out.with_suffix(".json").write_text(json.dumps(records, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(markdown(records))
    print(markdown(records))

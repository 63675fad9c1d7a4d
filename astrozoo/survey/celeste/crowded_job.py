"""What ``astrozoo run celeste`` does with a crowded field: catalogues and a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.table import Table

from astrozoo.data.images import Field
from astrozoo.infer.convergence import ensemble_status
from astrozoo.survey.catalogue import write_catalogue
from astrozoo.survey.celeste.crowded_catalogue import CROWDED_FLAGS, crowded_catalogue, sampled_catalogues
from astrozoo.survey.celeste.crowded_pages import crowded_pages
from astrozoo.survey.crowded.fit import CrowdedFit, fit_crowded
from astrozoo.survey.crowded.sampler import STEPS
from astrozoo.survey.crowded.samples import Samples
from astrozoo.survey.fields import fingerprint
from astrozoo.types import Outcome, Page, Result

__all__ = ["CrowdedSettings", "crowded_result", "run_crowded"]

METHOD = "crowded"
"""Name of the method in results."""
CHAINS = 4
"""Default number of chains."""
SAMPLES = 100
"""Default number of catalogues that each chain keeps."""


@dataclass(frozen=True)
class CrowdedSettings:
    """Options of a crowded field's fit (:func:`astrozoo.survey.crowded.fit.fit_crowded`)."""

    seed: int = 0
    chains: int = CHAINS
    samples: int = SAMPLES
    star_fraction: float | None = None


def run_crowded(
    images: Field,
    catalog: Table | None,
    origin: str,
    why: str,
    settings: CrowdedSettings,
    *,
    out: Path,
    progress: bool,
    say: Callable[[str], None],
    notes: Sequence[str] = (),
) -> Outcome:
    """Fit a crowded field, and write ``catalog.fits``, ``catalog.parquet`` and ``catalogs.parquet``.

    Args:
        images: the field.
        catalog: all sources, if they are known.
        origin: what the field is, in words.
        why: why it is fitted as a crowded field.
        out: folder, which exists; work in progress is kept in ``out/checkpoint``.
        say: shows a line to the user.
        notes: on the data.

    Raises:
        InputError: see :func:`astrozoo.survey.crowded.fit.fit_crowded`.
        OutputError: a file cannot be written.
    """
    fit = fit_crowded(
        images,
        catalog,
        seed=settings.seed,
        chains=settings.chains,
        samples=settings.samples,
        steps=STEPS,
        star_fraction=settings.star_fraction,
        progress=progress,
        checkpoint=out / "checkpoint",
    )
    table = crowded_catalogue(images, fit.consensus)
    for name in ("catalog.fits", "catalog.parquet"):
        write_catalogue(table, out / name)
    write_catalogue(sampled_catalogues(images, fit.samples), out / "catalogs.parquet")
    say(f"{len(table)} sources in {out / 'catalog.fits'}; now the report")
    pages = crowded_pages(fit, table, origin, why, given=catalog is not None)
    if notes:
        pages.append(Page("Notes on the data", list(notes)))
    summary = _summary(fit, table, origin, why) | ({"notes": list(notes)} if notes else {})
    return Outcome(
        crowded_result(fit, settings.seed),
        pages=pages,
        summary=summary,
        files={
            "catalog.fits": "consensus catalogue with errors (FITS table)",
            "catalog.parquet": "the same (Parquet)",
            "catalogs.parquet": "all sampled catalogues (Parquet)",
        },
    )


def crowded_result(fit: CrowdedFit, seed: int) -> Result:
    """The numbers of sources and total fluxes of the catalogues, as draws of chains.

    The status is *converged* if R-hat and effective sample sizes of all of them fulfil the rule
    (:mod:`astrozoo.infer.convergence`).
    """
    samples = fit.samples
    draws, bins = _draws(samples)
    steady = torch.zeros(1, samples.chains, samples.length, dtype=torch.bool)
    (status,) = ensemble_status(draws, False, steady)
    return Result(
        draws=draws,
        status=status,
        seed=seed,
        model="celeste",
        method=METHOD,
        digest=fingerprint(fit.field),
        stats={"run_seconds": round(sum(fit.seconds.values()), 3), "acceptance": samples.acceptance},
        dims={"luminosity_function": ("magnitude",), "total_flux": ("band",)},
        coords={"magnitude": bins, "band": list(samples.bands)},
    )


def _draws(samples: Samples) -> tuple[dict[str, np.ndarray], list[str]]:
    """Counts and total fluxes [chain, sample, ...], and the labels of the bins of magnitude."""
    totals = samples.totals()
    bins = [name for name in totals if "<=" in name]
    draws = {name: totals[name] for name in ("sources", "galaxies")}
    if bins:
        draws["luminosity_function"] = np.stack([totals[name] for name in bins], -1)
    draws["total_flux"] = np.stack([totals[f"flux {band}"] for band in samples.bands], -1)
    return draws, bins


def _summary(fit: CrowdedFit, table: Table, origin: str, why: str) -> dict[str, Any]:
    counts = fit.samples.totals()["sources"]
    p = np.asarray(table["p_star"])
    return {
        "field": origin,
        "way": why,
        "sources": len(table),
        "sources of the catalogues": f"{counts.mean():.1f} ± {counts.std():.1f}",
        "stars": int((p > 0.5).sum()),
        "galaxies": int((p <= 0.5).sum()),
        "star fraction of the prior": round(float(np.mean([b.prior.star_fraction for b in fit.blocks])), 4),
        "flagged": {name: int(np.sum(table[name])) for name in CROWDED_FLAGS},
        "chi2 per pixel": {row["band"]: round(row["chi2 per pixel"], 3) for row in fit.chi2()},
        "PSF error": {
            band: round(float(np.mean([b.mode.scene.psf_error[k] for b in fit.blocks])), 4)
            for k, band in enumerate(fit.blocks[0].mode.scene.band)
        },
        "seconds": {name: round(value, 1) for name, value in fit.seconds.items()},
    }

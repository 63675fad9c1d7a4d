"""The pieces of the calibration of lenses, without a fit of one."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from astrozoo.density import log_density
from astrozoo.diagnostics.sbc import RANKED
from astrozoo.errors import InputError
from astrozoo.models.strong_lens import problem, simulate
from astrozoo.types import Result, Status
from experiments import lens_sbc

SETTINGS = {"size": 12, "pixel_scale": 0.4, "supersample": 1}


def _posterior(truths, generator):
    """Draws that the truths are draws of, too: ranks are uniform."""
    draws = {
        name: np.stack([t[name].numpy() + generator.normal(size=(4, 60, *t[name].shape)) for t in truths], 2)
        for name in truths[0]
    }
    shifts = {name: np.stack([generator.normal(size=t[name].shape) for t in truths]) for name in truths[0]}
    draws = {name: x + shifts[name][None, None] for name, x in draws.items()}
    return Result(
        draws,
        Status.CONVERGED,
        seed=0,
        model="strong_lens",
        method="auto",
        sample_stats={"lp": generator.normal(size=(4, 60, len(truths)))},
        statuses=(Status.CONVERGED,) * len(truths),
        dims={"shear": ("component",)},
        coords={"component": ["1", "2"]},
    )


def test_the_density_at_a_truth_is_the_model_s():
    lenses, truths = zip(*(simulate(seed, size=12, pixel_scale=0.4) for seed in (3, 4)), strict=True)
    found = lens_sbc.truth_density(problem(list(lenses), prior="gigalens"), truths)
    target = log_density(problem(lenses[1], prior="gigalens"), compile="never")
    z = target.layout.unconstrain({name: x[None] for name, x in truths[1].items()})
    assert float(target.values(z)[0, 0]) == pytest.approx(found[1], rel=1e-12)


def test_ranks_are_those_of_each_lens_and_tell_of_missed_modes(tmp_path, capsys):
    seeds = range(60)
    truths = [simulate(seed, **SETTINGS)[1] for seed in seeds]
    result = _posterior(truths, np.random.default_rng(0))
    density = np.random.default_rng(1).normal(size=len(truths))
    density[7] = 100.0
    rows = lens_sbc.ranked(result, truths, density, seeds)
    assert [row["seed"] for row in rows if row["missed"]] == [7]
    assert len(rows[0]["ranks"]) == sum(x.numel() for x in truths[0].values()) + 1
    flat = result.draws["slope"][:, :, 5].ravel()[np.linspace(0, 239, RANKED).round().astype(int)]
    assert rows[5]["ranks"]["slope"] == (flat < truths[5]["slope"].item()).sum()
    part = {"rows": rows, "seconds": 30.0, "stages": {"search": 10.0, "laplace": 5.0, "hmc": 15.0}}
    lens_sbc.report([part], tmp_path)
    with (tmp_path / "calibration.csv").open() as file:
        table = list(csv.DictReader(file))
    assert min(float(row["p (ecdf)"]) for row in table) * len(table) > 0.01
    assert (tmp_path / "ranks.png").stat().st_size > 1000
    told = capsys.readouterr().out
    assert "seconds per lens           0.5" in told
    assert "search missed              1" in told


def test_batches_that_are_done_are_not_done_again(tmp_path, monkeypatch):
    asked = []

    def batch(seeds, settings, options):
        asked.append(list(seeds))
        truths = [simulate(seed, **SETTINGS)[1] for seed in seeds]
        result = _posterior(truths, np.random.default_rng(seeds[0]))
        rows = lens_sbc.ranked(result, truths, np.zeros(len(truths)), seeds)
        return {"rows": rows, "seconds": 1.0, "stages": {"hmc": 1.0}}

    monkeypatch.setattr(lens_sbc, "batch", batch)
    settings = {name: value for name, value in SETTINGS.items() if name != "size"}
    for _ in range(2):
        lens_sbc.main(tmp_path, 25, 12, 10, 0, settings, {"chains": 4})
        assert asked == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    with pytest.raises(InputError, match="simulations of"):
        lens_sbc.main(tmp_path, 25, 12, 10, 0, settings, {"chains": 8})
    with pytest.raises(InputError, match="20 or more"):
        lens_sbc.main(tmp_path, 5, 12, 10, 0, settings, {"chains": 4})

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from astrozoo.diagnostics.report import comparison_report, report, write_comparison
from astrozoo.errors import InputError, OutputError
from astrozoo.types import Page, Result, Status


def chains(seed=0, **fields) -> Result:
    rng = np.random.default_rng(seed)
    defaults = {
        "draws": {"mu": rng.normal(size=(4, 100)), "tau": rng.gamma(2, size=(4, 100, 3))},
        "sample_stats": {"energy": rng.normal(size=(4, 100)), "diverging": rng.uniform(size=(4, 100)) > 0.99},
        "status": Status.BUDGET_SPENT,
        "seed": 1,
        "model": "<model>",
        "method": "hmc",
        "stats": {"counts": {"gradient": 1200}, "run_seconds": 1.25, "notes": [], "parameters": [[1.0, 2.0]]},
    }
    return Result(**defaults | fields)


def variational(problems=300) -> Result:
    rng = np.random.default_rng(0)
    elbo = rng.normal(size=(20, problems))
    elbo[10:, ::2] = np.nan
    return Result(
        draws={
            "log_flux": rng.normal(size=(1, 50, problems, 1)),
            "colour": rng.normal(size=(1, 50, problems, 4)),
        },
        status=Status.BUDGET_SPENT,
        statuses=(Status.CONVERGED,) * (problems - 1) + (Status.BUDGET_SPENT,),
        seed=1,
        model="m",
        method="svi",
        guide="mean_field",
        trace={"elbo_fresh_draws": elbo, "radius": np.abs(elbo)},
        location=np.zeros((problems, 5)),
        stats={"counts": {"gradient": 5}, "run_seconds": 2.0},
    )


def test_a_report_of_chains_shows_everything_and_needs_nothing(tmp_path):
    path = report(chains(), tmp_path / "r.html")
    html = path.read_text()
    for title in ("Summary", "Chains", "Posterior", "Cost and provenance"):
        assert f"<h2>{title}</h2>" in html
    assert "Budget spent." in html
    assert "divergences" in html
    assert "&lt;model&gt;" in html
    assert "<model>" not in html
    assert not re.search(r'(src|href)="(?!data:image/png|#)', html)
    assert html.count("<img") == html.count("<figcaption>") >= 5
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_a_report_of_many_problems_stays_small(tmp_path):
    html = report(variational(), tmp_path / "r.html").read_text()
    assert len(html) < 1_000_000
    assert "299 converged, 1 budget spent" in html
    assert "60 of 1500 parameters are shown" in html
    assert "Progress" in html
    assert "Chains" not in html


def test_a_model_adds_its_own_pages(tmp_path):
    figure = Figure()
    figure.subplots().plot([1, 2])
    page = Page("Sky", ["A paragraph <b>.", [{"name": "x", "value": 1.5}], (figure, "A caption.")])
    html = report(chains(), tmp_path / "r.html", pages=[page], title="Mine").read_text()
    assert html.index("<h2>Sky</h2>") < html.index("<h2>Summary</h2>")
    assert "A paragraph &lt;b&gt;." in html
    assert "<td>1.5</td>" in html
    assert "A caption." in html
    assert "<title>Mine</title>" in html
    with pytest.raises(InputError, match="part of a page: got dict"):
        report(chains(), tmp_path / "r.html", pages=[Page("Bad", [{}])])


def test_a_report_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        report(variational(2), tmp_path / "none" / "r.html")


def test_a_comparison_has_a_row_per_method_and_parameter_and_keeps_failures(tmp_path):
    results = {"hmc": chains(0), "nuts": chains(1)}
    failures = {"svi": "no such thing"}
    with write_comparison(results, tmp_path / "c.csv", failures).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 + 1
    assert rows[0]["gradient evaluations"] == "1200"
    assert rows[0]["run seconds"] == "1.25"
    assert float(rows[4]["shift"]) == pytest.approx(0, abs=0.5)
    assert rows[-1]["status"] == "failed: no such thing"
    html = comparison_report(results, tmp_path / "c.html", failures).read_text()
    assert "svi: failed." in html
    assert "Marginals" in html
    with pytest.raises(InputError, match="at least one"):
        comparison_report({}, tmp_path / "c.html", failures)


def test_a_report_tells_what_a_result_predicts(tmp_path):
    rng = np.random.default_rng(0)
    mu = rng.normal(size=(2, 200)) / 5
    y = rng.normal(size=25)
    result = chains(
        draws={"mu": mu},
        sample_stats={"energy": rng.normal(size=(2, 200))},
        observed={"y": y},
        log_likelihood={"y": -((y - mu[..., None]) ** 2) / 2},
        log_prior={"mu": -(mu**2) / 2},
        predictive={"y": mu[..., None] + rng.normal(size=(2, 200, 25))},
    )
    html = report(result, tmp_path / "r.html").read_text()
    assert "<h2>Data and prior</h2>" in html
    assert "elpd (LOO)" in html
    assert "replicated under 40 draws" in html
    assert "prior matters" not in html  # a prior of SD 1, data that leave one of 0.2


def test_a_prior_that_decides_is_marked(tmp_path):
    rng = np.random.default_rng(1)
    mu = rng.normal(size=(4, 500))
    result = chains(
        draws={"mu": mu},
        sample_stats={},
        log_likelihood={"y": 0.001 * rng.normal(size=(4, 500, 3))},
        log_prior={"mu": -(mu**2) / 2},
    )
    assert "prior matters" in report(result, tmp_path / "r.html").read_text()


def test_a_report_has_a_table_of_the_models_parameters(tmp_path):
    parameters = {"slope": np.array(2.5), "net.weight": np.arange(12.0).reshape(3, 4)}
    html = report(chains(parameters=parameters), tmp_path / "r.html").read_text()
    assert "<h2>Parameters of the model</h2>" in html
    rows = [re.findall("<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", html)]
    assert ["slope", "scalar", "2.5", "–", "–", "–"] in rows
    assert ["net.weight", "3x4", "", "5.5", "0", "11"] in rows
    assert "Parameters of the model" not in report(chains(), tmp_path / "none.html").read_text()

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from problems import gaussian

import astrozoo
import astrozoo.infer
import astrozoo.infer.trust_region as by_import
from astrozoo import registry
from astrozoo.errors import InputError, UnknownNameError
from astrozoo.infer.options import parse

QUIET = {"compile": "never", "progress": False}


def test_the_package_is_callable_and_holds_its_backends():
    assert by_import.trust_region is astrozoo.infer.trust_region.trust_region
    assert callable(astrozoo.infer.svi.svi)
    problem, mean, _ = gaussian(2)
    result = astrozoo.infer(problem, draws=10, seed=3, **QUIET)
    assert (result.method, result.guide) == ("trust_region", "mean_field")
    np.testing.assert_allclose(result.location[0], mean, atol=0.2)
    with pytest.raises(AttributeError, match="no attribute 'sviii'"):
        astrozoo.infer.sviii  # noqa: B018


def test_importing_it_imports_no_torch():
    code = "import sys, astrozoo.infer; astrozoo.infer.infer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=astrozoo.__path__[0] + "/..")


@pytest.mark.parametrize("method", registry.METHODS)
def test_every_method_runs_by_name_and_saves(method, tmp_path):
    problem, _, _ = gaussian(2)
    few = {"hmc": {"warmup": 20, "chains": 4}, "nuts": {"warmup": 10, "chains": 1}, "svi": {"budget": 100}}
    result = astrozoo.infer(problem, method, draws=8, **few.get(method, {}), **QUIET)
    assert result.draws["z"].shape[1:] == (8, 2)
    assert result.location.shape == (1, 2)
    assert result.covariance.shape == (1, 2, 2)
    assert result.digest == problem.digest
    loaded = type(result).load(result.save(tmp_path / "r.nc"))
    np.testing.assert_array_equal(loaded.draws["z"], result.draws["z"])
    assert loaded.status is result.status


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "trust_regoin"}, UnknownNameError, "did you mean 'trust_region'"),
        ({"guide": "mean_feild"}, UnknownNameError, "did you mean 'mean_field'"),
        ({"guide": 3}, InputError, "guide"),
        ({"draw": 3}, UnknownNameError, "did you mean 'draws'"),
        ({"method": "hmc", "learning_rate": 3}, InputError, r"option of hmc \(methods that take it: svi\)"),
        (
            {"method": "laplace", "warmup": 3},
            InputError,
            "methods that take it: hmc, mclmc, annealed, nuts, nutpie, auto",
        ),
        ({"budget": None}, InputError, "budget: got None"),
        ({"tolerance": "small"}, InputError, "tolerance: got 'small', expected a number above 0"),
        ({"progress": 1}, InputError, "progress: got 1, expected True or False"),
        ({"method": "hmc", "precondition": 3}, InputError, "precondition: got int, expected a Result"),
        ({"method": "hmc", "warmup": -1}, InputError, "warmup: got -1, expected 0 or more"),
        ({"checkpoint": 3}, InputError, "checkpoint: got 3, expected a path"),
        ({"objective": None}, InputError, "objective"),
        ({"draws": 0}, InputError, "draws: got 0"),
        ({"draws": 2.5}, InputError, "a whole number"),
        ({"chains": -1}, InputError, "chains: got -1"),
        ({"budget": 0}, InputError, "budget: got 0"),
        ({"seed": -1}, InputError, "seed"),
        ({"compile": "yes"}, InputError, "compile"),
        ({"method": "hmc", "target_acceptance": 1.5}, InputError, "target_acceptance"),
        ({"mode": "guess"}, InputError, "mode"),
    ],
)
def test_bad_options_are_told_before_any_work(options, error, message):
    problem, _, _ = gaussian(2)
    with pytest.raises(error, match=message):
        astrozoo.infer(problem, **{"progress": False} | options)


def test_defaults_of_every_method_are_in_its_row_of_the_table():
    for method, row in registry.METHODS.items():
        run, settings = parse(method, {})
        assert {name: getattr(run, name) for name in row.defaults} == row.defaults
        assert type(settings) is row.settings
        assert callable(row.backend)

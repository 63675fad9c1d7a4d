"""A checkpoint belongs to one run: what shapes a run's course is part of its identity."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from problems import gaussian

import astrozoo
from astrozoo.errors import InputError
from astrozoo.infer import auto as auto_file
from astrozoo.types import Result, Status

F64 = torch.float64
OPTIONS = {
    "svi": {"budget": 3},
    "trust_region": {"budget": 3},
    "laplace": {"budget": 3},
    "el2o": {"budget": 2},
    "hmc": {"chains": 2, "warmup": 4, "draws": 4},
    "nuts": {"chains": 1, "warmup": 2, "draws": 2},
    "nutpie": {"chains": 1, "warmup": 2, "draws": 2},
    "auto": {"chains": 2, "warmup": 4, "draws": 4, "starts": 2, "steps": 2},
}


@dataclass
class Scaled:
    """A model's own mass matrix."""

    scale: float

    @property
    def log_det(self):
        return torch.full((1,), 2 * np.log(self.scale), dtype=F64)

    def velocity(self, r):
        return r * self.scale

    force = velocity

    def whiten(self, x):
        return x / self.scale


def result(scale):
    location, covariance = np.zeros((1, 2)), scale * np.eye(2)[None]
    return Result({}, Status.CONVERGED, 0, "m", "laplace", location=location, covariance=covariance)


def run(method, path, problem=None, **options):
    settings = {"seed": 0, "compile": "never", "progress": False, "draws": 4, **OPTIONS[method]}
    return astrozoo.infer(problem or gaussian(2)[0], method, checkpoint=path, **settings | options)


def continues_only(method, path, name, first, other, **options):
    """Assert that a checkpoint goes on with ``first`` and is refused with ``other``."""
    once, again = (run(method, path, **options, **first) for _ in range(2))
    for site, draws in once.draws.items():
        np.testing.assert_array_equal(again.draws[site], draws)
    with pytest.raises(InputError, match=f"content of {name} .*, expected content of {name}"):
        run(method, path, **options, **other)


@pytest.mark.parametrize("method", OPTIONS)
def test_a_run_with_another_start_is_not_continued(method, tmp_path):
    path, (first, other) = tmp_path / "run.npz", ({"start": [0.1, x]} for x in (0.2, 0.3))
    continues_only(method, path, "start", first, other)
    with pytest.raises(InputError, match="content of start"):
        run(method, path, start=result(1.0))


@pytest.mark.parametrize("method", OPTIONS)
def test_a_problem_with_another_start_is_not_continued(method, tmp_path):
    here, there = (replace(gaussian(2)[0], start={"z": torch.tensor([0.1, x], dtype=F64)}) for x in (1, 2))
    assert here.digest == there.digest
    continues_only(method, tmp_path / "run.npz", "start", {"problem": here}, {"problem": there})


@pytest.mark.parametrize("method", ["hmc", "nuts", "nutpie"])
def test_a_run_with_another_precondition_is_not_continued(method, tmp_path):
    first, other = ({"precondition": result(scale)} for scale in (1.0, 2.0))
    continues_only(method, tmp_path / "run.npz", "precondition", first, other)


@pytest.mark.parametrize("method", ["hmc", "auto"])
def test_a_run_with_another_metric_of_the_model_is_not_continued(method, tmp_path):
    first, other = ({"metric": Scaled(scale)} for scale in (1.0, 2.0))
    continues_only(method, tmp_path / "run.npz", "metric", first, other)
    problem, with_default = gaussian(2)[0], tmp_path / "default.npz"
    run(method, with_default, replace(problem, preconditioner=Scaled(1.0)))
    with pytest.raises(InputError, match="content of metric"):
        run(method, with_default, replace(problem, preconditioner=Scaled(2.0)))


@pytest.mark.parametrize("method", ["svi", "hmc"])
def test_a_run_from_a_search_is_continued_and_is_not_one_from_a_start(method, tmp_path):
    path = tmp_path / "run.npz"
    once, again = (run(method, path, start="search") for _ in range(2))
    np.testing.assert_array_equal(once.draws["z"], again.draws["z"])
    with pytest.raises(InputError, match="content of start"):
        run(method, path, start=[0.1, 0.2])


def test_what_cannot_be_hashed_is_named(tmp_path):
    metric = Scaled(1.0)
    metric.lock = threading.Lock()
    run("hmc", None, metric=metric)
    with pytest.raises(InputError, match=r"metric: got .*lock.*without checkpoint="):
        run("hmc", tmp_path / "run.npz", metric=metric)


def test_auto_stops_where_its_laplace_stage_is_interrupted(monkeypatch):
    """It passed on the covariance of the point where it was stopped, which is NaN at a saddle."""

    def interrupted(*arguments):
        return replace(result(np.nan), status=Status.INTERRUPTED)

    monkeypatch.setattr(auto_file, "laplace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("auto", None)

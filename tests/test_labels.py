"""Starts, names of sites and axes, and coordinates: refused before work, or kept by saving."""

from __future__ import annotations

from datetime import UTC, date, datetime

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import astrozoo
from astrozoo.errors import InputError
from astrozoo.types import Problem, Result, Status, load

F64 = torch.float64
Y = torch.tensor([1.0, 2.0, 3.0], dtype=F64)


def model(y):
    colour = pyro.sample("colour", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    width = pyro.sample("width", dist.LogNormal(0.0, 1.0))
    share = pyro.sample("share", dist.Uniform(0.0, 1.0))
    pyro.sample("y", dist.Normal(colour.sum() + share, width).expand([3]).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": {"a": "x"}}, "start of 'a': got str"),
        ({"start": {"a": [1.0, float("nan")]}}, "not finite"),
        ({"start": {"a": torch.tensor(float("inf"))}}, "not finite"),
        ({"dims": {"a": "band"}}, "a tuple with a name for each axis"),
        ({"dims": {"a": ("x", "x")}}, "different names"),
        ({"dims": {"a": ("chain",)}}, "other names than chain, draw, problem"),
        ({"dims": {"a": (3,)}}, "a tuple with a name"),
        ({"coords": {"x": "gri"}}, "coords of 'x': got 'gri'"),
        ({"coords": {"x": 3}}, "coords of 'x': got 3"),
        ({"coords": {"x": [1, "a"]}}, "all of one kind"),
        ({"coords": {"x": [1, None]}}, "all of one kind"),
        ({"coords": {"x": [[1, 2]]}}, "all of one kind"),
        ({"coords": {"x": np.zeros((1, 2))}}, r"got shape \(1, 2\)"),
        ({"coords": {"x": np.array([object()])}}, "of object"),
        ({"coords": {"x": [datetime(2020, 1, 1, tzinfo=UTC)]}}, "without time zones"),
    ],
)
def test_what_no_model_can_have_is_refused_by_the_problem(fields, message):
    with pytest.raises(InputError, match=message):
        Problem(model, (Y,), **fields)


@pytest.mark.parametrize("method", ["laplace", "hmc", "svi", "trust_region"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": {"widht": 1.0}}, "a value of 'widht'"),
        ({"start": {"y": Y}}, "a value of 'y'"),
        ({"start": {"width": -1.0}}, "start of 'width': got values outside it"),
        ({"start": {"share": 1.5}}, "start of 'share': got values outside it"),
        ({"start": {"colour": 1.0}}, r"start of 'colour': got shape \(\)"),
        ({"dims": {"color": ("band",)}}, "axes of 'color'"),
        ({"dims": {"colour": ("band", "epoch")}}, "at most 1"),
        ({"dims": {"colour": ("band",), "y": ("band",)}}, "axis 'band' of length 3, and of 2"),
        ({"dims": {"colour": ("band",)}, "coords": {"band": ["g"]}}, "coords of 'band': got 1 values"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_work(method, fields, message):
    with pytest.raises(InputError, match=message):
        astrozoo.infer(Problem(model, (Y,), **fields), method, progress=False)


def test_a_start_may_be_a_float_a_list_or_an_array():
    start = {"width": 2, "share": 0.25, "colour": np.array([1.0, -1.0], np.float32)}
    density = astrozoo.density.log_density(Problem(model, (Y,), start=start))
    values = density.layout.constrain(density.initial(1))
    torch.testing.assert_close(values["colour"][0], torch.tensor([1.0, -1.0], dtype=F64))
    assert float(values["width"]) == pytest.approx(2)
    assert float(values["share"]) == pytest.approx(0.25)


NAMES = (
    "a/b",
    "a.b",
    "a/b/c",
    "chain",
    "draw",
    "problem",
    "iteration",
    "x_dim_0",
    "x",
    "axis",
    "/",
    ".",
    "é b",
)


def result(**fields):
    rng = np.random.default_rng(0)
    draws = {name: rng.normal(size=(2, 5, 3)[: 2 + i % 2]) for i, name in enumerate(NAMES)}
    settings = {"dims": {"a.b": ("axis",), "chain": ("x/y",), "iteration": ("a.b",)}} | fields
    return Result(draws, Status.CONVERGED, 0, "m", "hmc", observed={"chain": np.arange(3)}, **settings)


def test_every_name_of_a_site_comes_back(tmp_path):
    first = result()
    back = load(first.save(tmp_path / "r.nc"))
    assert set(back.draws) == set(NAMES)
    for name in NAMES:
        np.testing.assert_array_equal(back.draws[name], first.draws[name])
    assert back.dims == first.dims
    np.testing.assert_array_equal(back.observed["chain"], np.arange(3))
    assert len(first.to_arviz()["posterior"].data_vars) == len(NAMES)


@pytest.mark.parametrize(
    "values",
    [
        ["g", "r", "i"],
        [1, 2, 3],
        [0.1, 2.0, float("nan")],
        [True, False, True],
        np.array([1, 2, 3], np.int16),
        np.array([1.1, 2, 3], np.float32),
        np.array(["2020-01-01", "2021-01-01", "NaT"], "M8[D]"),
        np.array([1, 2, 3], "m8[h]"),
        [date(2020, 1, 1), date(2021, 1, 1), date(2022, 1, 1)],
        [datetime(2020, 1, 1, 3), datetime(2021, 1, 1), datetime(2022, 1, 1)],
        torch.tensor([1.0, 2.0, 3.0]),
        np.array(["g", "r", "i"], dtype=object),
    ],
)
def test_coordinates_come_back_with_their_types(values, tmp_path):
    first = result(dims={"a.b": ("axis_1",)}, coords={"axis_1": values, "of no site": ["a"]})
    back = load(first.save(tmp_path / "r.nc"))
    assert back.coords.keys() == first.coords.keys()
    for axis, expected in first.coords.items():
        assert back.coords[axis].dtype == expected.dtype
        np.testing.assert_array_equal(back.coords[axis], expected)

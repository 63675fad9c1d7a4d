from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray as xr

from astrozoo.errors import DataError, InputError, OutputError
from astrozoo.types import Problem, Result, Status, load, stack


@dataclass(frozen=True)
class Settings:
    weights: torch.Tensor
    name: str = "a"

    def __call__(self, x):
        """A model."""


def model(x):
    """A model."""


X = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": 3}, "model: got int"),
        ({"args": (X, X.float())}, "one floating dtype"),
        ({"args": (X,), "batch": 4}, "a leading axis of 4"),
        ({"args": (torch.tensor(1.0),), "batch": 1}, "a leading axis of 1"),
        ({"args": (X, X.to("meta"))}, "one device"),
    ],
)
def test_a_bad_problem_is_refused(fields, said):
    with pytest.raises(InputError, match=said):
        Problem(**{"model": model} | fields)


def test_dtype_and_device_follow_the_data():
    problem = Problem(model, args=({"x": X, "n": torch.tensor(3)}, [4]), start={"a": X[0]})
    assert problem.dtype == torch.float64
    assert Problem(model).dtype == torch.float64
    moved = problem.to(dtype=torch.float32)
    assert moved.args[0]["x"].dtype == moved.start["a"].dtype == torch.float32
    assert moved.args[0]["n"].dtype == torch.int64
    assert moved.args[1] == [4]
    assert moved.name == problem.name
    assert problem.args[0]["x"].dtype == torch.float64


def _result(**fields) -> Result:
    rng = np.random.default_rng(0)
    defaults = {
        "draws": {"mu": rng.normal(size=(2, 50)), "colour": rng.normal(size=(2, 50, 3))},
        "status": Status.CONVERGED,
        "seed": 3,
        "model": "m",
        "method": "hmc",
        "sample_stats": {"diverging": np.zeros((2, 50), bool), "energy": rng.normal(size=(2, 50))},
        "trace": {"elbo_fresh_draws": np.array([[-3.0], [-1.0], [np.nan]])},
        "stats": {
            "counts": {"gradient": 7},
            "run_seconds": np.float64(1.5),
            "notes": ["a"],
            "x": torch.ones(2),
        },
        "location": np.zeros((1, 4)),
        "covariance": np.eye(4)[None],
        "variance": np.ones((1, 4)),
        "guide_parameters": np.arange(20_000.0)[None],
        "observed": {"y": np.arange(5)},
        "dims": {"colour": ("band",)},
        "coords": {"band": ["g", "r", "i"]},
    }
    return Result(**defaults | fields)


def test_a_saved_result_comes_back_whole(tmp_path):
    result = _result()
    path = result.save(tmp_path / "r.nc")
    back = load(path)
    for group in ("draws", "sample_stats", "trace", "observed"):
        held, found = getattr(result, group), getattr(back, group)
        assert held.keys() == found.keys()
        for name in held:
            np.testing.assert_array_equal(held[name], found[name])
            assert held[name].dtype == found[name].dtype
    np.testing.assert_array_equal(back.location, result.location)
    for name in ("covariance", "variance", "guide_parameters"):
        np.testing.assert_array_equal(getattr(back, name), getattr(result, name))
    assert back.status is Status.CONVERGED
    assert back.statuses == ()
    assert back.dims == result.dims
    assert {axis: x.tolist() for axis, x in back.coords.items()} == {"band": ["g", "r", "i"]}
    assert back.stats["counts"] == {"gradient": 7}
    assert back.stats["x"] == [1.0, 1.0]
    assert back.environment == result.environment
    assert (back.seed, back.model, back.method) == (3, "m", "hmc")
    assert [p.name for p in tmp_path.iterdir()] == ["r.nc"]


def test_a_batched_result_keeps_its_problems(tmp_path):
    draws = {"mu": np.zeros((1, 5, 2)), "colour": np.zeros((1, 5, 2, 3))}
    batched = _result(
        draws=draws,
        sample_stats={},
        trace={"elbo_fresh_draws": np.zeros((4, 2))},
        statuses=(Status.CONVERGED, Status.DIVERGED),
        location=np.zeros((2, 4)),
        covariance=None,
        variance=np.arange(8.0).reshape(2, 4),
        guide_parameters=None,
    )
    groups = batched.groups()
    assert groups["posterior"]["mu"].dims == ("chain", "draw", "problem")
    assert groups["posterior"]["colour"].dims == ("chain", "draw", "problem", "band")
    assert groups["trace"]["elbo_fresh_draws"].dims == ("iteration", "problem")
    assert "sample_stats" not in groups
    back = load(batched.save(tmp_path / "r.nc"))
    assert back.statuses == batched.statuses
    assert back.covariance is None
    np.testing.assert_array_equal(back.take(1).variance, [[4.0, 5.0, 6.0, 7.0]])


def test_a_site_may_be_called_as_its_axis_is(tmp_path):
    result = _result(dims={"colour": ("colour",)}, coords={"colour": ["g", "r", "i"]})
    back = load(result.save(tmp_path / "r.nc"))
    np.testing.assert_array_equal(back.draws["colour"], result.draws["colour"])
    posterior = back.to_arviz()["posterior"]
    assert list(posterior["colour"].coords["colour_"].values) == ["g", "r", "i"]


def test_one_problem_of_a_batch_is_a_result_of_its_own(tmp_path):
    result = Result(
        {"b": np.arange(24.0).reshape(2, 2, 3, 2)},
        Status.DIVERGED,
        0,
        "m",
        "laplace",
        sample_stats={"lp": np.arange(12.0).reshape(2, 2, 3)},
        trace={"elbo_fresh_draws": np.arange(12.0).reshape(4, 3), "seconds": np.arange(4.0)},
        statuses=(Status.CONVERGED, Status.DIVERGED, Status.CONVERGED),
        location=np.arange(6.0).reshape(3, 2),
        covariance=np.arange(12.0).reshape(3, 2, 2),
        variance=None,
        guide_parameters=None,
        observed={"y": np.arange(3.0)},
    )
    one = result.take(1)
    np.testing.assert_array_equal(one.draws["b"], result.draws["b"][:, :, 1])
    np.testing.assert_array_equal(one.sample_stats["lp"], result.sample_stats["lp"][:, :, 1])
    np.testing.assert_array_equal(one.trace["elbo_fresh_draws"][:, 0], result.trace["elbo_fresh_draws"][:, 1])
    np.testing.assert_array_equal(one.covariance[0], result.covariance[1])
    assert (one.status, one.statuses, one.observed["y"]) == (Status.DIVERGED, (), 1.0)
    assert one.groups()["posterior"]["b"].dims == ("chain", "draw", "b_dim_0")
    np.testing.assert_array_equal(load(one.save(tmp_path / "r.nc")).draws["b"], one.draws["b"])
    for bad, said in ((result, "0 to 2"), (one, "a batch")):
        with pytest.raises(InputError, match=said):
            bad.take(3)


def test_alike_problems_stack_into_a_batch():
    parts = [Problem(Settings(X), ({"x": X + i}, 4), start={"a": X[i]}) for i in range(3)]
    whole = stack(parts)
    assert whole.batch == 3
    torch.testing.assert_close(whole.args[0]["x"], torch.stack([X, X + 1, X + 2]))
    assert whole.args[1] == 4
    torch.testing.assert_close(whole.start["a"], X)
    assert whole.model is parts[0].model


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([], "at least one"),
        ([Problem(Settings(X), (X,)), Problem(Settings(X), (X,), batch=3)], "a batch"),
        ([Problem(Settings(X), (X,)), Problem(Settings(X), (X[:2],))], r"problems\[1\]: got data"),
        ([Problem(Settings(X), (X, 1)), Problem(Settings(X), (X, 2))], r"problems\[1\]: got data"),
        ([Problem(Settings(X), (X,)), Problem(Settings(X + 1), (X,))], "model or its settings"),
        ([Problem(Settings(X), (X,)), Problem(Settings(X), ([X],))], "tree of data"),
        ([Problem(Settings(X), (X,)), Problem(Settings(X), (X,), start={"a": X})], r"problems\[1\]"),
    ],
)
def test_unlike_problems_do_not_stack(others, said):
    with pytest.raises(InputError, match=said):
        stack(others)


def test_to_arviz_has_the_groups_and_coordinates():
    data = _result().to_arviz()
    assert list(data["posterior"]["colour"].coords["band"].values) == ["g", "r", "i"]
    assert data["sample_stats"]["diverging"].shape == (2, 50)
    assert data["observed_data"]["y"].shape == (5,)


def test_to_arviz_is_a_tree_for_its_second_generation(monkeypatch):
    import arviz

    monkeypatch.setattr(arviz, "__version__", "1.3.0")  # the names of 0.x may still be there, to warn
    data = _result().to_arviz()
    assert isinstance(data, xr.DataTree)
    assert data["posterior"]["colour"].dims == ("chain", "draw", "band")


def test_what_cannot_be_written_or_read_says_so(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        _result().save(tmp_path / "missing" / "r.nc")
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "r.nc")
    (tmp_path / "r.nc").write_bytes(b"not a result")
    with pytest.raises(DataError, match="unreadable"):
        load(tmp_path / "r.nc")


def test_a_failed_save_leaves_what_stood_there(tmp_path):
    path = _result().save(tmp_path / "r.nc")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        _result(stats={"x": object()}).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.nc"]


def test_only_convergence_is_ok():
    assert [s for s in Status if s.ok] == [Status.CONVERGED]

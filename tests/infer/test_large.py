"""Problems of 1e4 latents and more: nothing allocates a matrix over them, and answers are exact."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import astrozoo
from astrozoo.errors import InputError, UnknownNameError
from astrozoo.infer.recorder import STATISTICS
from astrozoo.registry import METHODS
from astrozoo.types import DENSE_COVARIANCE, Problem, load

F64 = torch.float64
SIDE = 48
"""Pixels of an axis of a square test image: 2,304 latents, of which a matrix takes 42 MB."""
QUIET = {"progress": False, "compile": "never"}


class NoMatrix(TorchDispatchMode):
    """Fails where an operation returns a tensor as large as a matrix over the latents."""

    def __init__(self, dim):
        super().__init__()
        self.most = dim**2

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                assert x.untyped_storage().nbytes() < 8 * self.most, f"{func} returns {tuple(x.shape)}"
        return out


def pixels_model(data, noise):
    x = pyro.sample("x", dist.Normal(torch.zeros_like(data), 1.0).to_event(2))
    pyro.sample("y", dist.Normal(x, noise).to_event(2), obs=data)


def pixels(side=SIDE, seed=0):
    """Independent pixels under noise that varies: the posterior is a mean field."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.3 + torch.rand(side, side, generator=generator, dtype=F64)
    data = torch.randn(side, side, generator=generator, dtype=F64) * (1 + noise**2).sqrt()
    precision = 1 + noise**-2
    mean = data / noise**2 / precision
    return Problem(pixels_model, (data, noise), name="pixels"), mean.numpy(), precision.numpy() ** -0.5


def hartley(x):
    waves = torch.fft.fft2(x, norm="ortho")
    return waves.real - waves.imag


def waves_model(data, amplitude):
    x = pyro.sample("x", dist.Normal(torch.zeros_like(data), 1.0).to_event(2))
    pyro.sample("y", dist.Normal(hartley(amplitude * hartley(x)), 1.0).to_event(2), obs=data)


def waves(side=SIDE):
    """A stationary image under constant noise: the posterior is diagonal in Fourier space.

    The mean and the SD are computed by NumPy from the transform of the data.
    """
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side),) * 2, indexing="ij"))
    amplitude = 5 / (1 + (frequency / 0.05) ** 2)
    data = np.random.default_rng(0).standard_normal((side, side)) * 3

    def transformed(x):
        f = np.fft.fft2(x, norm="ortho")
        return f.real - f.imag

    mean = transformed(amplitude * transformed(data) / (1 + amplitude**2))
    sd = np.full((side, side), np.sqrt((1 / (1 + amplitude**2)).mean()))
    return Problem(waves_model, (torch.as_tensor(data), torch.as_tensor(amplitude)), name="waves"), mean, sd


class Wiener:
    """A model's own preconditioner: the exact root of the posterior's covariance."""

    def __init__(self, amplitude):
        self.scale, self.shape = (1 + amplitude**2) ** -0.5, amplitude.shape
        self.log_det = self.scale.log().sum()[None]

    def velocity(self, r):
        return hartley(r.unflatten(-1, self.shape) * self.scale).flatten(-2)

    def force(self, g):
        return (hartley(g.unflatten(-1, self.shape)) * self.scale).flatten(-2)

    def whiten(self, x):
        return (hartley(x.unflatten(-1, self.shape)) / self.scale).flatten(-2)


def z_scores(result, mean, sd):
    """Of the draws' means and SDs, in standard errors of independent draws."""
    x = result.draws["x"].reshape(-1, *mean.shape)
    n = len(x)
    return (x.mean(0) - mean) / sd * math.sqrt(n), (x.std(0, ddof=1) / sd - 1) * math.sqrt(2 * n)


def largest(count):
    """What the largest of so many standard normal z-scores stays below, but for one case in 10,000."""
    return -torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(5e-5 / count, dtype=F64)).item()


def test_a_mean_field_keeps_variances_and_no_matrix(tmp_path):
    problem = pixels()[0]
    with NoMatrix(SIDE**2):
        result = astrozoo.infer(problem, "svi", draws=100, budget=100, **QUIET)
    assert result.covariance is None
    assert result.variance.shape == (1, SIDE**2)
    assert result.guide_parameters.shape == (1, 2 * SIDE**2)
    back = load(result.save(tmp_path / "r.nc"))
    np.testing.assert_array_equal(back.variance, result.variance)
    np.testing.assert_array_equal(back.guide_parameters, result.guide_parameters)


@pytest.mark.parametrize("method", ["svi", "trust_region"])
def test_a_mean_field_of_many_pixels_is_exact(method):
    problem, mean, sd = pixels()
    with NoMatrix(SIDE**2):
        result = astrozoo.infer(problem, method, draws=400, **QUIET)
    assert result.status.ok
    np.testing.assert_allclose(result.location[0], mean.ravel(), atol=0.02)
    np.testing.assert_allclose(result.variance[0] ** 0.5, sd.ravel(), rtol=0.02)
    for z in z_scores(result, mean, sd):
        assert np.abs(z).max() < largest(mean.size) + 1


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("el2o", {}, f"at most {DENSE_COVARIANCE}"),
        ("trust_region", {"covariance": "linear_response", "mode": "fixed"}, "covariance='guide'"),
        ("svi", {"guide": "full_rank"}, "mean_field or low_rank"),
        ("svi", {"guide": "iaf"}, "mean_field or low_rank"),
    ],
)
def test_what_needs_a_matrix_is_refused_before_work(method, options, reason):
    problem, _, _ = pixels()
    with NoMatrix(SIDE**2), pytest.raises(InputError, match=reason):
        astrozoo.infer(problem, method, **options, **QUIET)


@pytest.mark.parametrize("metric", [{"x": "fourier"}, "own", None])
@pytest.mark.parametrize("method", ["hmc", "laplace"])
def test_a_stationary_image_is_exact(method, metric):
    problem, mean, sd = waves()
    metric = Wiener(problem.args[1]) if metric == "own" else metric
    draws = 50 if metric is None else 150
    options = {"hmc": {"chains": 8, "draws": draws, "warmup": 60}, "laplace": {"draws": 200}}[method]
    with NoMatrix(SIDE**2):
        result = astrozoo.infer(problem, method, metric=metric, **options, **QUIET)
    assert result.covariance is None
    # Draws of hmc are independent where the metric is exact; the default one leaves correlations.
    if method == "hmc" and metric is None:
        assert np.abs(result.location[0] - mean.ravel()).max() < sd[0, 0]
        return
    assert result.status.ok
    for z in z_scores(result, mean, sd):
        assert np.abs(z).max() < largest(mean.size) + 1
        assert np.sqrt((z**2).mean()) == pytest.approx(1, abs=0.15)
    if metric is not None and method == "laplace":
        assert result.stats["products"] < 3 * 200 + 50
        ratio = result.sample_stats["log_ratio"]
        np.testing.assert_allclose(ratio - ratio.mean(), 0, atol=0.1)


def test_auto_takes_many_latents():
    problem, mean, sd = waves()
    with NoMatrix(SIDE**2):
        result = astrozoo.infer(
            problem,
            "auto",
            metric={"x": "fourier"},
            chains=8,
            draws=150,
            warmup=40,
            starts=4,
            steps=20,
            **QUIET,
        )
    assert result.status.ok
    for z in z_scores(result, mean, sd):
        assert np.abs(z).max() < largest(mean.size) + 1


def test_draws_are_thinned_summarised_and_streamed(tmp_path):
    problem, _, sd = waves()
    options = {"chains": 4, "draws": 40, "warmup": 20, "metric": {"x": "fourier"}, **QUIET}
    whole = astrozoo.infer(problem, "hmc", **options)
    reduced = astrozoo.infer(
        problem,
        "hmc",
        thin=4,
        summaries=True,
        stream=tmp_path / "s",
        checkpoint=tmp_path / "c.npz",
        **options,
    )
    assert isinstance(reduced.draws["x"], np.memmap)
    np.testing.assert_array_equal(reduced.draws["x"], whole.draws["x"][:, ::4])
    np.testing.assert_array_equal(reduced.location, whole.location)
    found = dict(zip(STATISTICS, reduced.summaries["x"], strict=True))
    np.testing.assert_allclose(found["mean"], whole.draws["x"].mean((0, 1)), atol=1e-12)
    np.testing.assert_allclose(found["sd"], whole.draws["x"].std((0, 1), ddof=1), rtol=1e-10)
    np.testing.assert_array_less(np.abs(found["50%"] - np.median(whole.draws["x"], (0, 1))), 0.5 * sd)
    back = load(reduced.save(tmp_path / "r.nc"))
    np.testing.assert_array_equal(back.draws["x"], reduced.draws["x"])
    np.testing.assert_array_equal(back.summaries["x"], reduced.summaries["x"])
    kept = astrozoo.infer(problem, "hmc", keep=(), summaries=True, **options)
    assert kept.draws == {}
    np.testing.assert_array_equal(kept.summaries["x"][0], reduced.summaries["x"][0])


@pytest.mark.parametrize("method", ["hmc", "laplace", "auto"])
def test_a_problem_names_its_preconditioner(method):
    """Its draws are those of the same metric given to the method; ``metric`` overrides it."""
    problem, _, _ = waves(16)
    few = {"hmc": {"chains": 4, "draws": 8, "warmup": 10}, "laplace": {"draws": 8}}
    few["auto"] = few["hmc"] | {"starts": 4, "steps": 10}
    options = few[method] | QUIET
    named = replace(problem, preconditioner={"x": "fourier"})
    assert named.digest == problem.digest
    default = astrozoo.infer(problem, method, **options).draws["x"]
    given = astrozoo.infer(problem, method, metric={"x": "fourier"}, **options).draws["x"]
    np.testing.assert_array_equal(astrozoo.infer(named, method, **options).draws["x"], given)
    kind = {"hmc": "dense", "laplace": "diagonal", "auto": "dense"}[method]
    overridden = astrozoo.infer(named, method, metric=kind, **options).draws["x"]
    np.testing.assert_array_equal(
        overridden, astrozoo.infer(problem, method, metric=kind, **options).draws["x"]
    )
    if method != "laplace":  # whose metric is of products only, above DENSE_COVARIANCE latents
        assert not np.array_equal(given, default)


def test_a_preconditioner_that_does_not_suit_is_refused():
    problem, _, _ = waves(16)
    for bad in (3.0, {"x": 1}, object()):
        with pytest.raises(InputError, match="preconditioner"):
            replace(problem, preconditioner=bad)
    unknown = replace(problem, preconditioner={"z": "fourier"})
    with pytest.raises(UnknownNameError, match="site of preconditioner"):
        astrozoo.infer(unknown, "hmc", **QUIET)
    operator = replace(problem, preconditioner=Wiener(problem.args[1]))
    with pytest.raises(InputError, match="to\\(dtype"):
        operator.to(dtype=torch.float32)
    assert astrozoo.stack([operator, operator]).preconditioner is operator.preconditioner
    with pytest.raises(InputError, match="preconditioner"):
        astrozoo.stack([operator, replace(problem, preconditioner=Wiener(problem.args[1]))])


def test_auto_thins_summarises_and_streams(tmp_path):
    problem, _, _ = waves(16)
    options = {"chains": 4, "draws": 8, "warmup": 10, "starts": 4, "steps": 10, **QUIET}
    whole = astrozoo.infer(problem, "auto", **options)
    found = astrozoo.infer(problem, "auto", thin=2, summaries=True, stream=tmp_path / "s", **options)
    assert isinstance(found.draws["x"], np.memmap)
    np.testing.assert_array_equal(found.draws["x"], whole.draws["x"][:, ::2])
    np.testing.assert_allclose(found.summaries["x"][0], whole.draws["x"].mean((0, 1)), atol=1e-12)


def two_sites(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    total = pyro.deterministic("total", a + b)
    pyro.sample("y", dist.Normal(total, 1.0), obs=y)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "nutpie"])
def test_every_method_keeps_the_sites_that_are_named(method):
    problem = Problem(two_sites, (torch.tensor(1.0, dtype=F64),))
    options = {"draws": 6, "chains": 2, "budget": 3000, **QUIET}
    whole = astrozoo.infer(problem, method, **options)
    found = astrozoo.infer(problem, method, keep=("total",), **options)
    assert set(whole.draws) == {"a", "b", "total"}
    assert set(found.draws) == {"total"}
    np.testing.assert_array_equal(found.draws["total"], whole.draws["total"])
    np.testing.assert_array_equal(found.location, whole.location)
    with pytest.raises(UnknownNameError, match="keep"):
        astrozoo.infer(problem, method, keep=("q",), **options)


@pytest.mark.parametrize(
    ("method", "option"), [("svi", "thin"), ("laplace", "summaries"), ("nuts", "stream")]
)
def test_what_only_hmc_mclmc_and_auto_record_is_refused_elsewhere(method, option):
    problem = Problem(two_sites, (torch.tensor(1.0, dtype=F64),))
    with pytest.raises(InputError, match="methods that take it: hmc, mclmc, annealed, auto"):
        astrozoo.infer(problem, method, **{option: 2}, **QUIET)


@pytest.mark.parametrize(
    ("metric", "error"),
    [
        ({"z": "fourier"}, UnknownNameError),
        ({"x": "wavelets"}, InputError),
        ("fourier", InputError),
        ({"x": "dense"}, InputError),
        (3.0, InputError),
        (object(), InputError),
    ],
)
@pytest.mark.parametrize("method", ["hmc", "laplace"])
def test_a_metric_that_does_not_suit_is_refused(method, metric, error):
    with pytest.raises(error, match="metric"):
        astrozoo.infer(waves()[0], method, metric=metric, **QUIET)
    with pytest.raises((InputError, UnknownNameError), match="keep"):
        astrozoo.infer(waves()[0], "hmc", keep=("q",), **QUIET)

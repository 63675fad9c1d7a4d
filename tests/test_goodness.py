"""Goodness of fit: of pixels, of problems with images, in results, files and reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.ndimage import gaussian_filter

import astrozoo
from astrozoo._goodness import FittedImage, improvable, scored
from astrozoo.diagnostics.report import report
from astrozoo.types import Problem, Result

SHAPE = torch.exp(-0.5 * torch.linspace(-3, 3, 30).double() ** 2)
SHAPE = SHAPE[:, None] * SHAPE


def model(image: torch.Tensor) -> None:
    flux = pyro.sample("flux", dist.Normal(torch.tensor(0.0).double(), 100.0))
    with pyro.plate("y", 30, dim=-2), pyro.plate("x", 30, dim=-1):
        pyro.sample("image", dist.Normal(flux * SHAPE, 1.0), obs=image)


def fitted(extra: float = 0.0, images: tuple[str, ...] = ("image",)) -> tuple[Problem, Result]:
    """A flux of 20, and a ring that the model lacks."""
    noise = torch.randn(30, 30, generator=torch.Generator().manual_seed(0)).double()
    y, x = torch.meshgrid(torch.arange(30), torch.arange(30), indexing="ij")
    ring = ((torch.hypot(x - 14.5, y - 14.5) - 4).abs() < 1).double()
    task = Problem(model, (20 * SHAPE + extra * ring + noise,), images=images)
    return task, astrozoo.infer(task, "laplace", progress=False, compile="never", draws=100)


def test_a_model_that_fits_and_one_that_does_not() -> None:
    _, good = fitted()
    assert good.goodness is not None
    assert good.goodness.chi2 == pytest.approx(1.0, abs=0.2)
    assert good.ok
    assert good.verdict.startswith("converged, fits (chi2")
    _, bad = fitted(extra=5.0)
    assert bad.status.ok
    assert not bad.ok
    assert "converged, does not fit (chi2" in bad.verdict


def test_problems_without_images_have_none() -> None:
    _, result = fitted(images=())
    assert result.goodness is None
    assert result.ok
    assert result.verdict == "converged"


def test_goodness_is_saved_and_reported(tmp_path: Path) -> None:
    _, bad = fitted(extra=5.0)
    again = astrozoo.load(bad.save(tmp_path / "a.nc"))
    assert again.goodness == bad.goodness
    page = report(bad, tmp_path / "report.html").read_text()
    assert "Converged. Does not fit (chi2" in page
    _, none = fitted(images=())
    assert astrozoo.load(none.save(tmp_path / "b.nc")).goodness is None


def test_masked_pixels_do_not_count() -> None:
    task, result = fitted()
    assert result.goodness is not None

    def masked(image: torch.Tensor) -> None:
        flux = pyro.sample("flux", dist.Normal(torch.tensor(0.0).double(), 100.0))
        used = torch.arange(30) < 20
        with pyro.plate("y", 30, dim=-2), pyro.plate("x", 30, dim=-1):
            pyro.sample("image", dist.Normal(flux * SHAPE, 1.0).mask(used), obs=image)

    image = task.args[0].clone()
    image[:, 20:] = 1e6
    score = astrozoo.goodness_of(replace(task, model=masked, args=(image,)), result)
    assert score is not None
    assert score.chi2 < 1.3


def image(data: np.ndarray, mean: np.ndarray, variance: float = 1.0) -> FittedImage:
    return FittedImage(data, mean, np.full(mean.shape, variance), np.ones(mean.shape, bool))


def lit_square(side: int, lit: int) -> np.ndarray:
    """A frame whose middle has 30 units of light, and whose rest is dark."""
    mean = np.zeros((side, side))
    edge = (side - lit) // 2
    mean[edge : edge + lit, edge : edge + lit] = 30.0
    return mean


def test_a_large_dark_frame_hides_no_misfit_and_too_large_a_noise_no_more() -> None:
    rng = np.random.default_rng(0)
    mean = lit_square(300, 30)
    data = mean + rng.normal(size=mean.shape)
    assert scored(image(data, mean)).ok
    off = data + 2.0 * (mean > 0)
    wrong = scored(image(off, mean))
    assert wrong.parts["all pixels"] < 1.1
    assert wrong.chi2 == pytest.approx(5.0, abs=0.3)
    assert not wrong.ok
    assert scored(image(off, mean, 4.0)).chi2 == pytest.approx(wrong.chi2, rel=0.02)
    assert not scored(image(np.full((10, 10), np.nan), mean[:10, :10])).ok


@pytest.mark.parametrize("smoothing", [0.0, 0.7])
def test_a_broad_misfit_is_not_taken_for_noise(smoothing: float) -> None:
    """Noise, white or correlated, of half of the stated SD, and waves in the dark of that SD."""
    rng = np.random.default_rng(1)
    mean = lit_square(120, 30)
    noise = gaussian_filter(rng.normal(size=mean.shape), smoothing)
    data = mean + noise / (2 * noise.std())
    assert scored(image(data, mean)).chi2 == pytest.approx(1.0, abs=0.15)
    waves = np.sin(np.arange(120) * 2 * np.pi / 40)[:, None] * np.sqrt(2)
    misfit = scored(image(data + waves, mean))
    assert misfit.parts["other pixels"] > 1
    assert misfit.chi2 > 3
    assert not misfit.ok


@pytest.mark.parametrize(("side", "better"), [(100, True), (14, False)])
def test_a_model_that_fits_may_be_improvable(side: int, better: bool) -> None:
    """A chi2 of 1.25 is chance in 200 pixels, and is not in 10,000."""
    signs = np.where(np.indices((side, side)).sum(0) % 2, 1.0, -1.0)
    mean = np.full((side, side), 30.0)
    mean[: side // 5] = 0.0  # the dark part
    score = scored(image(mean + np.where(mean > 0, np.sqrt(1.25), 1.1) * signs, mean))
    assert score.parts["pixels with light"] == pytest.approx(1.25)
    assert score.ok
    assert improvable(score) is better

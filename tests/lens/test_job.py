"""The run of a lens: a source of pixels where a Sersic one does not fit, pictures, counts of images."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import multivariate_normal

from astrozoo.data import lenses
from astrozoo.data.simulate_lens import simulate_lens
from astrozoo.density import layout_of
from astrozoo.errors import InputError
from astrozoo.infer import infer
from astrozoo.lens import hypotheses, job, pixelated
from astrozoo.lens.gauss_newton import gauss_newton, log_evidence
from astrozoo.lens.hypotheses import Hypothesis
from astrozoo.lens.pictures import count_images, critical_lines, lens_figure
from astrozoo.lens.pixelated import at_location, check_pixels, pixelated_mode, posterior_around
from astrozoo.models.lens_exposure import Exposure
from astrozoo.models.lens_prior import IMAGE
from astrozoo.models.strong_lens import problem, simulate
from astrozoo.types import Goodness, Problem, Result, Status

TRUTH = {"einstein_radius": 1.2, "slope": 2.0, "centre_x": 0.0, "centre_y": 0.0, "gamma1": 0.0, "gamma2": 0.0}


@pytest.fixture(scope="module")
def clumpy() -> tuple[Problem, dict[str, torch.Tensor]]:
    """A clumpy galaxy behind a lens without light, and latents near the truth."""
    lens, truth = simulate_lens(11, lens=TRUTH, shape=(48, 48), pixel_scale=0.08, rays=2, peak_snr=20.0)
    task = problem(lens, setting="compact", prior=replace(IMAGE, einstein_radius=(1.2, 0.1)))
    q, angle = truth["axis_ratio"], truth["angle"]
    values = dict(task.start)
    size = (1 - q) / (1 + q)
    values["ellipticity"] = size * torch.tensor([np.cos(2 * angle), np.sin(2 * angle)])
    values["einstein_radius"] = torch.tensor(1.2).double()
    values["source_centre"] = torch.tensor([truth["source_x"], truth["source_y"]])
    return task, values


@pytest.fixture(scope="module")
def mode(clumpy: Any) -> tuple[Problem, Result]:
    task, values = clumpy
    return pixelated_mode(task, values, pixels=16, seed=0)


def test_a_source_of_pixels_fits_and_finds_the_radius(mode: tuple[Problem, Result]) -> None:
    task, result = mode
    assert result.status is Status.CONVERGED
    assert set(task.dims) <= set(task.start)
    radius = result.draws["einstein_radius"]
    assert abs(radius.mean() - 1.2) < 3 * radius.std() + 0.02
    assert at_location(task, result).goodness.chi2 < 1.6  # type: ignore[union-attr]


def test_the_posterior_of_a_source_of_pixels(mode: tuple[Problem, Result]) -> None:
    """A few draws: enough to see that mode, curvature and sampler go together."""
    task, normal = mode
    result = posterior_around(
        task, normal, draws=4, chains=2, warmup=2, least_length=0.3, compile="never", progress=False, seed=0
    )
    assert result.draws["source_field"].shape == (2, 4, 16, 16)
    assert result.goodness is not None
    assert result.goodness.chi2 < 2


class Linear:
    """An image that is linear in two amplitudes."""

    def __init__(self, shapes: torch.Tensor) -> None:
        self.shapes = shapes

    def render(self, values: Any, data: Exposure) -> torch.Tensor:
        return torch.einsum("k,kbyx->byx", values["amplitudes"], self.shapes)

    def sites(self, data: Exposure) -> dict[str, Any]:
        return {"amplitudes": dist.Normal(torch.zeros(2).double(), 2.0).to_event(1)}

    def pixels_of(self, image: torch.Tensor, data: Exposure) -> tuple[Any, torch.Tensor]:
        return dist.Normal(image, data.variance.sqrt()).mask(data.mask).to_event(3), data.image

    def __call__(self, data: Exposure) -> None:
        values = {name: pyro.sample(name, prior) for name, prior in self.sites(data).items()}
        pixels, seen = self.pixels_of(self.render(values, data), data)
        pyro.sample("image", pixels, obs=seen)


def test_the_evidence_of_a_linear_model_is_exact() -> None:
    g = torch.Generator().manual_seed(0)
    shapes, image = (torch.randn(*n, 1, 5, 5, generator=g).double() for n in ((2,), ()))
    blank = torch.ones(1, 5, 5).double()
    psf, gain, scale = torch.ones(1, 1, 1).double(), torch.zeros(1).double(), torch.tensor(1.0).double()
    task = Problem(Linear(shapes), (Exposure(image, psf, 0.3 * blank, gain, blank > 0, scale),))
    result = gauss_newton(task, torch.zeros(2).double(), progress=False, draws=2)
    rows = shapes.flatten(1).numpy()
    exact = multivariate_normal(np.zeros(25), 0.3 * np.eye(25) + 4 * rows.T @ rows)
    assert log_evidence(result) == pytest.approx(exact.logpdf(image.flatten().numpy()), abs=1e-4)


@pytest.mark.parametrize(("one", "two", "halo"), [(10.0, 12.0, True), (10.0, 9.0, False)])
def test_evidence_chooses_the_components_of_the_light(
    monkeypatch: pytest.MonkeyPatch, one: float, two: float, halo: bool
) -> None:
    """Whether or not chi2 calls one component a fit: noise maps that are too large hide its misfit."""

    def mode(task: Any, values: Any, halo: bool, *rest: Any) -> tuple[bool, Result]:
        stats = {"log_density": two if halo else one}
        result = Result({}, Status.CONVERGED, 0, "", "gauss_newton", stats=stats)
        return halo, replace(result, covariance=np.ones((1, 1, 1)))

    monkeypatch.setattr(pixelated, "_mode", mode)
    lens, truth = simulate(3, size=16, pixel_scale=0.3)
    assert pixelated_mode(problem(lens, prior="gigalens"), truth, pixels=8, seed=0)[0] is halo


def test_pictures_of_a_source_of_pixels(mode: tuple[Problem, Result]) -> None:
    figure = lens_figure(*mode)
    titles = " ".join(axis.get_title() for axis in figure.axes)
    for part in ("image", "model", "residual", "critical lines", "source; caustics"):
        assert part in titles


def test_critical_lines_and_images_of_a_round_lens(clumpy: Any) -> None:
    """The critical line of an isothermal sphere is its Einstein ring. It makes two images, or one."""
    task, values = clumpy
    values = {**values, "einstein_radius": torch.tensor(0.8).double()}
    round_one = {**values, "ellipticity": torch.zeros(2).double(), "shear": torch.zeros(2).double()}
    lines = critical_lines(task.model, round_one, task.args[0])
    ring = max((line for line, _ in lines), key=lambda line: line.shape[1])
    np.testing.assert_allclose(np.hypot(*ring), 0.8, atol=0.02)
    for distance, images in ((0.3, 2), (1.0, 1)):
        point = {**round_one, "source_centre": torch.tensor([distance, 0.01]).double()}
        assert count_images(task.model, point, task.args[0]) == images


class Fake:
    """A hypothesis that is not fitted."""

    def __init__(self, name: str, log_evidence: float) -> None:
        self.name, self.problem, self.log_evidence = name, name, log_evidence
        self.mode = Result({}, Status.CONVERGED, 0, "", "laplace")

    def posterior(self, **options: Any) -> Result:
        return self.mode


@pytest.mark.parametrize(
    ("source", "evidences", "chosen"),
    [
        (None, {"sersic": 2.0}, "sersic"),
        (None, {"sersic": 2.0, "learned": 3.0, "pixelated": 1.0}, "learned"),
        (None, {"sersic": 2.0, "learned": 1.0, "pixelated": 4.0}, "pixelated"),
        (None, {"sersic": 2.0, "learned": 1.0, "pixelated": -math.inf}, "sersic"),
        ("pixelated", {"sersic": 2.0, "pixelated": 1.0}, "pixelated"),
    ],
)
def test_evidence_chooses_the_source(
    monkeypatch: pytest.MonkeyPatch, source: str | None, evidences: dict[str, float], chosen: str
) -> None:
    fakes = [Fake(*each) for each in evidences.items()]
    monkeypatch.setattr(job, "hypotheses", lambda *args, **options: fakes)
    assert job._chosen(None, "auto", 16, source, {}, seed=0, folder=Path())[0] == chosen  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize(
    ("sersic", "learned", "only", "tried"),
    [
        (1.05, 1.0, False, ["sersic"]),
        (1.32, 1.03, False, ["sersic", "learned"]),
        (1.32, 1.3, False, ["sersic", "learned", "pixelated"]),
        (1.05, 1.0, True, ["sersic", "pixelated"]),
    ],
)
def test_richer_sources_are_tried_where_one_leaves_more_than_noise(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    clumpy: Any,
    sersic: float,
    learned: float,
    only: bool,
    tried: list[str],
) -> None:
    """Although a chi2 of 1.32 is within the limit of 1.4."""

    def fitted(task: Problem, *rest: Any, **options: Any) -> Result:
        location = layout_of(task).unconstrain({n: v[None] for n, v in task.start.items()}).numpy()
        return Result({}, Status.CONVERGED, 0, "", "laplace", location=location)

    def at(task: Problem, result: Result) -> Result:
        chi2 = learned if "source_latent" in task.start else sersic
        return replace(result, goodness=Goodness(chi2, 1.4))

    monkeypatch.setattr(hypotheses, "infer", fitted)
    monkeypatch.setattr(hypotheses, "gauss_newton", fitted)
    monkeypatch.setattr(hypotheses, "at_location", at)
    monkeypatch.setattr(hypotheses, "pixelated_mode", lambda task, *rest, **options: (task, fitted(task)))
    found = hypotheses.hypotheses(clumpy[0], pixels=16, seed=0, folder=tmp_path, pixels_only=only)
    assert [one.name for one in found] == tried


@pytest.mark.parametrize(
    ("sampling", "lengths"), [({}, [100, 200]), ({"draws": 50}, [50]), ({"chains": 4}, [100, 200])]
)
def test_a_run_that_has_not_converged_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clumpy: Any, sampling: dict[str, int], lengths: list[int]
) -> None:
    drawn: list[int] = []

    def infer(*args: Any, draws: int, **options: Any) -> Result:
        drawn.append(draws)
        status = Status.CONVERGED if draws == 200 else Status.BUDGET_SPENT
        return Result({}, status, 0, "", "auto")

    monkeypatch.setattr(hypotheses, "infer", infer)
    mode = Result({}, Status.CONVERGED, 0, "", "laplace")
    Hypothesis("sersic", clumpy[0], mode).posterior(seed=0, folder=tmp_path, sampling=sampling)
    assert drawn == lengths


def test_a_learned_source_is_fitted_from_a_sersic_one(clumpy: Any) -> None:
    """Its mode explains the clumps."""
    task, values = clumpy
    learned = hypotheses._learned(task, values, seed=0)
    assert learned.mode.status is Status.CONVERGED
    assert np.isfinite(learned.log_evidence)
    assert learned.goodness.chi2 < 1.5


def test_several_bands_are_refused_before_a_search(clumpy: Any) -> None:
    task, _ = clumpy
    data = task.args[0]
    two = data._replace(
        **{n: torch.cat([getattr(data, n)] * 2) for n in ("image", "psf", "variance", "gain", "mask")}
    )
    with pytest.raises(InputError, match="got 2 bands, expected one lens in one band"):
        check_pixels(replace(task, args=(two, *task.args[1:])))


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--source pixelated: got --method svi"):
        job.run(out=tmp_path, source="pixelated", method="svi")
    with pytest.raises(InputError, match="--crop with --data only"):
        job.run(out=tmp_path, demo=True, crop=3.0)


def test_the_outcome_of_a_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading, parts, summary and pages; without the search, which takes minutes."""

    def quick(task: Problem, *rest: Any, **options: Any) -> Result:
        return infer(task, "laplace", draws=20, compile="never", progress=False)

    monkeypatch.setattr(job, "infer", quick)
    lens, _ = simulate_lens(12, lens=TRUTH, shape=(36, 36), pixel_scale=0.1, rays=2)
    path = lenses.write(lens, tmp_path / "lens.fits")
    (tmp_path / "out").mkdir()
    outcome = job.run(
        out=tmp_path / "out", path=path, method="laplace", source="sersic", setting="compact", crop=0.0
    )
    assert outcome.result.goodness is not None
    assert outcome.summary["source"] == "sersic"
    assert set(outcome.summary["einstein_radius"]) == {"mean", "sd"}
    assert [page.title for page in outcome.pages] == ["Lens"]

"""Celeste's guides and their delta-method ELBO, against Pyro's own traces and Monte Carlo."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine
from torch import Tensor

from astrozoo.density import Elbo, elbo
from astrozoo.errors import InputError
from astrozoo.guides import celeste as guides
from astrozoo.models.celeste import Patch, problem, simulate
from astrozoo.types import Problem

F64 = torch.float64
FAMILIES = ("structured", "mean_field", "point")
SITES = ("is_star", "offset", "log_flux", "colour", "log_radius", "ellipticity", "dev_logit")
CASES = list(itertools.product(FAMILIES, (1, 2)))
LOG_2PI_E = 1 + math.log(2 * math.pi)


def scene(sources: int) -> tuple[Problem, Patch, dict[str, Tensor]]:
    patch, truth = simulate(2, sources=sources, size=9, snr_floor=40.0)
    return problem(patch), patch, truth


def objectives(problem: Problem, family: str) -> tuple[Elbo, Elbo]:
    """Delta method, Monte Carlo."""
    factory = problem.factory("guides", family)
    return tuple(elbo(problem, factory, objective=o, compile="never") for o in ("delta", "monte_carlo"))


def placed(
    target: Elbo, truth: dict[str, Tensor], sd: float, logit: float = 0.3, below: float = 0.0
) -> Tensor:
    """Flat parameters of a guide about the truth: scales, and what is below a Cholesky factor's diagonal."""
    values = {name: value for name, value in truth.items() if name != "is_star"}
    w = target.initial(target.layout.unconstrain(values)[None])
    parts = target.parameters(w)
    held = []
    for name, value in parts.items():
        if name == "star_logit":
            value = torch.full_like(value, logit)
        elif name.endswith("_scale"):
            value = torch.where(value == math.log(0.1), math.log(sd), below)
        held.append(value.reshape(1, -1))
    return torch.cat(held, -1)


def shaken(target: Elbo, truth: dict[str, Tensor]) -> Tensor:
    g = torch.Generator().manual_seed(4)
    w = placed(target, truth, 0.1)
    return w + 0.02 * torch.randn(w.shape, generator=g, dtype=F64)


def antithetic(draws: int, dim: int) -> Tensor:
    half = torch.randn(draws // 2, dim, generator=torch.Generator().manual_seed(0), dtype=F64)
    return torch.cat((half, -half))


def by_hand(target: Elbo, w: Tensor, patch: Patch, noise: Tensor) -> Tensor:
    """The ELBO of one draw from Pyro's traces: types summed over under the guide, noise put in by hand."""
    guide = target.module
    with torch.no_grad():
        for name, value in target.parameters(w).items():
            guide.get_parameter(name).copy_(value)
    sources = patch.anchor.shape[0]
    eps = noise[sources:].reshape(sources, -1)
    model = problem(patch).model
    total = w.new_zeros(())
    for kinds in itertools.product((0.0, 1.0), repeat=sources):
        data: dict[str, Any] = {"is_star": w.new_tensor(kinds)}
        free = poutine.trace(poutine.condition(guide, data)).get_trace(patch).nodes["celeste_free"]["fn"]
        data["celeste_free"] = free.loc + (free.scale_tril @ eps[..., None]).squeeze(-1)
        drawn = poutine.trace(poutine.condition(guide, data)).get_trace(patch)
        values = {name: drawn.nodes[name]["value"] for name in SITES}
        joint = poutine.trace(poutine.condition(model, values)).get_trace(patch)
        probability = drawn.nodes["is_star"]["fn"].log_prob(data["is_star"]).sum().exp()
        total = total + probability * (joint.log_prob_sum() - drawn.log_prob_sum())
    return total.detach()


@pytest.mark.parametrize(("family", "sources"), CASES)
def test_the_captured_elbo_is_that_of_pyros_traces(family, sources):
    given, patch, truth = scene(sources)
    _, target = objectives(given, family)
    w = shaken(target, truth)
    for noise in antithetic(2, target.noise_dim):
        got = target.f(w[0], noise, patch)
        torch.testing.assert_close(got, by_hand(target, w[0], patch, noise), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize(("family", "sources"), CASES)
def test_the_delta_method_agrees_with_monte_carlo_where_the_guide_is_narrow(family, sources):
    given, patch, truth = scene(sources)
    delta, target = objectives(given, family)
    w = placed(delta, truth, 0.003, below=0.002)
    values = monte_carlo(target, w[0], patch, 256)
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(delta.f(w[0], patch) - values.mean())) < 4 * error + 0.05
    assert error < 1


def monte_carlo(target: Elbo, w: Tensor, patch: Patch, draws: int) -> Tensor:
    """The ELBO at antithetic pairs of draws."""
    noise = antithetic(draws, target.noise_dim)
    with torch.no_grad():
        values = torch.func.vmap(lambda e: target.f(w, e, patch), chunk_size=64)(noise)
    return values.reshape(2, -1).mean(0)


def test_the_delta_method_understates_a_wide_flux():
    """log E F - cv^2 / 2 is below E log F of a log-normal, the more so the wider it is."""
    given, patch, truth = scene(1)
    delta, target = objectives(given, "point")
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(40))
    noise = torch.zeros(40, target.noise_dim, dtype=F64)
    noise[:, 1] = nodes  # the reference flux; types come first
    bias = []
    for sd in (0.01, 0.1, 0.3):
        parts = delta.parameters(placed(delta, truth, 1e-4))
        parts["star_scale"][..., 0], parts["galaxy_scale"][..., 0] = math.log(sd), math.log(sd)
        w = torch.cat([p.reshape(1, -1) for p in parts.values()], -1)[0]
        values = torch.func.vmap(target.f, in_dims=(None, 0, None))(w, noise, patch).detach()
        exact = float((weights * values).sum() / weights.sum()) + 4 * 0.5  # the four colours' eps^2 / 2
        bias.append(float(delta.f(w, patch)) - exact)
    assert abs(bias[0]) < 1e-3
    assert bias[2] < 10 * bias[1] < 0


@pytest.mark.parametrize(("family", "sources"), CASES)
def test_the_written_derivatives_are_those_of_autodiff(family, sources):
    patch, truth = simulate(2, sources=sources, size=7, snr_floor=40.0)
    patch = patch._replace(mask=patch.mask * (torch.arange(49) % 5 > 0))
    delta, _ = objectives(problem(patch), family)
    w = shaken(delta, truth)
    value, gradient, hessian = (t[0] for t in delta.value_grad_hessian(w))
    assert delta.counts == {"value": 0, "gradient": 0, "hvp": 0, "hessian": 1}
    w = w[0].requires_grad_()
    expected = delta.f(w, patch)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=0)
    (slope,) = torch.autograd.grad(expected, w, create_graph=True)
    close(gradient, slope.detach())
    directions = torch.randn(5, len(w), generator=torch.Generator().manual_seed(1), dtype=F64)
    for v in torch.eye(len(w), dtype=F64) if family == "point" else directions:
        close(hessian @ v, torch.autograd.grad(slope, w, v, retain_graph=True)[0])
    close(hessian, hessian.T)


def close(a: Tensor, b: Tensor) -> None:
    """To 1e-9 of the largest entry."""
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max()))


def test_written_derivatives_of_a_batch_are_those_of_its_rows():
    patches = [simulate(seed, size=7)[0] for seed in (1, 2)]
    batch = problem(Patch(*(torch.stack(t) for t in zip(*patches, strict=True))))
    together, _ = objectives(batch, "point")
    w = together.initial(together.layout.unconstrain(batch.start))
    second = together.take(torch.tensor([1])).value_grad_hessian(w[1:])
    for got, expected in zip(together.value_grad_hessian(w), second, strict=True):
        torch.testing.assert_close(got[1], expected[0], rtol=1e-12, atol=1e-9)
    with pytest.raises(InputError, match="w: got shape"):
        together.value_grad_hessian(w[:1])
    with pytest.raises(InputError, match="noise"):
        together.value_grad_hessian(w, w)


def test_a_structured_guide_without_correlations_is_the_mean_field():
    given, patch, truth = scene(2)
    (full, _), (diagonal, _) = (objectives(given, family) for family in ("structured", "mean_field"))
    torch.testing.assert_close(
        full.f(placed(full, truth, 0.07)[0], patch), diagonal.f(placed(diagonal, truth, 0.07)[0], patch)
    )


def test_a_point_is_a_normal_of_no_width_without_its_entropy():
    given, patch, truth = scene(1)
    (mean_field, _), (point, _) = (objectives(given, family) for family in ("mean_field", "point"))
    w, tiny = placed(mean_field, truth, 0.1, logit=0.0), math.log(1e-6)
    parts = mean_field.parameters(w)
    parts["star_scale"][..., :2], parts["galaxy_scale"][..., :6] = tiny, tiny
    w = torch.cat([p.reshape(1, -1) for p in parts.values()], -1)
    entropy = 0.5 * (2 + 6) * (tiny + 0.5 * LOG_2PI_E)  # types are even
    got = mean_field.f(w[0], patch) - entropy
    torch.testing.assert_close(
        got, point.f(placed(point, truth, 0.1, logit=0.0)[0], patch), rtol=0, atol=1e-6
    )


def test_what_a_galaxy_would_be_counts_by_the_probability_of_a_galaxy():
    """Published error 1: the prior of the radius was not weighted by q(galaxy)."""
    given, patch, truth = scene(1)
    delta, _ = objectives(given, "mean_field")
    dark = patch._replace(mask=0 * patch.mask)

    def slope(logit: float) -> dict[str, Tensor]:
        return delta.parameters(torch.func.grad(delta.f)(placed(delta, truth, 0.1, logit)[0], dark))

    even, rare, never = slope(0.0), slope(math.log(9)), slope(800.0)
    torch.testing.assert_close(rare["galaxy_loc"], 0.2 * even["galaxy_loc"])
    torch.testing.assert_close(rare["star_loc"], 1.8 * even["star_loc"])
    assert float(never["galaxy_loc"].abs().max()) == 0


def test_neither_types_nor_widths_are_boxed():
    """Published error 4: q(type) held above .005, the variance of log flux above 1e-4."""
    given, patch, truth = scene(1)
    delta, _ = objectives(given, "mean_field")
    as_type = [delta.f(placed(delta, truth, 0.005, logit)[0], patch) for logit in (-800.0, 800.0)]
    best = float(as_type[1] - as_type[0])
    assert abs(best) > 10  # far beyond the floor
    for offset, sign in ((-0.5, 1), (0.0, 0), (0.5, -1)):
        w = placed(delta, truth, 0.005, best + offset)[0]
        probability = torch.sigmoid(torch.tensor(best, dtype=F64))
        slope = delta.parameters(torch.func.grad(delta.f)(w, patch))["star_logit"] / (
            probability * (1 - probability)
        )
        assert float(slope.sign() * (slope.abs() > 1e-3)) == sign
    tril = guides.scale_tril(torch.full((1, 11), -12.0, dtype=F64), 11, "mean_field")
    torch.testing.assert_close(
        torch.diagonal(tril, dim1=-2, dim2=-1).log(), torch.full((1, 11), -12.0, dtype=F64)
    )


def test_scale_vectors_and_cholesky_factors_are_inverses():
    scale = torch.randn(2, 3, 66, generator=torch.Generator().manual_seed(0), dtype=F64)
    tril = guides.scale_tril(scale, 11, "structured")
    assert torch.equal(tril, tril.tril())
    assert (torch.diagonal(tril, dim1=-2, dim2=-1) > 0).all()
    torch.testing.assert_close(guides.scale_vector(tril), scale)
    torch.testing.assert_close(guides.scale_tril(guides.scale_vector(tril), 11, "structured"), tril)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_start_becomes_the_centre_of_both_types(family):
    given, _, truth = scene(2)
    delta, _ = objectives(given, family)
    parts = delta.parameters(placed(delta, truth, 0.1))
    flux = torch.cat((truth["log_flux"][:, None], truth["colour"]), -1)
    torch.testing.assert_close(parts["star_loc"][0], torch.cat((truth["offset"], flux), -1))
    torch.testing.assert_close(parts["galaxy_loc"][0, :, 2], truth["log_radius"])
    torch.testing.assert_close(parts["galaxy_loc"][0, :, 6:], flux)
    sd = torch.diagonal(guides.scale_tril(parts["galaxy_scale"], 11, family), dim1=-2, dim2=-1)
    expected = torch.full((2, 11), 0.1, dtype=F64)
    expected[:, :6] *= family != "point"
    torch.testing.assert_close(sd[0], expected)


def test_wrong_uses_are_refused():
    patch, _ = simulate(0, sources=7, size=5)
    crowd = problem(patch)
    with pytest.raises(InputError, match=r"patch: got 7 sources, expected at most 6"):
        guides.delta_elbo(crowd, guides.structured(crowd))
    with pytest.raises(InputError, match="a Celeste model"):
        guides.structured(Problem(lambda x: None, (patch,)))
    with pytest.raises(InputError, match="one of structured, mean_field, point"):
        guides.CelesteGuide(crowd.model.prior, 1, "diagonal", patch.counts)

"""Markov chains of a blend against importance sampling and derivatives, and what they replace."""

import math

import numpy as np
import pytest
import torch
from astropy.table import Table

from astrozoo.checkpoint import Checkpoint
from astrozoo.data.simulate import simulate_field
from astrozoo.models.celeste import load_prior
from astrozoo.survey.celeste import chains
from astrozoo.survey.celeste.blend import Blend
from astrozoo.survey.celeste.chains import redraw, sample_type
from astrozoo.survey.celeste.posterior import TypedDraws, draw_type, mix_types
from astrozoo.survey.celeste.sweeps import Sweeps

ROW = np.array([0])


@pytest.fixture(scope="module")
def job():
    """A star with a galaxy beside it, and a star alone, in three bands."""
    shape = {"radius": 0.8, "axis_ratio": 0.6, "angle": 30.0, "dev_fraction": 0.2}
    sources = Table({"is_star": [True, False, True], "x": [24.0, 28.0, 60.0], "y": [24.3, 25.0, 40.0]})
    for name, value in shape.items():
        sources[name] = [np.nan, value, np.nan]
    for band, scale in zip("gri", (0.5, 1.0, 1.4), strict=True):
        sources[f"flux_{band}"] = scale * np.array([15.0, 20.0, 10.0])
    images, truth = simulate_field(sources=sources, seed=3, shape=(64, 84), bands="gri")
    out = Sweeps(images, truth[["ra", "dec"]], load_prior(), 0, False, Checkpoint(None, {}))
    out.run(8, fit_sky=False)
    lead = torch.tensor([1000.0, -1000.0, 1000.0], dtype=torch.float64)  # the types are known
    out.state.evidence = {"star": lead, "galaxy": torch.zeros(3, dtype=torch.float64)}
    out.repaint(np.arange(3))
    return out


def importance(job, row, star):
    rows = np.array([row])
    density = job.density(job.patch(rows)[0], rows, star)
    name = "star" if star else "galaxy"
    mode, covariance = job.state.mode[name][rows], job.state.covariance[name][rows]
    return draw_type(density, mode, covariance, torch.ones(1, dtype=torch.bool), seed=0)


@pytest.mark.parametrize("star", [True, False])
def test_the_gradient_of_a_blend_is_that_of_its_values(job, star):
    blend = Blend.of(job, 0, star)
    assert blend.dim == (7 if star else 11) + 11  # the galaxy is sampled with it, the other star is not
    g = torch.Generator().manual_seed(0)
    w = blend.mode + torch.randn(2, blend.dim, generator=g, dtype=torch.float64) @ blend.root.mT
    value, gradient = blend.value_and_grad(w)
    torch.testing.assert_close(value, blend.values(w)[:, 0], rtol=0, atol=1e-2)  # images of single precision
    along = torch.randn(6, blend.dim, generator=g, dtype=torch.float64) @ blend.root.mT
    for v in along:
        up, down = (blend.values(w + h * v)[:, 0] for h in (0.0125, -0.0125))
        expected = gradient @ v
        assert ((up - down) / 0.025 - expected).abs().max() < 0.02


def test_at_the_modes_a_blend_is_the_model_of_the_field(job):
    blend = Blend.of(job, 0, True)
    patch, own = job.patch(ROW)
    rate = (patch.background + own)[0]
    torch.testing.assert_close(blend._background + blend_light(blend), rate, rtol=1e-3, atol=1e-2)


def blend_light(blend):
    parts = blend._split(blend.mode[None])
    return sum(
        (member.density.electrons(u)[..., None] * member.density.images(u[:, : member.density.n_bending])
         * member.inside).sum(0)
        for member, u in zip(blend._members, parts, strict=True)
    )  # fmt: skip


def test_chains_of_a_source_alone_agree_with_importance_sampling(job):
    weighted = {star: importance(job, 2, star) for star in (True, False)}
    chains = {star: sample_type(job, 2, star, weighted[star]) for star in weighted}
    for star, drawn in weighted.items():
        assert float(drawn.k_hat[0]) < 0.7
        assert chains[star].converged
        weight = drawn.log_weight[0].exp()
        mean = weight @ drawn.u[0]
        sd = (weight @ (drawn.u[0] - mean).square()).sqrt()
        # blocks of eight draws share a rendering
        effective = float(weight.reshape(-1, 8).sum(1).square().sum().reciprocal())
        u = chains[star].u
        error = 4 * math.sqrt(1 / effective + 1 / 400)
        assert ((u.mean(0) - mean).abs() < error * sd).all()
        assert ((u.std(0) / sd).log().abs() < error).all()
    # both leave out the same constants
    lead = [chains[True].log_evidence - chains[False].log_evidence]
    lead.append(float(weighted[True].log_evidence[0] - weighted[False].log_evidence[0]))
    assert abs(lead[0] - lead[1]) < 0.5


def test_a_neighbour_widens_the_errors_of_chains(job):
    alone = importance(job, 0, True)
    weight = alone.log_weight[0].exp()
    mean = weight @ alone.u[0]
    fixed = (weight @ (alone.u[0] - mean).square()).sqrt()
    chains = sample_type(job, 0, True, alone)
    assert chains.converged
    assert chains.u[:, 2].std() > 1.1 * fixed[2]


def test_more_importance_draws_are_tried_first(job):
    typed = {name: importance(job, 2, name == "star") for name in ("star", "galaxy")}
    expected = typed["star"].log_evidence[0].clone()
    for drawn in typed.values():
        drawn.log_weight[0] = -torch.inf
        drawn.log_weight[0, 0] = 0.0
        drawn.k_hat[0] = 2.0
    quality = redraw(job, np.array([2]), typed, 1)
    assert float(quality.k_hat[0]) <= 0.7
    assert math.isnan(float(quality.r_hat[0]))
    assert abs(typed["star"].log_evidence[0] - expected) < 0.1
    assert (typed["star"].u[0].std(0) > 0).all()


def test_draws_of_one_value_are_replaced(job, monkeypatch):
    """All weight on one draw made standard deviations of exactly 0, with a k-hat of 2 and more."""
    typed = {name: importance(job, 2, name == "star") for name in ("star", "galaxy")}
    for drawn in typed.values():
        drawn.log_weight[0] = -torch.inf
        drawn.log_weight[0, 0] = 0.0
        drawn.k_hat[0] = 2.0
    monkeypatch.setattr(chains, "draw_type", lambda *_, **__: typed["star"])  # no better
    quality = redraw(job, np.array([2]), typed, 1)
    assert math.isnan(float(quality.k_hat[0]))
    assert float(quality.r_hat[0]) < 1.05
    assert float(quality.ess[0]) >= 400
    possible = float(torch.sigmoid(job.state.evidence["star"][2] - job.state.evidence["galaxy"][2]))
    if possible > 0.01:
        assert (typed["star"].u[0].std(0) > 0).all()
        assert (typed["star"].log_weight[0].exp() < 0.01).all()


def test_trusted_draws_stay(job):
    typed = {name: importance(job, 2, name == "star") for name in ("star", "galaxy")}
    before = TypedDraws(*(part.clone() for part in typed["star"]))
    quality = redraw(job, np.array([2]), typed, 1)
    assert float(quality.k_hat[0]) < 0.7
    assert math.isnan(float(quality.r_hat[0]))
    for after, part in zip(typed["star"], before, strict=True):
        torch.testing.assert_close(after, part, rtol=0, atol=0)


def test_draws_that_fail_and_stay_are_not_all_of_one_value(job):
    typed = {name: importance(job, 2, name == "star") for name in ("star", "galaxy")}
    for drawn in typed.values():
        drawn.log_weight[0] = -1000.0
        drawn.log_weight[0, 0] = 0.0
        drawn.k_hat[0] = 2.0
    quality = redraw(job, np.array([2]), typed, 0)
    assert float(quality.k_hat[0]) == 2.0
    assert math.isnan(float(quality.r_hat[0]))
    _, _, u = mix_types(typed["star"], typed["galaxy"], 512, torch.Generator().manual_seed(0))
    measured = torch.isfinite(u[0]).all(0)
    assert (u[0][:, measured].std(0) > 0).all()


def test_an_interrupt_in_the_warm_up_of_chains_stops_the_fit(job, monkeypatch):
    """HMC returns what it has, which are no draws."""
    calls = []
    original = Blend.value_and_grad

    def stop(self, w):
        calls.append(1)
        if len(calls) > 40:
            raise KeyboardInterrupt
        return original(self, w)

    monkeypatch.setattr(Blend, "value_and_grad", stop)
    with pytest.raises(KeyboardInterrupt):
        sample_type(job, 2, True, importance(job, 2, True))

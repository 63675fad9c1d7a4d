"""What every entry of the zoo owes, under every method and guide that it lists."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pyro.poutine as poutine
import pytest
import torch

import astrozoo
from astrozoo import registry
from astrozoo.density import elbo, log_density
from astrozoo.diagnostics.metrics import z_scores
from astrozoo.types import load

_ENTRIES = [entry.name for entry in astrozoo.list_models()]
_GUIDES = [(entry.name, guide) for entry in astrozoo.list_models() for guide in entry.guides]
_METHODS = [(entry.name, method) for entry in astrozoo.list_models() for method in entry.methods]
_SMALL = {
    "trust_region": {"budget": 1, "draws": 20},
    "svi": {"budget": 5, "draws": 20},
    "laplace": {"budget": 3, "draws": 20},
    "wiener": {"draws": 20},
    "auto": {"draws": 4, "chains": 2, "warmup": 6, "starts": 2, "steps": 3},
    "hmc": {"draws": 4, "chains": 2, "warmup": 6, "max_steps": 4},
    "mclmc": {"draws": 4, "chains": 2, "warmup": 6, "max_steps": 4},
    "annealed": {
        "draws": 4,
        "chains": 2,
        "warmup": 6,
        "max_steps": 4,
        "levels": 2,
        "trajectories": 2,
    },
    "el2o": {"guide": "full_rank", "budget": 1, "draws": 20, "particles": 2},
    "nuts": {"draws": 4, "chains": 1, "warmup": 4, "max_tree_depth": 2},
    "nutpie": {"draws": 4, "chains": 1, "warmup": 4, "max_tree_depth": 2},
}
"""Settings of a few steps. The guide is the smallest of the entry, where none is given."""


@cache
def simulated(name: str, method: str = ""):
    """The problem, with the settings that the method requires, and the truth."""
    entry = astrozoo.get(name)
    settings = entry.required.get(method, {})
    data, truth = entry.simulate(seed=0, **settings)
    return entry.problem(data, **settings), truth


@cache
def density(name: str):
    return log_density(simulated(name)[0], compile="never")


@cache
def evidence(name: str, guide: str):
    problem, _ = simulated(name)
    factory = problem.factory("guides", guide) if guide in problem.guides else registry.guide(guide)
    return elbo(problem, factory, compile="never")


def run(name: str, method: str, guide: str, **settings):
    options = {**astrozoo.get(name).options.get(method, {}), "progress": False, **settings}
    return astrozoo.infer(simulated(name, method)[0], method, guide, **options)


def small_run(name: str, method: str):
    """A few steps from the model's own start, with the smallest guide: a Hessian costs as its square."""
    smallest = min(astrozoo.get(name).guides, key=lambda guide: evidence(name, guide).dim)
    settings = {"guide": smallest, **_SMALL[method]}
    return run(name, method, seed=0, compile="never", start=None, **settings)


first_run = cache(small_run)


@pytest.mark.parametrize("name", _ENTRIES)
def test_the_same_seed_simulates_the_same_data(name):
    entry = astrozoo.get(name)
    digests = [entry.problem(entry.simulate(seed=seed)[0]).digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", _ENTRIES)
def test_density_and_gradient_are_finite_at_the_start(name):
    target = density(name)
    z = target.initial(3, torch.Generator().manual_seed(0))
    value, gradient = target.value_and_grad(z)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient != 0).any(0).all()  # no latent is left out


@pytest.mark.parametrize("name", _ENTRIES)
def test_the_captured_density_is_that_of_pyro(name):
    problem, truth = simulated(name)
    assert problem.batch is None
    target = density(name)
    latents = {site.name for site in target.layout.sites} | {*target.summed_out, *target.in_vector}
    truth = {site: value for site, value in truth.items() if site in latents}
    for z in target.initial(2, torch.Generator().manual_seed(1)):
        ours = target.values(z[None])
        torch.testing.assert_close(
            ours.squeeze(), _by_pyro(problem, target.layout, truth, z), rtol=1e-9, atol=0
        )


@pytest.mark.parametrize("name", _ENTRIES)
def test_simulations_stack_into_a_batch_of_the_same_densities(name):
    entry = astrozoo.get(name)
    parts = [simulated(name)[0], entry.problem(entry.simulate(seed=1)[0])]
    target = log_density(astrozoo.stack(parts), compile="never")
    z = target.initial(2)
    alone = [log_density(part, compile="never").values(z[i : i + 1]) for i, part in enumerate(parts)]
    torch.testing.assert_close(target.values(z), torch.cat(alone), rtol=1e-12, atol=0)


def _by_pyro(problem, layout, truth, z):
    """log p of the continuous latents in unconstrained space, by Pyro, summed over the discrete ones."""
    values = layout.constrain(z)
    jacobian = z.new_zeros(())
    for site in layout.sites:
        x = z[site.start : site.stop].reshape(site.transform.inv(values[site.name]).shape)
        jacobian = jacobian + site.transform.log_abs_det_jacobian(x, values[site.name]).sum()
    discrete = {name: value for name, value in truth.items() if name not in values}
    given = poutine.condition(problem.model, {**values, **discrete})
    traced = poutine.trace(given).get_trace(*problem.args)
    choices = []
    for name, value in discrete.items():
        support = traced.nodes[name]["fn"].enumerate_support(expand=False).flatten()
        every = itertools.product(support.tolist(), repeat=value.numel())
        choices.append([value.new_tensor(one).reshape(value.shape) for one in every])
    terms = []
    for chosen in itertools.product(*choices):
        held = {**values, **dict(zip(discrete, chosen, strict=True))}
        terms.append(
            poutine.trace(poutine.condition(problem.model, held)).get_trace(*problem.args).log_prob_sum()
        )
    return torch.logsumexp(torch.stack(terms), 0) + jacobian


@pytest.mark.parametrize(("name", "guide"), _GUIDES)
def test_a_guide_covers_exactly_the_latents(name, guide):
    problem, truth = simulated(name)
    target = evidence(name, guide)
    noise = torch.zeros(2, target.noise_dim, dtype=problem.dtype)
    sites = target.sample(target.initial(None), noise)
    continuous = {site.name for site in target.layout.sites}
    assert continuous <= set(sites) <= set(truth)
    for site in sites:
        assert sites[site].shape[2:] == truth[site].shape
        assert sites[site].isfinite().all()


@pytest.mark.parametrize(("name", "guide"), _GUIDES)
def test_a_guide_starts_where_the_problem_says(name, guide):
    problem, _ = simulated(name)
    target = evidence(name, guide)
    noise = torch.zeros(1, target.draw_dim, dtype=problem.dtype) if target.draw_dim else None
    sites = target.sample(target.initial(None), noise)
    for site, value in problem.start.items():
        torch.testing.assert_close(sites[site][0, 0], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "method"), _METHODS)
def test_a_run_gives_finite_labelled_draws_that_can_be_saved(name, method, tmp_path):
    problem, truth = simulated(name, method)
    result = first_run(name, method)
    assert set(result.draws) <= set(truth)
    for site, draws in result.draws.items():
        assert draws.shape[2:] == tuple(truth[site].shape)
        assert np.isfinite(draws).all()
    assert result.digest == problem.digest
    assert sum(result.stats["counts"].values()) > 0
    back = load(result.save(tmp_path / "r.nc"))
    for site, draws in result.draws.items():
        np.testing.assert_array_equal(back.draws[site], draws)
    assert back.status is result.status
    assert set(back.to_arviz()["posterior"].data_vars) == set(result.draws)


@pytest.mark.parametrize(("name", "method"), _METHODS)
def test_the_same_seed_gives_the_same_draws(name, method):
    again = small_run(name, method)
    for site, draws in first_run(name, method).draws.items():
        np.testing.assert_array_equal(again.draws[site], draws)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), _METHODS)
def test_the_truth_is_recovered_within_its_posterior(name, method):
    _, truth = simulated(name, method)
    result = run(name, method, astrozoo.get(name).default_guide, seed=0)
    assert result.status.ok
    continuous = {site: value for site, value in truth.items() if value.is_floating_point()}
    names = {site.name for site in density(name).layout.sites}
    scores = z_scores(result, {site: value for site, value in continuous.items() if site in names})
    every = np.concatenate([np.ravel(z) for z in scores.values()])
    assert np.abs(every).max() < 5  # a guide may be too narrow, and there are a few latents

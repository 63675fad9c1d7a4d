"""The samplers against exact answers and against another code's draws."""

from __future__ import annotations

import pytest

from astrozoo.infer import infer
from astrozoo.types import Status
from experiments.reference_posteriors import OPTIONS, graded, passed
from experiments.reference_problems import (
    SAMPLED,
    banana,
    funnel,
    gaussian,
    linear_image,
    mixture,
    poisson_gamma,
    sampled,
    z_scores,
)

QUIET = {"compile": "never", "progress": False}


@pytest.mark.parametrize(
    "reference",
    [gaussian(10, 1e6), mixture(), poisson_gamma(), linear_image(4)],
    ids=lambda reference: reference.name,
)
def test_hmc_gives_exact_means_and_sds(reference):
    result = infer(reference.problem, "hmc", draws=100, warmup=100, **QUIET)
    assert result.status is Status.CONVERGED
    assert max(abs(z) for pair in z_scores(result, reference).values() for z in pair) < 4


@pytest.mark.slow
@pytest.mark.parametrize("reference", [gaussian(100, 1e4), banana(), linear_image()], ids=lambda r: r.name)
def test_hmc_gives_exact_means_and_sds_of_larger_and_curved_ones(reference):
    result = infer(reference.problem, "hmc", draws=300, **QUIET)
    assert result.status is Status.CONVERGED
    assert max(abs(z) for pair in z_scores(result, reference).values() for z in pair) < 4


@pytest.mark.slow
def test_hmc_does_not_claim_to_have_sampled_a_funnel():
    """Its neck cannot be entered with any step that suits its mouth."""
    result = infer(funnel().problem, "hmc", **QUIET)
    assert result.status is not Status.CONVERGED
    assert result.stats["e_bfmi"][0] < 0.3


@pytest.mark.parametrize("name", ["kidscore", "eight_schools"])
def test_hmc_agrees_with_the_reference_draws(name, data_root):
    row = graded(sampled(name, data_root), "hmc", **QUIET)
    assert passed(row), row


@pytest.mark.slow
@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("name", SAMPLED)
def test_every_sampler_agrees_with_the_reference_draws(name, method, data_root):
    row = graded(sampled(name, data_root), method)
    assert passed(row), row

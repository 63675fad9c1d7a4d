from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from doubles import banana, gaussian_elbo, quadratic
from problems import gaussians

from astrozoo.density import elbo, log_density
from astrozoo.errors import InputError
from astrozoo.guides.auto import mean_field
from astrozoo.infer._secant import updated
from astrozoo.infer.maximise import TrustRegionState, maximise
from astrozoo.infer.mode_start import mode_start
from astrozoo.types import Problem, Status

F64 = torch.float64


def _curved(b, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(b, d, d, generator=generator, dtype=F64)
    return -(a @ a.mT + torch.eye(d, dtype=F64))


def test_as_many_updates_as_dimensions_are_the_hessian_of_a_quadratic():
    """Nocedal & Wright 2006, theorem 6.1."""
    H = _curved(3, 4)
    B = -torch.eye(4, dtype=F64).expand(3, 4, 4)
    steps = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    for s in steps:
        B = updated(B, s, (H @ s[..., None])[..., 0])
    torch.testing.assert_close(B, H, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("y", [[-1.0, 0.0], [-1.0, 1.0], [torch.nan, 0.0]])
def test_a_difference_that_tells_nothing_changes_nothing(y):
    """One that is known already, one that no matrix of rank one explains, one that is not finite."""
    B = -torch.eye(2, dtype=F64)[None]
    s = torch.tensor([[1.0, 0.0]], dtype=F64)
    assert torch.equal(updated(B, s, torch.tensor([y], dtype=F64)), B)


def test_a_known_curvature_costs_gradients_alone_but_for_the_last_look():
    mean = torch.linspace(-3, 3, 5, dtype=F64)
    precision = -_curved(1, 5)[0]
    objective = quadratic(mean, precision)
    found = maximise(objective, torch.zeros(1, 5, dtype=F64), radius=10.0, curvature=-precision[None])
    assert found.statuses == (Status.CONVERGED,)
    torch.testing.assert_close(found.w[0], mean, atol=1e-4, rtol=0)
    assert objective.counts["gradient"] <= 3
    assert objective.counts["hessian"] == 1


@pytest.mark.parametrize("dense_limit", [200, 0])
def test_the_maximum_is_found_from_a_wrong_curvature_and_from_none(dense_limit):
    starts = torch.tensor([[-1.2, 1.0], [2.0, -1.0], [0.0, 0.0], [-3.0, 4.0]], dtype=F64)
    curvature = -torch.eye(2, dtype=F64).repeat(4, 1, 1)
    curvature[1] = torch.nan
    found = maximise(banana(), starts, dense_limit=dense_limit, radius=0.5, curvature=curvature)
    assert set(found.statuses) == {Status.CONVERGED}
    torch.testing.assert_close(found.w, torch.ones(4, 2, dtype=F64), atol=1e-4, rtol=0)


def test_an_interrupted_run_resumes_to_the_same_answer():
    w0 = torch.tensor([[-1.2, 1.0], [2.0, -1.0]], dtype=F64)
    options = {"radius": 0.5, "curvature": torch.full((2, 2, 2), torch.nan, dtype=F64)}
    whole = maximise(banana(), w0, **options)

    def kill(state):
        if state.iteration == 5:
            raise KeyboardInterrupt

    part = maximise(banana(), w0, callback=kill, **options)
    state = TrustRegionState.restored(part.state.arrays(), torch.device("cpu"))
    rest = maximise(banana(), w0, state=state, radius=0.5)
    assert torch.equal(rest.w, whole.w)
    assert rest.iterations == whole.iterations > 5


def test_fresh_draws_take_no_curvature():
    objective = gaussian_elbo(torch.zeros(1, dtype=F64), torch.ones(1, 1, dtype=F64))
    with pytest.raises(InputError, match="curvature"):
        maximise(objective, torch.zeros(1, 2, dtype=F64), curvature=-torch.eye(2, dtype=F64)[None])


def test_a_mean_field_of_a_normal_starts_at_its_optimum():
    """At the mean, with the precision's diagonal, and the Hessian that the ELBO has there."""
    problem, means, covariances = gaussians(3, d=3)
    target, density = elbo(problem, mean_field, compile="never"), log_density(problem, compile="never")
    w, curvature = mode_start(target, density, target.initial(None), seed=0, draws=4)
    e = torch.cat((torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64))) * 3**0.5  # moments of a normal
    z = target.unconstrained(w, e)
    torch.testing.assert_close(z.mean(1), means, rtol=0, atol=1e-8)
    narrow = torch.linalg.inv(covariances).diagonal(dim1=1, dim2=2).rsqrt()
    torch.testing.assert_close(z.std(1, correction=0), narrow, rtol=1e-8, atol=0)
    _, g, H = target.value_grad_hessian(w, e)
    torch.testing.assert_close(g, torch.zeros_like(g), rtol=0, atol=1e-8)
    torch.testing.assert_close(curvature, H, rtol=1e-6, atol=1e-6)
    assert density.counts["hessian"] <= 2 * 3


def spiked(height):
    """A standard normal with a spike on its top that holds next to nothing of its mass."""
    z = pyro.sample("z", dist.Normal(torch.zeros_like(height), 1.0))
    pyro.factor("spike", torch.log1p(height * torch.exp(-(z**2) / (2 * 1e-6))))


def test_a_mode_with_no_mass_is_left_for_the_given_start():
    problem = Problem(spiked, (torch.tensor([0.0, 1.0], dtype=F64),), batch=2)
    target, density = elbo(problem, mean_field, compile="never"), log_density(problem, compile="never")
    w0 = target.initial(torch.tensor([[0.1], [1e-4]], dtype=F64))
    w, curvature = mode_start(target, density, w0, seed=0, draws=4)
    assert not torch.equal(w[0], w0[0])
    assert curvature[0].isfinite().all()
    assert torch.equal(w[1], w0[1])
    assert curvature[1].isnan().all()

"""Small problems with known posteriors. Models are at module level, as a user's would be."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from astrozoo.types import Problem

F64 = torch.float64


def gaussian_model(mean, root):
    pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=root))


def gaussian(d=3, seed=0):
    """A correlated normal: the problem, its mean and its covariance."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(d, generator=generator, dtype=F64)
    a = torch.randn(d, d, generator=generator, dtype=F64)
    covariance = a @ a.T / d + 0.3 * torch.eye(d, dtype=F64)
    return (
        Problem(gaussian_model, (mean, torch.linalg.cholesky(covariance)), name="gaussian"),
        mean,
        covariance,
    )


def gaussians(batch=3, d=2):
    """Independent normals as one batched problem."""
    found = [gaussian(d, seed) for seed in range(batch)]
    args = tuple(torch.stack([p.args[i] for p, _, _ in found]) for i in range(2))
    means, covariances = torch.stack([f[1] for f in found]), torch.stack([f[2] for f in found])
    return Problem(gaussian_model, args, name="gaussians", batch=batch), means, covariances


def poisson_model(counts):
    rate = pyro.sample("rate", dist.Gamma(counts.new_tensor(3.0), counts.new_tensor(2.0)))
    with pyro.plate("data", len(counts)):
        pyro.sample("y", dist.Poisson(rate), obs=counts)


def poisson_gamma():
    """Counts with a conjugate prior: the posterior is Gamma(3 + sum, 2 + n)."""
    counts = torch.tensor([4.0, 1, 3, 5, 2, 2, 0, 3], dtype=F64)
    posterior = torch.distributions.Gamma(3 + counts.sum(), torch.tensor(2.0 + len(counts), dtype=F64))
    return Problem(poisson_model, (counts,), name="poisson_gamma"), posterior


def banana_model(scale):
    x = pyro.sample("x", dist.Normal(torch.zeros_like(scale), 1.0))
    pyro.sample("y", dist.Normal(x**2, scale))


def banana(scale=0.5):
    """A curved posterior: E[x] = 0, E[y] = 1, var x = 1, var y = 2 + scale^2."""
    return Problem(banana_model, (torch.tensor(scale, dtype=F64),), name="banana")

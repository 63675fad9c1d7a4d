"""Models whose evaluations the tests divide among processes."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from astrozoo.types import Problem, stack


def _normal(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Line:
    """A line with scatter: global latents, one plate."""

    def __call__(self, x, y):
        slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 3.0).to_event(1))
        log_sd = pyro.sample("log_sd", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.StudentT(4.0, slope[0] + slope[1] * x, log_sd.exp()), obs=y)


def line(n=7, seed=0):
    x = torch.linspace(-1, 1, n, dtype=torch.float64)
    y = 1 + 2 * x + 0.5 * _normal(n, seed)
    return Problem(Line(), (x, y), name="line", data_plates={"data": {"x": 0, "y": 0}})


def lines(count=5):
    return stack([line(seed=seed) for seed in range(count)])


class Linear:
    """A line with Gaussian scatter of known size."""

    def __call__(self, x, y):
        slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope[0] + slope[1] * x, 0.5), obs=y)


def linear(seed=0):
    return Problem(Linear(), line(7, seed).args, name="linear", data_plates={"data": {"x": 0, "y": 0}})


class Stars:
    """Fluxes with a population: latents inside the plate, and a discrete one that is summed out."""

    def __call__(self, flux):
        mean = pyro.sample("mean", dist.Normal(flux.new_zeros(2), 2.0).to_event(1))
        sd = pyro.sample("sd", dist.LogNormal(flux.new_zeros(()), 0.5))
        with pyro.plate("star", flux.shape[0], dim=-1):
            kind = pyro.sample("kind", dist.Bernoulli(flux.new_tensor(0.3)))
            true = pyro.sample("true", dist.Normal(torch.where(kind > 0, mean[1], mean[0]), sd))
            pyro.sample("flux", dist.Normal(true[:, None].expand_as(flux), 0.5).to_event(1), obs=flux)


def stars(n=6):
    centre = torch.where(torch.arange(n) % 3 == 0, 2.0, -1.0)[:, None]
    flux = centre + 0.5 * _normal((n, 2), 1)
    return Problem(Stars(), (flux,), name="stars", data_plates={"star": {"flux": 0}})


def simulate(seed=0):
    return line(40, seed).args, {}


def read(path):
    return line(40).args


def problem(data):
    return Problem(Line(), data, name="line", data_plates={"data": {"x": 0, "y": 0}})

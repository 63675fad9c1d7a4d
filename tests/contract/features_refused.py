"""What no method can do, refused by name before any work."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from feature import ALL, Feature, tensor
from features_latents import Y, real


def subsample(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3, subsample_size=2) as index:
        pyro.sample("y", dist.Normal(x, 0.5), obs=y[index])


def poisson_latent(y):
    n = pyro.sample("n", dist.Poisson(3.0))
    pyro.sample("y", dist.Normal(n, 1.0), obs=y)


def geometric_latent(y):
    n = pyro.sample("n", dist.Geometric(0.3))
    pyro.sample("y", dist.Normal(n, 1.0), obs=y)


def multinomial_latent(y):
    n = pyro.sample("n", dist.Multinomial(3, torch.tensor([0.5, 0.5])))
    pyro.sample("y", dist.Normal(n[0], 1.0), obs=y)


def empirical_latent(y):
    x = pyro.sample("x", dist.Empirical(torch.tensor([0.0, 1.0]), torch.zeros(2)))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def sphere():
    pyro.sample("x", dist.ProjectedNormal(torch.tensor([1.0, 2.0])))


def one_number(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x.item(), 1.0), obs=y)


def branch(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x if x > 0 else 2 * x, 1.0), obs=y)


def python_list(y):
    k = pyro.sample("k", dist.Categorical(torch.ones(2)))
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal([x, x + 1][k], 1.0), obs=y)


def hidden_noise(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x + torch.randn(()), 1.0), obs=y)


def complex_values(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    z = pyro.deterministic("z", torch.complex(x, x))
    pyro.sample("y", dist.Normal(z.abs(), 1.0), obs=y)


def moving_support(y):
    x = pyro.sample("x", dist.Gamma(2.0, 1.0))
    z = pyro.sample("z", dist.Uniform(torch.zeros(()), x))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def changing_sites(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if torch.rand(()) < 2 and x > 0:
        pyro.sample("more", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def same_name(y):
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, 1.0))


def no_latents(y):
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def broken(y):
    real(y.no_such_attribute)


ONE = (tensor(1.5)[0],)
REFUSED = (
    (subsample, (Y,), "plate 'data' draws a random subsample"),
    (poisson_latent, ONE, "site 'n'.*discrete and not finite"),
    (geometric_latent, ONE, "site 'n'.*discrete and not finite"),
    (multinomial_latent, ONE, "site 'n'.*discrete and not finite"),
    (empirical_latent, ONE, "site 'x'.*Empirical"),
    (sphere, (), "site 'x'.*ProjectedNormal"),
    (one_number, ONE, "cannot be captured.*item"),
    (branch, ONE, "cannot be captured"),
    (python_list, ONE, "cannot be captured"),
    (hidden_noise, ONE, "site 'y'.*draws random numbers"),
    (complex_values, ONE, "site 'z': complex values"),
    (moving_support, ONE, "site 'z': its support depends"),
    (changing_sites, ONE, "latent sites or their shapes change"),
    (same_name, ONE, "cannot be run.*'x'"),
    (no_latents, ONE, "no latent sites"),
    (broken, ONE, "cannot be run: AttributeError.*no_such_attribute"),
)
FEATURES = [
    Feature(model.__name__.replace("_", " "), model, args, refused={ALL: reason})
    for model, args, reason in REFUSED
]

"""Continuous latents of every support."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from feature import Feature, integral, normal, of, tensor
from scipy import stats
from torch.distributions import constraints

Y = tensor(0.3, 1.1, 0.4)
YS = Y.numpy()
COUNTS = tensor(4.0, 1.0, 3.0)


def log_normal_pdf(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd)


def real(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def positive(y):
    rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def unit_interval(y):
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    pyro.sample("y", dist.Binomial(10, p), obs=y)


def simplex(y):
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    pyro.sample("y", dist.Multinomial(9, p), obs=y)


def interval():
    pyro.sample("x", dist.Uniform(-1.0, 2.5))
    pyro.factor("peak", torch.zeros(()))


def half_open():
    pyro.sample("x", dist.Pareto(1.5, 8.0))


def below(y):
    x = pyro.sample("x", dist.ImproperUniform(constraints.less_than(2.0), (), ()))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def improper(y):
    x = pyro.sample("x", dist.ImproperUniform(constraints.positive, (), ()))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def masked(y):
    x = pyro.sample("x", dist.Normal(3.0, 0.1).mask(False))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def mixture():
    parts = dist.Normal(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.7]))
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.4, 0.6])), parts))


def positive_mixture():
    parts = dist.Gamma(torch.tensor([3.0, 5.0]), torch.tensor([2.0, 2.0]))
    pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.4, 0.6])), parts))


def log_normal():
    pyro.sample("x", dist.LogNormal(0.3, 0.4))


def logit_normal():
    base = dist.Normal(0.4, 0.7)
    pyro.sample("x", dist.TransformedDistribution(base, [dist.transforms.SigmoidTransform()]))


def shifted():
    base = dist.Gamma(3.0, 2.0)
    pyro.sample("x", dist.TransformedDistribution(base, [dist.transforms.AffineTransform(1.0, 2.0)]))


def ordered():
    base = dist.Normal(torch.zeros(2), 0.5).to_event(1)
    pyro.sample("x", dist.TransformedDistribution(base, [dist.transforms.OrderedTransform()]))


def student(y):
    x = pyro.sample("x", dist.StudentT(5.0, 0.5, 2.0))
    pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def cauchy(y):
    x = pyro.sample("x", dist.Cauchy(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def half_cauchy(y):
    x = pyro.sample("x", dist.HalfCauchy(1.0))
    pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def angle(y):
    x = pyro.sample("x", dist.VonMises(0.5, 4.0))
    pyro.sample("y", dist.VonMises(x, 3.0), obs=y)


def joint_normal():
    pyro.sample(
        "x", dist.MultivariateNormal(torch.tensor([1.0, -1.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
    )


def low_rank_normal():
    factor, diagonal = torch.tensor([[1.0], [0.5]]), torch.tensor([0.5, 0.8])
    pyro.sample("x", dist.LowRankMultivariateNormal(torch.zeros(2), factor, diagonal))


def events(y):
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def correlation(y):
    L = pyro.sample("L", dist.LKJCholesky(2, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=L), obs=y)


PAIRS = tensor([0.5, 0.8], [-1.0, -0.3], [0.2, 0.7])


def log_correlation(r):
    a, b, c = (float(v) for v in ((PAIRS[:, 0] ** 2).sum(), PAIRS.prod(1).sum(), (PAIRS[:, 1] ** 2).sum()))
    return np.log1p(-(r**2)) * (1 - 1.5) - 0.5 * (a - 2 * r * b + c) / (1 - r**2)


def covariance():
    pyro.sample("S", dist.Wishart(torch.tensor(6.0), torch.eye(2) / 6))


def kernel(x, y):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    K = torch.exp(-0.5 * ((x[:, None] - x) / scale) ** 2) + 0.1 * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), K), obs=y)


def log_kernel(scale):
    X, out = np.array([0.0, 0.5, 1.5]), []
    for s in scale:
        K = np.exp(-0.5 * ((X[:, None] - X) / s) ** 2) + 0.1 * np.eye(3)
        out.append(-0.5 * YS @ np.linalg.solve(K, YS) - 0.5 * np.linalg.slogdet(K)[1])
    return np.array(out) - 0.5 * (np.log(scale) / 0.5) ** 2 - np.log(scale)


def gumbel():
    pyro.sample("x", dist.Gumbel(0.0, 1.0))


def weibull():
    pyro.sample("x", dist.Weibull(1.0, 2.0))


def inverse_gamma():
    pyro.sample("x", dist.InverseGamma(8.0, 5.0))


def laplace_prior():
    pyro.sample("x", dist.SoftLaplace(0.0, 1.0))


def kumaraswamy():
    pyro.sample("x", dist.Kumaraswamy(2.0, 3.0))


def point(y):
    c = pyro.sample("c", dist.Delta(torch.tensor(0.5)))
    x = pyro.sample("x", dist.Normal(c, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def nothing_in_event(y):
    pyro.sample("none", dist.Normal(torch.zeros(0), 1.0).to_event(1))
    real(y)


def truncated_mean(loc, scale, low, high):
    return of(stats.truncnorm((low - loc) / scale, (high - loc) / scale, loc=loc, scale=scale))


def ordered_moments():
    """(a, a + e^b) of two independent normals."""
    m, v = math.exp(0.125), (math.exp(0.25) - 1) * math.exp(0.25)
    return (np.array([0.0, m]), np.array([0.5, math.sqrt(0.25 + v)]))


def wishart_moments():
    """Of a Wishart of 6 degrees of freedom and scale 1/6: E = I, var_ij = (1 + [i = j]) / 6."""
    return np.eye(2), np.sqrt((1 + np.eye(2)) / 6)


def dirichlet_moments(a):
    a, total = np.asarray(a), np.sum(a)
    return a / total, np.sqrt(a * (total - a) / total**2 / (total + 1))


COVARIANCE = np.array([[1.5, 0.5], [0.5, 1.05]])
FEATURES = [
    Feature("real", real, (Y,), {"x": normal(0, 1, YS, 4)}),
    Feature("positive", positive, (COUNTS,), {"rate": of(stats.gamma(11, scale=1 / 5))}),
    Feature("unit interval", unit_interval, (tensor(6.0)[0],), {"p": of(stats.beta(8, 7))}),
    Feature("simplex", simplex, (tensor(2.0, 3.0, 4.0),), {"p": dirichlet_moments([4, 6, 8])}),
    Feature("interval", interval, (), {"x": (0.75, 3.5 / math.sqrt(12))}),
    Feature("half-open", half_open, (), {"x": of(stats.pareto(8, scale=1.5))}),
    Feature("below a bound", below, (tensor(0.5)[0],), {"x": truncated_mean(0.5, 1, -50, 2)}),
    Feature("improper", improper, (tensor(2.0)[0],), {"x": truncated_mean(2, 1, 0, 50)}),
    Feature("masked prior", masked, (Y,), {"x": normal(0, 0, YS, 4)}),
    Feature("mixture latent", mixture, (), {
        "x": integral(lambda x: np.log(0.4 * stats.norm.pdf(x) + 0.6 * stats.norm.pdf(x, 1, 0.7)), -9, 9)}),
    Feature("positive mixture", positive_mixture, (), {"x": integral(
        lambda x: np.log(0.4 * stats.gamma.pdf(x, 3, scale=0.5) + 0.6 * stats.gamma.pdf(x, 5, scale=0.5)), 0, 25)}),  # noqa: E501
    Feature("log-normal", log_normal, (), {"x": of(stats.lognorm(0.4, scale=math.exp(0.3)))}),
    Feature("logit-normal", logit_normal, (), {
        "x": integral(lambda z: log_normal_pdf(z, 0.4, 0.7), -8, 8, lambda z: 1 / (1 + np.exp(-z)))}),
    Feature("shifted gamma", shifted, (), {"x": (4.0, 2 * math.sqrt(3) / 2)}),
    Feature("ordered", ordered, (), {"x": ordered_moments()}),
    Feature("Student-t", student, (tensor(1.5)[0],), {"x": integral(
        lambda x: stats.t.logpdf(x, 5, 0.5, 2) + log_normal_pdf(1.5, x, 0.5), -6, 9)}),
    Feature("Cauchy", cauchy, (tensor(1.5)[0],), {"x": integral(
        lambda x: -np.log1p(x**2) + log_normal_pdf(1.5, x, 0.5), -6, 9)}),
    Feature("half-Cauchy", half_cauchy, (tensor(1.5)[0],), {"x": integral(
        lambda x: -np.log1p(x**2) + log_normal_pdf(1.5, x, 0.5), 0, 9)}),
    Feature("angle", angle, (tensor(1.0)[0],), {"x": integral(
        lambda x: 4 * np.cos(x - 0.5) + 3 * np.cos(x - 1), -math.pi, math.pi)}),
    Feature("joint normal", joint_normal, (), {"x": (np.array([1.0, -1.0]), np.sqrt([2.0, 1.0]))}),
    Feature("low-rank normal", low_rank_normal, (), {"x": (np.zeros(2), np.sqrt(np.diag(COVARIANCE)))}),
    Feature("to_event", events, (Y,), {"x": (0.8 * YS, np.full(3, 0.2**0.5))}),
    Feature("LKJ Cholesky", correlation, (PAIRS,), {"L": tuple(
        np.array([[one, 0.0], [r, d]]) for one, r, d in zip((1.0, 0.0),
        integral(log_correlation, -1, 1), integral(log_correlation, -1, 1, lambda r: np.sqrt(1 - r**2)),
        strict=True))}),
    Feature("covariance matrix", covariance, (), {"S": wishart_moments()}),
    Feature("Gaussian process", kernel, (tensor(0.0, 0.5, 1.5), Y), {"scale": integral(log_kernel, 0, 20)}),
    Feature("Gumbel", gumbel, (), {"x": of(stats.gumbel_r())}, heavy=True),
    Feature("Weibull", weibull, (), {"x": of(stats.weibull_min(2))}),
    Feature("inverse gamma", inverse_gamma, (), {"x": of(stats.invgamma(8, scale=5))}),
    Feature("soft Laplace", laplace_prior, (), {
        "x": integral(lambda x: -np.logaddexp(x, -x), -40, 40)}, heavy=True),
    Feature("Kumaraswamy", kumaraswamy, (), {
        "x": integral(lambda x: np.log(x) + 2 * np.log1p(-(x**2)), 0, 1)}),
    Feature("latent point", point, (tensor(2.0)[0],), {"x": normal(0.5, 1, [2.0], 1), "c": (0.5, 0.0)}),
    Feature("event of no elements", nothing_in_event, (Y,), {"x": normal(0, 1, YS, 4)}),
    Feature("single precision", real, (Y.float(),), {"x": normal(0, 1, YS, 4)}),
]  # fmt: skip

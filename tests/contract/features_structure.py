"""Likelihoods, discrete latents, plates, and what Pyro's handlers and primitives do to a model."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from feature import ALL, F64, Feature, discrete, integral, normal, tensor
from features_latents import COUNTS, YS, Y
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam
from scipy import stats


def norm(y, mean, sd):
    return stats.norm.logpdf(y, mean, sd)


def zero_inflated(y):
    rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.ZeroInflatedPoisson(rate, gate=torch.tensor(0.3)), obs=y)


def censored(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 0.5), obs=y[0])
    pyro.factor("above", torch.special.log_ndtr((x - y[1]) / 0.5))


def heavy_noise(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.StudentT(4.0, x, 0.5), obs=y)


def outliers(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    parts = dist.Normal(x.expand(2), torch.tensor([0.3, 3.0]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.8, 0.2])), parts), obs=y)


def transformed_likelihood(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    noise = dist.TransformedDistribution(dist.Normal(x, 0.5), [dist.transforms.ExpTransform()])
    pyro.sample("y", noise, obs=y.exp())


def ordinal(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    cuts = torch.tensor([-1.0, 0.5])
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.OrderedLogistic(x.expand(len(y)), cuts), obs=y)


def log_ordinal(x):
    s = [1 / (1 + np.exp(-(np.array([[-1.0], [0.5]])[i] - x))) for i in (0, 1)]
    p = [s[0], s[1] - s[0], 1 - s[1]]
    return norm(x, 0, 1) + sum(np.log(p[k]) for k in (0, 2, 2))


def logits(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x), obs=y)


def some_missing(y, here):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x, 0.5), obs=y, obs_mask=here)


def partly_none(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    for i, value in enumerate((y[0], None)):
        pyro.sample(f"y{i}", dist.Normal(x, 0.5), obs=value)


def chain_of_data(y):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    before = torch.zeros(())
    for t in range(3):
        before = pyro.sample(f"y{t}", dist.Normal(a + 0.5 * before, 0.5), obs=y[t])


def factor():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("pull", -((x - 2) ** 2))


def scaled(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=2.0), pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def masked_data(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)), poutine.mask(mask=y < 1):
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def free(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x, 0.5))


def conditioned(y):
    return pyro.condition(free, data={"y": y})(y)


def reparameterised(y):
    def inner():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 0.5).expand([3]).to_event(1), obs=y)

    return poutine.reparam(inner, config={"x": LocScaleReparam(0.5)})()


def deterministic(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    twice = pyro.deterministic("twice", 2 * x)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(twice / 2, 0.5), obs=y)


def dotted(y):
    x = pyro.sample("group.x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 0.5).expand([3]).to_event(1), obs=y)
    return x, "a value"


def branches(y, n):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    if n > 1:
        for i in range(n):
            pyro.sample(f"y{i}", dist.Normal(x, 0.5), obs=y[i])


def sequential(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(y)):
        pyro.sample(f"y{i}", dist.Normal(x, 0.5), obs=y[i])


def plates(y):
    with pyro.plate("row", 2, dim=-2):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("column", 3, dim=-1):
            pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def empty_plate(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("z", dist.Normal(x, 0.5), obs=y[0])
    with pyro.plate("data", 0):
        pyro.sample("y", dist.Normal(x, 0.5), obs=y[:0])


def mixed_precision(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def whole_numbers(y):
    rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def switch(y):
    k = pyro.sample("k", dist.Bernoulli(0.3))
    pyro.sample("y", dist.Normal(2 * k, 1.0), obs=y)


def assignments(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.6, 0.4])))
        pyro.sample("y", dist.Normal(torch.stack([x, x + 2])[k], 0.5), obs=y)


APART = tensor(0.3, 2.4, 0.2)  # one mode: chains need not jump


def log_assignments(x):
    each = [
        np.logaddexp(np.log(0.6) + norm(v, x, 0.5), np.log(0.4) + norm(v, x + 2, 0.5)) for v in APART.numpy()
    ]
    return norm(x, 0, 1) + sum(each)


def nested(y):
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 2, dim=-2), pyro.plate("column", 3, dim=-1):
        k = pyro.sample("k", dist.Bernoulli(0.4).expand([2, 3]))
        pyro.sample("y", dist.Normal(x + 2 * k, 0.5), obs=y)


def log_nested(x):
    y = np.concatenate([YS, YS + 1])
    each = [np.logaddexp(np.log(0.6) + norm(v, x, 0.5), np.log(0.4) + norm(v, x + 2, 0.5)) for v in y]
    return norm(x, 0, 1) + sum(each)


def counted(y):
    n = pyro.sample("n", dist.Binomial(4, torch.tensor(0.5)))
    pyro.sample("y", dist.Normal(n, 1.0), obs=y)


def one_hot(y):
    k = pyro.sample("k", dist.OneHotCategorical(torch.tensor([0.5, 0.3, 0.2])))
    pyro.sample("y", dist.Normal(k @ torch.tensor([0.0, 1.0, 2.0]), 1.0), obs=y)


TO = np.array([[0.9, 0.1], [0.3, 0.7]])


def markov(y):
    A = torch.as_tensor(TO, dtype=F64)
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    k = 0
    for t in pyro.markov(range(3)):
        k = pyro.sample(f"k{t}", dist.Categorical(A[k]), infer={"enumerate": "parallel"})
        pyro.sample(f"y{t}", dist.Normal(torch.stack([x, x + 2])[k], 0.5), obs=y[t])


def log_markov(x):
    terms = []
    for path in itertools.product((0, 1), repeat=3):
        log, before = norm(x, 0, 1), 0
        for k, v in zip(path, APART.numpy(), strict=True):
            log, before = log + np.log(TO[before, k]) + norm(v, x + 2 * k, 0.5), k
        terms.append(log)
    return np.logaddexp.reduce(terms)


def tensor_state(y):
    k, x = torch.tensor(0), pyro.sample("x", dist.Normal(0.0, 1.0))
    for t in pyro.markov(range(3)):
        k = pyro.sample(f"k{t}", dist.Categorical(torch.as_tensor(TO, dtype=F64)[k, :]))
        pyro.sample(f"y{t}", dist.Normal(torch.where(k == 0, x, x + 2), 0.5), obs=y[t])


@config_enumerate
def enumerated(y):
    return assignments(y)


def normals(n):
    return normal(0, 1, YS[:n], 4)


POISSON = (11 / 5, math.sqrt(11) / 5)
MARKOV = {"x": integral(log_markov, -6, 6)}
FEATURES = [
    Feature("zero-inflated", zero_inflated, (tensor(0.0, 0.0, 3.0),), {"rate": integral(lambda r: (
        stats.gamma.logpdf(r, 3, scale=0.5) + 2 * np.log(0.3 + 0.7 * np.exp(-r)) + 3 * np.log(r) - r), 0, 30)}),  # noqa: E501
    Feature("censored by factor", censored, (tensor(0.5, 1.0),), {"x": integral(
        lambda x: norm(x, 0, 1) + norm(0.5, x, 0.5) + stats.norm.logcdf((x - 1) / 0.5), -5, 6)}),
    Feature("Student-t noise", heavy_noise, (Y,), {"x": integral(
        lambda x: norm(x, 0, 1) + sum(stats.t.logpdf(v, 4, x, 0.5) for v in YS), -6, 6)}),
    Feature("mixture likelihood", outliers, (Y,), {"x": integral(lambda x: norm(x, 0, 1) + sum(
        np.logaddexp(np.log(0.8) + norm(v, x, 0.3), np.log(0.2) + norm(v, x, 3)) for v in YS), -6, 6)}),
    Feature("transformed likelihood", transformed_likelihood, (Y[0],), {"x": normals(1)}),
    Feature("ordinal", ordinal, (torch.tensor([0, 2, 2]),), {"x": integral(log_ordinal, -6, 6)}),
    Feature("logits", logits, (tensor(1.0, 1.0, 0.0),), {"x": integral(
        lambda x: norm(x, 0, 1) - 2 * np.logaddexp(0, -x) - np.logaddexp(0, x), -7, 7)}),
    Feature("obs_mask", some_missing, (Y, torch.tensor([True, False, True])), {
        "x": normal(0, 1, YS[[0, 2]], 4), "y_unobserved": (np.full(3, 2.8 / 9), np.full(3, (0.25 + 1 / 9) ** 0.5)),  # noqa: E501
        "y": (np.array([0.3, 2.8 / 9, 0.4]), np.array([0, (0.25 + 1 / 9) ** 0.5, 0]))}),
    Feature("obs partly None", partly_none, (Y,), {
        "x": normals(1), "y1": (0.24, (0.2 + 0.25) ** 0.5)}),
    Feature("data that depend on data", chain_of_data, (Y,), {
        "a": normal(0, 1, [0.3, 1.1 - 0.15, 0.4 - 0.55], 4)}),
    Feature("factor", factor, (), {"x": (4 / 3, 3**-0.5)}),
    Feature("scale", scaled, (Y,), {"x": normal(0, 1, YS, 8)}),
    Feature("mask", masked_data, (Y,), {"x": normal(0, 1, YS[[0, 2]], 4)}),
    Feature("condition", conditioned, (Y,), {"x": normals(3)}),
    Feature("reparam", reparameterised, (Y,), {"x": normals(3)}),
    Feature("deterministic", deterministic, (Y,), {
        "x": normals(3), "twice": tuple(2 * v for v in normals(3))}),
    Feature("a name with a dot", dotted, (Y,), {"group.x": normals(3)}),
    Feature("control flow on numbers", branches, (Y, 3), {"x": normals(3)}),
    Feature("sequential plate", sequential, (Y,), {"x": normals(3)}),
    Feature("plates with dims", plates, (Y.expand(2, 3),), {"x": tuple(np.full((2, 1), v) for v in normals(3))}),  # noqa: E501
    Feature("empty plate", empty_plate, (Y,), refused={ALL: "cannot be run: ZeroDivisionError: size cannot be zero"}),  # noqa: E501
    Feature("numbers among tensors", mixed_precision, (Y,), {"x": (0.8 * YS, np.full(3, 0.2**0.5))}),
    Feature("whole numbers", whole_numbers, (COUNTS.long(),), {"rate": POISSON}),
    Feature("only discrete", switch, (tensor(1.5)[0],), {"k": discrete(
        {0: 0.7 * math.exp(norm(1.5, 0, 1)), 1: 0.3 * math.exp(norm(1.5, 2, 1))})}),
    Feature("assignments in a plate", assignments, (APART,), {"x": integral(log_assignments, -6, 6)}),
    Feature("nested plates", nested, (torch.stack([Y, Y + 1]),), {"x": integral(log_nested, -6, 6)}),
    Feature("bounded integer", counted, (tensor(1.5)[0],), {"n": discrete(
        {n: stats.binom.pmf(n, 4, 0.5) * math.exp(norm(1.5, n, 1)) for n in range(5)})}),
    Feature("one-hot", one_hot, (tensor(1.5)[0],), {"k": discrete({
        tuple(np.eye(3)[k]): p * math.exp(norm(1.5, k, 1)) for k, p in enumerate((0.5, 0.3, 0.2))})}),
    Feature("Markov chain, A[k]", markov, (APART,), MARKOV),
    Feature("state in a tensor", tensor_state, (APART,), MARKOV),
    Feature("config_enumerate", enumerated, (APART,), {"x": integral(log_assignments, -6, 6)}),
]  # fmt: skip

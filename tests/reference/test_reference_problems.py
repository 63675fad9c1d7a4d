"""The reference posteriors' densities, beside ones written without Pyro, at the reference draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import vmap

from astrozoo.density import log_density
from experiments.reference_problems import SAMPLED, analytic, linear_recurrence, moments, sampled

DRAWS = 200


def _some(path):
    with np.load(path) as held:
        return {name: held[name].astype(float).ravel()[:: held[name].size // DRAWS] for name in held.files}


def _vector(draws, name):
    return np.stack([x for key, x in draws.items() if key.startswith(f"{name}[")], -1)


def _normal_regression(x, y, draws):
    return stats.norm(x @ _vector(draws, "beta").T, draws["sigma"]).logpdf(y[:, None]).sum(0)


def eight_schools(args, draws):
    y, error = (a.numpy()[:, None] for a in args)
    mu, tau, theta = draws["mu"], draws["tau"], _vector(draws, "theta")
    t = (theta - mu[:, None]) / tau[:, None]
    log_p = stats.norm(0, 5).logpdf(mu) + stats.halfcauchy(0, 5).logpdf(tau) + stats.norm.logpdf(t).sum(1)
    return {"mu": mu, "tau": tau, "t": t}, log_p + stats.norm(theta.T, error).logpdf(y).sum(0)


def kidscore(args, draws):
    x, y = (a.numpy() for a in args)
    sites = {"beta": _vector(draws, "beta"), "sigma": draws["sigma"]}
    return sites, _normal_regression(x, y, draws) + stats.halfcauchy(0, 2.5).logpdf(draws["sigma"])


def earnings(args, draws):
    x, y = (a.numpy() for a in args)
    return {"beta": _vector(draws, "beta"), "sigma": draws["sigma"]}, _normal_regression(x, y, draws)


def arK(args, draws):
    past, y = (a.numpy() for a in args)
    series = np.concatenate([past[0, ::-1], y])
    alpha, beta, sigma = draws["alpha"], _vector(draws, "beta"), draws["sigma"]
    log_p = stats.norm(0, 10).logpdf(np.c_[alpha, beta]).sum(1) + stats.halfcauchy(0, 2.5).logpdf(sigma)
    for t in range(5, len(series)):
        expected = alpha + sum(beta[:, k] * series[t - 1 - k] for k in range(5))
        log_p = log_p + stats.norm(expected, sigma).logpdf(series[t])
    return {"alpha": alpha, "beta": beta, "sigma": sigma}, log_p


def gp_regr(args, draws):
    x, y = (a.numpy() for a in args)
    rho, alpha, sigma = (draws[name] for name in ("rho", "alpha", "sigma"))
    log_p = stats.gamma(25, scale=1 / 4).logpdf(rho) + stats.halfnorm(0, 2).logpdf(alpha)
    log_p += stats.halfnorm(0, 1).logpdf(sigma)
    for i in range(len(rho)):
        kernel = alpha[i] ** 2 * np.exp(-((x[:, None] - x) ** 2) / (2 * rho[i] ** 2)) + sigma[i] * np.eye(
            len(x)
        )
        log_p[i] += stats.multivariate_normal(np.zeros(len(x)), kernel).logpdf(y)
    return {"rho": rho, "alpha": alpha, "sigma": sigma}, log_p


def garch(args, draws):
    y, first = (a.numpy() for a in args)
    mu, alpha0, alpha1, beta1 = (draws[name] for name in ("mu", "alpha0", "alpha1", "beta1"))
    s, log_p = np.full_like(mu, first), np.log(1 - alpha1)  # the Jacobian of beta1 by its share
    for t in range(len(y)):
        if t > 0:
            s = np.sqrt(alpha0 + alpha1 * (y[t - 1] - mu) ** 2 + beta1 * s**2)
        log_p = log_p + stats.norm(mu, s).logpdf(y[t])
    return {"mu": mu, "alpha0": alpha0, "alpha1": alpha1, "share": beta1 / (1 - alpha1)}, log_p


def gauss_mix(args, draws):
    y = args[0].numpy()[:, None]
    mu, sigma, theta = _vector(draws, "mu"), _vector(draws, "sigma"), draws["theta"]
    log_p = stats.norm(0, 2).logpdf(mu).sum(1) + stats.halfnorm(0, 2).logpdf(sigma).sum(1)
    log_p += stats.beta(5, 5).logpdf(theta)
    first, second = (stats.norm(mu[:, k], sigma[:, k]).pdf(y) for k in range(2))
    log_p += np.log(theta * first + (1 - theta) * second).sum(0)
    return {"mu": mu, "sigma": sigma, "theta": theta}, log_p


INDEPENDENT = {
    "eight_schools": eight_schools,
    "kidscore": kidscore,
    "earnings": earnings,
    "arK": arK,
    "gp_regr": gp_regr,
    "garch": garch,
    "nes": earnings,
    "gauss_mix": gauss_mix,
}


@pytest.mark.parametrize("name", SAMPLED)
def test_density_is_that_of_an_independent_code_up_to_a_constant(name, data_root):
    reference = sampled(name, data_root)
    draws = _some(data_root / "posteriors" / f"{SAMPLED[name][0]}.npz")
    sites, expected = INDEPENDENT[name](reference.problem.args, draws)
    density = log_density(reference.problem, compile="never")
    z = density.layout.unconstrain({key: torch.as_tensor(x) for key, x in sites.items()})
    jacobian = vmap(lambda row: density.layout.constrain_with_jacobian(row)[1])(z)
    difference = (density.values(z)[:, 0] - jacobian).numpy() - expected
    np.testing.assert_allclose(difference, difference.mean(), atol=1e-8 * np.abs(expected).max())
    back = reference.scalars({key: x[None] for key, x in sites.items()})
    assert back.keys() == draws.keys() == reference.exact.keys()
    for key, x in draws.items():
        np.testing.assert_allclose(back[key][0], x, rtol=1e-10)


@pytest.mark.parametrize("reference", analytic(), ids=lambda r: r.name)
def test_analytic_problems_can_be_captured_and_start_anywhere(reference):
    density = log_density(reference.problem, compile="never")
    value, gradient = density.value_and_grad(density.initial(3, torch.Generator().manual_seed(0)))
    assert value.isfinite().all()
    assert gradient.isfinite().all()


def test_a_linear_recurrence_is_the_loop_that_it_stands_for():
    source, decay = torch.rand(13, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    expected, s = [], torch.tensor(0.0, dtype=torch.float64)
    for x in source:
        s = x + decay * s
        expected.append(s)
    torch.testing.assert_close(linear_recurrence(source, decay), torch.stack(expected))


def test_moments_of_correlated_draws_come_with_honest_errors():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):  # AR(1) chains of SD 2 and mean 1
        x = np.empty((4, 250))
        x[:, 0] = rng.normal(size=4)
        for t in range(1, 250):
            x[:, t] = 0.6 * x[:, t - 1] + 0.8 * rng.normal(size=4)
        found.append(moments(1 + 2 * x))
    z = np.array([[(m.mean - 1) / m.mean_error, (m.sd - 2) / m.sd_error] for m in found])
    assert (np.abs(z.std(0) - 1) < 4 / np.sqrt(2 * len(found))).all()
    assert (np.abs(z.mean(0)) < 4 / np.sqrt(len(found)) + 0.05).all()

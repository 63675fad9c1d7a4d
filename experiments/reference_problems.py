"""Posteriors whose answers are known: exactly, or from long runs of another code (posteriordb).

``analytic()`` and ``sampled()`` return them as :class:`Reference`. A reference holds the problem, the scalars
that are computed from its draws, and their true means and SDs with standard errors. :func:`z_scores` compares
a result with them.

References:
    Magnusson et al. 2024, posteriordb, arXiv 2407.04967. Neal 2003, Annals of Statistics 31, 705 (funnel).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import constraints
from torch import Tensor

from astrozoo.diagnostics.arviz import mcse
from astrozoo.types import Problem, Result

__all__ = ["SAMPLED", "Moments", "Reference", "analytic", "gaussian", "moments", "sampled", "z_scores"]

F64 = torch.float64
Draws = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Moments:
    """Mean and SD of a scalar, with their standard errors (zero where they are exact)."""

    mean: float
    sd: float
    mean_error: float = 0.0
    sd_error: float = 0.0


@dataclass(frozen=True)
class Reference:
    """A problem with known answers.

    Args:
        scalars: draws by site, ``[chain, draw, ...]``, to draws by scalar, ``[chain, draw]``.
        exact: of each scalar (of some, where the others have no moments that can be estimated).
    """

    problem: Problem
    scalars: Callable[[Draws], Draws]
    exact: Mapping[str, Moments]
    unimodal: bool = True

    @property
    def name(self) -> str:
        """Name of the problem."""
        return self.problem.name


def moments(draws: Float[np.ndarray, "chain draw"], independent: bool = False) -> Moments:
    """Mean and SD of a scalar from its draws, with Monte-Carlo standard errors.

    The error of the mean is SD / sqrt(ESS); that of the SD follows from the error of the mean of the squared
    deviations, ``mcse((x - mean)^2) / (2 SD)`` (delta method), which assumes no normality.

    Args:
        independent: the draws are not those of a Markov chain.
    """
    mean, sd = float(draws.mean()), float(draws.std())
    squares = (draws - mean) ** 2
    if independent:
        errors = sd / draws.size**0.5, float(squares.std()) / draws.size**0.5
    else:
        errors = float(mcse(draws)), float(mcse(squares))
    return Moments(mean, sd, errors[0], errors[1] / (2 * sd))


def z_scores(result: Result, reference: Reference) -> dict[str, tuple[float, float]]:
    """Differences of each scalar's mean and SD from the truth, over the standard errors of both."""
    found = {}
    draws = reference.scalars(result.draws)
    for name, true in reference.exact.items():
        got = moments(draws[name], independent="diverging" not in result.sample_stats)
        found[name] = (
            (got.mean - true.mean) / float(np.hypot(got.mean_error, true.mean_error)),
            (got.sd - true.sd) / float(np.hypot(got.sd_error, true.sd_error)),
        )
    return found


def _elements(*sites: str) -> Callable[[Draws], Draws]:
    """The elements of sites as scalars. Their names are ``site[1]``, ``site[2]`` ..., or ``site`` alone."""

    def scalars(draws: Draws) -> Draws:
        found = {}
        for name in sites:
            x = draws[name]
            flat = x.reshape(*x.shape[:2], -1)
            if x.ndim == 2:
                found[name] = x
            else:
                found |= {f"{name}[{i + 1}]": flat[..., i] for i in range(flat.shape[-1])}
        return found

    return scalars


def _named(site: str, mean: Tensor, sd: Tensor) -> dict[str, Moments]:
    pairs = zip(mean.flatten().tolist(), sd.flatten().tolist(), strict=True)
    return {f"{site}[{i + 1}]": Moments(m, s) for i, (m, s) in enumerate(pairs)}


# Exact answers:


def _normal_model(mean: Tensor, root: Tensor) -> None:
    pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=root))


def gaussian(dim: int, condition: float, seed: int = 0) -> Reference:
    """A normal whose covariance has eigenvalues from ``1 / condition`` to 1, in random directions."""
    generator = torch.Generator().manual_seed(seed)
    directions, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=F64))
    covariance = (directions * torch.logspace(-np.log10(condition), 0, dim, dtype=F64)) @ directions.T
    mean = torch.randn(dim, generator=generator, dtype=F64)
    name = f"gaussian of {dim} dimensions, condition {condition:.0e}"
    problem = Problem(_normal_model, (mean, torch.linalg.cholesky(covariance)), name=name)
    return Reference(problem, _elements("z"), _named("z", mean, covariance.diagonal().sqrt()))


def _funnel_model(zeros: Tensor) -> None:
    v = pyro.sample("v", dist.Normal(zeros.new_tensor(0.0), 3.0))
    pyro.sample("x", dist.Normal(zeros, (v / 2).exp()).to_event(1))


def funnel(dim: int = 9) -> Reference:
    """Neal's funnel. Only ``v`` is compared: the SD of ``x`` is 9.5, but that of its square is e^9."""
    problem = Problem(_funnel_model, (torch.zeros(dim, dtype=F64),), name="funnel")
    return Reference(problem, _elements("v"), {"v": Moments(0.0, 3.0)})


def _banana_model(scale: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros_like(scale), 1.0))
    pyro.sample("y", dist.Normal(x**2, scale))


def banana(scale: float = 0.5) -> Reference:
    """``x ~ N(0, 1)``, ``y ~ N(x^2, scale)``."""
    problem = Problem(_banana_model, (torch.tensor(scale, dtype=F64),), name="banana")
    exact = {"x": Moments(0.0, 1.0), "y": Moments(1.0, (2 + scale**2) ** 0.5)}
    return Reference(problem, _elements("x", "y"), exact)


def _mixture_model(weights: Tensor, means: Tensor) -> None:
    eye = torch.eye(means.shape[1], dtype=means.dtype, device=means.device)
    parts = dist.MultivariateNormal(means, scale_tril=eye.expand(len(means), *eye.shape))
    pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(weights), parts))


def mixture() -> Reference:
    """Two unit normals of weights 0.3 and 0.7, three SDs apart."""
    weights = torch.tensor([0.3, 0.7], dtype=F64)
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.0]], dtype=F64)
    mean = weights @ means
    sd = (1 + weights @ (means - mean) ** 2).sqrt()
    problem = Problem(_mixture_model, (weights, means), name="mixture")
    return Reference(problem, _elements("z"), _named("z", mean, sd), unimodal=False)


def _poisson_model(counts: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(counts.new_tensor(3.0), counts.new_tensor(2.0)))
    with pyro.plate("data", len(counts)):
        pyro.sample("y", dist.Poisson(rate), obs=counts)


def poisson_gamma() -> Reference:
    """Counts with a conjugate prior: the posterior of their rate is Gamma(3 + sum, 2 + n)."""
    counts = torch.tensor([4.0, 1, 3, 5, 2, 2, 0, 3], dtype=F64)
    shape, inverse_scale = 3 + float(counts.sum()), 2.0 + len(counts)
    problem = Problem(_poisson_model, (counts,), name="Poisson-Gamma", data_plates=("data",))
    exact = {"rate": Moments(shape / inverse_scale, shape**0.5 / inverse_scale)}
    return Reference(problem, _elements("rate"), exact)


def _image_model(y: Tensor, blur: Tensor, root: Tensor) -> None:
    sky = pyro.sample("sky", dist.MultivariateNormal(torch.zeros_like(y), scale_tril=root))
    with pyro.plate("pixel", len(y)):
        pyro.sample("y", dist.Normal(blur @ sky, 0.3), obs=y)


def linear_image(side: int = 8, seed: int = 0) -> Reference:
    """A smooth Gaussian random field seen through a Gaussian PSF with noise: a Wiener filter is exact."""
    at = torch.arange(side, dtype=F64)
    squares = (at[:, None] - at) ** 2
    prior = torch.exp(-squares / (2 * 1.5**2))
    prior = torch.kron(prior, prior) + 0.01 * torch.eye(side**2, dtype=F64)
    psf = torch.exp(-squares / 2)
    blur = torch.kron(psf, psf) / (2 * np.pi)
    root = torch.linalg.cholesky(prior)
    generator = torch.Generator().manual_seed(seed)
    sky, noise = torch.randn(2, side**2, generator=generator, dtype=F64)
    y = blur @ root @ sky + 0.3 * noise
    covariance = torch.linalg.inv(torch.linalg.inv(prior) + blur.T @ blur / 0.3**2)
    mean = covariance @ blur.T @ y / 0.3**2
    name = f"linear-Gaussian image {side}x{side}"
    problem = Problem(_image_model, (y, blur, root), name=name)
    return Reference(problem, _elements("sky"), _named("sky", mean, covariance.diagonal().sqrt()))


def analytic() -> list[Reference]:
    """The problems with exact answers."""
    normals = [gaussian(10, condition) for condition in (1.0, 1e3, 1e6)]
    return [*normals, gaussian(100, 1e4), funnel(), banana(), mixture(), poisson_gamma(), linear_image()]


# Long runs of another code:


def _flat(support: Any, *shape: int) -> dist.ImproperUniform:
    """An improper uniform prior."""
    return dist.ImproperUniform(support, torch.Size(), torch.Size(shape))


def _eight_schools(y: Tensor, error: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(y)):
        t = pyro.sample("t", dist.Normal(torch.zeros_like(y), 1.0))
        pyro.sample("y", dist.Normal(mu + tau * t, error), obs=y)


def _effects(draws: Draws) -> Draws:
    theta = draws["mu"][..., None] + draws["tau"][..., None] * draws["t"]
    return _elements("theta", "mu", "tau")({**draws, "theta": theta})


def _flat_regression(x: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", _flat(constraints.real_vector, x.shape[1]))
    sigma = pyro.sample("sigma", _flat(constraints.positive))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def _kidscore(x: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", _flat(constraints.real_vector, x.shape[1]))
    sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_tensor(2.5)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def _autoregression(past: Tensor, y: Tensor) -> None:
    alpha = pyro.sample("alpha", dist.Normal(y.new_tensor(0.0), 10.0))
    beta = pyro.sample("beta", dist.Normal(y.new_zeros(past.shape[1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_tensor(2.5)))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y)


def _gp_regression(x: Tensor, y: Tensor) -> None:
    rho = pyro.sample("rho", dist.Gamma(y.new_tensor(25.0), y.new_tensor(4.0)))
    alpha = pyro.sample("alpha", dist.HalfNormal(y.new_tensor(2.0)))
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(1.0)))
    kernel = alpha**2 * torch.exp(-((x[:, None] - x) ** 2) / (2 * rho**2))
    covariance = kernel + sigma * torch.eye(len(x), dtype=x.dtype, device=x.device)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), covariance), obs=y)


def linear_recurrence(source: Float[Tensor, "time"], decay: Tensor) -> Float[Tensor, "time"]:
    """``s_t = source_t + decay * s_{t-1}`` by doubling: ``log2(time)`` steps."""
    reach = 1
    while reach < len(source):
        source = source + decay**reach * torch.nn.functional.pad(source[:-reach], (reach, 0))
        reach *= 2
    return source


def _garch(y: Tensor, first_sd: Tensor) -> None:
    """``alpha1`` and ``beta1`` uniform over ``alpha1 + beta1 < 1``; ``share`` is ``beta1 / (1 - alpha1)``."""
    mu = pyro.sample("mu", _flat(constraints.real))
    alpha0 = pyro.sample("alpha0", _flat(constraints.positive))
    alpha1 = pyro.sample("alpha1", dist.Beta(y.new_tensor(1.0), y.new_tensor(2.0)))
    share = pyro.sample("share", dist.Uniform(y.new_tensor(0.0), y.new_tensor(1.0)))
    source = torch.cat((first_sd[None] ** 2, alpha0 + alpha1 * (y[:-1] - mu) ** 2))
    variance = linear_recurrence(source, share * (1 - alpha1))
    pyro.sample("y", dist.Normal(mu, variance.sqrt()).to_event(1), obs=y)


def _garch_scalars(draws: Draws) -> Draws:
    own = {name: draws[name] for name in ("mu", "alpha0", "alpha1")}
    return own | {"beta1": draws["share"] * (1 - draws["alpha1"])}


def _two_normals(y: Tensor) -> None:
    mu = pyro.sample("mu", _flat(constraints.ordered_vector, 2))
    pyro.factor("mu_prior", dist.Normal(y.new_zeros(2), 2.0).log_prob(mu).sum())
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_full((2,), 2.0)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(y.new_tensor(5.0), y.new_tensor(5.0)))
    weights = torch.stack((theta, 1 - theta))
    with pyro.plate("data", len(y)):
        log_p = dist.Normal(mu, sigma).log_prob(y[:, None]) + weights.log()
        pyro.factor("y", log_p.logsumexp(-1))


def _columns(*columns: Any) -> Tensor:
    rows = max(np.size(c) for c in columns)
    return torch.as_tensor(np.stack([np.broadcast_to(np.asarray(c, float), rows) for c in columns], -1))


def _kidscore_args(d: dict[str, np.ndarray]) -> tuple[Tensor, ...]:
    return _columns(1, d["mom_hs"], d["mom_iq"]), _columns(d["kid_score"])[:, 0]


def _earnings_args(d: dict[str, np.ndarray]) -> tuple[Tensor, ...]:
    z = (d["height"] - d["height"].mean()) / d["height"].std(ddof=1)
    return _columns(1, z, d["male"], z * d["male"]), torch.as_tensor(np.log(d["earn"]))


def _autoregression_args(d: dict[str, np.ndarray]) -> tuple[Tensor, ...]:
    k = int(d["K"])
    past = np.lib.stride_tricks.sliding_window_view(d["y"][:-1], k)[:, ::-1]
    return torch.as_tensor(past.copy()), torch.as_tensor(d["y"][k:])


def _nes_args(d: dict[str, np.ndarray]) -> tuple[Tensor, ...]:
    ages = [(d["age_discrete"] == k).astype(float) for k in (2, 3, 4)]
    x = _columns(1, d["real_ideo"], d["race_adj"], *ages, d["educ1"], d["gender"], d["income"])
    return x, torch.as_tensor(d["partyid7"])


def _as_given(*names: str) -> Callable[[dict[str, np.ndarray]], tuple[Tensor, ...]]:
    return lambda d: tuple(torch.as_tensor(d[name]) for name in names)


_REGRESSION = _elements("beta", "sigma")
SAMPLED: dict[str, tuple[str, Any, Any, Any]] = {
    "eight_schools": (
        "eight_schools-eight_schools_noncentered", _eight_schools, _as_given("y", "sigma"), _effects,
    ),
    "kidscore": ("kidiq-kidscore_momhsiq", _kidscore, _kidscore_args, _REGRESSION),
    "earnings": ("earnings-logearn_interaction_z", _flat_regression, _earnings_args, _REGRESSION),
    "arK": ("arK-arK", _autoregression, _autoregression_args, _elements("alpha", "beta", "sigma")),
    "gp_regr": (
        "gp_pois_regr-gp_regr", _gp_regression, _as_given("x", "y"), _elements("rho", "alpha", "sigma"),
    ),
    "garch": ("garch-garch11", _garch, _as_given("y", "sigma1"), _garch_scalars),
    "nes": ("nes1980-nes", _flat_regression, _nes_args, _REGRESSION),
    "gauss_mix": (
        "low_dim_gauss_mix-low_dim_gauss_mix", _two_normals, _as_given("y"),
        _elements("mu", "sigma", "theta"),
    ),
}  # fmt: skip
"""Short name -> (stem of its files, model, arguments of the data, scalars of the draws)."""


def sampled(name: str, folder: Path) -> Reference:
    """A problem of :data:`SAMPLED`, with the moments of its reference draws.

    Args:
        folder: that holds ``posteriors/<stem>.data.json`` and ``.npz``: :func:`astrozoo.data.root`.
    """
    stem, model, arguments, scalars = SAMPLED[name]
    path = folder / "posteriors" / f"{stem}.data.json"
    data = {key: np.asarray(value, float) for key, value in json.loads(path.read_text()).items()}
    with np.load(path.with_name(f"{stem}.npz")) as held:
        exact = {scalar: moments(held[scalar].astype(float)) for scalar in held.files}
    problem = Problem(model, arguments(data), name=name)
    return Reference(problem, scalars, exact)

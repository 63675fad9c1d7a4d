"""One lens of 13 parameters by NumPyro's NUTS and by ``method="auto"``: least effective draws a second.

The lens is a simulated one (setting "compact"). NumPyro gets the same data and priors with a forward model of
its own, in JAX: complex numbers for the power law, as in Tessore & Metcalf, nothing of ours or of caustics;
it is checked against ours at the truth before anything is timed. It runs with a dense mass matrix and
vectorised chains from the truth's neighbourhood, and so needs no search; ours starts cold. Both are
timed from the first line to the last draw, compilation included, and for their sampling alone.

    python -m experiments.bench.lens [--warmup 500] [--draws 500] [--chains 4] [--auto-draws 500 1000]

Searching and compiling cost the same however long is sampled after them: with several ``--auto-draws``, draws
of each of our chains, the table has a row for each.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import torch
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_value
from torch._inductor import config as inductor

import astrozoo
from astrozoo.models.strong_lens import Exposure, Prior, StrongLens, observe, problem, simulate

__all__ = ["main"]

SETTING = "compact"
PRIOR = Prior()


def render(p: dict[str, Any], x: Any, y: Any, area: float, psf: Any) -> Any:
    """The noiseless image, in JAX."""
    e = p["ellipticity"]
    size = jnp.hypot(*e)
    q, phi = (1 - size) / (1 + size), jnp.arctan2(e[1], e[0]) / 2
    theta = (x + 1j * y) * jnp.exp(-1j * phi)
    z = q * theta.real + 1j * theta.imag
    t = p["slope"] - 1
    factor = -(1 - q) / (1 + q) * z / jnp.conj(z)

    def add(n: int, held: tuple[Any, Any]) -> tuple[Any, Any]:
        term, total = held
        term = term * factor * (2 * n - 2 + t) / (2 * n + 2 - t)
        return term, total + term

    _, total = jax.lax.fori_loop(1, 20, add, (z, z))
    alpha = 2 / (1 + q) * (p["einstein_radius"] * jnp.sqrt(q) / jnp.abs(z)) ** t * total * jnp.exp(1j * phi)
    g1, g2 = p["shear"]
    u = x - alpha.real - g1 * x - g2 * y - p["source_centre"][0]
    v = y - alpha.imag - g2 * x + g1 * y - p["source_centre"][1]
    e = p["source_ellipticity"]
    size = jnp.hypot(*e)
    q, phi = (1 - size) / (1 + size), jnp.arctan2(e[1], e[0]) / 2
    c, s = jnp.cos(phi), jnp.sin(phi)
    r2 = q * (c * u + s * v) ** 2 + (c * v - s * u) ** 2 / q
    n = p["source_index"]
    b = 1.9992 * n - 0.3271
    source = jnp.exp(-b * ((r2 / p["source_radius"] ** 2) ** (0.5 / n) - 1))
    image = p["source_amplitude"] * source * area
    k = psf.shape[0] // 2
    shape = tuple(n + 2 * k for n in image.shape)
    blurred = jnp.fft.irfft2(jnp.fft.rfft2(image, shape) * jnp.fft.rfft2(psf, shape), shape)
    return blurred[k : k + image.shape[0], k : k + image.shape[1]]


def model(data: dict[str, Any]) -> None:
    """The priors of :class:`astrozoo.models.strong_lens.Prior`, and Gaussian noise."""

    def log_normal(name: str) -> Any:
        median, sd = getattr(PRIOR, name)
        return numpyro.sample(name, dist.LogNormal(jnp.log(median), sd))

    mean, sd, low, high = PRIOR.slope
    spread, most = PRIOR.source_ellipticity
    two = jnp.zeros(2)
    p = {name: log_normal(name) for name in ("einstein_radius", "source_radius", "source_amplitude")}
    p["slope"] = numpyro.sample("slope", dist.TruncatedNormal(mean, sd, low=low, high=high))
    p["ellipticity"] = numpyro.sample("ellipticity", dist.Normal(two, PRIOR.ellipticity).to_event(1))
    p["shear"] = numpyro.sample("shear", dist.Normal(two, PRIOR.shear).to_event(1))
    p["source_index"] = numpyro.sample("source_index", dist.Uniform(*PRIOR.source_index))
    bounded = dist.TruncatedNormal(two, spread, low=-most, high=most).to_event(1)
    p["source_ellipticity"] = numpyro.sample("source_ellipticity", bounded)
    p["source_centre"] = numpyro.sample("source_centre", dist.Normal(two, PRIOR.source_centre).to_event(1))
    clean = render(p, data["x"], data["y"], data["area"], data["psf"])
    variance = data["variance"] + data["gain"] * jnp.maximum(clean, 0)
    numpyro.sample("image", dist.Normal(clean, jnp.sqrt(variance)).to_event(2), obs=data["image"])


def for_jax(exposure: Exposure) -> dict[str, Any]:
    """The same data as arrays."""
    from astrozoo.physics.imaging import pixel_grid

    x, y = pixel_grid(tuple(exposure.image.shape[-2:]), exposure.pixel_scale)
    arrays = {
        "x": x,
        "y": y,
        "psf": exposure.psf[0],
        "variance": exposure.variance[0],
        "image": exposure.image[0],
    }
    scalars = {"gain": exposure.gain[0], "area": exposure.pixel_scale**2}
    return {name: jnp.asarray(value.numpy()) for name, value in (arrays | scalars).items()}


def nuts(data: dict[str, Any], near: dict[str, Any], warmup: int, draws: int, chains: int, seed: int) -> Any:
    """Draws by site ``[chain, draw, ...]``, all seconds, seconds of sampling, leapfrog steps."""
    began = time.monotonic()
    kernel = NUTS(model, dense_mass=True, init_strategy=init_to_value(values=near))
    run = MCMC(
        kernel, num_warmup=warmup, num_samples=draws, num_chains=chains, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    run.warmup(jax.random.key(seed), data, extra_fields=("num_steps",), collect_warmup=False)
    warm = time.monotonic()
    run.run(run.post_warmup_state.rng_key, data, extra_fields=("num_steps",))
    sites = {name: np.asarray(value) for name, value in run.get_samples(group_by_chain=True).items()}
    steps = int(np.asarray(run.get_extra_fields()["num_steps"]).sum())
    ended = time.monotonic()
    return sites, ended - began, ended - warm, steps


def worst(draws: dict[str, np.ndarray], statistic: Callable[..., Any], pick: Callable[..., Any]) -> float:
    """Of all coordinates of all sites."""
    return float(pick([pick(np.atleast_1d(statistic(value.astype(float)))) for value in draws.values()]))


def main(warmup: int, draws: int, chains: int, size: int, auto_draws: Sequence[int], seed: int = 4) -> None:
    """Run both, and print the table."""
    jax.config.update("jax_enable_x64", True)
    inductor.force_disable_caches = True  # what another run has compiled is compiled again
    lens, truth = simulate(seed, setting=SETTING, size=size, pixel_scale=4.8 / size)
    exposure = observe(lens)
    data = for_jax(exposure)
    plain = {name: value.numpy() for name, value in truth.items()}
    ours = StrongLens(centred=True, lens_light=False).render(truth, exposure)[0]
    theirs = torch.as_tensor(np.array(render(plain, data["x"], data["y"], data["area"], data["psf"])))
    print(f"forward models differ by {float((ours - theirs).abs().max() / ours.max()):.1e} of the peak")
    rows = []
    near = {
        name: jnp.asarray(value.squeeze() if name == "source_amplitude" else value)
        for name, value in plain.items()
    }
    sites, seconds, sampling, steps = nuts(data, near, warmup, draws, chains, seed=0)
    rows.append(("NumPyro NUTS, dense mass", sites, seconds, sampling, steps))
    for each in auto_draws:
        began = time.monotonic()
        result = astrozoo.infer(
            problem(lens, setting=SETTING), "auto", seed=0, draws=each, progress=False, precision="single"
        )
        seconds = time.monotonic() - began
        stages = result.stats["stage_seconds"]
        print(f"auto, {each} draws: compiling {result.stats['compile_seconds']:.1f} s, {stages}")
        rows.append(
            (f"auto, {each} draws", result.draws, seconds, stages["hmc"], result.stats["counts"]["gradient"])
        )
    print(f"load {os.getloadavg()[0]:.1f}")
    print(
        f"{'':26}{'R-hat':>8}{'least ESS':>11}{'seconds':>9}{'ESS/s':>8}{'warm ESS/s':>12}{'gradients':>11}"
    )
    rates = []
    for name, drawn, seconds, sampling, gradients in rows:
        ess = worst(drawn, effective_sample_size, np.min)
        r_hat = worst(drawn, split_gelman_rubin, np.max)
        rates.append((ess / seconds, ess / sampling))
        print(
            f"{name:26}{r_hat:8.3f}{ess:11.0f}{seconds:9.1f}{rates[-1][0]:8.1f}{rates[-1][1]:12.1f}{gradients:11d}"
        )
    for (name, *_), own in zip(rows[1:], rates[1:], strict=True):
        ratios = (f"{ours / theirs:.0f}x" for theirs, ours in zip(rates[0], own, strict=True))
        print(f"ratio of {name}:", *ratios, "(all, warm)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("warmup", 500), ("draws", 500), ("chains", 4), ("size", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--auto-draws", type=int, nargs="+", default=[500])
    main(**vars(parser.parse_args()))

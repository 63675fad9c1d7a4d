"""One lens by NumPyro's NUTS and by ``method="auto"``: effective draws per second.

``--setting compact`` is a simulated lens of 13 parameters. ``gigalens`` is the demo image of Gu et al. 2022,
with 22 parameters (in ``$ASTROZOO_DATA``). NumPyro gets the same data and priors. Its forward model is
written in JAX, with complex numbers for the power law (Tessore & Metcalf), and shares no code with astrozoo
or caustics. Both models are compared at the truth before anything is timed. NumPyro runs with a dense mass
matrix and vectorised chains that start near the truth, so that it needs no search. astrozoo starts cold. The
time of each run is measured from its start to its last draw, with compilation, and for sampling alone.

    python -m experiments.bench.lens [--setting compact] [--warmup 500] [--draws 500] [--chains 4]
        [--auto-draws 500 1000] [--keep FILE.npz]

``--auto-draws`` are the draws of each chain of astrozoo. The table has a row for each number, because the
costs of the search and of compilation do not depend on it. 0 leaves astrozoo out. NumPyro's draws and seconds
are saved in ``--keep``, and read from that file if it exists.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import torch
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_value
from torch import Tensor

import astrozoo
from astrozoo.data.lens_image import LensImage
from astrozoo.models.strong_lens import SETTINGS, Exposure, Prior, StrongLens, observe, problem, simulate
from astrozoo.physics.imaging import pixel_grid
from experiments.lens_gigalens import TRUTH, demo

__all__ = ["main"]

PRIOR = Prior()
"""The default prior of strong lenses, which both packages use."""


def bend(p: dict[str, Any], x: Any, y: Any) -> tuple[Any, Any]:
    """The deflection of a power law and of external shear."""
    e = p["ellipticity"]
    size = jnp.hypot(*e)
    q, phi = (1 - size) / (1 + size), jnp.arctan2(e[1], e[0]) / 2
    cx, cy = p.get("centre", (0.0, 0.0))
    theta = (x - cx + 1j * (y - cy)) * jnp.exp(-1j * phi)
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
    return alpha.real + g1 * x + g2 * y, alpha.imag + g2 * x - g1 * y


def shine(p: dict[str, Any], name: str, x: Any, y: Any) -> Any:
    """A Sersic profile, of the lens or of the source."""
    x, y = x - p[f"{name}_centre"][0], y - p[f"{name}_centre"][1]
    e = p[f"{name}_ellipticity"]
    size = jnp.hypot(*e)
    q, phi = (1 - size) / (1 + size), jnp.arctan2(e[1], e[0]) / 2
    c, s = jnp.cos(phi), jnp.sin(phi)
    r2 = q * (c * x + s * y) ** 2 + (c * y - s * x) ** 2 / q
    n = p[f"{name}_index"]
    b = 1.9992 * n - 0.3271
    return p[f"{name}_amplitude"] * jnp.exp(-b * ((r2 / p[f"{name}_radius"] ** 2) ** (0.5 / n) - 1))


def render(p: dict[str, Any], x: Any, y: Any, area: float, psf: Any) -> Any:
    """The noiseless image, in JAX."""
    ax, ay = bend(p, x, y)
    image = shine(p, "source", x - ax, y - ay) * area
    if "lens_radius" in p:
        image = image + shine(p, "lens", x, y) * area
    k = psf.shape[0] // 2
    shape = tuple(n + 2 * k for n in image.shape)
    blurred = jnp.fft.irfft2(jnp.fft.rfft2(image, shape) * jnp.fft.rfft2(psf, shape), shape)
    return blurred[k : k + image.shape[0], k : k + image.shape[1]]


def model(data: dict[str, Any], setting: str) -> None:
    """The priors of :class:`astrozoo.models.strong_lens.Prior`, and Gaussian noise."""
    two = jnp.zeros(2)
    p: dict[str, Any] = {}

    def log_normal(name: str) -> None:
        median, sd = getattr(PRIOR, name)
        p[name] = numpyro.sample(name, dist.LogNormal(jnp.log(median), sd))

    def normal(name: str) -> None:
        p[name] = numpyro.sample(name, dist.Normal(two, getattr(PRIOR, name)).to_event(1))

    mean, sd, low, high = PRIOR.slope
    log_normal("einstein_radius")
    p["slope"] = numpyro.sample("slope", dist.TruncatedNormal(mean, sd, low=low, high=high))
    for name in ("ellipticity", "shear", *(["centre"] if setting == "gigalens" else [])):
        normal(name)
    for part in ("source", "lens") if setting == "gigalens" else ("source",):
        for name in (f"{part}_radius", f"{part}_amplitude"):
            log_normal(name)
        normal(f"{part}_centre")
        p[f"{part}_index"] = numpyro.sample(f"{part}_index", dist.Uniform(*getattr(PRIOR, f"{part}_index")))
        spread, most = getattr(PRIOR, f"{part}_ellipticity")
        bounded = dist.TruncatedNormal(two, spread, low=-most, high=most).to_event(1)
        p[f"{part}_ellipticity"] = numpyro.sample(f"{part}_ellipticity", bounded)
    clean = render(p, data["x"], data["y"], data["area"], data["psf"])
    variance = data["variance"] + data["gain"] * jnp.maximum(clean, 0)
    numpyro.sample("image", dist.Normal(clean, jnp.sqrt(variance)).to_event(2), obs=data["image"])


def lens_of(setting: str, size: int) -> tuple[LensImage, dict[str, Tensor]]:
    """The image and the truth of a setting."""
    if setting == "compact":
        return simulate(4, setting=setting, size=size, pixel_scale=4.8 / size)
    truth = {
        name: torch.tensor([value] if name.endswith("amplitude") else value, dtype=torch.float64)
        for name, value in TRUTH.items()
    }
    return demo(), truth


def for_jax(exposure: Exposure) -> dict[str, Any]:
    """The data of :func:`lens_of` as JAX arrays."""
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


def nuts(
    data: dict[str, Any], setting: str, near: dict[str, Any], warmup: int, draws: int, chains: int
) -> dict[str, Any]:
    """NumPyro: draws by site ``[chain, draw, ...]``, total and sampling seconds, and leapfrog steps."""
    began = time.monotonic()
    kernel = NUTS(partial(model, setting=setting), dense_mass=True, init_strategy=init_to_value(values=near))
    run = MCMC(
        kernel, num_warmup=warmup, num_samples=draws, num_chains=chains, chain_method="vectorized",
        progress_bar=False,
    )  # fmt: skip
    run.warmup(jax.random.key(0), data, extra_fields=("num_steps",), collect_warmup=False)
    warm = time.monotonic()
    run.run(run.post_warmup_state.rng_key, data, extra_fields=("num_steps",))
    sites = {name: np.asarray(value) for name, value in run.get_samples(group_by_chain=True).items()}
    steps = int(np.asarray(run.get_extra_fields()["num_steps"]).sum())
    ended = time.monotonic()
    return {**sites, "seconds": ended - began, "sampling": ended - warm, "gradients": steps}


def worst(draws: dict[str, np.ndarray], statistic: Callable[..., Any], pick: Callable[..., Any]) -> float:
    """The extreme value, by ``pick``, of a statistic of the coordinates of all sites."""
    return float(pick([pick(np.atleast_1d(statistic(value.astype(float)))) for value in draws.values()]))


def auto(lens: LensImage, setting: str, draws: int) -> dict[str, Any]:
    """astrozoo: draws by site ``[chain, draw, ...]``, total and sampling seconds, and gradients."""
    began = time.monotonic()
    task = problem(lens, setting=setting, prior="gigalens")
    result = astrozoo.infer(task, "auto", seed=0, draws=draws, progress=False, precision="single")
    seconds, stages = time.monotonic() - began, result.stats["stage_seconds"]
    print(f"auto, {draws} draws: compiling {result.stats['compile_seconds']:.1f} s, {stages}", flush=True)
    gradients = result.stats["counts"]["gradient"]
    return {**result.draws, "seconds": seconds, "sampling": stages["hmc"], "gradients": gradients}


def main(
    setting: str, warmup: int, draws: int, chains: int, size: int, auto_draws: Sequence[int],
    keep: Path | None,
) -> None:  # fmt: skip
    """Run both, and print the table."""
    jax.config.update("jax_enable_x64", True)
    os.environ["ASTROZOO_CACHE"] = tempfile.mkdtemp()  # what another run has compiled is compiled again
    lens, truth = lens_of(setting, size)
    exposure = observe(lens)
    data = for_jax(exposure)
    plain = {
        name: value.numpy().squeeze() if name.endswith("amplitude") else value.numpy()
        for name, value in truth.items()
    }
    ours = StrongLens(**SETTINGS[setting]).render(truth, exposure)[0]
    theirs = torch.as_tensor(np.array(render(plain, data["x"], data["y"], data["area"], data["psf"])))
    print(f"forward models differ by {float((ours - theirs).abs().max() / ours.max()):.1e} of the peak")
    if keep is not None and keep.exists():
        with np.load(keep) as held:
            rows = [("NumPyro NUTS, dense mass", dict(held))]
    else:
        # not at 0: the angle of a round source has no gradient in the JAX model
        near = {name: jnp.where(value == 0, 0.01, value) for name, value in plain.items()}
        rows = [("NumPyro NUTS, dense mass", nuts(data, setting, near, warmup, draws, chains))]
        if keep is not None:
            np.savez(keep, **rows[0][1])
    rows += [(f"auto, {each} draws", auto(lens, setting, each)) for each in auto_draws if each]
    table(rows)


def table(rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """A row for each run, and the ratios of the others' rates to the first's."""
    print(f"load {os.getloadavg()[0]:.1f}")
    print(
        f"{'':26}{'R-hat':>8}{'least ESS':>11}{'seconds':>9}{'ESS/s':>8}{'warm ESS/s':>12}{'gradients':>11}"
    )
    rates = []
    for name, found in rows:
        drawn = dict(found)
        seconds, sampling, gradients = (drawn.pop(key) for key in ("seconds", "sampling", "gradients"))
        ess = worst(drawn, effective_sample_size, np.min)
        r_hat = worst(drawn, split_gelman_rubin, np.max)
        rates.append((ess / seconds, ess / sampling))
        print(
            f"{name:26}{r_hat:8.3f}{ess:11.0f}{seconds:9.1f}{rates[-1][0]:8.1f}{rates[-1][1]:12.1f}{gradients:11d}"
        )
    for (name, _), own in zip(rows[1:], rates[1:], strict=True):
        ratios = (f"{ours / theirs:.0f}x" for theirs, ours in zip(rates[0], own, strict=True))
        print(f"ratio of {name}:", *ratios, "(all, warm)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", choices=["compact", "gigalens"], default="compact")
    for name, default in (("warmup", 500), ("draws", 500), ("chains", 4), ("size", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--auto-draws", type=int, nargs="+", default=[500])
    parser.add_argument("--keep", type=Path, default=None)
    main(**vars(parser.parse_args()))

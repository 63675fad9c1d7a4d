"""Starts of a search for a lens: mass models that bring the arcs together in one small source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.models.lens_exposure import Exposure
from astrozoo.models.lens_guess import Guess, coordinates
from astrozoo.models.lens_prior import Scales

if TYPE_CHECKING:
    from astrozoo.models.strong_lens import StrongLens

__all__ = ["Proposals"]

_CHUNK = 16
"""Images that are rendered at once: it limits memory."""
_BRIGHTEST = 150
"""Most pixels of arcs that are traced back."""
_PER_START = 8
"""Mass models that are tried for each start that is kept."""


@dataclass(frozen=True, eq=False)
class Proposals:
    """Starts for a search that make the arcs the images of one small source.

    Mass models are drawn around the Einstein radii of the guess. Each traces the arcs back; where they come
    together is the source's centre, and their spread its size. Its image's amplitude is linear. The starts
    are the models whose image explains the arcs best, and the best at each of several Einstein radii.

    Args:
        model: whose latents are proposed.
        rows, scales, guesses: data of each lens.
        batched: whether the problem is a batch.
    """

    model: StrongLens
    rows: tuple[Exposure, ...]
    scales: tuple[Scales, ...]
    guesses: tuple[Guess, ...]
    batched: bool

    def __call__(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``count`` constrained values of each latent, ``[count, ...]`` or ``[problem, count, ...]``."""
        each = [
            _proposed(self.model, row, scales, one, count, generator)
            for row, scales, one in zip(self.rows, self.scales, self.guesses, strict=True)
        ]
        if not self.batched:
            return each[0]
        return {name: torch.stack([values[name] for values in each]) for name in each[0]}


def _proposed(
    model: StrongLens, data: Exposure, scales: Scales, one: Guess, count: int, generator: torch.Generator
) -> dict[str, Tensor]:
    many = _PER_START * count
    values = _masses(model, data, scales, one, many, generator)
    weight = np.where(one.arcs, np.clip(one.residual / one.sigma, 0, 10), 0.0)
    if not one.found:
        return {name: value[:count] for name, value in values.items()}
    at = np.argsort(weight, axis=None)[::-1][: min(_BRIGHTEST, int(one.arcs.sum()))]
    x, y = (
        torch.as_tensor(c.ravel()[at]).to(data.image)
        for c in coordinates(one.arcs.shape, float(data.pixel_scale))
    )
    w = torch.as_tensor(weight.ravel()[at]).to(data.image)

    def traced(v: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        ax, ay = model.deflection(v, x, y)
        return x - ax, y - ay

    with torch.no_grad():
        bx, by = torch.vmap(traced)(values)
        centre = torch.stack([_weighted_median(b, w) for b in (bx, by)], -1)
        reach = torch.hypot(bx - centre[:, :1], by - centre[:, 1:])
        radius = _weighted_median(reach, w).clamp(0.02 * one.radii[0], 0.6 * one.radii[0])
        values |= {"source_centre": centre, "source_radius": radius}
        gain, amplitude = _explained(model, data, one, values)
    values["source_amplitude"] = amplitude
    best = gain.argsort(descending=True)
    kept = best[: count // 2].tolist()
    bins = torch.bucketize(
        values["einstein_radius"],
        values["einstein_radius"].quantile(torch.linspace(0, 1, 7)[1:-1].to(data.image)),
    )
    ranked = [[i for i in best.tolist() if bins[i] == b and i not in kept] for b in range(6)]
    for depth in range(count):
        kept += [ranks[depth] for ranks in ranked if depth < len(ranks)]
    rows = torch.tensor(kept[:count])
    return {name: value[rows] for name, value in values.items()}


def _masses(
    model: StrongLens, data: Exposure, scales: Scales, one: Guess, many: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Latents with drawn masses; the light of the lens as guessed, and all else at the start."""
    new = data.image.new_tensor

    def normal(*shape: int) -> Tensor:
        return torch.randn(many, *shape, generator=generator, dtype=torch.float64).to(data.image)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        drawn = {name: site.sample((many,)) for name, site in model.sites(data, scales).items()}
    picked = torch.randint(len(one.radii), (many,), generator=generator)
    picked[: many // 2] = 0
    width = torch.where(torch.arange(many) < many // 2, 0.25, 0.1).to(data.image)
    radii = new(one.radii)[picked] * torch.exp(width * normal())
    proposed = {"einstein_radius": radii, "ellipticity": 0.1 * normal(2), "shear": 0.04 * normal(2)}
    if one.light:
        proposed["ellipticity"] = proposed["ellipticity"] + 0.5 * new(one.light["ellipticity"]).clamp(
            -0.3, 0.3
        )
        proposed |= {
            "lens_radius": new(one.light["radius"]) * torch.exp(0.05 * normal()),
            "lens_index": new(one.light["index"]).clamp(0.6, 7.5) * torch.exp(0.03 * normal()),
            "lens_ellipticity": new(one.light["ellipticity"]).clamp(-0.5, 0.5) + 0.01 * normal(2),
            "lens_centre": new(one.centre) + 0.003 * normal(2),
            "lens_amplitude": new(one.light["amplitude"]) * torch.exp(0.05 * normal(len(data.gain))),
            "centre": new(one.centre) + 0.02 * normal(2),
        }
    proposed |= {"source_index": 1.0 + normal().abs(), "source_ellipticity": 0.1 * normal(2)}
    supports = {name: site.support for name, site in model.sites(data, scales).items()}
    out = dict(drawn)
    for name, value in proposed.items():
        if name in drawn:
            good = supports[name].check(value)
            good = good.view(*good.shape, *[1] * (value.ndim - good.ndim)) if good.ndim < value.ndim else good
            out[name] = torch.where(good, value, drawn[name])
    return out


def _weighted_median(values: Float[Tensor, "m n"], weight: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
    order = values.argsort(-1)
    growth = weight[order].cumsum(-1)
    at = (growth < 0.5 * growth[:, -1:]).sum(-1, keepdim=True)
    return values.gather(-1, order).gather(-1, at)[:, 0]


def _explained(
    model: StrongLens, data: Exposure, one: Guess, values: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "m"], Float[Tensor, "m band"]]:
    """By how much chi2 falls with each model's source, at its best amplitude, and that amplitude."""
    weight = torch.as_tensor(1 / one.sigma**2).to(data.image) * data.mask
    residual = torch.as_tensor(one.residual).to(data.image)

    def image(v: dict[str, Tensor]) -> Tensor:
        return model.render({**v, "source_amplitude": torch.ones_like(data.gain)}, data, ("source",))

    gains, amplitudes = [], []
    count = len(values["einstein_radius"])
    for i in range(0, count, _CHUNK):
        part = torch.vmap(image)({name: value[i : i + _CHUNK] for name, value in values.items()})
        pull = (part * residual * weight).sum((-1, -2)).clamp_min(0)
        norm = (part**2 * weight).sum((-1, -2)).clamp_min(1e-300)
        gains.append((pull**2 / norm).sum(-1).nan_to_num(nan=-torch.inf))
        amplitudes.append(pull / norm)
    brightness = torch.as_tensor(one.brightness).to(data.image)
    amplitude = torch.cat(amplitudes).nan_to_num(nan=0.0)
    return torch.cat(gains), amplitude.clamp_min(0.05 * brightness).minimum(50 * brightness)

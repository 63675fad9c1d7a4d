"""Sources of pixels: the field's statistics, the exact slopes, and the evidence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from astrozoo.density import log_density
from astrozoo.models.lens_prior import IMAGE
from astrozoo.models.pixelated_lens import PixelatedLens, regularised
from astrozoo.models.strong_lens import observe, simulate
from astrozoo.types import Problem

SMALL = PixelatedLens(pixels=8, side=2.0, length=0.4, spread=300.0, middle=(0.1, -0.2), lens_light=False)


@pytest.fixture(scope="module")
def seen():
    """An image of a field drawn from the model, with a quarter of its pixels masked."""
    lens, truth = simulate(3, size=16, pixel_scale=0.2, setting="compact")
    g = torch.Generator().manual_seed(0)
    values = {n: v for n, v in truth.items() if not n.startswith("source")}
    values |= {"centre": torch.zeros(2).double()}
    values["source_field"] = torch.randn(8, 8, generator=g, dtype=torch.float64)
    data = observe(lens)
    clean = SMALL.render(values, data)
    noise = data.total_variance(clean).sqrt() * torch.randn(clean.shape, generator=g, dtype=clean.dtype)
    mask = torch.rand(clean.shape, generator=g) < 0.75
    variance, gain = data.total_variance(clean), torch.zeros_like(data.gain)
    return values, data._replace(image=clean + noise, variance=variance, gain=gain, mask=mask)


def test_the_field_has_the_covariance_of_its_length_and_spread():
    n, side, length = 64, 6.0, 0.4
    field = PixelatedLens(pixels=n, side=side, length=length, spread=2.0)
    spike = torch.zeros(n, n, dtype=torch.float64)
    spike[0, 0] = 1.0
    covariance = field.coloured(field.coloured(spike))
    assert math.isclose(covariance[0, 0], 4.0, rel_tol=1e-3)  # but for the highest frequency, left out
    r = torch.arange(16) * side / n / length
    expected = 4.0 * (1 + r) * torch.exp(-r)
    for profile in (covariance[0, :16], covariance[:16, 0]):
        assert torch.allclose(profile.float(), expected, atol=0.06)  # the grid cuts the spectrum


def test_slopes_are_those_of_the_image(seen):
    values, data = seen
    image = SMALL.render(values, data).flatten()
    rows = SMALL.slopes(values, data)["source_field"].double()
    assert torch.allclose(
        values["source_field"].flatten() @ rows, image, rtol=0, atol=1e-5 * float(image.max())
    )


def test_the_fine_grid_has_the_coarse_ones_values(seen):
    field = SMALL.coloured(seen[0]["source_field"])
    steps = (torch.arange(8, dtype=torch.float64) - 3.5) * 0.25
    y, x = torch.meshgrid(steps - 0.2, steps + 0.1, indexing="ij")
    assert torch.allclose(SMALL.source_light(seen[0], x, y), field, atol=1e-9 * float(field.abs().max()))


def test_an_anchored_grid_moves_with_the_mass(seen):
    values, data = seen
    model = SMALL.anchored(values, torch.tensor([[1.0, 0.2], [-0.9, 0.4], [0.1, -1.2], [-0.3, 0.8]]).numpy())
    assert torch.allclose(model.render(values, data), SMALL.render(values, data), rtol=1e-9)
    x, y = torch.tensor(model.anchors, dtype=torch.float64).T
    moved = {**values, "einstein_radius": 1.1 * values["einstein_radius"], "shear": values["shear"] + 0.03}
    places = []
    for mass in (values, moved):
        ax, ay = model.deflection(mass, x, y)
        places.append(torch.stack(model.placed(mass, x - ax, y - ay)))
    assert (places[1] - places[0]).abs().max() > 1e-3
    assert torch.allclose(places[1].mean(1), places[0].mean(1), atol=1e-12)
    assert torch.allclose(places[1].cov(), places[0].cov(), atol=1e-12)


def test_spread_and_length_have_the_greatest_evidence(seen):
    values, data = seen
    best, field = regularised(SMALL, values, data)
    use = data.mask.flatten()

    def evidence(model):
        rows = model.slopes(values, data)["source_field"].double()[:, use]
        covariance = rows.T @ rows + data.variance.flatten()[use].diag()
        mean = torch.zeros(int(use.sum()), dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(mean, covariance)
        return float(normal.log_prob(data.image.flatten()[use]))

    top = evidence(best)
    assert top > evidence(SMALL) - 0.3
    for factor in (0.7, 1.4):
        assert evidence(replace(best, spread=best.spread * factor)) < top
        assert evidence(replace(best, length=best.length * factor)) < top

    left = (data.image - best.render({**values, "source_field": field}, data)) * data.mask / data.variance
    slope = best.slopes(values, data)["source_field"].double() @ left.flatten() - field.flatten()
    assert slope.abs().max() < 0.02  # of a standard normal; slopes are in single precision


@pytest.mark.slow
def test_the_compiled_gradient_is_right(seen):
    """Chains of a compiled model with FFTs shrank their steps without end."""
    values, data = seen
    prior = replace(IMAGE, einstein_radius=(1.2, 0.3), position=(0.0, 0.0))
    medians = {"lens_radius": (1.0, 0.7), "source_radius": (0.2, 0.7)}
    amplitudes = {"lens_amplitude": (1.0, 1.0), "source_amplitude": (1.0, 1.0)}
    model = replace(SMALL, prior=replace(prior, **medians, **amplitudes))
    task = Problem(model, (data,), name="pixels", images=("image",), start=values)
    plain, compiled = (log_density(task, compile=c) for c in ("never", "always"))
    z = plain.layout.unconstrain({name: value[None] for name, value in values.items()})
    z = z + 0.1 * torch.randn(8, z.shape[1], generator=torch.Generator().manual_seed(0), dtype=z.dtype)
    want, got = (target.value_and_grad(z)[1] for target in (plain, compiled))
    assert compiled.notes == []
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.abs().max()))

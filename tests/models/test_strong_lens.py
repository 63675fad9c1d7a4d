"""The lens model: its named settings, its renderings, its noise, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch

import astrozoo
from astrozoo.data.lens_image import LensImage
from astrozoo.density import elbo, layout_of, log_density
from astrozoo.errors import InputError, UnknownNameError
from astrozoo.models import strong_lens
from astrozoo.models.strong_lens import Prior, TruncatedNormal, observe, problem, simulate, stack
from astrozoo.physics import lensing

F64 = torch.float64


@pytest.fixture(scope="module")
def lens():
    return simulate(3)


def log_joint(p, values):
    """By Pyro itself."""
    conditioned = pyro.poutine.condition(p.model, values)
    return float(pyro.poutine.trace(conditioned).get_trace(*p.args).log_prob_sum())


@pytest.mark.parametrize(
    ("setting", "options", "dim"),
    [
        ("gigalens", {}, 22),
        ("compact", {}, 13),
        ("gigalens", {"mass": "sie"}, 21),
        ("talk", {}, 1 + 32 + 4),
        ("compact", {"subhalos": 3}, 22),
    ],
)
def test_settings_and_their_dimensions(setting, options, dim):
    data, truth = simulate(1, setting=setting, size=24, pixel_scale=0.2, **options)
    target = log_density(problem(data, setting=setting, **options), compile="never")
    assert target.layout.dim == dim == sum(value.numel() for value in truth.values())
    z = target.layout.unconstrain(truth)
    assert target.values(torch.stack((z, z + 0.01))).isfinite().all()


def test_a_learned_source_may_be_loaded_while_the_model_is_captured():
    """Its weights are no parameters of the model. Nothing else loads them before for an image from a file."""
    data, _ = simulate(1, setting="talk", size=24, pixel_scale=0.2)
    strong_lens._learned.cache_clear()
    assert layout_of(problem(data, setting="talk")).dim == 37


@pytest.mark.slow
def test_the_compiled_hessian_is_right():
    """Inductor miscompiled it, by half of its size, when it had the derivatives of torch's real FFTs."""
    data, truth = simulate(4, setting="compact", size=32, pixel_scale=0.15)
    lens = problem(data, setting="compact")
    plain, compiled = (log_density(lens, compile=c) for c in ("never", "always"))
    z = plain.layout.unconstrain(truth)[None]
    compiled.value_grad_hessian(z)  # compares the two
    assert compiled.notes == []
    want, got = (target.value_grad_hessian(z)[2] for target in (plain, compiled))
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * float(want.abs().max()))


def test_the_start_of_a_round_lens_has_a_finite_gradient(lens):
    """At ellipticity zero, the centre of mass on a pixel's centre."""
    odd = LensImage(
        image=lens[0].image[:-1, :-1], psf=lens[0].psf, pixel_scale=0.15, background_rms=0.4, exposure=100.0
    )
    target = log_density(problem(odd), compile="never")
    value, gradient = target.value_and_grad(target.initial(1))
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.slow
def test_the_hessian_is_that_of_finite_differences(lens):
    target = log_density(problem(lens[0]), compile="never")
    z = target.layout.unconstrain(lens[1])[None]
    _, _, hessian = target.value_grad_hessian(z)
    step = 1e-5
    both = torch.cat((z + step * torch.eye(22, dtype=F64), z - step * torch.eye(22, dtype=F64)))
    up, down = target.value_and_grad(both)[1].chunk(2)
    rough = (up - down) / (2 * step)
    scale = hessian[0].diagonal().abs().sqrt()
    difference = (hessian[0] - rough).abs() / (scale[:, None] * scale)
    assert float(difference.max()) < 1e-5


def test_rendering_is_the_sum_of_its_parts_and_grows_with_the_amplitudes(lens):
    image, truth = lens
    model, data = strong_lens.StrongLens(), observe(image)
    whole = model.render(truth, data)
    parts = [model.render(truth, data, parts=(part,)) for part in ("lens", "source")]
    torch.testing.assert_close(whole, parts[0] + parts[1], rtol=1e-12, atol=1e-12)
    brighter = model.render({**truth, "source_amplitude": 2 * truth["source_amplitude"]}, data, ("source",))
    torch.testing.assert_close(brighter, 2 * parts[1], rtol=1e-12, atol=1e-12)


def test_at_the_truth_residuals_are_noise(lens):
    image, truth = lens
    data = observe(image)
    model = strong_lens.StrongLens().render(truth, data)
    chi2 = ((data.image - model) ** 2 / data.total_variance(model)).mean()
    assert float(chi2) == pytest.approx(1, abs=5 * math.sqrt(2 / data.image.numel()))


def test_bands_share_the_lens_and_have_amplitudes_of_their_own(lens):
    image, truth = lens
    data = observe(image, image)
    target = log_density(problem(data), compile="never")
    assert target.layout.dim == 24
    two = {name: v.expand(2) if name.endswith("amplitude") else v for name, v in truth.items()}
    model = strong_lens.StrongLens().render(two, data)
    one = strong_lens.StrongLens().render(truth, observe(image))
    torch.testing.assert_close(model, one.expand(2, -1, -1), rtol=1e-12, atol=1e-12)


def test_a_batch_is_its_lenses():
    lenses = [simulate(seed, setting="compact", size=24, pixel_scale=0.2)[0] for seed in (0, 1)]
    batch = problem(lenses, setting="compact")
    assert batch.batch == 2
    z = 0.1 * torch.randn(2, 13, generator=torch.Generator().manual_seed(0), dtype=F64)
    together = log_density(batch, compile="never").values(z)
    for i, image in enumerate(lenses):
        alone = log_density(problem(image, setting="compact"), compile="never").values(z[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=0)


def test_masked_pixels_do_not_count(lens):
    image, truth = lens
    mask = np.ones(image.shape, bool)
    mask[10:20, 5:25] = False
    spoilt = np.where(mask, image.image, 1e6)

    def value(pixels, used):
        changed = LensImage(
            pixels, image.psf, image.pixel_scale, background_rms=0.4, exposure=100.0, mask=used
        )
        return log_joint(problem(changed), truth)

    assert value(spoilt, mask) == value(image.image, mask) != value(image.image, None)


def test_poisson_noise_is_the_gaussian_one_where_counts_are_many():
    """Equal means and variances: log densities move alike as a parameter moves by about a posterior SD."""
    data, truth = simulate(2, setting="compact", noise="poisson", size=24, pixel_scale=0.2)
    moved = {**truth, "source_amplitude": truth["source_amplitude"] * 1.003}
    change = []
    for noise in ("poisson", "gaussian"):
        p = problem(data, setting="compact", noise=noise)
        change.append(log_joint(p, moved) - log_joint(p, truth))
    # skewness 1 / sqrt(1600) of the counts, and variances that depend on the model
    assert change[0] == pytest.approx(change[1], abs=0.15 + 0.1 * abs(change[0]))


def test_a_subhalo_adds_its_deflection(lens):
    _, truth = lens
    model = strong_lens.StrongLens(subhalos=1)
    x, y = torch.tensor([1.0, -1.5], dtype=F64), torch.tensor([0.3, -0.2], dtype=F64)
    there = {**truth, "subhalo_log_mass": torch.tensor([9.0], dtype=F64)}
    there["subhalo_position"] = torch.tensor([[1.1, 0.3]], dtype=F64)
    with_, without = (m.deflection(there, x, y) for m in (model, strong_lens.StrongLens()))
    scales = lensing.nfw_of_mass(torch.tensor(1e9, dtype=F64), torch.tensor(15.0, dtype=F64), 0.5, 1.5)
    halo = lensing.nfw(x, y, *scales, there["subhalo_position"][0])
    for a, b, extra in zip(with_, without, halo, strict=True):
        torch.testing.assert_close(a - b, extra, rtol=1e-9, atol=1e-15)
    assert halo[0][0] < 0  # beta = theta - alpha: light from beside it seems to come from farther away


def test_the_truncated_normal_is_normalised_and_draws_within_its_bounds():
    prior = TruncatedNormal(torch.zeros((), dtype=F64), 2.0, 0.25, 1.6, 3.0)
    x = torch.linspace(1.6, 3.0, 20001, dtype=F64)
    assert float(torch.trapezoid(prior.log_prob(x).exp(), x)) == pytest.approx(1, abs=1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = prior.expand((20000,)).sample()
    mean = torch.trapezoid(x * prior.log_prob(x).exp(), x)
    assert draws.min() >= 1.6
    assert float(draws.mean()) == pytest.approx(float(mean), abs=5 * float(draws.std()) / math.sqrt(20000))


def test_priors_are_those_of_the_demo():
    """A prior predictive of the model has the medians that the settings name."""
    data = observe(simulate(0)[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = [pyro.poutine.trace(strong_lens.StrongLens().draw).get_trace(data) for _ in range(400)]
    radii = torch.stack([trace.nodes["einstein_radius"]["value"] for trace in draws]).log()
    error = 0.25 * math.sqrt(math.pi / 2 / 400)
    assert float(radii.median()) == pytest.approx(math.log(1.25), abs=4 * error)


@pytest.mark.parametrize("guide", ["structured"])
def test_the_structured_guide_has_conditionally_independent_sources(lens, guide):
    p = problem(lens[0])
    target = elbo(p, p.factory("guides", guide), compile="never")
    g = torch.Generator().manual_seed(0)
    w = target.initial(None)
    w = w + 0.1 * torch.randn(w.shape, generator=g, dtype=F64)
    e = target.draw_dim
    origin = torch.cat((torch.zeros(1, e, dtype=F64), torch.eye(e, dtype=F64)))
    z = target.unconstrained(w, origin)[0]
    root = z[1:] - z[:1]  # [noise, latent]
    precision = torch.linalg.inv(root.T @ root)
    source = [
        site.name.startswith("source_") for site in target.layout.sites for _ in range(site.start, site.stop)
    ]
    block = precision[source][:, source]
    off = block - torch.diag(block.diagonal())
    assert float(off.abs().max()) < 1e-6 * float(block.diagonal().max())
    lens_block = precision[[not s for s in source]][:, [not s for s in source]]
    assert float((lens_block - torch.diag(lens_block.diagonal())).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prior": Prior(einstein_radius=(3.0, 0.2))}, "einstein_radius.*inside the frame"),
        ({"prior": Prior(position=(2.5, 0.0))}, "position.*within 2.4"),
        ({"mass": "point"}, "mass.*epl, sie, sis"),
        ({"noise": "cauchy"}, "noise"),
        ({"source": "spiral"}, "source"),
        ({"supersample": 0}, "supersample"),
        ({"subhalos": -1}, "subhalos"),
    ],
)
def test_settings_that_cannot_be_are_refused(lens, change, said):
    with pytest.raises(InputError, match=said):
        problem(lens[0], **change)


def test_unknown_settings_are_refused(lens):
    with pytest.raises(UnknownNameError, match="did you mean 'compact'"):
        problem(lens[0], setting="compakt")
    with pytest.raises(UnknownNameError, match="did you mean 'supersample'"):
        problem(lens[0], supersampling=2)


def test_images_that_do_not_fit_are_refused(lens):
    data = observe(lens[0])
    noise_map = LensImage(lens[0].image, lens[0].psf, 0.15, noise=np.ones(lens[0].shape))
    with pytest.raises(InputError, match="noise map"):
        problem(noise_map, noise="poisson")
    with pytest.raises(InputError, match="odd sides"):
        problem(data._replace(psf=data.psf[..., :8, :8]))
    with pytest.raises(InputError, match="shape of the image"):
        problem(data._replace(mask=data.mask[..., :8]))
    with pytest.raises(InputError, match="positive"):
        problem(data._replace(variance=-data.variance))
    with pytest.raises(InputError, match="one shape"):
        stack([data, observe(lens[0].crop(20))])
    with pytest.raises(InputError, match="grid of"):
        observe(lens[0], lens[0].crop(20))


@pytest.mark.slow
def test_auto_recovers_a_compact_lens():
    data, truth = simulate(4, setting="compact")
    result = astrozoo.infer(
        problem(data, setting="compact"), "auto", seed=0, draws=200, chains=16, starts=32, progress=False
    )
    assert result.status.ok
    for name, value in truth.items():
        draws = result.draws[name]
        z = (draws.mean((0, 1)) - value.numpy()) / draws.std((0, 1))
        assert np.abs(z).max() < 4.5

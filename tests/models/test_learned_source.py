"""The shipped weights: images that are images, a prior that is a distribution, galaxies it can describe."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import save_file
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import astrozoo
from astrozoo._trained import Trained
from astrozoo.data.simulate_lens import SOURCES, draw_source, render_source
from astrozoo.density import log_density
from astrozoo.errors import DataError
from astrozoo.models import learned_source
from astrozoo.models.learned_source import LATENT, SIZE
from astrozoo.types import Problem, Status

F64 = torch.float64


def _normals(n: int, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(n, LATENT, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype)


@pytest.fixture(scope="module")
def loaded():
    return learned_source.load()


def test_weights_are_small():
    assert files("astrozoo.models").joinpath("learned_source.safetensors").stat().st_size < 5e6


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_images_are_positive_and_sum_to_one(dtype):
    decoder, prior = learned_source.load(dtype=dtype)
    images = decoder(prior.push(_normals(6, dtype).reshape(2, 3, LATENT)))
    assert images.shape == (2, 3, SIZE, SIZE)
    assert images.dtype == dtype
    assert images.min() > 0
    torch.testing.assert_close(images.sum((-2, -1)), torch.ones(2, 3, dtype=dtype))
    torch.testing.assert_close(decoder(_normals(1, dtype)[0]), decoder(_normals(1, dtype))[0])


def test_single_precision_is_close_to_double(loaded):
    z = loaded[1].push(_normals(4))
    single, _ = learned_source.load(dtype=torch.float32)
    torch.testing.assert_close(single(z.float()).double(), loaded[0](z), rtol=1e-3, atol=1e-7)


def test_prior_is_the_density_of_what_it_draws(loaded):
    """log p(z) = log N(u) - log |dz/du|, the Jacobian by automatic differentiation."""
    _, prior = loaded
    u = _normals(2)
    z = prior.push(u)
    torch.testing.assert_close(prior.transform(z), u)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(prior.push, u[i])
        expected = dist.Normal(torch.zeros(LATENT, dtype=F64), 1.0).to_event(1).log_prob(u[i])
        torch.testing.assert_close(prior.log_prob(z)[i], expected - torch.linalg.slogdet(jacobian)[1])


def test_traced_over_a_batch_with_gradients(loaded):
    decoder, prior = loaded

    def f(z):
        return prior.log_prob(z) + decoder(z).square().sum()

    both = vmap(grad_and_value(f))
    graph = make_fx(both)(torch.zeros(3, LATENT, dtype=F64))
    z = _normals(3)
    for got, expected in zip(graph(z), both(z), strict=True):
        torch.testing.assert_close(got, expected)
    step = 1e-6 * torch.eye(LATENT, dtype=F64)[3]
    slope = (f(z[0] + step) - f(z[0] - step)) / 2e-6
    assert graph(z)[0][0, 3].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("pushed", [False, True])
def test_a_model_with_it_is_captured(loaded, pushed):
    """With latents from the prior, and with normals pushed through its transform."""
    decoder, prior = loaded
    base = dist.Normal(torch.zeros(LATENT, dtype=F64), 1.0).to_event(1)

    def model(image):
        z = prior.push(pyro.sample("u", base)) if pushed else pyro.sample("z", prior)
        with pyro.plate("y", SIZE, dim=-2), pyro.plate("x", SIZE, dim=-1):
            pyro.sample("image", dist.Normal(decoder(z), 1e-4), obs=image)

    image = torch.full((SIZE, SIZE), SIZE**-2.0, dtype=F64)
    density = log_density(Problem(model, (image,)), compile="never")
    u = _normals(2)
    z = prior.push(u)
    expected = dist.Normal(decoder(z), 1e-4).log_prob(image).sum((1, 2))
    expected = expected + (base.log_prob(u) if pushed else prior.log_prob(z))
    torch.testing.assert_close(density.values(u if pushed else z)[:, 0], expected)


@pytest.mark.parametrize("kind", SOURCES)
def test_new_galaxies_have_a_latent(loaded, kind):
    """A new galaxy, fitted from the prior's middle, has less than a tenth of its light in wrong pixels."""
    decoder, prior = loaded
    galaxy = draw_source(np.random.default_rng(12345), kind)
    image = torch.from_numpy(render_source(galaxy, SIZE, 1 / 7, blur=1.0))
    u = torch.zeros(LATENT, dtype=F64, requires_grad=True)
    optimiser = torch.optim.Adam([u], 0.1)
    for _ in range(300):
        z = prior.push(u)
        loss = -3e4 * (image * decoder.log_image(z)).sum() + u.square().sum() / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    wrong = (decoder(prior.push(u)) - image).abs().sum() / 2
    assert wrong < 0.1


def test_missing_and_other_weights_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(DataError, match="no such file"):
        learned_source.load(weights=path)
    Trained({"model.decoder.none": torch.zeros(2)}, Status.BUDGET_SPENT, 0, "other").save(path)
    with pytest.raises(DataError, match="missing"):
        learned_source.load(weights=path)


def test_trained_again_and_loaded(tmp_path):
    """A few steps: the loss falls, and the weights are what a lens model takes."""
    options = learned_source.training(out=tmp_path, path=None, seed=0, galaxies=24, photons=1000)
    options |= {"steps": 12, "batch": 8, "learning_rate": 1e-3}
    trained = astrozoo.train(**options, progress=False)
    assert np.mean(trained.curve["elbo"][-3:]) > np.mean(trained.curve["elbo"][:3])
    path = trained.save(tmp_path / "weights.safetensors")
    decoder, prior = learned_source.load(weights=path)
    assert decoder(prior.sample()).shape == (SIZE, SIZE)
    assert (tmp_path / "galaxies").is_dir()


def test_images_of_other_shapes_are_refused(tmp_path):
    path = tmp_path / "galaxies.safetensors"
    save_file({"images": torch.ones(20, 32, 32) / 32**2}, path)
    with pytest.raises(DataError, match="images of shape"):
        learned_source.training(out=tmp_path, path=path, seed=0)
    save_file({"images": torch.full((20, SIZE, SIZE), torch.nan)}, path)
    with pytest.raises(DataError, match="NaN"):
        learned_source.training(out=tmp_path, path=path, seed=0)

"""Score networks: their gradients, symmetries, capture, and what denoising score matching finds."""

from __future__ import annotations

import pytest
import torch

from astrozoo.errors import InputError
from astrozoo.nets.score import Denoiser, ResidualUNet, ScalarEnergy, denoising_loss


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def random_weights(module):
    """A network whose output is not 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.2)
    return module.double()


def network(**settings):
    return random_weights(ResidualUNet(channels=(4, 6), **settings))


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("periodic", [True, False])
def test_the_score_of_an_energy_is_minus_its_gradient(block, periodic):
    energy = ScalarEnergy(network(block=block, periodic=periodic))
    y, sigma = torch.randn(2, 1, 8, 12).double(), torch.tensor([0.3, 2.0]).double()
    score = energy.score(y, sigma)
    step = 1e-5 * torch.randn(y.shape).double()
    change = energy(y + step, sigma) - energy(y - step, sigma)
    torch.testing.assert_close(change, -2 * (score * step).sum((1, 2, 3)), rtol=1e-6, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(energy.score(y, sigma), score)


def test_images_do_not_depend_on_their_neighbours_in_the_batch():
    net, y = network(inputs=2, outputs=3), torch.randn(3, 2, 8, 8).double()
    sigma = torch.tensor([0.1, 1.0, 4.0]).double()
    both = net(y, sigma)
    assert both.shape == (3, 3, 8, 8)
    torch.testing.assert_close(net(y[1:2], sigma[1:2]), both[1:2])
    assert (net(y, sigma.flip(0)) - both)[0].abs().max() > 1e-3


@pytest.mark.parametrize(("periodic", "equal"), [(True, True), (False, False)])
def test_a_periodic_network_commutes_with_shifts(periodic, equal):
    net, y, sigma = network(periodic=periodic), torch.randn(1, 1, 8, 8).double(), torch.ones(1).double()
    moved = net(y.roll((2, 4), (2, 3)), sigma)
    assert torch.allclose(moved, net(y, sigma).roll((2, 4), (2, 3))) == equal


def test_an_energy_is_captured_under_vmap_and_grad():
    energy = ScalarEnergy(network(periodic=True)).requires_grad_(False)
    y, sigma = torch.randn(3, 8, 8).double(), torch.tensor([0.5]).double()
    gradient = torch.func.vmap(torch.func.grad(lambda image: energy(image[None, None], sigma)[0]))(y)
    torch.testing.assert_close(-gradient, energy.score(y[:, None], sigma.expand(3))[:, 0])


def test_before_training_the_denoiser_is_a_wiener_filter_and_the_energy_is_zero():
    y, sigma = torch.randn(2, 1, 4, 4), torch.tensor([1.0, 3.0])
    torch.testing.assert_close(Denoiser(ResidualUNet(channels=(4,)), sd=2.0)(y, sigma)[0], 0.8 * y[0])
    energy = ScalarEnergy(ResidualUNet(channels=(4,)))
    assert energy(y, sigma).abs().max() == 0
    assert energy.score(y, sigma).abs().max() == 0


@pytest.mark.parametrize("kind", [Denoiser, ScalarEnergy])
def test_denoising_score_matching_finds_the_score_of_a_mixture(kind):
    """Pixels are -1 or 1: the score of noisy pixels is ``(tanh(y / sigma^2) - y) / sigma^2``."""
    net = ResidualUNet(channels=(16,), periodic=True)
    model = kind(net)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    sigma = torch.full((8,), 0.6)
    for _ in range(400):
        clean = torch.randint(0, 2, (8, 1, 16, 16)) * 2.0 - 1
        loss = denoising_loss(model.score, clean, sigma, torch.randn(clean.shape)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    clean = torch.randint(0, 2, (8, 1, 16, 16)) * 2.0 - 1
    noisy = clean + 0.6 * torch.randn(clean.shape)
    exact = ((noisy / 0.36).tanh() - noisy) / 0.36
    with torch.no_grad():
        error = model.score(noisy, sigma) - exact
    assert error.square().mean() < 0.03 * exact.square().mean()


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="multiples of 4"):
        ResidualUNet(channels=(4, 4), block=2)(torch.zeros(1, 1, 8, 10), torch.ones(1))
    with pytest.raises(InputError, match="sd: got 0"):
        Denoiser(ResidualUNet(channels=(4,)), sd=0)
    with pytest.raises(InputError, match="1 or more"):
        ResidualUNet(channels=())

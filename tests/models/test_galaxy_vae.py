"""The pixel-variance autoencoder: its two stages, its problems, its guides, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro.poutine as poutine
import pytest
import torch

import astrozoo
from astrozoo._train_command import train_stages
from astrozoo._trained import Trained
from astrozoo.data.stamps import Pixels, Stamps, standardise
from astrozoo.density import elbo, log_density
from astrozoo.errors import DataError, InputError, UnknownNameError
from astrozoo.models import galaxy_vae, galaxy_vae_training
from astrozoo.types import Status

SIZE = 17


def galaxies(count: int, seed: int = 0) -> Stamps:
    """Elliptical Gaussians of random widths."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    widths = rng.uniform(1.5, 3.5, (count, 2, 1, 1))
    images = np.exp(-0.5 * (x**2 / widths[:, 0] ** 2 + y**2 / widths[:, 1] ** 2))
    return standardise(images + 0.05 * rng.standard_normal(images.shape), SIZE, 0.05)


@pytest.fixture(scope="module", params=["dense", "convolutional"])
def trained(request, tmp_path_factory) -> Trained:
    stages = galaxy_vae_training.stages(
        galaxies(120), galaxies(20, 1), kind=request.param, steps=(200, 10), latent=3, hidden=(16,)
    )
    return train_stages(stages, tmp_path_factory.mktemp("run"), seed=0, batch=16, progress=False)


@pytest.fixture(scope="module")
def nets(trained):
    return galaxy_vae.load(trained)


def test_training_improves_on_the_mean_galaxy(trained):
    """In the second stage only f_sigma changes, from the first stage's weights."""
    assert trained.status is Status.BUDGET_SPENT
    held_out = galaxies(20, 1)
    start = galaxy_vae_training.untrained(galaxies(120).pixels, latent=3, hidden=(16,))
    at_start = ((start.decoder.log_mean.exp() - held_out.pixels.image) ** 2).mean()
    nets = galaxy_vae.load(trained, dtype=torch.float32)
    mean = nets.decoder(galaxy_vae.encode(nets, held_out)[0])[0]
    assert ((mean - held_out.pixels.image) ** 2).mean() < 0.8 * at_start
    assert trained.curve["held_out_elbo"][-1] > trained.curve["held_out_elbo"][0]


def test_the_second_stage_leaves_the_mean_alone(tmp_path):
    data = galaxies(40), galaxies(20, 1)
    settings = {"latent": 3, "hidden": (16,)}
    first, second = galaxy_vae_training.stages(*data, steps=(5, 5), **settings)
    before = astrozoo.train(seed=0, progress=False, **first(None))
    after = astrozoo.train(seed=0, progress=False, **second(before))
    changed = {name for name, w in after.weights.items() if not torch.equal(w, before.weights.get(name, w))}
    parts = ("model.decoder.variance.", "model.decoder.whole_variance.", "model.decoder.log_variance")
    assert changed == {name for name in after.weights if name.startswith(parts)}
    with pytest.raises(InputError, match="second stage"):
        second(None)


def test_residual_networks_are_trained_and_loaded_from_their_weights(tmp_path):
    data = galaxies(40), galaxies(20, 1)
    stages = galaxy_vae_training.stages(*data, kind="residual", steps=(60, 2), latent=3)
    trained = train_stages(stages, tmp_path, seed=0, batch=16, progress=False)
    nets = galaxy_vae.load(trained.save(tmp_path / "weights.safetensors"), dtype=torch.float32)
    assert nets.decoder.kind == nets.encoder.kind == "residual"
    mean = nets.decoder(galaxy_vae.encode(nets, data[1])[0])[0]
    start = galaxy_vae_training.untrained(data[0].pixels, latent=3).decoder.log_mean.exp()
    assert ((mean - data[1].pixels.image) ** 2).mean() < ((start - data[1].pixels.image) ** 2).mean()


def test_an_untrained_kind_is_refused():
    with pytest.raises(InputError, match="one of dense, convolutional, residual"):
        galaxy_vae_training.untrained(galaxies(4).pixels, kind="recurrent")


def test_the_density_is_that_of_normals_over_the_pixels_that_are_used(nets):
    stamps, _ = galaxy_vae.simulate(3, weights=nets)
    image, noise, used = stamps.pixels
    used[:, :3] = False
    problem = galaxy_vae.problem(stamps, weights=nets)
    z = torch.tensor([[0.3, -0.5, 1.0]], dtype=torch.float64)
    mean, variance = nets.decoder(z[0])
    normal = torch.distributions.Normal(mean, (noise[0] ** 2 + variance).sqrt())
    expected = normal.log_prob(image[0])[3:].sum() + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
    got = log_density(problem, compile="never").values(z)
    torch.testing.assert_close(got.squeeze(), expected, rtol=1e-10, atol=0)


def test_a_batch_is_its_galaxies(nets):
    stamps, truth = galaxy_vae.simulate(1, galaxies=4, weights=nets)
    assert truth["z"].shape == (4, 3)
    batch = galaxy_vae.problem(stamps, weights=nets)
    assert batch.batch == 4
    z = truth["z"]
    alone = [
        log_density(galaxy_vae.problem(stamps[i : i + 1], weights=nets), compile="never").values(z[i : i + 1])
        for i in range(4)
    ]
    torch.testing.assert_close(log_density(batch, compile="never").values(z), torch.cat(alone))


@pytest.mark.parametrize("guide", ["encoder", "encoder_iaf"])
def test_the_guide_starts_as_the_encoder_and_moves_where_it_is_told(nets, guide):
    stamps, _ = galaxy_vae.simulate(1, galaxies=2, weights=nets)
    problem = galaxy_vae.problem(stamps, weights=nets)
    target = elbo(problem, problem.factory("guides", guide), compile="never")
    mean, sd = galaxy_vae.encode(nets, stamps)
    noise = torch.cat((torch.zeros(1, target.noise_dim), torch.eye(target.noise_dim)[:1])).to(mean)
    z = target.sample(target.initial(None), noise)["z"]
    torch.testing.assert_close(z[:, 0], mean)
    torch.testing.assert_close(z[:, 1, 0] - mean[:, 0], sd[:, 0])
    moved = target.sample(target.initial(torch.ones_like(mean)), noise)["z"]
    torch.testing.assert_close(moved[:, 0], torch.ones_like(mean))


@pytest.mark.parametrize("method", ["trust_region", "laplace"])
def test_latents_are_recovered(nets, method):
    if nets.decoder.kind == "convolutional":
        method = "laplace"  # double-precision convolutions are slow
    stamps, truth = galaxy_vae.simulate(5, galaxies=3, noise=0.1, weights=nets)
    problem = replace(galaxy_vae.problem(stamps, weights=nets), images=())
    options = {"mode": "fixed"} if method == "trust_region" else {}
    result = astrozoo.infer(problem, method, "encoder", compile="never", progress=False, draws=200, **options)
    draws = result.draws["z"][0]
    score = (draws.mean(0) - truth["z"].numpy()) / draws.std(0)
    assert np.abs(score).max() < 5


def test_weights_of_another_size_or_model_are_refused(nets, trained, tmp_path):
    with pytest.raises(DataError, match="the size that the weights are trained on"):
        galaxy_vae.problem(standardise([np.eye(20)], 20, 0.1), weights=nets)
    with pytest.raises(DataError, match="at least one galaxy"):
        galaxy_vae.problem(galaxies(2)[:0], weights=nets)
    with pytest.raises(DataError, match="weights of galaxy_vae"):
        galaxy_vae.load("learned_source")
    with pytest.raises(UnknownNameError):
        galaxy_vae.load("galaxy_vea")
    lacking = replace(trained, weights={n: w for n, w in trained.weights.items() if "whole" not in n})
    with pytest.raises(DataError, match="missing"):
        galaxy_vae.load(lacking)
    path = trained.save(tmp_path / "w.safetensors")
    assert galaxy_vae.load(path).decoder.size == SIZE
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="unreadable"):
        galaxy_vae.load(path)


def test_bad_settings_of_simulations_are_refused(nets):
    with pytest.raises(InputError, match="galaxies"):
        galaxy_vae.simulate(galaxies=0, weights=nets)
    with pytest.raises(InputError, match="noise"):
        galaxy_vae.simulate(noise=0.0, weights=nets)


def test_read_takes_a_part_of_a_file(tmp_path):
    images = np.random.default_rng(0).normal(size=(5, 20, 20))
    np.savez(tmp_path / "s.npz", image=images, noise_rms=np.arange(1.0, 6))
    stamps = galaxy_vae.read(tmp_path / "s.npz", size=SIZE, first=1, count=2)
    torch.testing.assert_close(stamps.pixels.noise * stamps.scale, torch.tensor([2.0, 3.0]))
    with pytest.raises(DataError, match="5 stamps, expected more than 5"):
        galaxy_vae.read(tmp_path / "s.npz", size=SIZE, first=5)


def test_training_needs_galaxies(tmp_path):
    np.savez(tmp_path / "s.npz", image=np.random.default_rng(0).normal(size=(5, 20, 20)))
    with pytest.raises(InputError, match="20 or more"):
        galaxy_vae_training.training(out=tmp_path, path=tmp_path / "s.npz", seed=0, size=SIZE)


def test_the_plate_of_galaxies_is_the_sum_of_its_galaxies(nets):
    stamps, truth = galaxy_vae.simulate(1, galaxies=3, weights=nets)
    model = galaxy_vae.GalaxyVAE(nets)

    def total(pixels: Pixels, z: torch.Tensor) -> torch.Tensor:
        given = poutine.condition(model, {"z": z})
        return poutine.trace(given).get_trace(pixels).log_prob_sum()

    whole = total(stamps.pixels, truth["z"])
    parts = [total(Pixels(*(x[i] for x in stamps.pixels)), truth["z"][i]) for i in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).sum())

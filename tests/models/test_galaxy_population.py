"""Noisy stamps, and the phases in which the networks of psf_vae are trained."""

from __future__ import annotations

import pytest
import torch

from astrozoo._train_command import train_stages
from astrozoo.data.noisy_stamps import NoisyStamps, noisy_stamps
from astrozoo.errors import InputError
from astrozoo.models import galaxy_population
from astrozoo.models.galaxy_encoder import moments, score
from astrozoo.types import Status


def clean(count: int = 6, side: int = 36) -> tuple[torch.Tensor, torch.Tensor]:
    """Elongated Gaussians and round PSFs."""
    axis = torch.arange(side) - (side - 1) / 2
    sizes = torch.linspace(2, 4, count)[:, None, None]
    galaxies = torch.exp(-0.5 * (axis**2 + 2 * axis[:, None] ** 2) / sizes**2)
    psf = torch.exp(-0.5 * (axis**2 + axis[:, None] ** 2) / 1.5**2)
    return galaxies, (psf / psf.sum()).expand(count, side, side)


def test_an_item_depends_on_its_number_alone_and_has_its_signal_to_noise_ratio():
    galaxies, psf = clean()
    stamps = NoisyStamps(galaxies, psf, snr=(10.0, 100.0), size=32, repeats=2, seed=1)
    assert len(stamps) == 6 * 16
    first, again = stamps[37], stamps.__getitems__([5, 37])[1]
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    ratios = torch.stack([stamps[i].noiseless.square().sum().sqrt() for i in range(96)])
    assert ratios.min() >= 10
    assert ratios.max() <= 100
    noise = torch.stack([stamps[i].image - stamps[i].noiseless for i in range(96)])
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert (noise[0] != noise[8]).all()


def test_a_psf_is_turned_with_its_galaxy():
    side = 9
    one = torch.zeros(1, side, side)
    one[0, 1, 2] = 1.0
    stamps = NoisyStamps(one, one, snr=(1e6, 1e6), repeats=1)
    for i in range(8):
        stamp = stamps[i]
        assert stamp.psf.argmax() == stamp.noiseless.argmax()
    assert len({int(stamps[i].psf.argmax()) for i in range(8)}) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noiseless": torch.zeros(0, 36, 36)}, "0 with 6 PSFs"),
        ({"snr": (5.0, 2.0)}, "snr"),
        ({"size": 35}, "less an even number"),
        ({"size": 40}, "less an even number"),
    ],
)
def test_stamps_without_galaxies_or_range_are_refused(changes, message):
    galaxies, psf = clean()
    settings = {"noiseless": galaxies, "psf": psf, "snr": (1.0, 2.0)} | changes
    with pytest.raises(InputError, match=message):
        NoisyStamps(settings.pop("noiseless"), settings.pop("psf"), **settings)


def test_the_score_is_the_gradient_of_the_log_posterior():
    networks = galaxy_population.untrained(0)
    decoder = networks.decoder.double()
    galaxies, psf = (x.double() for x in clean(2, 20))
    z = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradient = score(decoder, z, galaxies, psf)

    def density(z):
        model = galaxy_population.render(decoder, z, psf, (20, 20))
        return -0.5 * ((galaxies - model).square().sum() + z.square().sum())

    step = 1e-5 * torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        slope = density(z + step) - density(z - step)
    torch.testing.assert_close(2 * (gradient * step).sum(), slope, rtol=1e-5, atol=0)


def test_the_phases_train_and_the_last_one_is_the_elbo(tmp_path):
    galaxies, psf = clean(8)
    held_out = noisy_stamps(galaxies, psf, snr=(20.0, 50.0), size=32, seed=9)
    phases = galaxy_population.phases(galaxies, psf, held_out, steps=(3, 2, 2))
    robust = [phase(None)["problem"].model.robust for phase in phases]
    assert robust == [True, True, False]
    trained = train_stages(phases, tmp_path, seed=0, batch=8, progress=False)
    assert trained.status is Status.BUDGET_SPENT
    networks = galaxy_population.load(trained, dtype=torch.float32)
    untrained = galaxy_population.untrained(0)
    for name, part in networks.encoder.named_parameters():
        assert name.startswith("correction") or (part != untrained.encoder.get_parameter(name)).any()
    assert any(
        (part != untrained.encoder.get_parameter(name)).any()
        for name, part in networks.encoder.named_parameters()
        if name.startswith("correction")
    )
    mean, sd = moments(networks, held_out.image, held_out.psf)
    assert mean.isfinite().all()
    assert (sd > 0).all()
    elbos = galaxy_population.elbos(networks, held_out, draws=4)
    curve = trained.curve["held_out_elbo"][-1]
    assert float(elbos.mean()) == pytest.approx(curve, rel=0.1)


def test_observed_galaxies_cannot_be_trained_on(tmp_path):
    with pytest.raises(InputError, match="simulated galaxies"):
        galaxy_population.training(out=tmp_path, path=tmp_path, seed=0)

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from astrozoo.data.observed_stamps import ObservedStamps, read_observed
from astrozoo.errors import DataError, InputError
from astrozoo.models.sersic_stamp import render
from astrozoo.shear.fits import check_index, fit_stamps, point_fits, wide_prior
from astrozoo.shear.job import demonstration, run

SCALE = 0.2


@pytest.fixture(scope="module")
def stamps() -> ObservedStamps:
    return demonstration(24, 1, progress=False)[0]


def test_draws_have_the_moments_of_the_posterior(stamps: ObservedStamps) -> None:
    """At a high S/N the posterior is normal, with the curvature at the truth."""
    random = torch.Generator().manual_seed(3)
    truth = torch.tensor([0.2, -0.1, np.log(0.5), 0.0, 0.03, -0.02], dtype=torch.float64).expand(24, -1)
    rms = stamps.noise_rms / 20
    noise = rms[:, None, None] * torch.randn(stamps.image.shape, generator=random, dtype=torch.float64)
    sharp = ObservedStamps(render(truth, stamps.psf, 1.0, SCALE) + noise, stamps.psf, rms, SCALE)
    fits = fit_stamps(sharp, draws=128, progress=False)
    assert (fits.effective > 60).all()
    weight = fits.draws.log_weight.softmax(-1)[..., None]  # the interim prior is flat at this S/N
    values = torch.cat((fits.draws.eta, fits.draws.log_radius[..., None], fits.draws.log_flux[..., None]), -1)
    mean = (weight * values).sum(1)
    sd = (weight * (values - mean[:, None]).square()).sum(1).sqrt()
    z = (mean - truth[:, :4]) / sd
    assert z.std().item() == pytest.approx(1, abs=0.25)
    assert z.mean(0).abs().max() < 0.8
    points = point_fits(sharp, start=fits.mode)
    assert ((points[:, :4] - mean) / sd).abs().max() < 0.3


def test_a_galaxy_does_not_depend_on_the_others(stamps: ObservedStamps) -> None:
    shared = replace(stamps, psf=stamps.psf[:1].expand_as(stamps.psf))  # PSFs decide which modes are used
    first = ObservedStamps(shared.image[:3], shared.psf[:3], shared.noise_rms[:3], SCALE)
    prior = wide_prior(shared)
    alone, all_of_them = (fit_stamps(s, draws=8, interim=prior, progress=False) for s in (first, shared))
    torch.testing.assert_close(alone.mode, all_of_them.mode[:3], rtol=0, atol=1e-6)
    torch.testing.assert_close(alone.draws.eta, all_of_them.draws.eta[:3], rtol=0, atol=1e-6)


def test_run_shows_the_shear_beside_point_fits_and_truth(tmp_path: Path) -> None:
    outcome = run(out=tmp_path, demo=True, galaxies=50, interim_draws=16)
    assert outcome.result.status.ok
    rows = next(part for part in outcome.pages[0].parts if isinstance(part, list))
    assert [row[""] for row in rows] == ["g1", "g2"]
    for row in rows:
        assert abs(row["mean"] - row["truth"]) < 5 * row["SD"]
    assert 0.9 < outcome.summary["chi2 per pixel, median"] < 1.1
    assert len((tmp_path / "galaxies.csv").read_text().splitlines()) == 51


def _file(folder: Path, stamps: ObservedStamps, **changes: np.ndarray) -> Path:
    arrays = {"image": stamps.image, "psf": stamps.psf, "noise_rms": stamps.noise_rms}
    values = {name: value.numpy() for name, value in arrays.items()} | {"pixel_scale": np.array(SCALE)}
    np.savez(folder / "stamps.npz", **(values | changes))
    return folder / "stamps.npz"


def test_stamps_are_read_from_both_formats(tmp_path: Path, stamps: ObservedStamps) -> None:
    small = stamps.psf[0, 1:-1, 1:-1].numpy()
    read = read_observed(_file(tmp_path, stamps, psf=small / small.sum(), noise_rms=np.array(0.1)))
    assert torch.equal(read.image, stamps.image)
    torch.testing.assert_close(read.psf[3], stamps.psf[0], atol=1e-4, rtol=0)
    assert (read.noise_rms == 0.1).all()
    arrays = {"image": stamps.image, "psf": stamps.psf, "noise_rms": stamps.noise_rms}
    save_file({name: value.contiguous() for name, value in arrays.items()}, tmp_path / "s.safetensors")
    assert torch.equal(read_observed(tmp_path / "s.safetensors", 0.3).image, stamps.image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_scale": np.array(np.nan)}, "no pixel scale"),
        ({"noise_rms": np.zeros(24)}, "noise_rms"),
        ({"noise_rms": np.ones(3)}, "24 positive numbers"),
        ({"psf": np.ones((40, 40)) / 1600}, "not larger than the stamps"),
        ({"psf": np.ones((31, 31)) / 961}, "both odd or both even"),
        ({"psf": np.ones((32, 32))}, "unit sum"),
        ({"image": np.ones((3, 3))}, r"\[n, y, x\]"),
    ],
)
def test_bad_stamps(tmp_path: Path, stamps: ObservedStamps, changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_observed(_file(tmp_path, stamps, **changes))


def test_other_bad_input(tmp_path: Path, stamps: ObservedStamps) -> None:
    image = stamps.image.numpy().copy()
    image[5, 2, 2] = np.nan
    with pytest.raises(DataError, match="1 stamps with pixels that are not finite"):
        read_observed(_file(tmp_path, stamps, image=image))
    (tmp_path / "x.npz").write_text("no zip")
    with pytest.raises(DataError, match="unreadable"):
        read_observed(tmp_path / "x.npz")
    with pytest.raises(DataError, match=r"ends in '.txt'"):
        read_observed(tmp_path / "x.txt")
    with pytest.raises(InputError, match=r"Sersic index: got 4.0"):
        check_index(4.0)
    with pytest.raises(InputError, match="an even number"):
        fit_stamps(stamps, draws=7)

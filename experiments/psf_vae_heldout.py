"""Held-out figures of `psf_vae`: shapes, fluxes, chi2, bounds, unseen PSFs and pixel scales, HST, coverage.

    python -m experiments.psf_vae_heldout --out runs/psf_vae_heldout [--weights FILE] [--galaxies 1000]
        [--fits 40] [--hst FOLDER]

Simulated galaxies come from another seed than those of training. Takes about 3 minutes on one core. Files in
``--out``: ``scores.json``, ``shapes.png`` (ellipticity of decode against truth) and, with ``--hst``,
``hst.png``.

What is compared:

- the noiseless image that is decoded from the encoder's mean, through the PSF, with the true one: HSM
  ellipticity and size, flux, chi2 of the noisy image;
- the ELBO and the importance-weighted bound with 64 draws, beside the log density of the noise under the true
  image, which no model exceeds on average;
- the same for the mode that fits start from (``--fits`` galaxies), without and with a discrepancy variance,
  and whether 68 % intervals of noiseless pixels contain the truth: pixels whose true light exceeds the noise.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import galsim
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import astrozoo
from astrozoo._files import write_json
from astrozoo.data.noisy_stamps import Stamp, noisy_stamps
from astrozoo.data.psf_stamps import PsfStamp, read_galaxies
from astrozoo.data.simulate_galaxies import GalaxySurvey, PsfRange, simulate_galaxies
from astrozoo.galaxies.psf_maps import maps_of
from astrozoo.galaxies.psf_pictures import maps_figure
from astrozoo.models import galaxy_population, psf_vae
from astrozoo.models.galaxy_discrepancy import noiseless
from astrozoo.models.galaxy_encoder import moments, render
from astrozoo.models.galaxy_population import SNR, SURVEY
from astrozoo.nets.galaxy import LATENT, Networks

SEED = 1_000_003
"""Seed of the held-out galaxies: far from those of training."""
BRIGHT = 20.0
"""Signal-to-noise ratio above which shapes are compared."""
SHOWN = 4
"""HST galaxies in the picture: the brightest."""
HST_SIZE = 48
"""[px] Largest side of the HST stamps."""
IWAE = 64
"""Draws of the importance-weighted bound."""
SURVEYS: Mapping[str, GalaxySurvey] = {
    "like the training set": SURVEY,
    "Kolmogorov PSF": GalaxySurvey(
        size=48, psf=PsfRange("kolmogorov", (0.2, 0.45), 0.03), centre_scatter=0.5
    ),
    "Gaussian PSF, e 0.08": GalaxySurvey(
        size=48, psf=PsfRange("gaussian", (0.2, 0.45), 0.08), centre_scatter=0.5
    ),
    "pixels of .07 arcsec": GalaxySurvey(
        size=64, pixel_scale=0.07, psf=PsfRange("moffat", (0.15, 0.3), 0.03), centre_scatter=0.5
    ),
    "pixels of .15 arcsec": GalaxySurvey(
        size=40, pixel_scale=0.15, psf=PsfRange("moffat", (0.35, 0.7), 0.03), centre_scatter=0.5
    ),
}
"""Galaxies, PSFs and pixel scales. All but the first are not in the training set."""


def hsm(image: np.ndarray) -> tuple[float, float, float]:
    """Ellipticity (reduced shear) and size by adaptive moments; NaN where they fail."""
    result = galsim.hsm.FindAdaptiveMom(galsim.Image(np.ascontiguousarray(image, np.float64)), strict=False)
    if result.moments_status != 0:
        return (math.nan,) * 3
    shape = result.observed_shape
    return shape.g1, shape.g2, result.moments_sigma


def compared(decoded: Tensor, stamp: Stamp) -> dict[str, np.ndarray]:
    """Columns of a table with a row per galaxy."""
    snr = stamp.noiseless.square().sum((-2, -1)).sqrt()
    shapes = np.array([hsm(image.numpy()) for image in decoded])
    truth = np.array([hsm(image.numpy()) for image in stamp.noiseless])
    return {
        "snr": snr.numpy(),
        "decoded": shapes,
        "truth": truth,
        "flux": (decoded.sum((-2, -1)) / stamp.noiseless.sum((-2, -1)) - 1).numpy(),
        "chi2": (stamp.image - decoded).square().mean((-2, -1)).numpy(),
    }


def summary(table: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Correlations, biases and chi2 of the galaxies above :data:`BRIGHT`."""
    bright = table["snr"] > BRIGHT
    good = bright & np.isfinite(table["decoded"]).all(1) & np.isfinite(table["truth"]).all(1)
    decoded, truth = table["decoded"][good], table["truth"][good]
    size = decoded[:, 2] / truth[:, 2] - 1
    return {
        "galaxies": int(bright.sum()),
        "HSM failures": int(bright.sum() - good.sum()),
        "correlation of e1": float(np.corrcoef(decoded[:, 0], truth[:, 0])[0, 1]),
        "correlation of e2": float(np.corrcoef(decoded[:, 1], truth[:, 1])[0, 1]),
        "rms |g|, decoded over true": float(
            np.sqrt((decoded[:, :2] ** 2).mean() / (truth[:, :2] ** 2).mean())
        ),
        "size bias, median [%]": 100 * float(np.median(size)),
        "size bias, mean [%]": 100 * float(size.mean()),
        "flux bias, median [%]": 100 * float(np.median(table["flux"][bright])),
        "flux bias, mean [%]": 100 * float(table["flux"][bright].mean()),
        "chi2 / N, mean": float(table["chi2"][bright].mean()),
        "chi2 / N, median": float(np.median(table["chi2"][bright])),
        "chi2 / N, mean of all": float(table["chi2"].mean()),
    }


def bounds(networks: Networks, stamp: Stamp) -> dict[str, float]:
    """ELBO and importance-weighted bound, less the log density of the noise under the true image [nat]."""
    weights = galaxy_population.weights_of_draws(networks, stamp, draws=IWAE)
    true = torch.distributions.Normal(stamp.noiseless, 1.0).log_prob(stamp.image).sum((-2, -1))
    elbo, iwae = weights.mean(0) - true, weights.logsumexp(0) - math.log(IWAE) - true
    rows = {"ELBO": elbo, f"IWAE, {IWAE} draws": iwae}
    found = {"log density of the true scene, mean": float(true.mean())}
    for name, values in rows.items():
        found[f"{name} - true scene, mean"] = float(values.mean())
        found[f"{name} - true scene, median"] = float(values.median())
    return found


def encoded(networks: Networks, stamp: Stamp) -> Tensor:
    """Noiseless images of the encoder's means."""
    images = []
    with torch.no_grad():
        for i in range(0, len(stamp.image), 100):
            part = Stamp(*(x[i : i + 100] for x in stamp))
            mean, _ = moments(networks, part.image, part.psf)
            images.append(render(networks.decoder, mean, part.psf, part.image.shape[-2:]))
    return torch.cat(images)


def fitted(stamp: Stamp, weights: Any, discrepancy: bool) -> tuple[Tensor, dict[str, Any]]:
    """Noiseless images of the modes that fits start from, and the coverage of 68 % intervals of pixels.

    Each interval is that of the normal at the mode, with the full covariance.
    """
    images, inside, began = [], {"20-60": [], "> 60": []}, time.process_time()
    generator = torch.Generator().manual_seed(0)
    for image, clean, psf in zip(*(x.double() for x in stamp), strict=True):
        galaxy = PsfStamp(image.numpy(), (psf / psf.sum()).numpy(), 1.0, SURVEY.pixel_scale)
        problem = psf_vae.problem(galaxy, weights=weights, discrepancy=discrepancy)
        (exposure,), start = problem.args
        model: Any = problem.model
        z = start.mean + torch.randn(200, len(start.mean), generator=generator).to(start.mean) @ start.root.mT
        with torch.no_grad():
            images.append(model.images((exposure,), start.mean[:LATENT])[0])
            drawn = model.images((exposure,), z[:, :LATENT])[0]
            if discrepancy:
                mean, sd = noiseless(exposure.image, exposure.sd, exposure.mask, drawn, z[:, LATENT])
                drawn = mean + sd * torch.randn(sd.shape, generator=generator).to(sd)
        low, high = torch.quantile(drawn, torch.tensor([0.16, 0.84], dtype=torch.float64), dim=0)
        snr = float(clean.square().sum().sqrt())
        lit = clean > 1
        if snr > BRIGHT and lit.any():
            covered = ((low < clean) & (clean < high))[lit].double().mean()
            inside["> 60" if snr > 60 else "20-60"].append(float(covered))
    seconds = (time.process_time() - began) / len(images)
    coverage = {f"coverage at S/N {name}": float(np.mean(rows)) for name, rows in inside.items() if rows}
    coverage |= {f"galaxies at S/N {name}": len(rows) for name, rows in inside.items()}
    return torch.stack(images), coverage | {"CPU seconds per galaxy": seconds}


def hst(folder: Path, weights: Any, path: Path) -> dict[str, Any]:
    """chi2 of whitened residuals of real HST stamps with their correlated noise, and a picture of some."""
    maps = []
    for galaxy in galaxies_of(folder):
        problem = psf_vae.problem(galaxy, weights=weights)
        result = astrozoo.infer(problem, "laplace", draws=64, seed=0, compile="never", progress=False)
        maps += maps_of(problem, result)
    values = np.array([chi2 for one in maps for chi2 in one.chi2])
    maps_figure(sorted(maps, key=lambda one: -one.model[0].sum())[:SHOWN]).savefig(path, dpi=70)
    return {
        "stamps": len(values),
        "chi2 / N of whitened residuals, quartiles": np.quantile(values, (0.25, 0.5, 0.75)).round(3).tolist(),
        "chi2 / N < 1.1 [%]": 100 * float((values < 1.1).mean()),
    }


def galaxies_of(folder: Path) -> Sequence[psf_vae.Galaxy]:
    """The galaxies of a catalogue; larger stamps are cut, so that their likelihood is exact."""
    return read_galaxies(folder, size=HST_SIZE)


def picture(table: Mapping[str, np.ndarray], path: Path) -> None:
    """Ellipticities of decode against truth."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    bright = table["snr"] > BRIGHT
    for k, (axis, name) in enumerate(zip(axes, ("g1", "g2", "size [px]"), strict=True)):
        truth, decoded = table["truth"][bright, k], table["decoded"][bright, k]
        axis.scatter(truth, decoded, s=4, c=np.log10(table["snr"][bright]))
        low, high = axis.get_xlim()
        axis.plot((low, high), (low, high), "k", lw=0.7)
        axis.set(xlabel=f"{name} of the true noiseless image", ylabel=f"{name} of the decode")
    figure.suptitle(f"adaptive moments of galaxies with S/N > {BRIGHT:.0f}, colour: log S/N")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="weights file; by default the package's")
    parser.add_argument("--galaxies", type=int, default=1000, help="held-out galaxies like the training set")
    parser.add_argument("--fits", type=int, default=40, help="galaxies that are fitted one by one")
    parser.add_argument("--hst", type=Path, help="folder with a catalogue of real galaxies")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    weights = "psf_vae" if options.weights is None else options.weights
    trained = astrozoo.load_weights(weights)
    networks = galaxy_population.load(trained, dtype=torch.float32)
    scores: dict[str, Any] = {}
    for number, (name, survey) in enumerate(SURVEYS.items()):
        count = options.galaxies if number == 0 else max(options.galaxies // 4, 1)
        stamps = simulate_galaxies(survey, count, seed=SEED + number, cache=options.out / "galaxies")
        stamp = noisy_stamps(stamps.noiseless, stamps.psf, snr=SNR, seed=SEED)
        table = compared(encoded(networks, stamp), stamp)
        scores[name] = summary(table) | bounds(networks, Stamp(*(x[:200] for x in stamp)))
        if number == 0:
            picture(table, options.out / "shapes.png")
            part = Stamp(*(x[: options.fits] for x in stamp))
            for kind, discrepancy in {"modes": False, "modes with a discrepancy": True}.items():
                images, coverage = fitted(part, trained, discrepancy)
                scores[kind] = summary(compared(images, part)) | coverage
                print(kind, scores[kind], flush=True)
        print(name, scores[name], flush=True)
    if options.hst is not None:
        scores["HST"] = hst(options.hst, trained, options.out / "hst.png")
        print("HST", scores["HST"])
    write_json(scores, options.out / "scores.json")


if __name__ == "__main__":
    main()

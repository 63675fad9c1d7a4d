"""Least-squares fits of profiles to simulated Sersic galaxies: galaxies per second and core.

    python -m experiments.bench.galaxy_fits [--galaxies 1000] [--profiles gaussian,sersic,bulge_disc]
        [--size 69] [--supersample 1]

GalSim draws the galaxies, with a PSF and S/N of 20 to 500. Each profile is fitted to all of them at once by
the
batched trust region: without a PSF, and convolved with the PSF of each galaxy. Each setting gives a CSV row:
galaxies per CPU second, iterations of the slowest galaxy, the share that converged, the median chi2 per
pixel, and for the convolved Sersic profile the median ratio of the radius to the true one, with half the
16-84 % range.

For comparison: pysersic (Pasha & Miller 2023, JOSS 8, 5703) reports .1 to .4 s for the least-squares fit of a
Sersic profile to one galaxy, that is 2.5 to 10 galaxies per second.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time

import numpy as np
import torch

from astrozoo.data.galaxy_survey import GalaxySurvey, PsfRange
from astrozoo.data.simulate_galaxies import simulate_galaxies
from astrozoo.data.stamps import standardise, turned
from astrozoo.galaxies.fits import fit_profiles
from astrozoo.physics.galaxy_profiles import KINDS


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--galaxies", type=int, default=1000)
    parser.add_argument("--profiles", default=",".join(KINDS))
    parser.add_argument("--size", type=int, default=69)
    parser.add_argument("--supersample", type=int, default=1)
    options = parser.parse_args()
    survey = GalaxySurvey(
        size=options.size,
        pixel_scale=0.03,
        psf=PsfRange(fwhm=(0.08, 0.12)),
        snr=(20.0, 500.0),
        kinds=(1.0, 0.0, 0.0, 0.0, 0.0),
        radius=(0.08, 0.45),
    )
    drawn = simulate_galaxies(survey, options.galaxies, seed=1)
    stamps = standardise(drawn.image.numpy(), options.size, drawn.noise_rms.numpy())
    middle = drawn.psf.shape[-1] // 2
    half = min(middle, 16)
    kernel = drawn.psf[:, middle - half : middle + half + 1, middle - half : middle + half + 1]
    kernel = kernel / kernel.sum((1, 2), keepdim=True)
    psf = torch.stack([turned(k, int(o)) for k, o in zip(kernel, stamps.orientation, strict=True)])
    writer = None
    for kind in options.profiles.split(","):
        for convolved in (False, True):
            started = time.process_time()
            fits = fit_profiles(
                stamps.pixels, kind, psf if convolved else None, supersample=options.supersample
            )
            seconds = time.process_time() - started
            pixels = stamps.pixels.used.sum((1, 2))
            row = {
                "profile": kind,
                "psf": convolved,
                "galaxies_per_second": f"{options.galaxies / seconds:.1f}",
                "iterations": fits.fit.iterations,
                "converged": f"{np.mean([status.ok for status in fits.fit.statuses]):.3f}",
                "chi2_per_pixel": f"{float((fits.fit.chi2 / pixels).median()):.4f}",
                "radius_ratio": "",
            }
            if kind == "sersic" and convolved:
                radius = fits.fit.parameters[:, 3].exp() * survey.pixel_scale
                ratio = (radius / drawn.half_light_radius).numpy()
                low, middle_ratio, high = np.quantile(ratio, (0.16, 0.5, 0.84))
                row["radius_ratio"] = f"{middle_ratio:.4f}+-{(high - low) / 2:.4f}"
            if writer is None:
                writer = csv.DictWriter(sys.stdout, row)
                writer.writeheader()
            writer.writerow(row)
            sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Makes the power spectrum of the convergence that `mass_map` has by default.

    python -m experiments.make_kappa_spectrum

It needs CAMB (`pip install camb`). The spectrum is Limber's integral over CAMB's non-linear matter power
(HMcode 2020), for sources with n(z) ~ z^2 exp(-(z / 0.66)^1.2) and a flat Planck-2015 cosmology. The table
and these settings are written to `models/mass_map_spectrum.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

import camb
import numpy as np

from astrozoo.physics.cosmology import make_cosmology
from astrozoo.physics.matter_power import convergence_power, lensing_weights

COSMOLOGY = {"H0": 67.74, "ombh2": 0.0223, "omch2": 0.1188, "As": 2.142e-9, "ns": 0.9667}
SOURCES = {"z0": 0.66, "alpha": 2.0, "beta": 1.2}
OUT = Path(__file__).parents[1] / "models" / "mass_map_spectrum.json"


def spectrum(ell: np.ndarray) -> np.ndarray:
    """C_ell of the convergence by Limber's approximation [sr]."""
    settings = camb.CAMBparams()
    settings.set_cosmology(
        H0=COSMOLOGY["H0"], ombh2=COSMOLOGY["ombh2"], omch2=COSMOLOGY["omch2"], mnu=0.0, omk=0.0
    )
    settings.InitPower.set_params(As=COSMOLOGY["As"], ns=COSMOLOGY["ns"])
    power = camb.get_matter_power_interpolator(
        settings, nonlinear=True, hubble_units=True, k_hunit=True, kmax=300.0, zmax=6.0
    )
    z = np.linspace(0.005, 5.0, 600)
    h = COSMOLOGY["H0"] / 100
    baryons, total = COSMOLOGY["ombh2"] / h**2, (COSMOLOGY["ombh2"] + COSMOLOGY["omch2"]) / h**2
    sources = z ** SOURCES["alpha"] * np.exp(-((z / SOURCES["z0"]) ** SOURCES["beta"]))
    cosmology = make_cosmology(omega_m=total, omega_b=baryons, h=h, n_s=COSMOLOGY["ns"])
    lensing = lensing_weights(z, sources, cosmology)
    return convergence_power(ell, lensing, lambda k, at: np.where(k < 3000, power.P(at, k), 0.0))


def main() -> None:
    ell = np.geomspace(1, 2e5, 120)
    content = {
        "about": "power spectrum of the convergence, made by experiments/make_kappa_spectrum.py",
        "settings": {"cosmology": COSMOLOGY, "sources": SOURCES, "camb": camb.__version__},
        "ell": [float(f"{x:.6g}") for x in ell],
        "power": [float(f"{x:.6g}") for x in spectrum(ell)],
    }
    OUT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Fit the Gaussian rings of ``astrozoo.physics.profiles`` to the exponential and de Vaucouleurs profiles.

    python experiments/fit_profile_rings.py

The profiles are Sersic profiles of index 1 and 4 without a cut, of unit flux and half-light radius. The
rings minimise the error of the light inside a radius (what fluxes and sizes depend on) and that of the
surface brightness seen through a Gaussian of 0.25 radii (what pixels see). Prints the tables and errors.
"""

import numpy as np
from scipy.optimize import least_squares
from scipy.special import gamma, gammainc, gammaincinv, i0e

BLUR = 0.25


def profile(index: int, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Surface brightness and enclosed light of a Sersic profile."""
    b = gammaincinv(2 * index, 0.5)
    total = 2 * np.pi * index * b ** (-2 * index) * gamma(2 * index)
    return np.exp(-b * r ** (1 / index)) / total, gammainc(2 * index, b * r ** (1 / index))


def blurred(index: int, r: np.ndarray) -> np.ndarray:
    """Surface brightness through a Gaussian of width BLUR, by quadrature in enclosed light."""
    b = gammaincinv(2 * index, 0.5)
    light = (np.arange(20000) + 0.5) / 20000
    s = (gammaincinv(2 * index, light) / b) ** index  # radii of equal shares of light
    arg = r[:, None] * s[None] / BLUR**2
    kernel = np.exp(-0.5 * ((r[:, None] - s[None]) / BLUR) ** 2) * i0e(arg)
    return kernel.mean(1) / (2 * np.pi * BLUR**2)


def fit(index: int, rings: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    r = np.geomspace(0.01, 30.0, 400)
    enclosed = profile(index, r)[1]
    seen_at = np.linspace(0.0, 6.0, 120)
    seen = blurred(index, seen_at)

    def unpack(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a = np.exp(p[:rings])
        return a / a.sum(), np.exp(p[rings:])

    def residual(p: np.ndarray) -> np.ndarray:
        a, v = unpack(p)
        light = (a * -np.expm1(-(r[:, None] ** 2) / (2 * v))).sum(1)
        t = v + BLUR**2
        image = (a / (2 * np.pi * t) * np.exp(-(seen_at[:, None] ** 2) / (2 * t))).sum(1)
        return np.concatenate((light - enclosed, (image - seen) / seen.max(), 0.05 * (image - seen) / seen))

    top = 3.0 if index == 1 else 60.0
    bottom = 0.01 if index == 1 else 3e-4
    start = np.concatenate((np.zeros(rings), np.log(np.geomspace(bottom, top, rings))))
    best = least_squares(residual, start, xtol=1e-14, ftol=1e-14, max_nfev=20000)
    a, v = unpack(best.x)
    errors = residual(best.x)
    return a, v, np.abs(errors[:400]).max(), np.abs(errors[400:520]).max()


if __name__ == "__main__":
    for name, index, choices in (("EXP", 1, (4, 5, 6)), ("DEV", 4, (6, 7, 8, 9))):
        for rings in choices:
            a, v, light, image = fit(index, rings)
            print(f"{name}, {rings} rings: light to {light:.1e}, blurred image to {image:.1e} of its peak")
            print("  amplitudes", ", ".join(f"{x:.8g}" for x in a))
            print("  variances ", ", ".join(f"{x:.8g}" for x in v))

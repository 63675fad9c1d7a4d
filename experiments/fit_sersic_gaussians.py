"""Fit the table of ``astrozoo.physics.sersic_gaussians``: Sersic profiles of any index as eight Gaussians.

    python experiments/fit_sersic_gaussians.py

Logits of fluxes and logarithms of widths are polynomials of the logarithm of the index. They minimise the
errors of the light per logarithm of the radius and of the light inside a radius, for indices of 0.55 to 6.2.
Prints the table and the errors. It takes a minute.
"""

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from scipy.optimize import least_squares
from scipy.special import gamma, gammainc, gammaincinv

COMPONENTS, DEGREE = 8, 3
RANGE = (0.55, 6.2)


def main() -> None:
    index = np.geomspace(*RANGE, 22)[:, None]
    r = np.geomspace(0.01, 30, 120)
    b = gammaincinv(2 * index, 0.5)
    bright = np.exp(-b * r ** (1 / index)) * b ** (2 * index) / (2 * np.pi * index * gamma(2 * index))
    per_log, inside = 2 * np.pi * r**2 * bright, gammainc(2 * index, b * r ** (1 / index))
    place = 2 * np.log(index[:, 0] / RANGE[0]) / np.log(RANGE[1] / RANGE[0]) - 1
    powers = chebvander(place, DEGREE)

    def errors(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, widths = powers @ p.reshape(2, DEGREE + 1, COMPONENTS)
        flux = np.exp(logits - logits.max(1, keepdims=True))
        flux = (flux / flux.sum(1, keepdims=True))[..., None]
        square = (r / np.exp(widths)[..., None]) ** 2
        light = np.exp(-square / 2)
        return (flux * square * light).sum(1) - per_log, 1 - (flux * light).sum(1) - inside

    start = np.zeros((2, DEGREE + 1, COMPONENTS))
    first = np.geomspace(0.06, 5, COMPONENTS)
    start[1, 0], start[1, 1] = np.log(first), np.linspace(-1.3, 0.8, COMPONENTS)
    start[0, 0] = -0.5 * (np.log(first / 0.8) / 0.8) ** 2
    best = least_squares(
        lambda p: np.concatenate([e.ravel() for e in errors(p)]), start.ravel(), max_nfev=150
    )
    for name, table in zip(("logit", "log width"), best.x.reshape(2, DEGREE + 1, COMPONENTS), strict=True):
        print(name)
        for row in table:
            print("   (" + ", ".join(f"{x:.5f}" for x in row) + "),")
    for name, error in zip(("light per ln r", "light inside r"), errors(best.x), strict=True):
        print(f"{name}: largest error {np.abs(error).max():.4f}; index <= 4: {np.abs(error[:18]).max():.4f}")


if __name__ == "__main__":
    main()

"""Objectives for tests: pure torch functions differentiated by torch.func, without capture."""

from __future__ import annotations

import torch
from torch.func import grad, grad_and_value, jacrev, vjp, vmap


class Double:
    """``f(w [p], noise [e] or None, *args)`` as an astrozoo.objective.Objective."""

    def __init__(self, f, dim, *, noise_dim=0, args=(), batch=None):
        self.f, self.dim, self.noise_dim, self.args, self.batch = f, dim, noise_dim, args, batch
        self.dtype, self.device = torch.float64, torch.device("cpu")
        self.counts = {"value": 0, "gradient": 0, "hvp": 0, "hessian": 0}
        self.compile_seconds, self.notes = 0.0, []

    def _over(self, g, w, noise, *more, kind):
        self.counts[kind] += len(w) * (1 if noise is None else len(noise))
        noise = torch.zeros(1, 0, dtype=w.dtype) if noise is None else noise
        over_draws = vmap(g, in_dims=(None, 0, *([None] * (len(more) + len(self.args)))))
        rows = None if self.batch is None else 0
        over_rows = vmap(over_draws, in_dims=(0, None, *([0] * len(more)), *([rows] * len(self.args))))
        return over_rows(w, noise, *more, *self.args)

    def values(self, w, noise=None):
        return self._over(self.f, w, noise, kind="value")

    def value_and_grad(self, w, noise=None):
        g, v = self._over(grad_and_value(self.f), w, noise, kind="gradient")
        return v.mean(1), g.mean(1)

    def value_grad_hessian(self, w, noise=None):
        v, g = self.value_and_grad(w, noise)
        return v, g, self._over(jacrev(grad(self.f)), w, noise, kind="hessian").mean(1)

    def hvp(self, w, noise, v):
        def one(w, e, v, *args):
            return vjp(lambda x: grad(self.f)(x, e, *args), w)[1](v)[0]

        return self._over(one, w, noise, v, kind="hvp").mean(1)

    def take(self, rows):
        if self.batch is None:
            return self
        out = Double(
            self.f,
            self.dim,
            noise_dim=self.noise_dim,
            args=tuple(a[rows] for a in self.args),
            batch=len(rows),
        )
        out.counts = self.counts
        return out


def quadratic(mean, precision):
    """A Gaussian log density."""

    def f(w, e):
        return -((w - mean) @ precision @ (w - mean)) / 2

    return Double(f, len(mean))


def banana(b=20.0):
    """Rosenbrock's function, upside down: maximum 0 at (1, 1)."""
    return Double(lambda w, e: -((1 - w[0]) ** 2) - b * (w[1] - w[0] ** 2) ** 2, 2)


def gaussian_elbo(mean, precision):
    """The ELBO of a mean-field Gaussian for a Gaussian: optimum (mean, -log diag(precision) / 2)."""
    d = len(mean)

    def f(w, e):
        z = w[:d] + w[d:].exp() * e - mean
        return -(z @ precision @ z) / 2 + w[d:].sum()

    return Double(f, 2 * d, noise_dim=d)

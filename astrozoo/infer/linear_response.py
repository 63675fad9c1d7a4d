"""Linear response: how the optimum of an ELBO moves with the posterior, and with the draws it is made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.infer.randomness import generator_for
from astrozoo.infer.subproblem import solve
from astrozoo.objective import VariationalObjective

__all__ = ["Response"]

_AVERAGED = 1000
"""Draws of a mean under the guide."""


class Response:
    """The linear response ``(-H)^-1 J'`` at the optimum of an ELBO.

    H is the Hessian of the objective. J is the derivative of the guide's centre by its parameters. J is
    computed by central differences, which are exact if the centre is linear in the parameters, as it is in
    all stock guides.

    Args:
        target: the :class:`astrozoo.density.Elbo`.
        w: the optimum.
        hessian: the Hessian at the optimum. If it is None, the response is solved by conjugate gradients with
            Hessian-vector products, preconditioned with the variances of the guide.
        noise: draws on which the Hessian-vector products are computed.

    References:
        Giordano, Broderick & Jordan 2018, JMLR 19, 51 (eq. 7); Giordano, Ingram & Broderick 2023, section 3.
    """

    def __init__(
        self,
        target: VariationalObjective,
        w: Float[Tensor, "b p"],
        hessian: Float[Tensor, "b p p"] | None,
        noise: Tensor | None = None,
    ) -> None:
        self.target, self.w = target, w
        self.J = _centre_derivative(target, w)  # [b, d, p]
        self.inverse: Tensor | None = None
        if hessian is None:
            rows = [self._solve(noise, row) for row in range(len(w))]
            self.moves = torch.stack(rows).mT
        else:
            self.inverse = _pseudo_inverse(-hessian)
            self.moves = self.inverse @ self.J.mT  # [b, p, d]

    def _solve(self, noise: Tensor | None, row: int) -> Float[Tensor, "d p"]:
        """The response of one problem, for all latents at once, by Hessian-vector products."""
        J, objective = self.J[row], self.target.take(torch.tensor([row], device=self.w.device))
        w = self.w[row].expand(len(J), -1)

        def curvature(v: Tensor) -> Tensor:
            if objective.batch is None:
                return -objective.hvp(w, noise, v)
            return -torch.cat([objective.hvp(w[i : i + 1], noise, v[i : i + 1]) for i in range(len(v))])

        centre = self.target.unconstrained(self.w[row : row + 1] if objective.batch is None else self.w, None)
        draws = self.target.unconstrained(self.w, _unit(self.target, self.w))
        index = 0 if objective.batch is None else row
        variance = (draws[index] - centre[index]).square().sum(0)  # of each latent
        scale = J.square().T @ variance  # of each parameter that moves a centre
        return solve(curvature, J, torch.where(scale > 0, scale, 0.5))

    def covariance(self) -> Float[Tensor, "b d d"]:
        """Covariance of the latents, ``J (-H)^-1 J'``."""
        return self.J @ self.moves

    def posterior_sd(self) -> Float[Tensor, "b d"]:
        """SDs of the latents, from :meth:`covariance`."""
        return self.covariance().diagonal(dim1=1, dim2=2).sqrt()

    def sd(
        self, of: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda sites: sites
    ) -> dict[str, Float[Tensor, "b ..."]]:
        """SDs of functions of the latents: the root of the diagonal of ``J (-H)^-1 J'``.

        Here J is the derivative of the functions' means under the guide. For a function that is not linear
        this differs from its SD under a normal with :meth:`covariance`.

        Args:
            of: computes the functions, ``[b, m, ...]`` each, from draws ``{site: [b, m, *shape]}``.

        References:
            Giordano, Broderick & Jordan 2018, JMLR 19, 51, section 3.
        """
        assert self.inverse is not None, "only where the Hessian is dense"
        shape = (_AVERAGED // 2, self.target.draw_dim)
        e = torch.randn(shape, generator=generator_for(0), dtype=self.w.dtype).to(self.w.device)
        noise = torch.cat((e, -e))
        step = torch.finfo(self.w.dtype).eps ** (1 / 3)
        columns: dict[str, list[Tensor]] = {}
        for i in range(self.w.shape[1]):
            move = torch.zeros_like(self.w)
            move[:, i] = step
            there, back = (of(self.target.sample(self.w + sign * move, noise)) for sign in (1, -1))
            for name, x in there.items():
                columns.setdefault(name, []).append((x.mean(1) - back[name].mean(1)) / (2 * step))
        found = {}
        for name, column in columns.items():
            J = torch.stack(column, -1)  # [b, ..., p]
            bent = torch.einsum("b...p,bpq,b...q->b...", J, self.inverse, J)
            found[name] = bent.clamp_min(0.0).sqrt()
        return found


def _unit(target: VariationalObjective, w: Tensor) -> Float[Tensor, "e e"]:
    return torch.eye(target.draw_dim, dtype=w.dtype, device=w.device)


def _centre_derivative(target: VariationalObjective, w: Float[Tensor, "b p"]) -> Float[Tensor, "b d p"]:
    origin = torch.zeros(1, target.draw_dim, dtype=w.dtype, device=w.device)
    step = torch.finfo(w.dtype).eps ** (1 / 3)
    columns = []
    for i in range(w.shape[1]):
        move = torch.zeros_like(w)
        move[:, i] = step
        there, back = (target.unconstrained(w + sign * move, origin)[:, 0] for sign in (1, -1))
        columns.append((there - back) / (2 * step))
    return torch.stack(columns, 2)


def _pseudo_inverse(curvature: Float[Tensor, "b p p"]) -> Float[Tensor, "b p p"]:
    """Pseudo-inverses of symmetric matrices.

    A parameter without influence on the objective, such as a masked weight of a flow, has no response.
    """
    values, vectors = torch.linalg.eigh(curvature)
    least = values.abs().amax(-1, keepdim=True) * curvature.shape[-1] * torch.finfo(values.dtype).eps
    inverse = torch.where(values.abs() > least, 1 / values, 0.0)
    return (vectors * inverse[:, None]) @ vectors.mT

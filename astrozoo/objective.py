"""What inference methods use of a captured function, as typed protocols.

:class:`Objective` is any scalar function to be maximised. :class:`Captured` adds what the capture of a Pyro
program knows. :class:`Density` is a log density of latents, :class:`VariationalObjective` an ELBO of a
guide's parameters. Methods are annotated with these protocols and use nothing else. They never see Pyro, nor
whether the data of a function are spread over several processes (:mod:`astrozoo._graph`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from astrozoo._layout import Layout
    from astrozoo.errors import InputError

__all__ = ["Captured", "Density", "Objective", "VariationalObjective"]


class Objective(Protocol):
    """A scalar function of a flat vector, to be maximised: a log density, an ELBO, or a model's own.

    Every method takes a whole batch of vectors. With ``batch is None`` they are any number of vectors of
    one problem (chains, starts); otherwise row ``i`` belongs to independent problem ``i``.
    ``noise`` is ``[draws, noise_dim]`` of standard normals, shared by all rows, and None where
    ``noise_dim`` is 0; values are means over its draws.
    """

    dim: int
    noise_dim: int
    batch: int | None
    dtype: torch.dtype
    device: torch.device
    counts: dict[str, int]
    """Evaluations so far, per row and per draw: "value", "gradient", "hvp", "hessian"."""

    @property
    def compile_seconds(self) -> float:
        """Seconds spent compiling so far; 0 for a function that is never compiled."""
        ...

    def values(self, w: Float[Tensor, "b p"], noise: Tensor | None = None) -> Float[Tensor, "b m"]:
        """The function for each draw (one column where there is no noise)."""
        ...

    def value_and_grad(
        self, w: Float[Tensor, "b p"], noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b p"]]:
        """Mean over draws, and its gradient."""
        ...

    def value_grad_hessian(
        self, w: Float[Tensor, "b p"], noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b p"], Float[Tensor, "b p p"]]:
        """Mean over draws, its gradient and its exact Hessian."""
        ...

    def hvp(
        self, w: Float[Tensor, "b p"], noise: Tensor | None, v: Float[Tensor, "b p"]
    ) -> Float[Tensor, "b p"]:
        """The Hessian (of the mean over draws) times ``v``."""
        ...

    def take(self, rows: Tensor) -> Self:
        """The objective of a subset of the independent problems; of one problem, itself."""
        ...


class Captured(Objective, Protocol):
    """An objective captured from a Pyro program: it knows the program's latent sites."""

    layout: Layout
    """The continuous latent sites: their places in the unconstrained vector, and their bijections."""
    notes: list[str]
    """Remarks for the result, such as why a graph was not compiled."""

    def compile_soon(self) -> None:
        """Have ``compile="auto"`` compile each graph at its next call, because much work is to come."""
        ...

    def discrete(
        self, z: Float[Tensor, "b m dim"], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draws of the discrete sites given the continuous ones: ``{site: [b, m, *shape]}``."""
        ...

    def derived(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sites that follow from all the latent ones (``pyro.deterministic``): ``{site: [b, m, *shape]}``."""
        ...


class Density(Captured, Protocol):
    """The log density of a problem's latents in unconstrained space.

    The vector holds the continuous latents (the first ``layout.dim`` elements) and then an index for each
    element of the discrete sites that are not summed out.
    """

    choices: tuple[int, ...]
    """The number of values of each discrete element of the vector."""

    @property
    def summed_out(self) -> list[str]:
        """Names of the discrete sites that are summed out."""
        ...

    @property
    def in_vector(self) -> list[str]:
        """Names of the discrete sites that are elements of the vector."""
        ...

    def initial(self, b: int, generator: torch.Generator | None = None) -> Float[Tensor, "b dim"]:
        """Starts of finite density and gradient.

        Raises:
            InputError: if there are none; it names the site.
        """
        ...

    def undefined_at(self, z: Float[Tensor, "b dim"], row: int) -> InputError:
        """The error for a start whose density or gradient is not finite; it names the site."""
        ...


class VariationalObjective(Captured, Protocol):
    """The ELBO of a guide (or a model's own objective) as a function of the guide's flat parameters."""

    draw_dim: int
    """Standard normals that one draw of the guide takes."""

    @property
    def has_derivatives(self) -> bool:
        """Whether the objective comes with a Hessian of its own, which needs no automatic derivatives."""
        ...

    @property
    def has_normal(self) -> bool:
        """Whether :meth:`normal` can be called."""
        ...

    @property
    def has_parameters(self) -> bool:
        """Whether the model has parameters, which are at the end of the vector."""
        ...

    @property
    def recovers_discrete(self) -> bool:
        """Whether :meth:`discrete` draws any site: one that the guide lacks."""
        ...

    def initial(
        self, z0: Float[Tensor, "b dim"] | None = None, parameters: Mapping[str, Any] | None = None
    ) -> Float[Tensor, "b p"]:
        """Flat parameters to start from, moved to the unconstrained latents ``z0`` where these are given.

        Args:
            parameters: constrained values of all parameters of the model; None: their initial values.
        """
        ...

    def normal(self, mean: Float[Tensor, "b dim"], sd: Float[Tensor, "b dim"]) -> Float[Tensor, "b p"]:
        """Flat parameters of independent normals with these moments."""
        ...

    def parameters(self, w: Float[Tensor, "*b p"]) -> Mapping[str, Tensor]:
        """The guide's (unconstrained) parameters by name."""
        ...

    def model_parameters(self, w: Float[Tensor, "*b p"]) -> Mapping[str, Tensor]:
        """The model's (constrained) parameters by name."""
        ...

    def discrete(
        self,
        z: Float[Tensor, "b m dim"],
        generator: torch.Generator | None = None,
        w: Float[Tensor, "b p"] | None = None,
    ) -> dict[str, Tensor]:
        """Draws of the discrete sites that the guide lacks, given its draws and the parameters ``w``."""
        ...

    def derived(
        self, values: Mapping[str, Tensor], w: Float[Tensor, "b p"] | None = None
    ) -> dict[str, Tensor]:
        """Sites that follow from all the latent ones and the parameters ``w``."""
        ...

    def sample(self, w: Float[Tensor, "b p"], noise: Float[Tensor, "m e"] | None) -> dict[str, Tensor]:
        """Draws of the guide, constrained: ``{site: [b, m, *shape]}``."""
        ...

    def unconstrained(
        self, w: Float[Tensor, "b p"], noise: Float[Tensor, "m e"] | None
    ) -> Float[Tensor, "b m dim"]:
        """Draws of the guide as unconstrained vectors."""
        ...

    def log_ratio(self, w: Float[Tensor, "b p"], noise: Float[Tensor, "m e"] | None) -> Float[Tensor, "b m"]:
        """log p - log q of each draw."""
        ...

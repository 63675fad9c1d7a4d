"""Pyro models (with guides) as pure functions of one flat unconstrained vector.

``log_density(problem)`` and ``elbo(problem, guide)`` run a Pyro program once under tracing and keep its
arithmetic: values, gradients, exact Hessians and Hessian-vector products, for a whole batch of vectors at
once. :class:`PureFunction` does the same for any pure torch function. This file and its private helpers
(``_capture.py``, ``_enumerate.py``, ``_graph.py``, ``_pure_function.py``) are the only ones that trace, make
graphs or compile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from astrozoo._capture import Model, is_discrete, latent_sites, run_guide
from astrozoo._enumerate import MAX_ASSIGNMENTS, Discrete, find_discrete, inverted, make_plan, total
from astrozoo._labels import check_sites
from astrozoo._layout import Layout, Site, lower_triangle
from astrozoo._parameters import Fixed, Parameters, Watch, module_parameters, sharing
from astrozoo._plates import first_item
from astrozoo._pure_function import PureFunction, rows_of
from astrozoo._scope import Scope, Tape
from astrozoo._shard import Shard, shard_of, unread
from astrozoo._sharing import sharing_of
from astrozoo.errors import CaptureError, InputError
from astrozoo.types import Problem

__all__ = [
    "Elbo",
    "Layout",
    "LogDensity",
    "PureFunction",
    "Site",
    "elbo",
    "few_assignments",
    "inverted",
    "layout_of",
    "log_density",
    "lower_triangle",
    "names_of_draws",
]


_CHUNK = 64
"""Draws whose discrete or derived sites are computed at once, which bounds the memory that it takes."""
NO_LATENTS = "the model has no latent sites: there is nothing to infer"
"""What a model without a posterior is refused with."""


def some_rows(problem: Problem) -> list[tuple[Any, ...]]:
    """Arguments of single problems: of the first, middle and last of a batch.

    Raises:
        InputError: if a Dataset is among them.
    """
    if problem.datasets:
        kind = type(problem.datasets[0]).__name__
        expected = "tensors: only `train` and svi(minibatch=...) read a Dataset, in parts"
        raise InputError("args", f"a Dataset ({kind})", expected)
    if problem.batch is None:
        return [problem.args]
    return [rows_of(problem.args, i) for i in (0, problem.batch // 2, problem.batch - 1)]


def draw_discrete(
    model: Model,
    z: Float[Tensor, "b m dim"],
    args: tuple[Any, ...],
    batch: int | None,
    generator: torch.Generator | None,
    parameters: Float[Tensor, "b q"] | None = None,
) -> dict[str, Tensor]:
    """Discrete sites given the others, ``{site: [b, m, *shape]}``: see :meth:`LogDensity.discrete`.

    Args:
        parameters: flat parameters of the model.
    """
    if not model.discrete:
        return {}

    def one(z: Tensor, flat: Tensor, uniform: Tensor, args: tuple[Any, ...]) -> dict[str, Tensor]:
        with model.scope(), model.parameters.given(flat):
            return model.draw_discrete(z, uniform, args)

    b, m = z.shape[:2]
    device = z.device if generator is None else generator.device
    uniform = torch.rand(b * m, model.plan.uniforms, dtype=z.dtype, device=device, generator=generator)
    uniform, z = uniform.to(z.device), z.flatten(0, 1)
    problem = torch.arange(b, device=z.device).repeat_interleave(m)
    flat = z.new_zeros(b, 0) if parameters is None else parameters
    over = vmap(one, in_dims=(0, 0, 0, _in_dims(args, batch)))
    parts = []
    with torch.no_grad():
        for i in range(0, b * m, _CHUNK):
            rows = slice(i, i + _CHUNK)
            given = args if batch is None else rows_of(args, problem[rows])
            parts.append(over(z[rows], flat[problem[rows]], uniform[rows], given))
    if not parts:
        return {d.name: d.first().new_zeros(b, m, *d.first().shape) for d in model.discrete}
    return {d.name: torch.cat([p[d.name] for p in parts]).unflatten(0, (b, m)) for d in model.discrete}


def derived_sites(
    model: Model,
    values: Mapping[str, Tensor],
    args: tuple[Any, ...],
    batch: int | None,
    parameters: Float[Tensor, "b q"] | None = None,
) -> dict[str, Tensor]:
    """Sites of ``pyro.deterministic``, and latent Deltas, at these values of all latent sites.

    Args:
        values: ``{site: [b, m, *shape]}``; what is returned has the same leading axes.
        parameters: flat parameters of the model.
    """
    if not model.derived:
        return {}

    def one(values: dict[str, Tensor], q: Tensor, args: tuple[Any, ...]) -> dict[str, Tensor]:
        with model.scope(), model.parameters.given(q):
            return model.derived_values(values, args)

    b, m = next(iter(values.values())).shape[:2]
    flat = {name: x.flatten(0, 1) for name, x in values.items()}
    problem = torch.arange(b, device=model.scope.device).repeat_interleave(m)
    q = torch.zeros(b, 0, device=model.scope.device) if parameters is None else parameters
    over = vmap(one, in_dims=(0, 0, _in_dims(args, batch)))
    parts = []
    with torch.no_grad():
        for i in range(0, max(1, b * m), _CHUNK):
            rows = slice(i, i + _CHUNK)
            given = args if batch is None else rows_of(args, problem[rows])
            parts.append(over({name: x[rows] for name, x in flat.items()}, q[problem[rows]], given))
    return {name: torch.cat([p[name] for p in parts]).unflatten(0, (b, m)) for name in model.derived}


def layout_of(problem: Problem) -> Layout:
    """How the continuous latents of one of the independent problems lie in a vector."""
    return Model.layout_of(problem.model, some_rows(problem)[0], Scope(problem.dtype, problem.device))


def names_of_draws(problem: Problem) -> list[str]:
    """Names of the sites that a result has draws of: continuous and discrete latents, and derived sites.

    A Dataset is represented by its first item.
    """
    args = problem.args if problem.datasets else some_rows(problem)[0]
    args = pytree.tree_map(lambda x: first_item(x) if isinstance(x, Dataset) else x, args)
    model = Model(problem.model, [args], Scope(problem.dtype, problem.device))
    sites = [site.name for site in model.layout.sites]
    return [*sites, *(site.name for site in model.discrete), *model.derived]


def _in_dims(args: tuple[Any, ...], batch: int | None) -> Any:
    leaves, spec = pytree.tree_flatten(args)
    dims = [0 if isinstance(leaf, Tensor) and batch is not None else None for leaf in leaves]
    return pytree.tree_unflatten(dims, spec) if leaves else None


def few_assignments(problem: Problem) -> bool:
    """Whether all discrete latents can be summed out; hmc samples them where they cannot."""
    scope = Scope(problem.dtype, problem.device)
    model = Model(problem.model, some_rows(problem), scope, MAX_ASSIGNMENTS)
    return not model.plan.given


class _OfProblem(PureFunction):
    """A function of a problem's latents, which knows where the problem would have them start."""

    model: Model
    layout: Layout
    start: dict[str, Tensor]
    whole: tuple[Any, ...]
    """Arguments of the whole problem. Those of the graph, ``args``, may be a part."""

    def take(self, rows: Tensor) -> Self:
        """The function of some of the independent problems; of one problem, itself."""
        taken = super().take(rows)
        if self.batch is not None:
            taken.start = rows_of(self.start, rows)
            taken.whole = taken.args if self.whole is self.args else rows_of(self.whole, rows)
        return taken

    def _share(self, problem: Problem, shard: Shard | None) -> None:
        """Divide the evaluations as the problem says, if it does."""
        self.whole, self.sharing = problem.args, sharing_of(problem)
        self.idle = shard is not None and shard.idle

    def derived(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sites that follow from all the latent ones, ``{site: [b, m, *shape]}``."""
        return derived_sites(self.model, values, self.whole, self.batch)

    def _check_labels(self, problem: Problem, *, part: bool = False) -> None:
        """Refuse starts and names of axes that do not fit the model's sites, before any work.

        Args:
            part: True where ``problem`` has only a part of the data, shorter than ``coords``.

        Raises:
            InputError: naming the site or the axis.
        """
        check_sites(problem.dims, {} if part else problem.coords, self.model.shapes)
        sites = {site.name: site for site in self.layout.sites}
        for name, value in problem.start.items():
            if name not in sites:
                raise InputError("start", f"a value of {name!r}", f"continuous latent sites: {sorted(sites)}")
            site, lead = sites[name], () if problem.batch is None else (problem.batch,)
            if value.shape != (*lead, *site.shape):
                got = f"shape {tuple(value.shape)}"
                raise InputError(f"start of {name!r}", got, f"shape {(*lead, *site.shape)}")
            value = value.to(dtype=problem.dtype, device=problem.device)
            if not (site.support.check(value).all() and site.transform.inv(value).isfinite().all()):
                raise InputError(f"start of {name!r}", "values outside it", f"values inside {site.support}")

    def _fixed(self, b: int) -> Float[Tensor, "b dim"]:
        """The problem's own start, unconstrained; NaN where it gives none."""
        z = torch.full((b, self.layout.dim), torch.nan, dtype=self.dtype, device=self.device)
        for site in self.layout.sites:
            if site.name in self.start:
                value = self.start[site.name].to(z)
                flat = site.transform.inv(value).reshape(-1, site.stop - site.start)
                z[:, site.start : site.stop] = flat
        return z


class LogDensity(_OfProblem):
    """log p(z, data) of a model in unconstrained space, Jacobian included, discrete sites summed out.

    Sites that are given instead (see :func:`log_density`) are at the end of the vector: for each of their
    elements the index of its value, of ``choices`` that it has; the gradient there is zero.
    """

    def __init__(self, problem: Problem, compile: str = "auto", most_assignments: int | None = None) -> None:
        scope = Scope(problem.dtype, problem.device)
        model = Model(problem.model, some_rows(problem), scope, most_assignments)
        if model.parameters:
            raise InputError(
                "problem",
                f"a model with parameters {', '.join(model.parameters.names)}, which have no prior",
                "one without parameters: give them a prior (pyro.sample, PyroSample), or make them constants "
                "by problem.fix(), problem.fix({...}) or problem.fix(result), or use svi or trust_region",
            )
        self.model, self.layout, self.start = model, model.layout, dict(problem.start)
        self._check_labels(problem)
        self.choices = model.plan.choices
        if not model.has_latents:
            raise CaptureError(NO_LATENTS)

        shard = shard_of(problem, model, scope)

        def f(z: Tensor, *args: Any) -> Tensor:
            with scope():
                values, log_jacobian = model.layout.constrain_with_jacobian(z[: model.layout.dim])
                if shard is not None:
                    return shard.log_prob(values, args) + shard.weight * log_jacobian
                given = model.plan.given_values(z[model.layout.dim :])
                return model.log_prob(values | given, args) + log_jacobian

        super().__init__(
            f,
            model.layout.dim + len(self.choices),
            args=problem.args if shard is None else shard.args,
            batch=problem.batch,
            dtype=problem.dtype,
            device=problem.device,
            compile=compile,
        )
        self._share(problem, shard)
        self.check()

    @property
    def summed_out(self) -> list[str]:
        """Names of the discrete sites that are summed out."""
        return [site.name for site in (*self.model.plan.joint, *self.model.plan.local)]

    @property
    def in_vector(self) -> list[str]:
        """Names of the discrete sites that are elements of the vector."""
        return [site.name for site in self.model.plan.given]

    def initial(self, b: int, generator: torch.Generator | None = None) -> Float[Tensor, "b dim"]:
        """Starts of finite density and gradient: ``problem.start`` where given, elsewhere uniform(-2, 2).

        Raises:
            InputError: naming the site, if there is none after 100 tries.
        """
        if self.batch is not None and b != self.batch:
            raise InputError("b", b, f"the {self.batch} problems of the batch")
        padding = self.dim - self.layout.dim
        fixed = nn.functional.pad(self._fixed(b), (0, padding), value=torch.nan)
        z = torch.empty(b, self.dim, dtype=self.dtype, device=self.device)
        bad = torch.ones(b, dtype=torch.bool, device=self.device)
        for _ in range(100):
            device = self.device if generator is None else generator.device
            fresh = torch.rand(b, self.dim, dtype=self.dtype, device=device, generator=generator) * 4 - 2
            if self.choices:
                index = (fresh[:, self.layout.dim :] + 2) / 4 * fresh.new_tensor(self.choices)
                fresh = torch.cat((fresh[:, : self.layout.dim], index.floor()), 1)
            fresh = torch.where(fixed.isnan(), fresh.to(self.device), fixed)
            z = torch.where(bad[:, None], fresh, z)
            value, grad = self.value_and_grad(z)
            bad = ~(value.isfinite() & grad.isfinite().all(-1))
            if not bad.any():
                return z
        raise self.undefined_at(z, int(bad.nonzero()[0]))

    def discrete(
        self, z: Float[Tensor, "b m dim"], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Draws of the discrete sites from their exact conditional given the continuous ones.

        With them a draw of the marginal density becomes one of the whole posterior.

        Args:
            z: unconstrained vectors, ``m`` of each of the ``b`` problems (one where there is no batch).

        Returns:
            ``{site: [b, m, *shape]}``; nothing for a model without discrete sites.
        """
        return draw_discrete(self.model, z, self.whole, self.batch, generator)

    def undefined_at(self, z: Float[Tensor, "b dim"], row: int) -> InputError:
        """The error for a start whose density or gradient is not finite; it names the site."""
        args = self.whole if self.batch is None else rows_of(self.whole, row)
        with self.model.scope():
            values = self.layout.constrain(z[row, : self.layout.dim])
            for d in self.model.discrete:
                values[d.name] = d.first()
            nodes = self.model.run(values, args).nodes
        for name, site in nodes.items():
            if "log_prob_sum" in site and not site["log_prob_sum"].isfinite():
                return InputError(
                    "start", f"log density {site['log_prob_sum'].item()} at site {name!r}", "a finite one"
                )
        return InputError("start", "a gradient that is not finite", "a finite log density and gradient")


class Elbo(_OfProblem):
    """A Monte-Carlo ELBO (or a model's own objective) of a guide's flat parameters.

    Discrete sites of the guide are summed over under its own probabilities (exactly); those that it lacks
    are summed out of the model. ``layout`` is of the continuous latent sites; ``draw_dim`` is the length of
    the noise that one draw of the guide takes (``noise_dim``, but for objectives that need no noise).
    ``weights`` multiply the log probabilities of all sites in a plate, of model and guide.
    """

    def __init__(
        self,
        problem: Problem,
        guide: Callable[[Problem], Any],
        objective: str = "monte_carlo",
        compile: str = "auto",
        weights: Mapping[str, float] | None = None,
    ) -> None:
        scope = Scope(problem.dtype, problem.device, weights or {})
        rows = some_rows(problem)
        row = rows[0]
        self.scope, self.start = scope, dict(problem.start)
        self.model = Model(problem.model, rows, scope)
        self.layout = self.model.layout
        self._check_labels(problem, part=bool(weights))
        if not self.model.has_latents:
            raise CaptureError(NO_LATENTS)
        with scope.drawing():
            module: Any = guide(self._without_parameters(problem))
            if not isinstance(module, nn.Module):
                raise InputError("guide", type(module).__name__, "a factory of guides that are torch modules")
            with sharing(self.model.parameters):
                module(*row)
        self.module: Any = module.to(dtype=problem.dtype, device=problem.device)
        self._guide_parameters = module_parameters(self.module, self.model.parameters)
        self.draw_dim = self._look(row)
        guide_parameters, own = self._guide_parameters, self.model.parameters
        self.shapes, self.guide_dim = guide_parameters.shapes, guide_parameters.dim
        self.every_parameter = Parameters.of(guide_parameters.items + own.items)
        if self._discrete:
            w = self.every_parameter.initial(scope.dtype, scope.device)
            noise = torch.linspace(-1, 1, self.draw_dim, dtype=scope.dtype, device=scope.device)
            with scope.drawing(), torch.no_grad(), self.every_parameter.given(w):
                self.plan = make_plan(self.model.discrete, lambda given: self._pair(noise, row, given))
        self._shard = shard_of(problem, self.model, scope)
        f, noise_dim, args = self._elbo, self.draw_dim, problem.args
        if self._shard is not None:
            read = problem.args if self._reads_data(row) else ()
            f, args = self._partial_elbo(self._shard, row, objective), (self._shard.args, read)
        if objective != "monte_carlo":
            f, noise_dim = self._of_guide(problem.factory("objectives", objective)(problem, self.module)), 0
        self.derivatives = getattr(f, "derivatives", None)
        super().__init__(
            f,
            self.every_parameter.dim,
            args=args,
            noise_dim=noise_dim,
            batch=problem.batch,
            dtype=problem.dtype,
            device=problem.device,
            compile=compile,
        )
        self._share(problem, self._shard)
        self.check()

    @property
    def has_derivatives(self) -> bool:
        """Whether the objective comes with a Hessian of its own."""
        return self.derivatives is not None

    @property
    def has_parameters(self) -> bool:
        """Whether the model has parameters."""
        return bool(self.model.parameters)

    @property
    def has_normal(self) -> bool:
        """Whether the guide has a method ``normal``, which :meth:`normal` calls."""
        return hasattr(self.module, "normal")

    @property
    def recovers_discrete(self) -> bool:
        """Whether :meth:`discrete` draws any site: the model has discrete sites that the guide lacks."""
        return bool(self.model.discrete) and not self._discrete

    def value_grad_hessian(
        self, w: Float[Tensor, "b p"], noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b p"], Float[Tensor, "b p p"]]:
        """Mean over draws, its gradient and its exact Hessian: by the objective's own, where it has them."""
        if self.derivatives is None:
            return super().value_grad_hessian(w, noise)
        self._check_inputs(w, noise)
        self.counts["hessian"] += len(w)
        rows = self.rows(len(w))
        args, each = self.subset(rows).args, []
        for i, x in enumerate(w[rows]):
            each.append(self.derivatives(x.detach(), *(args if self.batch is None else rows_of(args, i))))
        part: Any = tuple(torch.stack(x) for x in zip(*each, strict=True))
        part = part or self._no_rows("hessian", noise)
        value, gradient, hessian = self.reduced(part, "hessian", w)
        return value, gradient, hessian

    def initial(
        self, z0: Float[Tensor, "b dim"] | None = None, parameters: Mapping[str, Any] | None = None
    ) -> Float[Tensor, "b p"]:
        """Flat parameters to start from: the guide's own, moved to ``z0`` by its method ``initial``.

        Without ``z0`` they are moved to ``problem.start``, as far as it is given.

        Args:
            parameters: constrained values of all parameters of the model, as in ``Result.parameters``;
                None: their initial values.

        Raises:
            InputError: if ``z0`` is given and the guide has no method ``initial``.
        """
        if z0 is not None and not hasattr(self.module, "initial"):
            expected = "a guide with a method `initial(layout, latents)`, or starting parameters of the guide"
            raise InputError("start", f"latents for the guide {type(self.module).__name__}", expected)
        b = (self.batch or 1) if z0 is None else len(z0)
        model_part = self._initial_of_model(b, parameters)
        own = {
            p.name: p.unconstrained.expand(b, *p.unconstrained.shape) for p in self._guide_parameters.items
        }
        if z0 is None and self.start:
            w = torch.cat((self._flattened(own), model_part), -1)
            centre = self.unconstrained(w, w.new_zeros(1, self.draw_dim) if self.draw_dim else None)[:, 0]
            fixed = self._fixed(b)
            z0 = torch.where(fixed.isnan(), centre, fixed)
        if z0 is not None and hasattr(self.module, "initial"):
            moved = self.module.initial(self.layout, z0)
            known = dict(self.module.named_parameters())
            if not moved.keys() <= known.keys():
                raise InputError("initial of the guide", sorted(moved), f"names among {sorted(known)}")
            own |= {name: value for name, value in moved.items() if name in own}
        return torch.cat((self._flattened(own), model_part), -1)

    def _without_parameters(self, problem: Problem) -> Problem:
        """For the guide, which may run the model to learn its sites: it then reads constants."""
        if not (self.model.has_statements or self.model.parameters):
            return problem
        flat = self.model.parameters.initial(self.scope.dtype, self.scope.device)
        return replace(problem, model=Fixed(problem.model, self.model.parameters, flat))

    def _initial_of_model(self, b: int, parameters: Mapping[str, Any] | None) -> Float[Tensor, "b q"]:
        model = self.model.parameters
        like = torch.zeros(b, 0, dtype=self.dtype, device=self.device)
        if not model:
            return like
        if parameters is not None:
            return model.unconstrain(parameters, like).expand(b, model.dim)
        rows = [self.whole if self.batch is None else rows_of(self.whole, i) for i in range(self.batch or 1)]
        return torch.stack([self.model.initial_parameters(row) for row in rows]).expand(b, model.dim)

    def derived(self, values: Mapping[str, Tensor], w: Tensor | None = None) -> dict[str, Tensor]:
        """Sites that follow from all the latent ones, and from the parameters in ``w``."""
        q = None if w is None else w[:, self.guide_dim :]
        return derived_sites(self.model, values, self.whole, self.batch, q)

    def normal(self, mean: Float[Tensor, "b dim"], sd: Float[Tensor, "b dim"]) -> Float[Tensor, "b p"]:
        """Flat parameters of independent normals with these moments: for a guide with a method ``normal``."""
        w = self._flattened(self.module.normal(self.layout, mean, sd))
        return torch.cat((w, self._initial_of_model(len(w), None)), -1)

    def _flattened(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, "b p"]:
        return torch.cat([parameters[n].reshape(len(parameters[n]), -1) for n in self.shapes], -1)

    def parameters(self, w: Float[Tensor, "*b p"]) -> dict[str, Tensor]:
        """The guide's (unconstrained) parameters by name."""
        return {p.name: p.take(w) for p in self._guide_parameters.items}

    def model_parameters(self, w: Float[Tensor, "*b p"]) -> dict[str, Tensor]:
        """The model's (constrained) parameters by name."""
        return self.model.parameters.constrain(w[..., self.guide_dim :])

    def sample(self, w: Float[Tensor, "b p"], noise: Float[Tensor, "m e"] | None) -> dict[str, Tensor]:
        """Draws of the guide, constrained: ``{site: [b, m, *shape]}``, from ``noise [m, draw_dim]``."""
        return self._each(w, noise, lambda guide, args: self._values(guide), (self.whole, ()))

    def unconstrained(
        self, w: Float[Tensor, "b p"], noise: Float[Tensor, "m e"] | None
    ) -> Float[Tensor, "b m dim"]:
        """Draws of the guide as unconstrained vectors."""
        return self.layout.unconstrain(self.sample(w, noise))

    def discrete(
        self,
        z: Float[Tensor, "b m dim"],
        generator: torch.Generator | None = None,
        w: Float[Tensor, "b p"] | None = None,
    ) -> dict[str, Tensor]:
        """Discrete sites that the guide lacks, given its draws: see :meth:`LogDensity.discrete`.

        Args:
            w: flat parameters, among them the model's.
        """
        if self._discrete:
            return {}
        q = None if w is None else w[:, self.guide_dim :]
        return draw_discrete(self.model, z, self.whole, self.batch, generator, q)

    def log_ratio(self, w: Float[Tensor, "b p"], noise: Float[Tensor, "m e"] | None) -> Float[Tensor, "b m"]:
        """log p - log q of each draw."""

        def ratio(guide: poutine.Trace, args: tuple[Any, ...]) -> Tensor:
            values = self._values(guide)
            if self._shard is None:
                return self.model.log_prob(values, args) - total(guide)
            return self._shard.log_prob(values, args) - self._shard.weight * total(guide)

        rows = self.rows(len(w))
        if rows.start == rows.stop:
            return self.reduced(self._no_rows("value", noise), "log_ratio", w)
        here = self.subset(rows)
        args = here.whole if self._shard is None else here.args[0]
        part = here._each(w[rows], noise, ratio, (here.whole, args))
        return self.reduced(part, "log_ratio", w)

    def _each(
        self,
        w: Tensor,
        noise: Tensor | None,
        of: Callable[[poutine.Trace, tuple[Any, ...]], Any],
        args: tuple[tuple[Any, ...], tuple[Any, ...]],
    ) -> Any:
        """``of(trace of the guide, arguments of the model)`` for each draw of each row.

        Args:
            args: of the guide and of the model.
        """

        def one(w: Tensor, args: tuple[tuple[Any, ...], tuple[Any, ...]], e: Tensor) -> Any:
            with self.scope(), self.every_parameter.given(w):
                return of(self._guide(e, args[0]), args[1])

        if noise is None:
            noise = w.new_zeros(1, self.draw_dim)
        draws = vmap(one, in_dims=(None, None, 0))
        with torch.no_grad():
            return vmap(draws, in_dims=(0, _in_dims(args, self.batch), None))(w, args, noise)

    def _reads_data(self, row: tuple[Any, ...]) -> bool:
        """Whether the guide reads values of the data, and not only shapes."""
        try:
            with self.scope.drawing(), torch.no_grad():
                nodes: Any = run_guide(self.module, unread(row), Tape()).nodes
        except (RuntimeError, NotImplementedError):  # torch refuses an operation on tensors without values
            return True
        return any(nodes[name]["value"].is_meta for name in self._latents)

    def _partial_elbo(self, shard: Shard, row: tuple[Any, ...], objective: str) -> Callable[..., Tensor]:
        """The part of the ELBO of one process: a function of its part of the data.

        The guide runs for all data on every process. If it reads them, they are an argument too.

        Raises:
            InputError: for an objective in place of the ELBO, whose parts are not known.
            CaptureError: for discrete sites of the guide.
        """
        if objective != "monte_carlo":
            raise InputError("shard", f"'data' with objective={objective!r}", "the Monte-Carlo objective")
        if self._discrete:
            raise CaptureError(
                f"discrete sites {sorted(self._discrete)} of the guide cannot be divided among processes: "
                "leave them to the model, which sums them out"
            )

        shapes = unread(row)

        def part(w: Tensor, *rest: Any) -> Tensor:
            noise, (args, whole) = (rest[0], rest[1:]) if self.draw_dim else (w.new_zeros(0), rest)
            with self.scope(), self.every_parameter.given(w):
                guide = self._guide(noise, whole or shapes)
                return shard.log_prob(self._values(guide), args) - shard.weight * total(guide)

        return part

    def _elbo(self, w: Tensor, *rest: Any) -> Tensor:
        noise, args = (rest[0], rest[1:]) if self.draw_dim else (w.new_zeros(0), rest)
        with self.scope(), self.every_parameter.given(w):
            if self._discrete:
                return self.plan.expectation(lambda given: self._pair(noise, args, given))
            guide = self._guide(noise, args)
            return self.model.log_prob(self._values(guide), args) - total(guide)

    def _of_guide(self, f: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A problem's own objective, which takes the guide's part of the vector."""
        if not self.model.parameters:
            return f

        def with_parameters(w: Tensor, *args: Any) -> Tensor:
            with self.scope(), self.every_parameter.given(w):
                return f(w[: self.guide_dim], *args)

        return with_parameters

    def _guide(
        self, noise: Tensor | None, args: tuple[Any, ...], given: Mapping[str, Tensor] | None = None
    ) -> poutine.Trace:
        """The guide's trace; its discrete sites are ``given``, or drawn."""
        tape = Tape(noise)

        def give(msg: Any) -> Tensor | None:
            if msg["name"] not in self._discrete:
                return None
            site = self._discrete[msg["name"]]
            normals = tape((site.elements.numel(),), self.scope.dtype, self.scope.device)
            return site.draw(msg["fn"], normals) if given is None else given[site.name]

        return run_guide(self.module, args, tape, give)

    def _pair(
        self, noise: Tensor | None, args: tuple[Any, ...], given: Mapping[str, Tensor]
    ) -> tuple[poutine.Trace, poutine.Trace]:
        guide = self._guide(noise, args, given)
        return guide, self.model.run(self._values(guide), args)

    def _values(self, guide: Any) -> dict[str, Tensor]:
        return {name: guide.nodes[name]["value"] for name in self._latents}

    def _look(self, row: tuple[Any, ...]) -> int:
        """Run the guide once, check its sites against the model's, and count the normals it draws."""
        tape, scope = Tape(), self.scope
        discrete = {d.name: d for d in self.model.discrete}
        found_discrete: dict[str, Discrete] = {}

        def give(msg: Any) -> Tensor:
            name, fn = msg["name"], msg["fn"]
            if is_discrete(msg):
                site = found_discrete[name] = find_discrete(msg)
                tape((site.elements.numel(),), scope.dtype, scope.device)
                return site.first()
            before = scope.generator_state()
            value = fn(*msg["args"], **msg["kwargs"])
            if not torch.equal(before, scope.generator_state()):
                raise CaptureError(
                    f"guide site {name!r}: {type(fn).__name__} draws from other noise than standard normals; "
                    "write it as a transform of a Normal"
                )
            return value

        known = Parameters.of(self._guide_parameters.items + self.model.parameters.items)
        watch = Watch(self.module, known)
        with scope.drawing(), watch():
            found = run_guide(self.module, row, tape, give)
        self._guide_parameters = Parameters.of(self._guide_parameters.items + watch.found().items)
        sites = {n: s for n, s in latent_sites(found).items() if not s["infer"].get("is_auxiliary")}
        shapes = {s.name: s.shape for s in self.layout.sites}
        if found_discrete:  # all or none: a part of them would need both a sum and an expectation
            shapes |= {name: d.first().shape for name, d in discrete.items()}
        missing, extra = sorted(shapes.keys() - sites.keys()), sorted(sites.keys() - shapes.keys())
        if missing or extra:
            raise CaptureError(
                f"the guide's sites are not the model's: missing {missing}, not in the model {extra}"
            )
        for name, shape in shapes.items():
            if sites[name]["value"].shape != shape:
                got = tuple(sites[name]["value"].shape)
                raise CaptureError(f"guide site {name!r}: got shape {got}, the model's is {tuple(shape)}")
        for name, site in found_discrete.items():
            if not torch.equal(site.support, discrete[name].support):
                raise CaptureError(f"guide site {name!r}: its support is not the model's")
        self._latents, self._discrete = tuple(shapes), found_discrete
        return tape.used


def log_density(
    problem: Problem, *, compile: str = "auto", most_assignments: int | None = None
) -> LogDensity:
    """The log density of a problem as a function of a flat unconstrained vector.

    Args:
        most_assignments: discrete sites of more joint assignments than this are not summed out but are a
            part of the vector, for a sampler that updates them. None: they are an error beyond 4096.

    Raises:
        CaptureError: if the model cannot be turned into a pure function; it names the site or the cause.
    """
    return LogDensity(problem, compile, most_assignments)


def elbo(
    problem: Problem,
    guide: Callable[[Problem], Any],
    *,
    objective: str = "monte_carlo",
    compile: str = "auto",
) -> Elbo:
    """The ELBO of a guide as a function of its flat parameters and standard-normal noise.

    Args:
        guide: factory of a Pyro guide (a torch module), e.g. one of :mod:`astrozoo.guides.auto`.
        objective: "monte_carlo", or the name of one of ``problem.objectives``.

    Raises:
        CaptureError: if guide and model do not fit, or the guide draws other than standard normals.
    """
    return Elbo(problem, guide, objective, compile)

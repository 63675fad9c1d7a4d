"""Pyro models (with guides) as pure functions of one flat unconstrained vector.

``log_density(problem)`` and ``elbo(problem, guide)`` run a Pyro program once under tracing and keep its
arithmetic: values, gradients, exact Hessians and Hessian-vector products, for a whole batch of vectors at
once. :class:`PureFunction` does the same for any pure torch function. This file and its private helper
``_capture.py`` are the only ones that trace, make graphs or compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from astrozoo._capture import Layout, Model, Scope, Site, Tape, latent_sites, run_guide, total
from astrozoo._graph import Graph, batched, graph_size, trace_graph
from astrozoo.errors import CaptureError, InputError
from astrozoo.types import Problem

__all__ = ["Elbo", "Layout", "LogDensity", "PureFunction", "Site", "elbo", "log_density"]


class PureFunction:
    """A scalar function of a flat vector, to be maximised, as an :class:`astrozoo.types.Objective`.

    Args:
        f: pure torch function ``f(w [dim], noise [noise_dim], *args) -> scalar``; ``f(w, *args)`` where
            ``noise_dim`` is 0. It is written for one vector, one draw and one problem.
        dim: length of ``w``.
        args: further arguments; tensors, or tuples, lists and dicts of them.
        noise_dim: standard normals that one draw needs.
        batch: None, or the number of independent problems along the leading axis of all tensors of ``args``.
        dtype, device: of ``w``.
        compile: "auto", "always" or "never".

    Raises:
        InputError: on an unknown ``compile``.
    """

    def __init__(
        self,
        f: Callable[..., Tensor],
        dim: int,
        *,
        args: tuple[Any, ...] = (),
        noise_dim: int = 0,
        batch: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        compile: str = "auto",
    ) -> None:
        if compile not in ("auto", "always", "never"):
            raise InputError("compile", repr(compile), '"auto", "always" or "never"')
        self.f, self.dim, self.args, self.noise_dim, self.batch = f, dim, args, noise_dim, batch
        self.dtype, self.device, self.compile = dtype, torch.device(device), compile
        self.counts = {"value": 0, "gradient": 0, "hvp": 0, "hessian": 0}
        self._timing = {"compile": 0.0}
        self.notes: list[str] = []
        self._graphs: dict[tuple[str, int | None], dict[int, Graph]] = {}  # (entry, draws) -> rows -> graph
        self._runs: dict[Any, Callable[..., Any]] = {}

    @property
    def compile_seconds(self) -> float:
        """Spent compiling so far."""
        return self._timing["compile"]

    def values(self, w: Float[Tensor, "b p"], noise: Tensor | None = None) -> Float[Tensor, "b m"]:
        """The function for each draw (one column where there is no noise)."""
        return self._call("value", w, noise)

    def value_and_grad(
        self, w: Float[Tensor, "b p"], noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b p"]]:
        """Mean over draws, and its gradient."""
        return self._call("gradient", w, noise)

    def value_grad_hessian(
        self, w: Float[Tensor, "b p"], noise: Tensor | None = None
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b p"], Float[Tensor, "b p p"]]:
        """Mean over draws, its gradient and its exact Hessian."""
        return self._call("hessian", w, noise)

    def hvp(
        self, w: Float[Tensor, "b p"], noise: Tensor | None, v: Float[Tensor, "b p"]
    ) -> Float[Tensor, "b p"]:
        """The Hessian (of the mean over draws) times ``v``."""
        return self._call("hvp", w, noise, v)

    def take(self, rows: Tensor) -> PureFunction:
        """The function of some of the independent problems; of one problem, itself."""
        if self.batch is None:
            return self
        taken = object.__new__(type(self))
        own = {"args": rows_of(self.args, rows), "batch": len(rows), "_runs": {}}
        taken.__dict__ = {**self.__dict__, **own}
        return taken

    def _call(self, entry: str, w: Tensor, noise: Tensor | None, *more: Tensor) -> Any:
        key = (entry, w.shape, w.dtype, None if noise is None else noise.shape)
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = self._prepare(entry, w, noise)
        self.counts[entry] += w.shape[0] * (1 if noise is None else noise.shape[0])
        return run(w, *more) if noise is None else run(w, *more, noise)

    def _prepare(self, entry: str, w: Tensor, noise: Tensor | None) -> Callable[..., Any]:
        """Check the shapes, and find or make the graph that serves them."""
        b = w.shape[0]
        if w.ndim != 2 or w.shape[1] != self.dim or (self.batch is not None and b != self.batch):
            rows = "any" if self.batch is None else self.batch
            raise InputError("w", f"shape {tuple(w.shape)}", f"[{rows}, {self.dim}]")
        if w.dtype != self.dtype:
            raise InputError("w", w.dtype, str(self.dtype))
        if (noise is None) != (self.noise_dim == 0) or (
            noise is not None and noise.shape[1:] != (self.noise_dim,)
        ):
            got = None if noise is None else f"shape {tuple(noise.shape)}"
            raise InputError("noise", got, f"[draws, {self.noise_dim}]" if self.noise_dim else "None")
        made = self._graphs.setdefault((entry, None if noise is None else noise.shape[0]), {})
        size = graph_size(b, set(made))
        if size not in made:
            made[size] = Graph(self._entry(entry), self.compile, self._report)
        graph, tensors = made[size], self._tensors
        if size == b:
            return lambda *inputs: graph(*inputs, *tensors)
        index = torch.arange(size, device=self.device).clamp(max=b - 1)
        padded = tensors if self.batch is None else [t[index] for t in tensors]
        vectors = 2 if entry == "hvp" else 1

        def run(*inputs: Tensor) -> Any:
            out = graph(*(x[index] for x in inputs[:vectors]), *inputs[vectors:], *padded)
            return tuple(x[:b] for x in out) if isinstance(out, tuple | list) else out[:b]

        return run

    def _report(self, seconds: float, note: str | None) -> None:
        self._timing["compile"] += seconds
        if note is not None:
            self.notes.append(note)

    @property
    def _tensors(self) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves(self.args) if isinstance(leaf, Tensor)]

    def _entry(self, entry: str) -> Callable[..., Any]:
        leaves, spec = pytree.tree_flatten(self.args)
        static = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        lead = 2 if self.noise_dim else 1

        def flat(*inputs: Tensor) -> Tensor:
            held = iter(inputs[lead:])
            filled = [next(held) if t else s for t, s in zip(is_tensor, static, strict=True)]
            return self.f(*inputs[:lead], *pytree.tree_unflatten(filled, spec))

        in_dims = (None if self.batch is None else 0,) * sum(is_tensor)
        return batched(flat, entry, in_dims, noisy=self.noise_dim > 0)

    def check(self) -> None:
        """Capture the function once at its smallest size, to fail early.

        Raises:
            CaptureError: if it is not pure tensor arithmetic.
        """
        tensors = self._tensors if self.batch is None else [t[:1] for t in self._tensors]
        w = torch.zeros(1, self.dim, dtype=self.dtype, device=self.device)
        noise = (
            [torch.zeros(1, self.noise_dim, dtype=self.dtype, device=self.device)] if self.noise_dim else []
        )
        with torch.no_grad():
            trace_graph(self._entry("value"), (w, *noise, *tensors))


def rows_of(tree: Any, rows: Any) -> Any:
    """Rows (or one row) of every tensor of a tree."""
    return pytree.tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, tree)


def one_row(problem: Problem) -> tuple[Any, ...]:
    """Arguments of one problem: of the first, in a batch."""
    return problem.args if problem.batch is None else rows_of(problem.args, 0)


class LogDensity(PureFunction):
    """log p(z, data) of a model in unconstrained space, Jacobian included, discrete sites summed out."""

    def __init__(self, problem: Problem, compile: str = "auto") -> None:
        scope = Scope(problem.dtype, problem.device)
        model = Model(problem.model, one_row(problem), scope)
        self.problem, self.model, self.layout = problem, model, model.layout

        def f(z: Tensor, *args: Any) -> Tensor:
            with scope():
                values, log_jacobian = model.layout.constrain_with_jacobian(z)
                return model.log_prob(values, args) + log_jacobian

        super().__init__(
            f,
            model.layout.dim,
            args=problem.args,
            batch=problem.batch,
            dtype=problem.dtype,
            device=problem.device,
            compile=compile,
        )

    def initial(self, b: int, generator: torch.Generator | None = None) -> Float[Tensor, "b dim"]:
        """Starts of finite density and gradient: ``problem.start`` where given, elsewhere uniform(-2, 2).

        Raises:
            InputError: naming the site, if there is none after 100 tries.
        """
        if self.batch is not None and b != self.batch:
            raise InputError("b", b, f"the {self.batch} problems of the batch")
        fixed = self._fixed(b)
        z = torch.empty(b, self.dim, dtype=self.dtype, device=self.device)
        bad = torch.ones(b, dtype=torch.bool, device=self.device)
        for _ in range(100):
            device = self.device if generator is None else generator.device
            fresh = torch.rand(b, self.dim, dtype=self.dtype, device=device, generator=generator) * 4 - 2
            fresh = torch.where(fixed.isnan(), fresh.to(self.device), fixed)
            z = torch.where(bad[:, None], fresh, z)
            value, grad = self.value_and_grad(z)
            bad = ~(value.isfinite() & grad.isfinite().all(-1))
            if not bad.any():
                return z
        raise self._blame(z, int(bad.nonzero()[0]))

    def _fixed(self, b: int) -> Tensor:
        fixed = torch.full((b, self.dim), torch.nan, dtype=self.dtype, device=self.device)
        for site in self.layout.sites:
            if site.name in self.problem.start:
                value = self.problem.start[site.name].to(fixed)
                if value.shape[value.ndim - len(site.shape) :] != site.shape:
                    raise InputError(
                        f"start of {site.name!r}", tuple(value.shape), f"shape {tuple(site.shape)}"
                    )
                flat = site.transform.inv(value).reshape(-1, site.stop - site.start)
                fixed[:, site.start : site.stop] = flat
        return fixed

    def _blame(self, z: Tensor, row: int) -> InputError:
        args = self.args if self.batch is None else rows_of(self.args, row)
        with self.model.scope():
            values = self.layout.constrain(z[row])
            for d in self.model.discrete:
                values[d.name] = d.assign(torch.zeros(d.elements, dtype=torch.long, device=self.device))
            nodes = self.model.run(values, args).nodes
        for name, site in nodes.items():
            if "log_prob_sum" in site and not site["log_prob_sum"].isfinite():
                return InputError(
                    "start", f"log density {site['log_prob_sum'].item()} at site {name!r}", "a finite one"
                )
        return InputError("start", "a gradient that is not finite", "a finite log density and gradient")


class Elbo(PureFunction):
    """A Monte-Carlo ELBO (or a model's own objective) of a guide's flat parameters."""

    layout: Layout

    def __init__(
        self,
        problem: Problem,
        guide: Callable[[Problem], Any],
        objective: str = "monte_carlo",
        compile: str = "auto",
    ) -> None:
        scope = Scope(problem.dtype, problem.device)
        row = one_row(problem)
        self.problem, self.scope = problem, scope
        self.model = Model(problem.model, row, scope)
        self.layout = self.model.layout
        with scope.drawing():
            module = guide(problem)
            if not isinstance(module, nn.Module):
                raise InputError(
                    "guide", type(module).__name__, "a factory of Pyro guides that are torch modules"
                )
            module(*row)
        self.module = module.to(dtype=problem.dtype, device=problem.device)
        self.shapes = {name: p.shape for name, p in self.module.named_parameters()}
        self.draw_dim = self._look(row)
        f, noise_dim = self._elbo, self.draw_dim
        if objective != "monte_carlo":
            f, noise_dim = problem.factory("objectives", objective)(problem, self.module), 0
        super().__init__(
            f,
            sum(s.numel() for s in self.shapes.values()),
            args=problem.args,
            noise_dim=noise_dim,
            batch=problem.batch,
            dtype=problem.dtype,
            device=problem.device,
            compile=compile,
        )

    def initial(self, z0: Float[Tensor, "b dim"] | None = None) -> Float[Tensor, "b p"]:
        """Flat parameters to start from: the guide's own, or moved to ``z0`` by its method ``initial``."""
        b = (self.batch or 1) if z0 is None else len(z0)
        own = {n: p.detach().expand(b, *p.shape) for n, p in self.module.named_parameters()}
        if z0 is not None and hasattr(self.module, "initial"):
            own |= self.module.initial(self.layout, z0)
        if own.keys() != self.shapes.keys():
            raise InputError("initial of the guide", sorted(own), f"names among {sorted(self.shapes)}")
        return torch.cat([own[n].reshape(b, -1) for n in self.shapes], -1)

    def parameters(self, w: Float[Tensor, "*b p"]) -> dict[str, Tensor]:
        """The guide's (unconstrained) parameters by name."""
        parts = torch.split(w, [s.numel() for s in self.shapes.values()], -1)
        return {n: p.reshape(w.shape[:-1] + s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}

    def sample(self, w: Float[Tensor, "b p"], noise: Float[Tensor, "m e"]) -> dict[str, Tensor]:
        """Draws of the guide, constrained: ``{site: [b, m, *shape]}``."""
        return self._each(w, noise, lambda guide, args: {n: guide.nodes[n]["value"] for n in self._latents})

    def unconstrained(self, w: Float[Tensor, "b p"], noise: Float[Tensor, "m e"]) -> Float[Tensor, "b m dim"]:
        """Draws of the guide as unconstrained vectors."""
        return self.layout.unconstrain(self.sample(w, noise))

    def log_ratio(self, w: Float[Tensor, "b p"], noise: Float[Tensor, "m e"]) -> Float[Tensor, "b m"]:
        """log p - log q of each draw."""

        def ratio(guide: poutine.Trace, args: tuple[Any, ...]) -> Tensor:
            values = {n: guide.nodes[n]["value"] for n in self._latents}
            return self.model.log_prob(values, args) - total(guide)

        return self._each(w, noise, ratio)

    def _each(self, w: Tensor, noise: Tensor, of: Callable[[poutine.Trace, tuple[Any, ...]], Any]) -> Any:
        def one(w: Tensor, args: tuple[Any, ...], e: Tensor) -> Any:
            with self.scope():
                return of(run_guide(self.module, self.parameters(w), args, Tape(e)), args)

        leaves, spec = pytree.tree_flatten(self.args)
        dims = [0 if isinstance(leaf, Tensor) and self.batch is not None else None for leaf in leaves]
        in_dims = pytree.tree_unflatten(dims, spec)
        draws = torch.func.vmap(one, in_dims=(None, None, 0))
        with torch.no_grad():
            return torch.func.vmap(draws, in_dims=(0, in_dims if leaves else None, None))(w, self.args, noise)

    def _elbo(self, w: Tensor, *rest: Any) -> Tensor:
        noise, args = (rest[0], rest[1:]) if self.draw_dim else (None, rest)
        with self.scope():
            guide = run_guide(self.module, self.parameters(w), args, Tape(noise))
            values = {n: guide.nodes[n]["value"] for n in self._latents}
            return self.model.log_prob(values, args) - total(guide)

    def _look(self, row: tuple[Any, ...]) -> int:
        """Run the guide once, check its sites against the model's, and count the normals it draws."""
        tape = Tape()

        def give(msg: Any) -> Tensor:
            before = self.scope.generator_state()
            value = msg["fn"](*msg["args"], **msg["kwargs"])
            if not torch.equal(before, self.scope.generator_state()):
                raise CaptureError(
                    f"guide site {msg['name']!r}: {type(msg['fn']).__name__} draws from other noise than "
                    "standard normals; write it as a transform of a Normal"
                )
            return value

        with self.scope.drawing(), torch.no_grad():
            found = run_guide(self.module, dict(self.module.named_parameters()), row, tape, give)
        sites = {n: s for n, s in latent_sites(found).items() if not s["infer"].get("is_auxiliary")}
        expected = {s.name: s.shape for s in self.layout.sites}
        missing, extra = sorted(expected.keys() - sites.keys()), sorted(sites.keys() - expected.keys())
        if missing or extra:
            raise CaptureError(
                f"the guide's sites are not the model's: missing {missing}, not in the model {extra}"
            )
        for name, shape in expected.items():
            if sites[name]["value"].shape != shape:
                got = tuple(sites[name]["value"].shape)
                raise CaptureError(f"guide site {name!r}: got shape {got}, the model's is {tuple(shape)}")
        self._latents: tuple[str, ...] = tuple(expected)
        return tape.used


def log_density(problem: Problem, *, compile: str = "auto") -> LogDensity:
    """The log density of a problem as a function of a flat unconstrained vector.

    Raises:
        CaptureError: if the model cannot be turned into a pure function; it names the site or the cause.
    """
    return LogDensity(problem, compile)


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

"""The torch side of :mod:`astrozoo.density`: batched derivatives of a pure function, as graphs.

A graph is made for each entry point and size when it is first called (of small inputs: once that pays), and
compiled by inductor once that pays. Only ``density.py`` and its private helpers trace, make graphs or
compile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.func import grad, grad_and_value, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from astrozoo._compile import cached as is_cached
from astrozoo._compile import compiled as compile_graph
from astrozoo._compile import difference
from astrozoo._scope import computing
from astrozoo.errors import CaptureError, InputError

__all__ = ["COMPILE_AFTER", "PureFunction", "rows_of"]

COMPILE_AFTER = 10.0
"""Seconds that one graph runs uncompiled before ``compile="auto"`` compiles it (which takes 5 to 40)."""

LOAD_AFTER = 0.5
"""Seconds that one graph runs uncompiled before ``compile="auto"`` loads it from the cache on disk. Loading
takes 1 to 2 s, most of them to import inductor."""

UNCAPTURED, SMALL = 0.25, 100_000
"""Seconds that a function runs as it is before a graph is made of it (which takes about as long, and a short
run needs none), up to this product of rows and elements of other inputs: larger ones take more memory."""

_HESSIAN_CHUNK = 128  # rows of a Hessian that are held at once

Part = TypeVar("Part", Tensor, tuple[Tensor, ...])
"""A result of one process: a tensor or several."""


def batched(
    f: Callable[..., Tensor], entry: str, in_dims: tuple[int | None, ...], noisy: bool
) -> Callable[..., Any]:
    """``(w [b, p], (v [b, p] for "hvp"), (noise [m, e] if noisy), *tensors)`` -> results of an entry point.

    Args:
        f: ``f(w, *tensors)`` or ``f(w, noise, *tensors)``, of one vector and draw.
        entry: "value", "gradient", "hessian" or "hvp".
        in_dims: of ``tensors``.
        noisy: whether ``f`` takes noise.
    """

    def draws(w: Tensor, *rest: Tensor) -> Tensor:
        if not noisy:
            return f(w, *rest)[None]
        return vmap(lambda e: f(w, e, *rest[1:]))(rest[0])

    def mean(w: Tensor, *rest: Tensor) -> Tensor:
        return draws(w, *rest).mean()

    def gradient(w: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        derivative, value = grad_and_value(mean)(w, *rest)
        return value, derivative

    def hessian(w: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def inner(x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            value, derivative = gradient(x, *rest)
            return derivative, (value, derivative)

        curvature, (value, derivative) = jacrev(inner, has_aux=True, chunk_size=_HESSIAN_CHUNK)(w)
        return value, derivative, curvature

    def hvp(w: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        return grad(lambda x: torch.dot(gradient(x, *rest)[1], v))(w)

    entries: dict[str, Callable[..., Any]] = {
        "value": draws,
        "gradient": gradient,
        "hessian": hessian,
        "hvp": hvp,
    }
    vectors = (0, 0) if entry == "hvp" else (0,)
    return vmap(entries[entry], in_dims=vectors + (None,) * noisy + in_dims)


def trace_graph(f: Callable[..., Any], example: tuple[Tensor, ...]) -> torch.fx.GraphModule:
    """The arithmetic of ``f`` at the example's shapes.

    Raises:
        CaptureError: where it depends on values (``.item()``, an ``if`` on a tensor, a random draw).
    """
    shapes = TracingContext(FakeTensorMode())  # else one is made anew, with the stack, for every operation
    try:
        with tracing(shapes):
            graph = make_fx(f)(*example)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CaptureError(
            f"the function cannot be captured: {reason} (it must be pure tensor arithmetic: no .item(), no "
            "Python control flow on tensors, no random draws but Normal sites)"
        ) from error
    _undefined_where_factors_fail(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _undefined_where_factors_fail(graph: torch.fx.GraphModule) -> None:
    """A matrix that has no Cholesky factor is NaN in its own row, not an error for the whole batch."""
    ops, nodes = torch.ops.aten, graph.graph
    for check in nodes.find_nodes(op="call_function", target=ops._linalg_check_errors.default):
        failures = check.args[0]
        found = failures.args[0]
        if found.target is ops.linalg_cholesky_ex.default:
            factor = next(user for user in found.users if user.args[1] == 0)
            with nodes.inserting_before(check):
                ok = nodes.call_function(ops.eq.Scalar, (failures, 0))
                for _ in range(2):
                    ok = nodes.call_function(ops.unsqueeze.default, (ok, -1))
                defined = nodes.call_function(ops.where.ScalarOther, (ok, factor, math.nan))
            factor.replace_all_uses_with(defined, delete_user_cb=lambda user, own=defined: user is not own)
            nodes.erase_node(check)


def graph_size(b: int, made: set[int]) -> int:
    """Rows of the graph that serves ``b`` rows: one already made if not over twice too large."""
    fitting = [n for n in made if b <= n <= 2 * b]
    if fitting:
        return min(fitting)
    return b if not made else 1 << (b - 1).bit_length()


class Graph:
    """One entry point at one size: made and compiled when that pays."""

    def __init__(
        self,
        f: Callable[..., Any],
        compile: str,
        patience: Callable[[], float],
        report: Callable[[float, list[str], str | None], None],
    ) -> None:
        self.f, self.mode, self.patience, self.report = f, compile, patience, report
        self.spent = 0.0
        self.run: Callable[..., Any] | None = None
        self.settled = self.looked_up = self.compiled = False

    def __call__(self, *inputs: Tensor) -> Any:
        if self.compiled:
            return self.run(*inputs)  # type: ignore[misc]
        with computing(inputs[0].dtype), torch.no_grad():
            if self.settled:
                return self.run(*inputs)  # type: ignore[misc]
            if self.run is None and self._brief(inputs):
                start = time.perf_counter()
                try:
                    return self.f(*inputs)
                except RuntimeError:  # a factor of one row fails: only a graph goes on; or it tells the cause
                    self.spent = UNCAPTURED
                finally:
                    self.spent += time.perf_counter() - start
            if self.run is None:
                at_zero = torch.zeros_like(inputs[0])  # where it was checked to run; anywhere else it may not
                self.run = trace_graph(self.f, (at_zero, *inputs[1:]))
                self.settled = self.mode == "never"
            if self._pays(inputs):
                return self._compile(inputs)
            start = time.perf_counter()
            out = self.run(*inputs)
            if inputs[0].is_cuda:
                torch.cuda.synchronize(inputs[0].device)
            self.spent += time.perf_counter() - start
            return out

    def _brief(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether it may be that no graph will ever pay."""
        soon = self.mode == "always" or (self.mode == "auto" and self.patience() <= 0)
        small = len(inputs[0]) * sum(x.numel() for x in inputs[1:]) <= SMALL
        return small and not soon and self.spent < UNCAPTURED

    def _pays(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether to compile the graph now, or to load it where it is cached."""
        if self.mode == "auto" and not self.looked_up and LOAD_AFTER < self.spent <= self.patience():
            self.looked_up = True
            return is_cached(self.run, inputs)  # type: ignore[arg-type]
        return self.mode == "always" or (self.mode == "auto" and self.spent > self.patience())

    def _compile(self, inputs: tuple[Tensor, ...]) -> Any:
        """Compile, compare with the uncompiled graph, and keep whichever is right."""
        graph: Any = self.run
        expected, nearby = graph(*inputs), graph(_next_float(inputs[0]), *inputs[1:])
        self.settled = True
        start = time.perf_counter()
        try:
            compiled = compile_graph(graph, inputs)
            notes = list(compiled.notes)
            wrong = difference(compiled.run(*inputs), expected, nearby)
            if wrong is not None and compiled.cached:
                notes.append(f"a cached graph was compiled again: {wrong}")
                compiled = compile_graph(graph, inputs, fresh=True)
                wrong = difference(compiled.run(*inputs), expected, nearby)
        except Exception as error:  # whatever a compiler may raise: the graph itself still runs
            note = f"not compiled: {type(error).__name__}: {str(error)[:200]}"
            self.report(time.perf_counter() - start, [note], None)
            return expected
        if wrong is None:
            self.run, self.compiled = compiled.run, True
        else:
            notes.append(wrong)
        self.report(time.perf_counter() - start, notes, "cached" if compiled.cached else "fresh")
        return expected


def _next_float(x: Tensor) -> Tensor:
    """Each element moved by one unit in the last place."""
    return torch.nextafter(x, torch.full_like(x, math.inf))


class PureFunction:
    """A scalar function of a flat vector, to be maximised, as an :class:`astrozoo.objective.Objective`.

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
        self.compiled = {"fresh": 0, "cached": 0}
        self._timing = {"compile": 0.0, "patience": COMPILE_AFTER}
        self.notes: list[str] = []
        self._graphs: dict[tuple[str, int | None], dict[int, Graph]] = {}  # (entry, draws) -> rows -> graph
        self._runs: dict[Any, Callable[..., Any]] = {}

    @property
    def compile_seconds(self) -> float:
        """Spent compiling so far."""
        return self._timing["compile"]

    def compile_soon(self) -> None:
        """Have ``compile="auto"`` compile each graph when it is next called: much work is to come."""
        self._timing["patience"] = 0.0

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

    def take(self, rows: Tensor) -> Self:
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
        inputs = (w, *more) if noise is None else (w, *more, noise)
        # compiled code takes strides for granted
        return self.reduced(run(*[x.detach().contiguous() for x in inputs]))

    def reduced(self, part: Part) -> Part:
        """The sum, over all processes that share the data, of a result of this process.

        It is the one place where a communicator enters; methods never see it. Every result (values of each
        draw, gradients, Hessians, Hessian-vector products, density ratios) is linear in the log density. If
        the function of each process is the log likelihood of its data, and the prior (or the density ratio
        of prior and guide) is in that of one process only, the sums over processes of the results are the
        results of the whole. Here one process has all data, and the result is returned as it is.
        """
        return part

    def _prepare(self, entry: str, w: Tensor, noise: Tensor | None) -> Callable[..., Any]:
        """Check the shapes, and find or make the graph that serves them."""
        self._check_inputs(w, noise)
        b = w.shape[0]
        made = self._graphs.setdefault((entry, None if noise is None else noise.shape[0]), {})
        size = graph_size(b, set(made))
        if size not in made:
            made[size] = Graph(
                self._entry(entry), self.compile, lambda: self._timing["patience"], self._report
            )
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

    def _check_inputs(self, w: Tensor, noise: Tensor | None) -> None:
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

    def _report(self, seconds: float, notes: list[str], source: str | None) -> None:
        self._timing["compile"] += seconds
        self.notes += [note for note in notes if note not in self.notes]
        if source is not None:
            self.compiled[source] += 1

    @property
    def _tensors(self) -> list[Tensor]:
        return [t.detach().contiguous() for t in pytree.tree_leaves(self.args) if isinstance(t, Tensor)]

    def _flat(self) -> Callable[..., Tensor]:
        """The function with the tensors of ``args`` as a flat list."""
        leaves, spec = pytree.tree_flatten(self.args)
        static = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        lead = 2 if self.noise_dim else 1

        def flat(*inputs: Tensor) -> Tensor:
            held = iter(inputs[lead:])
            filled = [next(held) if t else s for t, s in zip(is_tensor, static, strict=True)]
            return self.f(*inputs[:lead], *pytree.tree_unflatten(filled, spec))

        return flat

    def _entry(self, entry: str) -> Callable[..., Any]:
        in_dims = (None if self.batch is None else 0,) * len(self._tensors)
        return batched(self._flat(), entry, in_dims, noisy=self.noise_dim > 0)

    def check(self) -> None:
        """Try the function at its smallest size, to fail early.

        Raises:
            CaptureError: if it is not pure tensor arithmetic.
        """
        tensors = [t[None] if self.batch is None else t[:1] for t in self._tensors]
        w = torch.zeros(1, self.dim, dtype=self.dtype, device=self.device)
        noise = (
            [torch.zeros(1, self.noise_dim, dtype=self.dtype, device=self.device)] if self.noise_dim else []
        )
        with computing(self.dtype), torch.no_grad():
            try:  # quick, but also refuses what depends on the values of data that one graph may hold fixed
                batched(self._flat(), "value", (0,) * len(tensors), self.noise_dim > 0)(w, *noise, *tensors)
            except (RuntimeError, ValueError, NotImplementedError):
                held = tensors if self.batch is not None else self._tensors
                trace_graph(self._entry("value"), (w, *noise, *held))


def rows_of(tree: Any, rows: Any) -> Any:
    """Rows (or one row) of every tensor of a tree."""
    return pytree.tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, tree)

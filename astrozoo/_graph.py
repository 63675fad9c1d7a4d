"""The torch side of :mod:`astrozoo.density`: batched derivatives of a pure function, as graphs.

A graph is made for each entry point and size when it is first called (of small inputs: once that pays), and
compiled by inductor once that pays. Only ``density.py`` and its private helpers trace, make graphs or
compile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.func import grad, grad_and_value, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from astrozoo._compile import Compiled, RejectedGraphError, compare
from astrozoo._compile import cached as is_cached
from astrozoo._compile import compiled as compile_graph
from astrozoo._compile import reject as reject_graph
from astrozoo._scope import computing
from astrozoo._time_limit import time_limit
from astrozoo.errors import CaptureError

__all__ = ["Graph", "batched", "graph_size", "trace_graph"]

LOAD_AFTER = 0.5
"""[s] Processor time that a graph runs uncompiled before ``compile="auto"`` loads compiled code from the
cache on disk. Loading takes 1 to 2 s, most of it to import inductor."""

UNCAPTURED = 0.25
"""[s] Processor time that a function runs as it is before a graph is made of it. Making the graph takes
about as long, and a short run does not need it."""
SMALL = 100_000
"""Largest product of rows and elements of other inputs with which a function runs as it is. Larger ones take
more memory than a graph does."""

COMPILE_LIMIT = 300.0
"""[s] The longest that one graph may take to be compiled, or to wait for another process that compiles it.
Beyond it the uncompiled graph is used, and a note says so. The largest graph of the zoo takes 40 s on two
idle cores, and five times as long on busy ones."""

MAX_UNCHECKED_CALLS = 128
"""Calls of a graph after which compiled code is discarded if no row of any could be compared. A call is
compared if its number is a power of two, so that at most 8 of them cost more than the graph alone."""

_HESSIAN_CHUNK = 128
"""Rows of a Hessian that are computed at once. It limits the memory of the intermediate results."""


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
        self.candidate: Compiled | None = None  # compiled, but not yet compared with the graph
        self.calls = 0  # since it was compiled
        self.compile_seconds = 0.0

    def __call__(self, *inputs: Tensor) -> Any:
        if self.compiled:
            return self.run(*inputs)  # type: ignore[misc]
        with computing(inputs[0].dtype), torch.no_grad():
            if self.settled:
                return self.run(*inputs)  # type: ignore[misc]
            if self.run is None and self._brief(inputs):
                start = _clock(inputs)
                try:
                    return self.f(*inputs)
                except RuntimeError:  # a factor of one row fails: only a graph goes on; or it tells the cause
                    self.spent = UNCAPTURED
                finally:
                    self.spent += _clock(inputs) - start
            if self.run is None:
                at_zero = torch.zeros_like(inputs[0])  # where it was checked to run; anywhere else it may not
                self.run = trace_graph(self.f, (at_zero, *inputs[1:]))
                self.settled = self.mode == "never"
            if self.candidate is not None:
                return self._check(inputs)
            if self._pays(inputs):
                return self._compile(inputs)
            start = _clock(inputs)
            out = self.run(*inputs)
            self.spent += _clock(inputs) - start
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

    def _compile(self, inputs: tuple[Tensor, ...], fresh: bool = False) -> Any:
        """Compile or load the graph, and use the result once it has been compared with the graph."""
        graph: Any = self.run
        start = time.perf_counter()
        try:
            with time_limit(COMPILE_LIMIT):
                candidate = compile_graph(graph, inputs, fresh)
        except RejectedGraphError as error:
            self._reject(f"{error} (found before; the cache has a record of it)", 0.0)
            return graph(*inputs)
        except Exception as error:  # whatever a compiler may raise: the graph itself still runs
            seconds = time.perf_counter() - start
            self._reject(f"{type(error).__name__}: {str(error)[:200]} (after {seconds:.1f} s)", seconds)
            return graph(*inputs)
        self.candidate, self.calls, self.compile_seconds = candidate, 0, time.perf_counter() - start
        self.report(self.compile_seconds, list(candidate.notes), None)
        return self._check(inputs)

    def _check(self, inputs: tuple[Tensor, ...]) -> Any:
        """The graph's results; at calls 1, 2, 4, 8 ... they are compared with those of the compiled code."""
        graph: Any = self.run
        candidate = self.candidate
        expected = graph(*inputs)
        self.calls += 1
        if candidate is None or self.calls & (self.calls - 1):  # not a power of two
            return expected
        nearby = graph(_next_float(inputs[0]), *inputs[1:])
        start = time.perf_counter()
        try:
            rows, fault = compare(candidate.run(*inputs), expected, nearby)
        except Exception as error:  # whatever generated code may raise
            rows, fault = 0, f"{type(error).__name__}: {str(error)[:200]}"
        seconds = time.perf_counter() - start
        if fault is not None and candidate.cached:
            self.report(seconds, [f"a cached graph was compiled again: {fault}"], None)
            return self._compile(inputs, fresh=True)
        if fault is not None:
            reject_graph(graph, inputs, fault)
            self._reject(f"{fault} (discarded after {self.compile_seconds:.1f} s of compiling)", seconds)
        elif rows:
            self.run, self.candidate = candidate.run, None
            self.settled = self.compiled = True
            self.report(seconds, [], "cached" if candidate.cached else "fresh")
        elif self.calls >= MAX_UNCHECKED_CALLS:
            self._reject(
                f"in {self.calls} calls no row was finite and well-conditioned, so that the compiled code "
                f"could not be checked (discarded after {self.compile_seconds:.1f} s of compiling)",
                seconds,
            )
        return expected

    def _reject(self, reason: str, seconds: float) -> None:
        """Run the graph uncompiled from now on."""
        self.settled, self.candidate = True, None
        self.report(seconds, [f"not compiled: {reason}"], None)


def _clock(inputs: tuple[Tensor, ...]) -> float:
    """[s] A clock of the work on these inputs: on a busy CPU it stands still while other processes run."""
    if inputs[0].is_cuda:
        torch.cuda.synchronize(inputs[0].device)
        return time.perf_counter()
    return time.thread_time()


def _next_float(x: Tensor) -> Tensor:
    """Each element moved by one unit in the last place."""
    return torch.nextafter(x, torch.full_like(x, math.inf))

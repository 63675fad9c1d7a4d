"""The torch side of :mod:`astrozoo.density`: batched derivatives of a pure function, as graphs.

A graph is made for each entry point and size when it is first called, and compiled by inductor once that
pays. Only ``density.py`` and its private helpers trace, make graphs or compile.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from astrozoo.errors import CaptureError

__all__ = ["COMPILE_AFTER", "Graph", "batched", "graph_size", "trace_graph"]

COMPILE_AFTER = 10.0
"""Seconds that one graph runs uncompiled before ``compile="auto"`` compiles it (which takes 5 to 40)."""

_HESSIAN_CHUNK = 128  # rows of a Hessian that are held at once


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

    row: Callable[..., Any] = {"value": draws, "gradient": gradient, "hessian": hessian, "hvp": hvp}[entry]
    vectors = (0, 0) if entry == "hvp" else (0,)
    return vmap(row, in_dims=vectors + (None,) * noisy + in_dims)


def trace_graph(f: Callable[..., Any], example: tuple[Tensor, ...]) -> torch.fx.GraphModule:
    """The arithmetic of ``f`` at the example's shapes.

    Raises:
        CaptureError: where it depends on values (``.item()``, an ``if`` on a tensor, a random draw).
    """
    try:
        graph = make_fx(f)(*example)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CaptureError(
            f"the function cannot be captured: {reason} (it must be pure tensor arithmetic: no .item(), no "
            "Python control flow on tensors, no random draws but Normal sites)"
        ) from error
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def graph_size(b: int, made: set[int]) -> int:
    """Rows of the graph that serves ``b`` rows: one already made if not over twice too large."""
    fitting = [n for n in made if b <= n <= 2 * b]
    if fitting:
        return min(fitting)
    return b if not made else 1 << (b - 1).bit_length()


class Graph:
    """One entry point at one size: made when first called, compiled when that pays."""

    def __init__(
        self, f: Callable[..., Any], compile: str, report: Callable[[float, str | None], None]
    ) -> None:
        self.f, self.mode, self.report = f, compile, report
        self.spent = 0.0
        self.run: Callable[..., Any] | None = None
        self.settled = False

    def __call__(self, *inputs: Tensor) -> Any:
        if self.settled:
            return self.run(*inputs)  # type: ignore[misc]
        with torch.no_grad():
            if self.run is None:
                self.run = trace_graph(self.f, inputs)
                self.settled = self.mode == "never"
            if self.mode == "always" or (self.mode == "auto" and self.spent > COMPILE_AFTER):
                return self._compile(inputs)
            start = time.perf_counter()
            out = self.run(*inputs)
            if inputs[0].is_cuda:
                torch.cuda.synchronize(inputs[0].device)
            self.spent += time.perf_counter() - start
            return out

    def _compile(self, inputs: tuple[Tensor, ...]) -> Any:
        """Compile, compare with the uncompiled graph, and keep whichever is right."""
        expected = self.run(*inputs)  # type: ignore[misc]
        self.settled = True
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from torch._inductor.compile_fx import compile_fx  # slow to import, and warns

                compiled = compile_fx(self.run, list(inputs))  # type: ignore[arg-type]
                got = compiled(*inputs)
        except Exception as error:  # whatever a compiler may raise: the graph itself still runs
            self.report(
                time.perf_counter() - start, f"not compiled: {type(error).__name__}: {str(error)[:200]}"
            )
            return expected
        wrong = _difference(got, expected)
        if wrong is None:
            self.run = compiled
        self.report(time.perf_counter() - start, wrong)
        return expected


def _difference(got: Any, expected: Any) -> str | None:
    pairs = list(zip(got, expected, strict=True)) if isinstance(expected, tuple | list) else [(got, expected)]
    for a, e in pairs:
        tolerance = 1e-8 if e.dtype == torch.float64 else 1e-3
        if not torch.allclose(
            a, e, rtol=tolerance, atol=tolerance * float(e.nan_to_num().abs().max()), equal_nan=True
        ):
            return f"compiled code discarded: it differs by {float((a - e).abs().max()):.2e} from the graph"
    return None

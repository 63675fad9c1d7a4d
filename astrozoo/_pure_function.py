"""A pure torch function and its batched derivatives, each served by a graph of :mod:`astrozoo._graph`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from astrozoo._graph import Graph, batched, graph_size, trace_graph
from astrozoo._scope import computing
from astrozoo._sharing import Sharing
from astrozoo.errors import InputError

__all__ = ["COMPILE_AFTER", "PureFunction", "rows_of"]

COMPILE_AFTER = 10.0
"""[s] Processor time that a graph runs uncompiled before ``compile="auto"`` compiles it (5 to 40 s)."""

Part = TypeVar("Part", Tensor, tuple[Tensor, ...])
"""A result of one process: a tensor or several."""


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
        self._subsets: dict[tuple[int, int], Any] = {}
        self.sharing: Sharing | None = None
        """How processes divide the evaluations; None: there is one process."""
        self.idle = False
        """True if this process has no data: it has no part in a sum."""

    @property
    def compile_seconds(self) -> float:
        """Time spent compiling so far [s]."""
        return self._timing["compile"]

    def compile_soon(self) -> None:
        """Make ``compile="auto"`` compile each graph at its next call. For callers that know of much work."""
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
        """The function of the independent problems ``rows``. Without a batch, the function itself."""
        if self.batch is None:
            return self
        subset = object.__new__(type(self))
        changed = {"args": rows_of(self.args, rows), "batch": len(rows), "_runs": {}, "_subsets": {}}
        subset.__dict__ = {**self.__dict__, **changed}
        return subset

    def _call(self, entry: str, w: Tensor, noise: Tensor | None, *more: Tensor) -> Any:
        self.counts[entry] += w.shape[0] * (1 if noise is None else noise.shape[0])
        inputs = (w, *more) if noise is None else (w, *more, noise)
        # compiled code assumes contiguous inputs
        inputs = tuple(x.detach().contiguous() for x in inputs)
        if self.sharing is None:
            return self.reduced(self._evaluate(entry, noise, *inputs), entry, *inputs)
        self._check_inputs(w, noise)
        vectors, rows = 1 + len(more), self.rows(len(w))
        if rows.start == rows.stop:
            return self.reduced(self._no_rows(entry, noise), entry, *inputs)
        here = (*(x[rows] for x in inputs[:vectors]), *inputs[vectors:])
        part = self.subset(rows)._evaluate(entry, noise, *here)
        return self.reduced(part, entry, *inputs)

    def _evaluate(self, entry: str, noise: Tensor | None, w: Tensor, *rest: Tensor) -> Any:
        """The result of this process alone."""
        key = (entry, w.shape, w.dtype, None if noise is None else noise.shape)
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = self._prepare(entry, w, noise)
        return run(w, *rest)

    def rows(self, count: int) -> slice:
        """The rows of a batch that this process evaluates: all, unless processes divide them."""
        return slice(0, count) if self.sharing is None else self.sharing.rows(count)

    def subset(self, rows: slice) -> Self:
        """The function of adjacent independent problems. Without a batch, the function itself."""
        if self.batch is None or (rows.start == 0 and rows.stop == self.batch):
            return self
        key = rows.start, rows.stop
        if key not in self._subsets:
            self._subsets[key] = self.take(torch.arange(*key, device=self.device))
        return self._subsets[key]

    def _no_rows(self, entry: str, noise: Tensor | None) -> Any:
        """The result of a process that has none of the rows."""
        value = torch.zeros(0, dtype=self.dtype, device=self.device)
        vector = value.new_zeros(0, self.dim)
        if entry in ("value", "hvp"):
            return vector if entry == "hvp" else value.new_zeros(0, 1 if noise is None else len(noise))
        return (value, vector, value.new_zeros(0, self.dim, self.dim))[: 2 if entry == "gradient" else 3]

    def reduced(self, part: Part, entry: str, *state: Tensor) -> Part:
        """The result of all processes that share the run, from that of this process.

        It is the one place where a communicator enters; methods never see it. If processes divide the data,
        it is the sum. Every result (values of each draw, gradients, Hessians, Hessian-vector products,
        density ratios) is linear in the log density. The function of each process is the log likelihood of
        its data and an equal share of the prior (or of the density ratio of prior and guide), so that the
        sums over processes of the results are the results of the whole. If processes divide the rows, it is
        all rows. One process returns the result as it is.

        Args:
            part: the result of this process.
            entry: what was evaluated.
            state: the point of evaluation and its noise, which must be the same on all processes.
        """
        if self.sharing is None:
            return part
        parts: tuple[Tensor, ...] = tuple(part) if isinstance(part, tuple | list) else (part,)
        if self.idle:
            parts = tuple(torch.zeros_like(x) for x in parts)
        whole = self.sharing.joined(parts, entry, state)
        return whole if isinstance(part, tuple | list) else whole[0]  # type: ignore[return-value]

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
            tensors = iter(inputs[lead:])
            filled = [next(tensors) if t else s for t, s in zip(is_tensor, static, strict=True)]
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
            # The first try is quick, but also rejects code that depends on values of data, which a graph may
            # contain as constants.
            try:
                batched(self._flat(), "value", (0,) * len(tensors), self.noise_dim > 0)(w, *noise, *tensors)
            except (RuntimeError, ValueError, NotImplementedError):
                inputs = tensors if self.batch is not None else self._tensors
                trace_graph(self._entry("value"), (w, *noise, *inputs))


def rows_of(tree: Any, rows: Any) -> Any:
    """Rows (or one row) of every tensor of a tree."""
    return pytree.tree_map(lambda leaf: leaf[rows] if isinstance(leaf, Tensor) else leaf, tree)

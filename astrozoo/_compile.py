"""Graphs compiled by inductor, loaded from the cache on disk where an equal graph was compiled before.

Two graphs are equal if their operations and the shapes, strides and types of their inputs are. Tensors that
the function has closed over become inputs first, so that their values are no part of the compiled code: all
lenses of one shape share one. What is saved is torch's ``CompiledArtifact``, which torch loads with
``pickle``: :mod:`astrozoo._cache` uses a folder only if nobody but its owner can write to it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from astrozoo._cache import Store, open_store

__all__ = [
    "Compiled",
    "RejectedGraphError",
    "announcing",
    "cached",
    "compare",
    "compiled",
    "graph_key",
    "lift_constants",
    "reject",
]

_ARTIFACT = "artifact.bin"
"""File of a cached graph with its compiled code."""

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Largest difference between compiled code and its graph, as a fraction of a row's largest element.
Results of correct code differ by 1e-16 to 1e-13 in float64, and by up to 1e-4 in float32."""

ROUNDINGS = 100.0
"""Multiple of the graph's change, when its inputs move by one unit in the last place, that is added to
the tolerance. Rounding enters at each of about a thousand operations, and their errors add up like a
random walk."""

MAX_ROUNDING = 1e-3
"""Rows in which that change exceeds this fraction of the row's size are not compared."""

_ANNOUNCE: ContextVar[Callable[[str], None] | None] = ContextVar("announce", default=None)
"""Called with a line of text when a compilation begins and ends."""

_LOCK = threading.RLock()
"""Inductor's settings and its cache folder are global to the process."""


class RejectedGraphError(Exception):
    """The compiler made wrong code of an equal graph before. The message says what was wrong."""


@dataclass(frozen=True)
class Compiled:
    """A compiled graph.

    Attributes:
        run: the compiled graph, called like the graph it was made from.
        cached: whether it was loaded from disk.
        notes: what the user should know, such as a damaged cache.
    """

    run: Callable[..., Any]
    cached: bool
    notes: tuple[str, ...] = ()


@contextmanager
def announcing(announce: Callable[[str], None]) -> Iterator[None]:
    """Have ``announce`` called with a line of text when a compilation begins and ends."""
    token = _ANNOUNCE.set(announce)
    try:
        yield
    finally:
        _ANNOUNCE.reset(token)


def cached(graph: torch.fx.GraphModule, inputs: tuple[Tensor, ...]) -> bool:
    """Whether an equal graph is on disk."""
    store, _ = open_store()
    return store is not None and store.contains(graph_key(graph, inputs))


def compiled(graph: torch.fx.GraphModule, inputs: tuple[Tensor, ...], fresh: bool = False) -> Compiled:
    """The graph, compiled or loaded.

    Args:
        graph: of tensor operations; it is left as it is.
        inputs: example inputs, whose shapes are those of all later calls.
        fresh: compile again, and replace what the cache has.

    Raises:
        RejectedGraphError: if the compiled code of an equal graph was found to be wrong on this machine type.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        key = graph_key(graph, inputs)
        lifted, constants, single = lift_constants(graph)
        example = [*inputs, *constants]
        store, note = open_store()
        if store is None:
            return Compiled(
                _callable(_compile(lifted, example), constants, single), False, (note,) if note else ()
            )
        with store.lock(key):
            if reason := store.rejection(key):
                raise RejectedGraphError(reason)
            notes = []
            if fresh:
                store.remove(key)
            if store.contains(key):
                try:
                    return Compiled(_callable(_load(store, key), constants, single), True)
                except Exception as error:  # a damaged file may raise anything
                    notes.append(
                        f"a cached graph was compiled again: {type(error).__name__}: {str(error)[:200]}"
                    )
                    store.remove(key)
            artifact, unsaved = _compile_into(store, key, lifted, example)
            return Compiled(_callable(artifact, constants, single), False, (*notes, *unsaved))


def reject(graph: torch.fx.GraphModule, inputs: tuple[Tensor, ...], reason: str) -> None:
    """Record on disk that the compiler makes wrong code of this graph, so that it is not compiled again."""
    with _LOCK:
        store, _ = open_store()
        if store is not None:
            key = graph_key(graph, inputs)
            with store.lock(key):
                store.reject(key, reason)


def graph_key(graph: torch.fx.GraphModule, inputs: tuple[Tensor, ...]) -> str:
    """A hash of all that the compiled code depends on, except :func:`astrozoo._cache.machine`."""
    from torch._functorch import config as functorch
    from torch._inductor import config as inductor

    h = hashlib.sha256(graph.code.encode())
    for module in graph.children():  # of control flow
        if isinstance(module, torch.fx.GraphModule):
            h.update(module.code.encode())
    constants = [getattr(graph, n.target) for n in graph.graph.find_nodes(op="get_attr")]
    for x in (*inputs, *(c for c in constants if isinstance(c, Tensor))):
        h.update(f"{tuple(x.shape)}{x.stride()}{x.dtype}{x.device}".encode())
    for x in inputs:
        if x.is_cuda:
            h.update(f"{torch.cuda.get_device_name(x.device)}{torch.version.cuda}".encode())
    for config in (inductor, functorch):
        settings = config.save_config_portable()  # type: ignore[attr-defined]
        h.update(repr(sorted(settings.items(), key=lambda item: item[0])).encode())
    h.update(f"{torch.get_num_threads()}".encode())  # written into the loops
    return h.hexdigest()[:32]


def lift_constants(graph: torch.fx.GraphModule) -> tuple[torch.fx.GraphModule, list[Tensor], bool]:
    """A copy with its arithmetic on constants done and its constants as further inputs.

    Returns:
        The copy, which returns a tuple; the constants; and whether the graph returned a single tensor.
    """
    from torch._inductor.constant_folding import constant_fold

    folded = deepcopy(graph)
    _read_constants_once(folded)
    constant_fold(folded)
    nodes = folded.graph
    last_input = [node for node in nodes.nodes if node.op == "placeholder"][-1]
    constants: list[Tensor] = []
    for node in nodes.find_nodes(op="get_attr"):
        value = getattr(folded, node.target)
        if not isinstance(value, Tensor):  # a branch of control flow
            continue
        with nodes.inserting_after(last_input):
            last_input = nodes.placeholder(f"constant_{len(constants)}")
        last_input.meta = dict(node.meta)
        node.replace_all_uses_with(last_input)
        nodes.erase_node(node)
        constants.append(value.detach().contiguous())
    output = next(iter(reversed(nodes.nodes)))
    single = not isinstance(output.args[0], tuple | list)
    if single:
        output.args = ((output.args[0],),)
    branches = {str(node.target): getattr(folded, node.target) for node in nodes.find_nodes(op="get_attr")}
    return torch.fx.GraphModule(branches, nodes), constants, single


def _read_constants_once(graph: torch.fx.GraphModule) -> None:
    """Give each constant one reader: folding drops a constant as soon as one of its readers is folded."""
    readers: dict[Any, torch.fx.Node] = {}
    for node in graph.graph.find_nodes(op="get_attr"):
        first = readers.setdefault(node.target, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.graph.erase_node(node)


def _callable(artifact: Any, constants: list[Tensor], single: bool) -> Callable[..., Any]:
    def run(*inputs: Tensor) -> Any:
        out = artifact(*inputs, *constants)
        return out[0] if single else tuple(out)

    return run


def _compile(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
    from torch._inductor import standalone_compile

    announce = _ANNOUNCE.get() or (lambda text: None)
    announce(f"compiling a graph of {len(graph.graph.nodes)} operations ...")
    start = time.monotonic()
    try:
        return standalone_compile(graph, inputs, dynamic_shapes="from_example_inputs", aot=True)  # type: ignore[arg-type]
    finally:
        announce(f"the compiler ended after {time.monotonic() - start:.0f} s")


def _compile_into(
    store: Store, key: str, graph: torch.fx.GraphModule, inputs: list[Tensor]
) -> tuple[Any, list[str]]:
    """Compile, and save the result with its kernels; say so if it cannot be saved."""
    artifacts = []

    def fill(folder: Path) -> None:
        with _kernels_in(folder):
            artifacts.append(_compile(graph, inputs))
            artifacts[0].save(path=str(folder / _ARTIFACT))

    try:
        store.add(key, fill)
    except Exception as error:
        if not artifacts:
            raise
        return artifacts[0], [f"a compiled graph was not cached: {type(error).__name__}: {str(error)[:200]}"]
    return artifacts[0], []


def _load(store: Store, key: str) -> Any:
    from torch._inductor import CompiledArtifact

    store.verify(key)
    folder = store.path(key)
    with _kernels_in(folder):
        return CompiledArtifact.load(path=str(folder / _ARTIFACT))


@contextmanager
def _kernels_in(folder: Path) -> Iterator[None]:
    """Have inductor write and look for its kernels in this folder."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def compare(got: Any, expected: Any, nearby: Any) -> tuple[int, str | None]:
    """Whether compiled code and its graph agree, as far as rounding allows.

    Each row of each result is compared by its own size, so that a row whose density is astronomically
    large cannot hide or raise an error in another. Rows in which the graph itself is not finite are left out,
    and so are rows where rounding alone changes the graph's result by more than :data:`MAX_ROUNDING` of its
    size.

    Args:
        got: of the compiled code, a tensor ``[row, ...]`` or a tuple of them.
        expected: of the graph.
        nearby: of the graph at inputs that differ by one unit in the last place.

    Returns:
        How many rows could be compared (of the result with the fewest), and the first difference, if any.
    """
    as_tuple = [x if isinstance(x, tuple | list) else (x,) for x in (got, expected, nearby)]
    rows = []
    for a, e, n in zip(*as_tuple, strict=True):
        a, e, n = (x.reshape(len(x), -1) for x in (a, e, n))
        size = e.abs().amax(1)
        rounding = (n - e).abs().amax(1)
        comparable = e.isfinite().all(1) & (rounding <= MAX_ROUNDING * size)
        rows.append(int(comparable.sum()))
        tolerance = TOLERANCE[e.dtype] * size + ROUNDINGS * rounding
        error = (a - e).abs().amax(1)
        wrong = comparable & ~(error <= tolerance)  # also where the compiled code is NaN
        if wrong.any():
            worst = float((error / size)[wrong].max())
            return min(rows), f"it differs from the graph by {worst:.1e} of a row's size"
    return min(rows), None

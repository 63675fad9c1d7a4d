"""A model and its guide as one torch module, whose output is the loss of a minibatch.

The Pyro side of :mod:`astrozoo.train`: the programs run under Pyro's handlers at every step, with validation
off, so that mixed precision and distributed data parallelism apply to them as to any module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from astrozoo._capture import is_discrete, latent_sites
from astrozoo._checked_cut import checked_cut
from astrozoo._enumerate import total
from astrozoo._minibatch import check_amortised, sizes_of
from astrozoo._parameters import Parameters, Watch, module_parameters, sharing
from astrozoo._reachable import module_buffers
from astrozoo._scope import Scope
from astrozoo.errors import CaptureError, InputError
from astrozoo.types import Problem

__all__ = ["Trainable"]


class Trainable(nn.Module):
    """Minus the ELBO per element of the data, estimated from a minibatch and one draw of the guide.

    Its parameters are those of the model and of the guide (:mod:`astrozoo._parameters`). Those of modules are
    shared with the problem: see :meth:`restored`.

    Args:
        problem: with data plates.
        guide: factory of an amortised guide; None for a model without latent sites.
        size: elements of a minibatch, of the only data plate or by plate.

    Raises:
        InputError: if the problem is a batch, or a minibatch is larger than the data.
        CaptureError: if the data cannot be cut, the guide's sites are not the model's or cannot be
            reparameterised, sites are discrete, or there is nothing to train.
    """

    def __init__(
        self,
        problem: Problem,
        guide: Callable[[Problem], Any] | None,
        size: int | Mapping[str, int],
    ) -> None:
        super().__init__()
        if problem.batch is not None:
            raise InputError(
                "problem", f"a batch of {problem.batch} problems", "one problem: training shares parameters"
            )
        self.problem, self.sizes = problem, sizes_of(problem, size, "batch")
        self._program = (problem.model,)  # in a tuple: a module would be registered with all its weights
        checked = checked_cut(problem, tuple(self.sizes))
        self.cut = checked.cut
        for plate, n in self.sizes.items():
            if not 0 < n <= self.cut.lengths[plate]:
                expected = f"1 to the {self.cut.lengths[plate]} elements of {plate!r}"
                raise InputError("batch", n, expected)
        if checked.discrete:
            raise CaptureError(
                f"discrete latent sites {list(checked.discrete)}: training needs them summed out in the "
                "model, for example by a mixture distribution"
            )
        self.elements = self.cut.lengths[next(iter(self.sizes))]
        example = self.cut.take(problem.args, {p: torch.arange(n) for p, n in self.sizes.items()})
        part = replace(problem, args=example, data_plates=())
        scope = Scope(problem.dtype, problem.device)
        with scope.drawing():
            if checked.local and guide is not None:
                check_amortised(problem, guide, self.cut, tuple(self.sizes), checked.local)
            self.guide: Any = None if guide is None else guide(part)
            if guide is not None and not isinstance(self.guide, nn.Module):
                raise InputError(
                    "guide", type(self.guide).__name__, "a factory of guides that are torch modules"
                )
            self._of_model = checked.parameters
            self._of_guide = self._parameters_of_guide(example)
            self._all = Parameters.of(self._of_model.items + self._of_guide.items)
            weights = () if self.guide is None else self.guide.parameters()
            self._in_guide = {id(p) for p in weights}
            rooms = (("model", self._of_model), ("guide", self._of_guide))
            self._keyed = [  # a ParameterDict takes no dots in its keys
                (f"{room}/{p.name.replace('.', '/')}", p) for room, found in rooms for p in found.items
            ]
            self.table = nn.ParameterDict()  # those that are not registered as the guide's already
            for key, p in self._keyed:
                if id(p.leaf) not in self._in_guide:
                    leaf = p.leaf if isinstance(p.leaf, nn.Parameter) else None
                    self.table[key] = p.unconstrained.detach().clone() if leaf is None else leaf
            self._check_sites(example)
        if not list(self.parameters()):
            raise CaptureError(f"{problem.name}: neither the model nor the guide has parameters to train")

    def _parameters_of_guide(self, example: tuple[Any, ...]) -> Parameters:
        """Those of its modules, and those of the statements of a run."""
        if self.guide is None:
            return Parameters()
        with _unchanged(self.guide.buffers()), sharing(self._of_model):
            self.guide(*example)  # a guide may make its modules in its first run
        own = module_parameters(self.guide, self._of_model)
        watch = Watch(self.guide, Parameters.of(own.items + self._of_model.items), changing=True)
        with _unchanged(self.guide.buffers()), watch():
            self._trace(self.guide, example)
        return Parameters.of(own.items + watch.found().items)

    def _values(self) -> list[Tensor]:
        """The unconstrained value of each parameter, in order."""
        return [p.leaf if id(p.leaf) in self._in_guide else self.table[key] for key, p in self._keyed]  # type: ignore[misc]

    def forward(self, *args: Any, sizes: Mapping[str, int] | None = None) -> Tensor:
        """The loss [nat per element] of the elements ``args``.

        Args:
            sizes: number of these elements by plate, where it is not that of a minibatch.
        """
        lengths, sizes = self.cut.lengths, sizes or self.sizes
        weights = {plate: lengths[plate] / n for plate, n in sizes.items()}
        device = next(iter(self.parameters())).device
        with Scope(self.problem.dtype, device, weights)(), self._all.read_from(self._values()):
            if self.guide is None:
                return -total(self._trace(self._program[0], args)) / self.elements
            guide = self._trace(self.guide, args)
            model = self._trace(poutine.replay(self._program[0], trace=guide), args)
        return (total(guide) - total(model)) / self.elements

    @staticmethod
    def _trace(program: Any, args: tuple[Any, ...]) -> poutine.Trace:
        run = poutine.trace(program).get_trace(*args)
        run.compute_log_prob()
        return run

    def _check_sites(self, args: tuple[Any, ...]) -> None:
        buffers = () if self.guide is None else self.guide.buffers()
        with _unchanged(buffers), self._all.read_from(self._values()), torch.no_grad():
            model = latent_sites(self._trace(self._program[0], args))
            guide = {} if self.guide is None else latent_sites(self._trace(self.guide, args))
        guide = {n: s for n, s in guide.items() if not s["infer"].get("is_auxiliary")}
        missing, extra = sorted(model.keys() - guide.keys()), sorted(guide.keys() - model.keys())
        if missing or extra:
            raise CaptureError(
                f"the guide's sites are not the model's: missing {missing}, not in the model {extra}"
            )
        for name, site in guide.items():
            if is_discrete(site) or not getattr(site["fn"], "has_rsample", False):
                raise CaptureError(
                    f"guide site {name!r}: {type(site['fn']).__name__} has no reparameterised draws (rsample)"
                )
            if site["value"].shape != model[name]["value"].shape:
                got, expected = tuple(site["value"].shape), tuple(model[name]["value"].shape)
                raise CaptureError(f"guide site {name!r}: got shape {got}, the model's is {expected}")

    def weights(self) -> dict[str, Tensor]:
        """Copies of the constrained values of all parameters, with the buffers of model and guide."""
        copies = {f"model.{n}": _copied(b) for n, b in module_buffers(self._program[0]).items()}
        with torch.no_grad():
            for (key, p), value in zip(self._keyed, self._values(), strict=True):
                room = key.partition("/")[0]
                if room == "model" or id(p.leaf) not in self._in_guide:
                    copies[f"{room}.{p.name}"] = _copied(p.transform(value))
        state = {} if self.guide is None else self.guide.state_dict()
        return copies | {f"guide.{name}": _copied(weight) for name, weight in state.items()}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Give the modules of the problem and of the guide their values back when the context ends."""
        before = [(p, p.data, p.data.clone()) for p in self.parameters()]
        try:
            with _unchanged(self.buffers()):
                yield
        finally:
            for p, data, values in before:
                data.copy_(values)
                p.data, p.grad = data, None


@contextmanager
def _unchanged(buffers: Iterable[Tensor]) -> Iterator[None]:
    """Give buffers their values back when the context ends."""
    before = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        yield
    finally:
        for buffer, values in before:
            buffer.copy_(values)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()

"""Exact sums over the discrete sites of a model, for :mod:`astrozoo.density`.

Sites in a plate whose elements are independent of each other are enumerated *locally*: one evaluation of the
model per value, whatever the size of the plate. Other sites are enumerated *jointly*, over all assignments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.func import vmap

from astrozoo.errors import CaptureError

__all__ = ["MAX_ASSIGNMENTS", "Discrete", "Plan", "find_discrete", "inverted", "make_plan", "total"]

MAX_ASSIGNMENTS = 4096
"""Greatest number of assignments that are enumerated jointly, if no other limit is set."""

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Discrete:
    """A discrete latent site.

    Args:
        name: name of the site.
        support: its values, ``[k, *event]``.
        elements: shape of its independent elements.
        plates: names of the plates around it, outermost first.
    """

    name: str
    support: Tensor
    elements: torch.Size
    plates: tuple[str, ...]

    def assign(self, index: Tensor) -> Tensor:
        """Values of the site for indices ``[*b, *elements]`` into its support."""
        flat = self.support.index_select(
            0, index.reshape(-1)
        )  # not support[index]: vmap rejects scalar indices
        return flat.reshape((*index.shape, *self.support.shape[1:]))

    def first(self) -> Tensor:
        """The first value of the support, for all elements."""
        return self.assign(torch.zeros(self.elements, dtype=torch.long, device=self.support.device))

    def last(self) -> Tensor:
        """The last value of the support, for all elements."""
        k = self.support.shape[0]
        return self.assign(torch.full(self.elements, k - 1, device=self.support.device))

    def draw(self, fn: Any, normals: Float[Tensor, "n"]) -> Tensor:
        """A draw from ``fn`` by inverting its cumulative probabilities, from one normal per element."""
        k = self.support.shape[0]
        spread = self.support.reshape(k, *(1,) * len(self.elements), *self.support.shape[1:])
        log_probs = _base(fn).log_prob(spread).expand(k, *self.elements)
        uniform = torch.special.ndtr(normals).reshape(self.elements)
        index = (log_probs.exp().cumsum(0) < uniform).sum(0).clamp(max=k - 1)
        return self.assign(index)


def find_discrete(msg: Any) -> Discrete:
    """The discrete site of a Pyro message.

    Raises:
        CaptureError: its support is not finite.
    """
    name, fn = msg["name"], msg["fn"]
    base = _base(fn)
    try:
        support = base.enumerate_support(expand=False)
    except NotImplementedError as error:
        raise CaptureError(f"site {name!r}: its support {fn.support} is discrete and not finite") from error
    event = base.event_shape
    shape = fn.batch_shape + fn.event_shape
    support = support.reshape(support.shape[0], *event)
    frames = sorted((f for f in msg["cond_indep_stack"] if f.vectorized), key=lambda f: f.dim)
    return Discrete(name, support, shape[: len(shape) - len(event)], tuple(f.name for f in frames))


def _base(fn: Any) -> Any:
    """The distribution of one element, without masks and without event dimensions of independent elements."""
    while hasattr(fn, "base_dist") and not (
        fn.has_enumerate_support and fn.event_shape == fn.base_dist.event_shape
    ):
        fn = fn.base_dist
    return fn


@dataclass(frozen=True)
class Plan:
    """Which sites are enumerated jointly, which locally (per element of ``plates``), and which are given."""

    joint: tuple[Discrete, ...] = ()
    local: tuple[Discrete, ...] = ()
    given: tuple[Discrete, ...] = ()

    @property
    def plates(self) -> tuple[str, ...]:
        """Names of the plates of the local sites, outermost first."""
        return self.local[0].plates if self.local else ()

    @property
    def choices(self) -> tuple[int, ...]:
        """Number of values of each element of the given sites."""
        return tuple(d.support.shape[0] for d in self.given for _ in range(d.elements.numel()))

    @property
    def uniforms(self) -> int:
        """Number of uniform numbers that :meth:`draw` takes."""
        return bool(self.joint) + (self.local[0].elements.numel() if self.local else 0)

    def given_values(self, index: Float[Tensor, "n"]) -> Values:
        """Values of the given sites, from the index into its support of each of their elements."""
        parts = torch.split(index.long(), [d.elements.numel() for d in self.given])
        return {d.name: d.assign(i.reshape(d.elements)) for d, i in zip(self.given, parts, strict=True)}

    def draw(self, run: Callable[[Values], poutine.Trace], uniform: Float[Tensor, "n"]) -> Values:
        """A draw of the joint and local sites, from their conditional given all other sites.

        Args:
            run: function that returns the model's trace for an assignment.
            uniform: uniform numbers: one for the joint sites (if any), and one per element of the local ones.
        """

        def weigh(given: Values) -> tuple[Tensor, Tensor]:
            if not self.local:
                return total(run(given)), torch.zeros(())
            outside, inside = vmap(lambda v: self.split(run(given | v)))(self.local_values())
            return outside[0] + torch.logsumexp(inside, 0).sum(), inside

        values: Values = {}
        if self.joint:
            assigned = self.joint_values()
            log_p, inside = vmap(weigh)(assigned)
            chosen = inverted(log_p, uniform[0])[None]
            values = {name: v.index_select(0, chosen)[0] for name, v in assigned.items()}
            inside = inside.index_select(0, chosen)[0]
        elif self.local:
            inside = weigh({})[1]
        if self.local:
            per_element = uniform[bool(self.joint) :].reshape(inside.shape[1:])
            values |= self.local_values(inverted(inside, per_element))
        return values

    def logsumexp(self, run: Callable[[Values], poutine.Trace]) -> Tensor:
        """log of the sum of p over all assignments; ``run`` returns the model's trace for an assignment."""

        def over_local(given: Values) -> Tensor:
            if not self.local:
                return total(run(given))
            outside, inside = vmap(lambda v: self.split(run(given | v)))(self.local_values())
            return outside[0] + torch.logsumexp(inside, 0).sum()

        return torch.logsumexp(vmap(over_local)(self.joint_values()), 0) if self.joint else over_local({})

    def expectation(self, run: Callable[[Values], tuple[poutine.Trace, poutine.Trace]]) -> Tensor:
        """E_q[log p - log q] over assignments; ``run`` returns the guide's and the model's trace for one."""

        def over_local(given: Values) -> tuple[Tensor, Tensor]:
            """log q of the joint sites, and the expectation given them."""
            if not self.local:
                guide, model = run(given)
                return self._log_q(guide), total(model) - total(guide)

            def at(values: Values) -> tuple[Tensor, ...]:
                guide, model = run(given | values)
                (p_out, p_in), (q_out, q_in) = self.split(model), self.split(guide)
                log_q = sum(
                    (_of_plates(guide.nodes[d.name], self.plates) for d in self.local), torch.zeros(())
                )
                return self._log_q(guide), p_out - q_out, log_q, p_in - q_in

            joint_q, outside, log_q, inside = vmap(at)(self.local_values())
            return joint_q[0], outside[0] + _weighted(log_q, inside)

        return _weighted(*vmap(over_local)(self.joint_values())) if self.joint else over_local({})[1]

    def _log_q(self, guide: poutine.Trace) -> Tensor:
        return sum((guide.nodes[d.name]["log_prob_sum"] for d in self.joint), torch.zeros(()))

    def joint_values(self) -> Values:
        """All assignments of the joint sites: ``{site: [assignment, *elements, *event]}``."""
        sizes = [d.support.shape[0] for d in self.joint for _ in range(d.elements.numel())]
        digits = _digits(sizes, self.joint[0].support.device)
        parts = torch.split(digits, [d.elements.numel() for d in self.joint])
        return {
            d.name: d.assign(i.T.reshape(-1, *d.elements)) for d, i in zip(self.joint, parts, strict=True)
        }

    def local_values(self, index: Tensor | None = None) -> Values:
        """Values of the local sites if all elements have value ``k``: ``{site: [k, *elements, *event]}``.

        With ``index [*elements]``, each element has the value of its index.
        """
        digits = _digits([d.support.shape[0] for d in self.local], self.local[0].support.device)
        if index is not None:
            return {
                d.name: d.assign(i[index].reshape(d.elements))
                for d, i in zip(self.local, digits, strict=True)
            }
        return {
            d.name: d.assign(i.reshape(-1, *(1,) * len(d.elements)).expand(-1, *d.elements))
            for d, i in zip(self.local, digits, strict=True)
        }

    def split(self, trace: poutine.Trace) -> tuple[Tensor, Tensor]:
        """Log probability of the sites outside the plates (their sum), and of those inside (per element)."""
        outside: Tensor = torch.zeros(())
        inside: Tensor = torch.zeros(())
        for site in trace.nodes.values():
            if site["type"] != "sample" or site_is_subsample(site):
                continue
            if set(self.plates) <= {f.name for f in site["cond_indep_stack"] if f.vectorized}:
                inside = inside + _of_plates(site, self.plates)
            else:
                outside = outside + site["log_prob_sum"]
        return outside, inside

    def holds(self, run: Callable[[Values], tuple[poutine.Trace, ...]]) -> bool:
        """Whether elements of the plates are independent of each other, by tests of random assignments."""
        given = {d.name: d.last() for d in self.joint + self.given}
        values = self.local_values()
        k = math.prod(d.support.shape[0] for d in self.local)
        alone = [[self.split(t) for t in run(given | {n: v[i] for n, v in values.items()})] for i in range(k)]
        device = self.local[0].support.device
        for _ in range(4):
            index = torch.randint(k, self.local[0].elements, device=device)
            for j, trace in enumerate(run(given | self.local_values(index))):
                outside, inside = self.split(trace)
                stacked = torch.stack([alone[i][j][1] for i in range(k)])
                expected = stacked.gather(0, index.reshape(1, *inside.shape))[0]
                if not (_close(inside, expected) and all(_close(outside, alone[i][j][0]) for i in range(k))):
                    return False
        return True


def make_plan(
    discrete: tuple[Discrete, ...],
    run: Callable[[Values], tuple[poutine.Trace, ...]],
    most: int | None = None,
) -> Plan:
    """The cheapest exact plan.

    Args:
        discrete: the discrete sites of the model.
        run: function that returns the traces for an assignment.
        most: greatest number of joint assignments. Sites with more are *given* instead of summed over. None:
            more than :data:`MAX_ASSIGNMENTS` are an error.

    Raises:
        CaptureError: there is no plan with so few joint assignments, or a site is scaled.
    """
    for trace in run({d.name: d.first() for d in discrete}):
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not (
                isinstance(site["scale"], int | float) and site["scale"] == 1
            ):
                raise CaptureError(
                    f"site {name!r} is scaled: a sum over discrete sites would not be of densities"
                )
    limit = MAX_ASSIGNMENTS if most is None else most
    groups: dict[tuple[str, ...], list[Discrete]] = {}
    for d in discrete:
        groups.setdefault(d.plates, []).append(d)
    candidates = [g for plates, g in groups.items() if plates and g[0].elements.numel() > 1]
    for group in sorted(candidates, key=_assignments, reverse=True):
        rest = tuple(d for d in discrete if d not in group)
        few = _assignments(rest) <= limit
        plan = Plan(rest, tuple(group)) if few else Plan(local=tuple(group), given=rest)
        if (few or most is not None) and _fits(plan, run) and plan.holds(run):
            return plan
    if _assignments(discrete) <= limit:
        return Plan(joint=discrete)
    if most is not None:
        return Plan(given=discrete)
    names = ", ".join(repr(d.name) for d in discrete)
    raise CaptureError(
        f"discrete sites {names}: {_assignments(discrete)} joint assignments (the most is "
        f"{MAX_ASSIGNMENTS}), and no plate of theirs has independent elements; only hmc goes beyond"
    )


def total(trace: poutine.Trace) -> Tensor:
    """Sum of the log probabilities of a trace's sites."""
    return sum((s["log_prob_sum"] for s in trace.nodes.values() if "log_prob_sum" in s), torch.zeros(()))


def _fits(plan: Plan, run: Callable[[Values], tuple[poutine.Trace, ...]]) -> bool:
    """Whether the local sites' elements are exactly those of their plates."""
    trace = run({d.name: d.first() for d in plan.joint + plan.local + plan.given})[-1]
    frames = trace.nodes[plan.local[0].name]["cond_indep_stack"]
    size = math.prod(f.size for f in frames if f.vectorized)
    return all(d.elements.numel() == size for d in plan.local)


def _of_plates(site: Any, plates: tuple[str, ...]) -> Tensor:
    """A site's log probability per element of ``plates`` (in that order), summed over all other axes."""
    frames = {f.name: f for f in site["cond_indep_stack"]}
    chosen = sorted((frames[p] for p in plates), key=lambda f: f.dim)
    log_prob = site["log_prob"]
    sizes = [1] * max(log_prob.ndim, -chosen[0].dim)
    for f in chosen:
        sizes[f.dim] = f.size
    log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, tuple(sizes)))
    others = [d for d in range(-log_prob.ndim, 0) if d not in {f.dim for f in chosen}]
    log_prob = log_prob.sum(others) if others else log_prob
    order = [f.name for f in chosen]
    return log_prob.permute([order.index(p) for p in plates])


def inverted(log_p: Float[Tensor, "k *e"], uniform: Float[Tensor, "*e"]) -> Tensor:
    """Indices drawn with probabilities proportional to ``exp(log_p)``."""
    cumulative = torch.softmax(log_p, 0).cumsum(0)
    return (cumulative < uniform).sum(0).clamp(max=log_p.shape[0] - 1)


def _weighted(log_q: Tensor, x: Tensor) -> Tensor:
    """The sum of q x. A term with q = 0 is 0 even if x is infinite."""
    q = log_q.exp()
    return torch.where(q > 0, q * torch.where(q > 0, x, 0.0), 0.0).sum()


def _assignments(sites: tuple[Discrete, ...] | list[Discrete]) -> int:
    return math.prod(d.support.shape[0] ** d.elements.numel() for d in sites)


def _digits(sizes: list[int], device: torch.device) -> Tensor:
    """All combinations of digits: ``[len(sizes), product of sizes]``."""
    return torch.stack(torch.unravel_index(torch.arange(math.prod(sizes), device=device), sizes))


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e-8 if a.dtype == torch.float64 else 1e-3
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)

"""The Pyro side of :mod:`astrozoo.density`: models and guides as functions of tensors, without side effects.

Only this file and ``density.py`` trace models, touch Pyro's settings or make graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils import _pytree as pytree

from astrozoo._enumerate import Discrete, Plan, find_discrete, make_plan, total
from astrozoo._layout import Layout, Site, bijection, grouped, innermost, is_bijective
from astrozoo._parameters import Parameters, Watch, empty_store
from astrozoo._scalar_index import ScalarIndices, plate_indices
from astrozoo._scope import Scope, Tape
from astrozoo._vmappable import vmappable
from astrozoo.errors import AstrozooError, CaptureError

__all__ = ["Model", "is_derived", "is_discrete", "latent_sites", "run_guide"]


class _Give(Messenger):
    """Calls ``give(msg)`` for the value of every latent site. None lets the site draw its own value."""

    def __init__(self, give: Callable[[Any], Tensor | None]) -> None:
        super().__init__()
        self.give = give
        self.observed: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            if msg["fn"].subsample_size not in (None, msg["fn"].size):
                raise CaptureError(
                    f"plate {msg['name']!r} draws a random subsample, which a graph would freeze: "
                    "subsample the data and pass them as arguments instead"
                )
            msg["value"], msg["done"] = plate_indices(msg["fn"]()), True
            return
        if msg["is_observed"]:
            self.observed.add(msg["name"])
        if msg["is_observed"] or msg["value"] is not None:
            return
        stem = msg["name"].removesuffix("_unobserved")
        if stem != msg["name"] and f"{stem}_observed" in self.observed:  # made by ``obs_mask=``
            # Pyro masks the elements that are observed, which leaves them without any density. Their prior
            # integrates to one whatever the other sites are, so it changes no other posterior.
            msg["mask"] = None
        value = self.give(msg)
        if value is not None:
            msg["value"], msg["done"] = value, True


def trace(
    f: Callable[..., Any], args: tuple[Any, ...], give: Callable[[Any], Tensor | None]
) -> poutine.Trace:
    """The Pyro trace of ``f(*args)`` with latent sites given by ``give``."""
    with (
        ScalarIndices(),
        vmappable(),
        empty_store(),
    ):  # empty_store: a PyroModule would otherwise use values that an earlier run stored
        return poutine.trace(_Give(give)(f)).get_trace(*args)


def latent_sites(run: poutine.Trace) -> dict[str, Any]:
    """Sample sites without an observed value, except plates."""
    return {
        n: s
        for n, s in run.nodes.items()
        if s["type"] == "sample" and not s["is_observed"] and not site_is_subsample(s)
    }


def is_discrete(msg: Any) -> bool:
    """True at a site with a discrete support."""
    return bool(msg["fn"].support.is_discrete)


def is_derived(site: Any) -> bool:
    """True at a site whose value follows from others: a ``pyro.deterministic``, or a latent Delta."""
    if site["type"] != "sample" or site_is_subsample(site):
        return False
    if site["infer"].get("_deterministic"):
        return True
    fn = site["fn"]
    replaced = isinstance(fn, dist.MaskedDistribution) and fn._mask is False  # by ``poutine.reparam``
    return isinstance(innermost(fn), dist.Delta) and (replaced or not site["is_observed"])


class Model:
    """A Pyro model, with its latent sites, its parameters, and a plan for its discrete sites.

    Args:
        model: the Pyro model.
        rows: arguments of a few of the independent problems. Runs with them show shapes and supports.
        scope: dtype and device.
        most: greatest number of joint assignments to sum over; see ``make_plan``.

    Raises:
        CaptureError: a support has no bijection onto a vector, changes from run to run, or is discrete and
            not finite. The message names the site.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        rows: list[tuple[Any, ...]],
        scope: Scope,
        most: int | None = None,
    ) -> None:
        self.model, self.scope = model, scope
        self.layout, self.discrete, self.parameters = self._look(rows[0])
        self._check_supports(rows)
        self.plan, self.derived = Plan(), self._check_runs(rows[0])
        if self.discrete:
            flat = self.parameters.initial(scope.dtype, scope.device)
            with self.scope.drawing(), torch.no_grad(), self.parameters.given(flat):
                values = self.layout.constrain(torch.rand(self.layout.dim) * 2 - 1)
                self.plan = make_plan(self.discrete, lambda given: (self.run(values | given, rows[0]),), most)

    @classmethod
    def layout_of(cls, model: Callable[..., Any], args: tuple[Any, ...], scope: Scope) -> Layout:
        """The layout alone, from one run of the model."""
        partial = object.__new__(cls)
        partial.model, partial.scope = model, scope
        return partial._look(args)[0]

    @property
    def has_latents(self) -> bool:
        """True if the model has latent sites."""
        return bool(self.layout.sites or self.discrete)

    def _look(
        self, args: tuple[Any, ...], seed: int = 0, flat: Tensor | None = None
    ) -> tuple[Layout, tuple[Discrete, ...], Parameters]:
        """Sites and parameters of one run. ``flat`` sets the values of parameters that are already known."""
        sites: list[Site] = []
        discrete: list[Discrete] = []

        def give(msg: Any) -> Tensor | None:
            if is_derived(msg):
                return None
            if is_discrete(msg):
                discrete.append(find_discrete(msg))
                return discrete[-1].first()
            site, value = _continuous_site(msg, sites[-1].stop if sites else 0)
            sites.append(site)
            return value

        watch = Watch(self.model)
        args = pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, args)
        with self.scope.drawing(seed):
            with watch() if flat is None else self.parameters.given(flat):
                run = _run_once(self.model, args, give)
                run.compute_log_prob()
            layout = Layout(tuple(sites), grouped(sites))
        if flat is not None:
            return layout, tuple(discrete), self.parameters
        if total(run).requires_grad:
            raise CaptureError(
                "the model reads a tensor that requires gradients where it cannot be replaced (in a scripted "
                "or compiled module, say): use the module itself, or call requires_grad_(False) of it"
            )
        self.has_statements = watch.any_statement
        return layout, tuple(discrete), watch.found()

    def _check_supports(self, rows: list[tuple[Any, ...]]) -> None:
        """Raise an error if supports depend on values of sites or parameters, or differ between problems."""
        z = torch.full((self.layout.dim,), 0.3, dtype=self.scope.dtype, device=self.scope.device)
        expected = self.layout.constrain(z)
        names = [(s.name, s.shape) for s in self.layout.sites], [d.name for d in self.discrete]
        looks = [self._look(row, seed + 1) for seed, row in enumerate(rows)]
        if self.parameters:
            flat = self.parameters.initial(self.scope.dtype, self.scope.device)
            with torch.no_grad():
                looks.append(self._look(rows[0], 0, flat + 0.25))
        for layout, discrete, parameters in looks:
            if parameters.shapes != self.parameters.shapes:
                raise CaptureError("the model's parameters or their shapes change from run to run")
            if ([(s.name, s.shape) for s in layout.sites], [d.name for d in discrete]) != names:
                raise CaptureError("the model's latent sites or their shapes change from run to run")
            for name, value in layout.constrain(z).items():
                if not torch.equal(value, expected[name]):
                    raise CaptureError(
                        f"site {name!r}: its support depends on other sites or parameters, or differs "
                        "between problems; write it as a transform of a site of fixed support"
                    )

    def _check_runs(self, args: tuple[Any, ...]) -> tuple[str, ...]:
        """Compare two runs with the same latents, and return the names of the derived sites.

        Raises:
            CaptureError: a site differs between the runs, because the model draws random numbers outside its
                sample sites, or a site has complex values. The message names the site.
        """
        runs = []
        for seed in (1, 2):
            flat = self.parameters.initial(self.scope.dtype, self.scope.device)
            with self.scope.drawing(seed), torch.no_grad(), self.parameters.given(flat):
                z = torch.full((self.layout.dim,), 0.2)
                values = self.layout.constrain(z) | {d.name: d.first() for d in self.discrete}
                runs.append(self.run(values, args).nodes)
        first, second = runs
        self.shapes = {
            name: torch.as_tensor(site["value"]).shape
            for name, site in first.items()
            if site["type"] == "sample" and not site_is_subsample(site)
        }
        for name, site in first.items():
            if site["type"] != "sample" or site_is_subsample(site):
                continue
            if torch.is_tensor(site["value"]) and site["value"].is_complex():
                raise CaptureError(f"site {name!r}: complex values; write its real and imaginary parts")
            for key in ("value", "log_prob"):
                a, b = (torch.as_tensor(x[name].get(key, 0.0)) for x in (first, second))
                if a.shape != b.shape or not torch.allclose(a, b, equal_nan=True):
                    raise CaptureError(
                        f"site {name!r}: its {key} changes though all latent sites are given. The model "
                        "draws random numbers outside pyro.sample, or keeps a state between runs"
                    )
        return tuple(name for name, site in first.items() if is_derived(site))

    def initial_parameters(self, args: tuple[Any, ...]) -> Tensor:
        """Initial values of the parameters for these arguments, as a flat vector."""
        parameters = self.parameters
        if any(p.leaf is None for p in parameters.items):
            parameters = self._look(args)[2]
        return parameters.initial(self.scope.dtype, self.scope.device)

    def run(self, values: Mapping[str, Tensor], args: tuple[Any, ...]) -> poutine.Trace:
        """The trace for given values of all latent sites, with its log probabilities computed."""
        run = trace(self.model, args, lambda msg: None if is_derived(msg) else values[msg["name"]])
        with vmappable():
            run.compute_log_prob()
        return run

    def derived_values(self, values: Mapping[str, Tensor], args: tuple[Any, ...]) -> dict[str, Tensor]:
        """Values of the derived sites, from those of all latent sites."""
        nodes = trace(self.model, args, lambda msg: None if is_derived(msg) else values[msg["name"]]).nodes
        return {name: torch.as_tensor(nodes[name]["value"]) for name in self.derived}

    def log_prob(self, values: Mapping[str, Tensor], args: tuple[Any, ...]) -> Tensor:
        """log p of the given values, summed over the discrete sites that are not given."""
        if all(d.name in values for d in self.discrete):
            return total(self.run(values, args))
        return self.plan.logsumexp(lambda assigned: self.run({**values, **assigned}, args))

    def draw_discrete(self, z: Tensor, uniform: Tensor, args: tuple[Any, ...]) -> dict[str, Tensor]:
        """The discrete sites that the vector gives, and a draw of the others from their conditional."""
        given = self.plan.given_values(z[self.layout.dim :])
        values = self.layout.constrain(z[: self.layout.dim]) | given
        return given | self.plan.draw(lambda assigned: self.run({**values, **assigned}, args), uniform)


def _run_once(model: Callable[..., Any], args: tuple[Any, ...], give: Callable[[Any], Any]) -> poutine.Trace:
    """Run the model, whose latent sites call ``give``. An error in the model becomes a CaptureError."""
    try:
        return trace(model, args, give)
    except AstrozooError:
        raise
    except Exception as error:
        raise CaptureError(f"the model cannot be run: {type(error).__name__}: {error}") from error


def _continuous_site(msg: Any, start: int) -> tuple[Site, Tensor]:
    """The site of a Pyro message, whose slice of the vector begins at ``start``, and a value of it."""
    name, fn = msg["name"], msg["fn"]
    shape = fn.batch_shape + fn.event_shape
    try:
        support, transform = bijection(fn)
        unconstrained = torch.Size(transform.inverse_shape(shape))
    except (NotImplementedError, AttributeError) as error:
        inner = type(innermost(fn)).__name__
        raise CaptureError(f"site {name!r}: no bijection from a vector to the support of {inner}") from error
    x = torch.rand(unconstrained) * 2 - 1
    value = transform(x)
    if value.is_complex() or value.shape != shape or not is_bijective(transform, x):
        raise CaptureError(f"site {name!r}: no bijection from a vector to {support}")
    stop = start + unconstrained.numel()
    plates = tuple((f.name, f.size, f.dim) for f in msg["cond_indep_stack"] if f.vectorized)
    return Site(name, shape, support, transform, start, stop, fn.event_dim, plates), value


def run_guide(
    guide: torch.nn.Module,
    args: tuple[Any, ...],
    tape: Tape,
    give: Callable[[Any], Tensor | None] = lambda msg: None,
) -> poutine.Trace:
    """The trace of a guide. Its normals are read from ``tape``; the context sets its parameters."""
    with tape.playing():
        run = trace(guide, args, give)
    run.compute_log_prob()
    return run

"""The Pyro side of :mod:`astrozoo.density`: models and guides as functions of tensors, without side effects.

Only this file and ``density.py`` trace models, touch Pyro's settings or make graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    IndependentTransform,
    SigmoidTransform,
    Transform,
    biject_to,
    constraints,
    lowrank_multivariate_normal,
    multivariate_normal,
    normal,
)

from astrozoo._enumerate import Discrete, Plan, find_discrete, make_plan, total
from astrozoo.errors import CaptureError

__all__ = ["Layout", "Model", "Scope", "Site", "Tape", "run_guide"]


@dataclass(frozen=True)
class Scope:
    """What holds while a model runs: dtype and device of the problem, Pyro's validation off.

    Pyro's checks are control flow on data, which no graph can hold; parameters given as Python numbers
    become tensors of the default dtype, which must be the problem's.
    """

    dtype: torch.dtype
    device: torch.device

    @contextmanager
    def __call__(self) -> Iterator[None]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with (
                pyro.validation_enabled(False),
                pyro.settings.context(module_local_params=True),
                torch.device(self.device) if self.device.type != "cpu" else nullcontext(),
            ):
                yield
        finally:
            torch.set_default_dtype(before)

    @contextmanager
    def drawing(self, seed: int = 0) -> Iterator[None]:
        """The same, where random draws are allowed; the global generators are put back."""
        devices = [self.device] if self.device.type == "cuda" else []
        with self(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield

    def generator_state(self) -> Tensor:
        """Of the global generator that distributions draw from."""
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()


@dataclass(frozen=True)
class Site:
    """A continuous latent site of one problem, and its slice of the unconstrained vector."""

    name: str
    shape: torch.Size
    support: Any
    transform: Any
    start: int
    stop: int

    @property
    def unconstrained_shape(self) -> torch.Size:
        """Shape of the site's unconstrained value."""
        return torch.Size(self.transform.inverse_shape(self.shape))


@dataclass(frozen=True)
class Layout:
    """How the continuous latent sites of one problem lie in one unconstrained vector.

    Args:
        together: sites that transforms of the same kind constrain element by element, and one transform of
            each such group: a graph has a tenth of the operations that site after site would take.
    """

    sites: tuple[Site, ...]
    together: tuple[tuple[tuple[Site, ...], Transform], ...] = ()

    @property
    def dim(self) -> int:
        """Length of the vector."""
        return self.sites[-1].stop if self.sites else 0

    def constrain(self, z: Float[Tensor, "*b dim"]) -> dict[str, Tensor]:
        """Constrained values, each ``[*b, *shape]``."""
        return {s.name: s.transform(self._part(z, s)) for s in self.sites}

    def unconstrain(self, values: Mapping[str, Tensor]) -> Float[Tensor, "*b dim"]:
        """The inverse of :meth:`constrain`."""
        parts = []
        for s in self.sites:
            value = values[s.name]
            lead = value.shape[: value.ndim - len(s.shape)]
            parts.append(s.transform.inv(value).reshape(*lead, s.stop - s.start))
        return torch.cat(parts, -1)

    def constrain_with_jacobian(self, z: Float[Tensor, "dim"]) -> tuple[dict[str, Tensor], Tensor]:
        """Constrained values and the log of the Jacobian's determinant, of one vector."""
        lengths = [s.stop - s.start for s in self.sites]
        names = [s.name for s in self.sites]
        parts = dict(zip(names, z.split(lengths), strict=True)) if lengths else {}
        values: dict[str, Tensor] = {}
        total = z.new_zeros(())
        for sites, transform in self.together:
            x = torch.cat([parts.pop(s.name) for s in sites])
            y = transform(x)
            total = total + transform.log_abs_det_jacobian(x, y).sum()
            pieces = y.split([s.stop - s.start for s in sites])
            values |= {s.name: piece.view(s.shape) for s, piece in zip(sites, pieces, strict=True)}
        for s in self.sites:
            if s.name in parts:
                x = parts[s.name].view(s.unconstrained_shape)
                values[s.name] = s.transform(x)
                if _elementwise(s.transform) != []:  # it is not the identity
                    total = total + s.transform.log_abs_det_jacobian(x, values[s.name]).sum()
        return {name: values[name] for name in names}, total

    @staticmethod
    def _part(z: Tensor, site: Site) -> Tensor:
        return z[..., site.start : site.stop].reshape(z.shape[:-1] + site.unconstrained_shape)


def _grouped(sites: list[Site]) -> tuple[tuple[tuple[Site, ...], Transform], ...]:
    """``together`` of a :class:`Layout`."""
    groups: dict[tuple[type, ...], list[Site]] = {}
    for s in sites:
        steps = _elementwise(s.transform)
        if steps:
            groups.setdefault(tuple(map(type, steps)), []).append(s)
    return tuple((tuple(group), _joined(group)) for group in groups.values())


def _elementwise(transform: Any) -> list[Transform] | None:
    """The exponentials, sigmoids and affine maps that a transform consists of, or None."""
    if isinstance(transform, IndependentTransform):
        return _elementwise(transform.base_transform)
    if isinstance(transform, ComposeTransform):
        parts = [_elementwise(part) for part in transform.parts]
        return None if None in parts else [step for part in parts for step in part or ()]
    single = type(transform) in (ExpTransform, SigmoidTransform, AffineTransform)
    return [transform] if single and transform.event_dim == 0 else None


def _joined(sites: list[Site]) -> Transform:
    """The transform of the concatenation of sites whose transforms are of one kind."""

    def whole(numbers: list[Any]) -> Tensor:
        each = [torch.as_tensor(number, dtype=torch.get_default_dtype()) for number in numbers]
        return torch.cat([x.expand(s.shape).reshape(-1) for x, s in zip(each, sites, strict=True)])

    def joined(steps: tuple[Any, ...]) -> Transform:
        if isinstance(steps[0], AffineTransform):
            return AffineTransform(whole([t.loc for t in steps]), whole([t.scale for t in steps]))
        return steps[0]

    every = [_elementwise(s.transform) or [] for s in sites]
    return ComposeTransform([joined(steps) for steps in zip(*every, strict=True)])


class Tape:
    """Stands in for ``torch.distributions``' standard normals: hands out a given vector, piece by piece.

    Without a vector it draws, and counts what was asked for.
    """

    _name = "_standard_normal"
    _modules = (normal, multivariate_normal, lowrank_multivariate_normal)

    def __init__(self, noise: Tensor | None = None) -> None:
        self.noise, self.used = noise, 0
        self._generators: dict[torch.device, torch.Generator] = {}

    def __call__(self, shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        size = math.prod(shape)
        start, self.used = self.used, self.used + size
        if self.noise is not None:
            return self.noise[start : self.used].reshape(shape).to(dtype)
        device = torch.device(device)
        generator = self._generators.setdefault(device, torch.Generator(device).manual_seed(1))
        return torch.randn(tuple(shape), dtype=dtype, device=device, generator=generator)

    @contextmanager
    def playing(self) -> Iterator[None]:
        """While it holds, normal distributions draw from the tape."""
        before = [getattr(m, self._name) for m in self._modules]
        for m in self._modules:
            setattr(m, self._name, self)
        try:
            yield
        finally:
            for m, original in zip(self._modules, before, strict=True):
                setattr(m, self._name, original)


class _Give(Messenger):
    """Asks ``give(msg)`` for the value of every latent site; None leaves the site to draw."""

    def __init__(self, give: Callable[[Any], Tensor | None]) -> None:
        super().__init__()
        self.give = give

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            if msg["fn"].subsample_size not in (None, msg["fn"].size):
                raise CaptureError(
                    f"plate {msg['name']!r} draws a random subsample, which a graph would freeze: "
                    "subsample the data and pass them as arguments instead"
                )
            return
        if msg["is_observed"] or msg["value"] is not None:
            return
        value = self.give(msg)
        if value is not None:
            msg["value"], msg["done"] = value, True


def trace(
    f: Callable[..., Any], args: tuple[Any, ...], give: Callable[[Any], Tensor | None]
) -> poutine.Trace:
    """The Pyro trace of ``f(*args)`` with latent sites given by ``give``."""
    return poutine.trace(_Give(give)(f)).get_trace(*args)


def latent_sites(of: poutine.Trace) -> dict[str, Any]:
    """Sample sites without an observed value (and no plates)."""
    return {
        n: s
        for n, s in of.nodes.items()
        if s["type"] == "sample" and not s["is_observed"] and not site_is_subsample(s)
    }


def is_discrete(msg: Any) -> bool:
    """True at a site with a discrete support."""
    return bool(msg["fn"].support.is_discrete)


class Model:
    """A Pyro model with its latent sites found and its discrete ones planned for.

    Args:
        model: the Pyro model.
        rows: arguments of a few of the independent problems, from which shapes and supports are learnt.
        scope: dtype and device.
        most: joint assignments beyond which discrete sites are given, see ``make_plan``.

    Raises:
        CaptureError: naming the site, if a support has no bijection onto a vector, changes from run to run,
            or is discrete and not finite.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        rows: list[tuple[Any, ...]],
        scope: Scope,
        most: int | None = None,
    ) -> None:
        self.model, self.scope = model, scope
        self.layout, self.discrete = self._look(rows[0])
        self._check_supports(rows)
        self.plan = Plan()
        if self.discrete:
            with self.scope.drawing(), torch.no_grad():
                values = self.layout.constrain(torch.rand(self.layout.dim) * 2 - 1)
                self.plan = make_plan(self.discrete, lambda given: (self.run(values | given, rows[0]),), most)

    def _look(self, args: tuple[Any, ...], seed: int = 0) -> tuple[Layout, tuple[Discrete, ...]]:
        sites: list[Site] = []
        discrete: list[Discrete] = []

        def give(msg: Any) -> Tensor:
            name, fn = msg["name"], msg["fn"]
            if is_discrete(msg):
                discrete.append(find_discrete(msg))
                return discrete[-1].first()
            shape = fn.batch_shape + fn.event_shape
            try:
                support, transform = _bijection(fn)
                unconstrained = torch.Size(transform.inverse_shape(shape))
            except NotImplementedError as error:
                raise CaptureError(f"site {name!r}: no bijection from a vector to {fn.support}") from error
            start = sites[-1].stop if sites else 0
            sites.append(Site(name, shape, support, transform, start, start + unconstrained.numel()))
            return transform(torch.rand(unconstrained) * 2 - 1)

        with self.scope.drawing(seed), torch.no_grad():
            trace(self.model, args, give)
            layout = Layout(tuple(sites), _grouped(sites))
        return layout, tuple(discrete)

    def _check_supports(self, rows: list[tuple[Any, ...]]) -> None:
        """Supports must be the same for all values of other sites and all problems: the layout has one."""
        z = torch.full((self.layout.dim,), 0.3, dtype=self.scope.dtype, device=self.scope.device)
        expected = self.layout.constrain(z)
        for seed, row in enumerate(rows):
            layout, _ = self._look(row, seed + 1)
            if [(s.name, s.shape) for s in layout.sites] != [(s.name, s.shape) for s in self.layout.sites]:
                raise CaptureError("the model's latent sites or their shapes change from run to run")
            for name, value in layout.constrain(z).items():
                if not torch.equal(value, expected[name]):
                    raise CaptureError(
                        f"site {name!r}: its support depends on other sites or differs between problems; "
                        "write it as a transform of a site of fixed support"
                    )

    def run(self, values: Mapping[str, Tensor], args: tuple[Any, ...]) -> poutine.Trace:
        """The trace with every latent site given, its log probabilities computed."""
        found = trace(self.model, args, lambda msg: values[msg["name"]])
        found.compute_log_prob()
        return found

    def log_prob(self, values: Mapping[str, Tensor], args: tuple[Any, ...]) -> Tensor:
        """log p of the given values; discrete sites that are not given are summed over."""
        if all(d.name in values for d in self.discrete):
            return total(self.run(values, args))
        return self.plan.logsumexp(lambda assigned: self.run({**values, **assigned}, args))

    def draw_discrete(self, z: Tensor, uniform: Tensor, args: tuple[Any, ...]) -> dict[str, Tensor]:
        """The given discrete sites of one vector, and a draw of the others from their conditional."""
        given = self.plan.given_values(z[self.layout.dim :])
        values = self.layout.constrain(z[: self.layout.dim]) | given
        return given | self.plan.draw(lambda assigned: self.run({**values, **assigned}, args), uniform)


class _LowerCholesky(Transform):
    """Vectors onto Cholesky factors: the strict lower triangle, then the logarithms of the diagonal."""

    domain = constraints.real_vector
    codomain = constraints.lower_cholesky
    bijective = True

    def inverse_shape(self, shape: Any) -> torch.Size:
        n = shape[-1]
        return torch.Size((*shape[:-2], n * (n + 1) // 2))

    def forward_shape(self, shape: Any) -> torch.Size:
        n = math.isqrt(2 * shape[-1])
        return torch.Size((*shape[:-1], n, n))

    def _call(self, x: Tensor) -> Tensor:
        n = math.isqrt(2 * x.shape[-1])
        row, column = torch.tril_indices(n, n, -1, device=x.device)
        place = (row * n + column)[:, None] == torch.arange(n * n, device=x.device)  # vmap forbids writes
        below = (x[..., : len(row)] @ place.to(x)).unflatten(-1, (n, n))
        return below + torch.diag_embed(x[..., len(row) :].exp())

    def _inverse(self, y: Tensor) -> Tensor:
        n = y.shape[-1]
        row, column = torch.tril_indices(n, n, -1, device=y.device)
        return torch.cat((y[..., row, column], y.diagonal(dim1=-2, dim2=-1).log()), -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x[..., -y.shape[-1] :].sum(-1)


def _bijection(fn: Any) -> tuple[Any, Any]:
    """The support of a distribution, and a bijection onto it from vectors that have its dimension."""
    support = fn.support
    if hasattr(fn, "mixture_distribution"):  # its support only wraps that of its components
        support = getattr(support, "base_constraint", support)
    if support is constraints.lower_cholesky:
        return support, _LowerCholesky()
    return support, biject_to(support)


def run_guide(
    guide: torch.nn.Module,
    parameters: Mapping[str, Tensor],
    args: tuple[Any, ...],
    tape: Tape,
    give: Callable[[Any], Tensor | None] = lambda msg: None,
) -> poutine.Trace:
    """The trace of a guide with the given parameters, its normals read from ``tape``."""
    with tape.playing():
        found = trace(lambda *a: torch.func.functional_call(guide, dict(parameters), a), args, give)
    found.compute_log_prob()
    return found

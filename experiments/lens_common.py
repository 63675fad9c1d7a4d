"""What the lens experiments share: ways to a mode and its curvature, and the draws of a result one by one."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from astrozoo.density import LogDensity, log_density
from astrozoo.objective import Objective
from astrozoo.types import Problem, Result, Status

__all__ = ["ascend", "draws_of", "gauss_newton", "prior_starts"]

_STEP = 1e-4  # of differences, in unconstrained coordinates
_CHUNK = 16  # images rendered at once
_FLAT = 0.01  # least curvature: an SD of 10 unconstrained units says nothing


def ascend(
    target: Objective, z: Float[Tensor, "b dim"], steps: int, *, rate: float | Tensor = 0.05, label: str = ""
) -> tuple[Float[Tensor, "b dim"], Float[Tensor, "b"]]:
    """Adam on a log density from many starts at once, its rate falling to zero; the points and their values.

    Progress is printed every 100 steps.

    Args:
        rate: the first step, of all coordinates or of each.
    """
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    for step in range(1, steps + 1):
        value, gradient = target.value_and_grad(z)
        gradient = gradient.nan_to_num()
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        now = rate * 0.5 * (1 + math.cos(math.pi * step / (steps + 1)))
        z = z + now * (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)).sqrt() + 1e-12)
        if step % 100 == 0:
            best = np.round(np.sort(value.numpy())[::-1][:4], 1)
            print(f"{label} step {step}: log density {best}", flush=True)
    return z, target.value_and_grad(z)[0].nan_to_num(nan=-math.inf)


def draws_of(result: Result, n: int) -> list[dict[str, Tensor]]:
    """``n`` draws spread over all chains, each as site -> tensor."""
    flat = {name: values.reshape(-1, *values.shape[2:]) for name, values in result.draws.items()}
    rows = np.linspace(0, len(next(iter(flat.values()))) - 1, n).astype(int)
    return [{name: torch.as_tensor(values[i]) for name, values in flat.items()} for i in rows]


def prior_starts(task: Problem, n: int, seed: int) -> Float[Tensor, "n dim"]:
    """Draws of a problem's prior, unconstrained."""
    layout = log_density(task, compile="never").layout
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = [task.model.draw(task.args[0]) for _ in range(n)]
    return layout.unconstrain({name: torch.stack([d[name] for d in drawn]) for name in drawn[0]})


def gauss_newton(
    task: Problem,
    z: Float[Tensor, "dim"],
    *,
    iterations: int = 60,
    enough: float = 0.01,
    seed: int = 0,
    compile: str = "auto",
) -> Result:
    """Levenberg-Marquardt from ``z`` to a mode, and the Gauss-Newton covariance there, as a Result.

    It has converged when an iteration raises the log density by less than ``enough``.

    Slopes of the image are central differences: a decoded source is interpolated, its second derivatives mean
    nothing, and those of the image that least squares leave out are small where the model fits. The normal's
    draws are in ``Result.draws``.
    """
    target = log_density(task, compile=compile)
    blind = task.args[0]._replace(mask=torch.zeros_like(task.args[0].mask))
    prior = log_density(Problem(task.model, (blind,), start=task.start), compile=compile)
    (value,), (gradient,) = target.value_and_grad(z[None])
    damping, status = 1e-2, Status.BUDGET_SPENT
    for i in range(iterations):
        curvature = _curvature(task, target, prior, z)
        gained = math.inf
        while damping < 1e8:
            damped = curvature + damping * torch.diag(curvature.diagonal())
            trial = z + torch.linalg.solve(damped, gradient)
            (new,), (slope,) = target.value_and_grad(trial[None])
            if new.isfinite() and new > value:
                gained, z, value, gradient = float(new - value), trial, new, slope
                damping = max(damping / 5, 1e-6)
                break
            damping *= 4
        print(f"Gauss-Newton {i + 1}: log density {float(value):.2f}, damping {damping:.1g}", flush=True)
        if damping >= 1e8 or gained < enough:
            status = Status.CONVERGED
            break
    covariance = torch.linalg.inv(_curvature(task, target, prior, z))
    normals = torch.randn(1000, len(z), generator=torch.Generator().manual_seed(seed), dtype=z.dtype)
    draws = target.layout.constrain(z + normals @ torch.linalg.cholesky(covariance).T)
    return Result(
        draws={name: values[None].numpy() for name, values in draws.items()},
        status=status,
        seed=seed,
        model=task.name,
        method="gauss_newton",
        stats={"log_density": float(value)},
        location=z[None].numpy(),
        covariance=covariance[None].numpy(),
    )


def _curvature(task: Problem, target: LogDensity, prior: LogDensity, z: Tensor) -> Float[Tensor, "dim dim"]:
    """Minus the Hessian of the log prior, and J' W J of the image.

    A model may have ``slopes(values, data)``, exact ones of sites that are standard normal.
    """
    data, values = task.args[0], target.layout.constrain(z)
    exact = task.model.slopes(values, data) if hasattr(task.model, "slopes") else {}
    spans = {site.name: slice(site.start, site.stop) for site in target.layout.sites}
    rest = torch.ones(len(z), dtype=torch.bool)
    for name in exact:
        rest[spans[name]] = False
    shifts = _STEP * torch.eye(len(z)).to(z)[rest]
    shifts = torch.cat((shifts, -shifts))

    def image(z: Tensor) -> Tensor:
        return task.model.render(target.layout.constrain(z), data)

    with torch.no_grad():
        images = torch.cat([torch.vmap(image)(z + part) for part in shifts.split(_CHUNK)]).flatten(1)
        weight = (data.mask / data.total_variance(image(z))).flatten()
    up, down = images.chunk(2)
    used, dtype = weight > 0, next(iter(exact.values()), images).dtype
    slopes = torch.zeros(len(z), int(used.sum()), dtype=dtype)
    slopes[rest] = ((up - down)[:, used] / (2 * _STEP)).to(dtype)
    for name, rows in exact.items():
        slopes[spans[name]] = rows[:, used]
    slopes *= weight[used].sqrt().to(dtype)
    up, down = prior.value_and_grad(z + shifts)[1].chunk(2)
    bend = torch.linalg.eigh((down - up)[:, rest] / (2 * _STEP))  # reads one triangle
    hessian = torch.eye(len(z)).to(z)
    # truncated priors bend upwards near their ends
    hessian[rest.outer(rest)] = (bend[1] * bend[0].clamp_min(_FLAT) @ bend[1].T).flatten()
    return (slopes @ slopes.T).to(z) + hessian

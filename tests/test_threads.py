"""Several threads in one process: the same results as alone, and the process as it was."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import astrozoo
from astrozoo._scope import Scope, Tape, computing
from astrozoo.density import PureFunction, log_density
from astrozoo.errors import CaptureError
from astrozoo.guides.auto import mean_field
from astrozoo.types import Problem


def line(x, y):
    """Constants without a dtype: integers, spaces and true divisions take the default one."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    offset = pyro.sample("offset", dist.Normal(torch.zeros(3), 1 / torch.tensor(3)).to_event(1))
    width = pyro.sample("width", dist.LogNormal(0.0, torch.tensor(1) / 3))
    with pyro.plate("data", len(x)):
        mean = slope * x + offset.sum() + torch.linspace(0, 1, len(x)) + torch.arange(len(x)) / 7
        pyro.sample("y", dist.Normal(mean, width), obs=y)


def counts(n):
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
    kind = pyro.sample("kind", dist.Bernoulli(torch.tensor(1) / 3))
    pyro.sample("n", dist.Poisson(rate * (1 + kind)).expand([len(n)]).to_event(1), obs=n)


def problems(dtype):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, generator=g, dtype=dtype)
    y = 2 * x + torch.randn(20, generator=g, dtype=dtype)
    return Problem(line, (x, y)), Problem(counts, (torch.tensor([3.0, 4.0, 1.0], dtype=dtype),))


def fits():
    """Method, problem and options of fits that take about a second."""
    quiet = {"progress": False, "compile": "never", "seed": 3, "draws": 20}
    for dtype in (torch.float32, torch.float64):
        a, b = problems(dtype)
        yield "laplace", a, quiet
        yield "hmc", b, quiet | {"chains": 4, "warmup": 30}
        yield "trust_region", a, quiet | {"budget": 200}
        yield "svi", b, quiet | {"budget": 200}
        yield "laplace", a, quiet | {"start": "search"}
    yield "nuts", problems(torch.float64)[0], quiet | {"chains": 1, "warmup": 20}
    yield "nuts", problems(torch.float64)[1], quiet | {"chains": 1, "warmup": 20}


def run(fit):
    method, problem, options = fit
    return astrozoo.infer(problem, method, **options)


def state():
    """What threads share."""
    return {
        "dtype": torch.get_default_dtype(),
        "validation": pyro.settings.get()["validate_distributions_pyro"],
        "validation of torch": torch.distributions.Distribution._validate_args,
        "local parameters": pyro.settings.get()["module_local_params"],
        "handlers": len(pyro.poutine.runtime._PYRO_STACK),
        "normals": torch.distributions.normal._standard_normal,
        "generator": torch.get_rng_state().tolist(),
    }


def same(first, second):
    for site, draws in first.draws.items():
        assert draws.dtype == second.draws[site].dtype
        np.testing.assert_array_equal(draws, second.draws[site], err_msg=f"{first.method}: {site}")
    np.testing.assert_array_equal(first.location, second.location)


def test_threads_give_the_bits_of_one_thread_and_leave_the_process_as_it_was():
    alone = [run(fit) for fit in fits()]
    before = state()
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(run, fits()))
    assert state() == before
    for first, second in zip(alone, together, strict=True):
        same(first, second)


@pytest.mark.parametrize("default", [torch.float16, torch.float64])
def test_the_default_dtype_of_the_user_has_no_effect(default):
    fitted = [fit for fit in fits() if fit[0] != "nuts"][:4]
    alone = [run(fit) for fit in fitted]
    torch.set_default_dtype(default)
    try:
        others = [run(fit) for fit in fitted]
        assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(torch.float32)
    for first, second in zip(alone, others, strict=True):
        same(first, second)


def test_an_uncompiled_graph_computes_in_the_dtype_of_its_problem():
    problem = problems(torch.float64)[0]
    eager, graph = log_density(problem), log_density(problem, compile="never")
    z = torch.zeros(400, eager.dim, dtype=torch.float64)  # large enough that a graph is made of it
    with computing(torch.float64):
        expected = eager.values(z[:1])
    torch.testing.assert_close(graph.values(z)[:1], expected, rtol=1e-14, atol=0)


def test_a_failure_leaves_the_process_as_it_was():
    def broken(x):
        pyro.sample("a", dist.Normal(0.0, 1.0))
        raise ZeroDivisionError

    before = state()
    x = torch.ones(2, dtype=torch.float64)
    for method in ("laplace", "hmc", "svi"):
        with pytest.raises(CaptureError):
            astrozoo.infer(Problem(broken, (x,)), method, progress=False)
    with pytest.raises(KeyError), Scope(torch.float64, torch.device("cpu")).drawing(), Tape().playing():
        raise KeyError
    assert state() == before


def test_a_fit_inside_a_fit_does_not_wait_for_itself():
    inner, outer = problems(torch.float32)[0], problems(torch.float64)[0]
    quiet = {"progress": False, "compile": "never", "draws": 5}

    def guide(problem):
        first = astrozoo.infer(inner, "laplace", **quiet)
        assert first.location.dtype == np.float32
        assert torch.get_default_dtype() == torch.float64
        return mean_field(problem)

    before, done = state(), []
    thread = threading.Thread(
        target=lambda: done.append(astrozoo.infer(outer, "svi", guide=guide, budget=20, **quiet)), daemon=True
    )
    thread.start()
    thread.join(120)
    assert done
    assert done[0].location.dtype == np.float64
    assert state() == before


def test_compiled_functions_do_not_wait_for_the_lock():
    f = PureFunction(lambda w: -(w**4).sum(), 3, compile="always")
    w = torch.ones(2, 3, dtype=torch.float64)
    expected = f.value_and_grad(w)
    assert not f.notes
    values = []
    thread = threading.Thread(target=lambda: values.append(f.value_and_grad(w)), daemon=True)
    with computing(torch.float32):
        thread.start()
        thread.join(30)
    assert values
    assert torch.equal(values[0][0], expected[0])

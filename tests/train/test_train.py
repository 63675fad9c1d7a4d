"""Training: the right optimum, the same weights again, and refusals that say what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import astrozoo
from astrozoo.errors import CaptureError, DataError, InputError
from astrozoo.types import Problem, Status

sys.path.insert(0, str(Path(__file__).parent))
from vae import PLATES, Guide, Rows, data, problem

QUIET = {"progress": False}


def assert_same_weights(a, b):
    assert a.weights.keys() == b.weights.keys()
    for name, w in a.weights.items():
        torch.testing.assert_close(w, b.weights[name], rtol=0, atol=0)


def linear_model(y):
    """Probabilistic principal component of one dimension: y ~ N(w z, s)."""
    w = pyro.param("w", lambda: torch.tensor([0.5, 0.5, 0.5]))
    s = pyro.param("s", lambda: torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(y.new_zeros(len(y)), 1.0))
        pyro.sample("y", dist.Normal(z[:, None] * w, s).to_event(1), obs=y)


class LinearGuide(nn.Module):
    def __init__(self, problem):
        super().__init__()
        self.a, self.log_sd = nn.Parameter(torch.full((3,), 0.1)), nn.Parameter(torch.zeros(()))

    def forward(self, y):
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(y @ self.a, self.log_sd.exp().expand(len(y))))


def test_parameters_of_a_linear_model_reach_the_maximum_of_the_likelihood():
    """Tipping & Bishop 1999: w w' + s^2 I has the first eigenvector and the mean of the other eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    w = torch.tensor([1.0, -2.0, 0.5])
    y = torch.randn(2000, 1, generator=generator) * w + 0.4 * torch.randn(2000, 3, generator=generator)
    values, vectors = torch.linalg.eigh(y.T @ y / len(y))
    noise = values[:2].mean()
    expected = vectors[:, 2] * (values[2] - noise).sqrt()
    store = dict(pyro.get_param_store())
    trained = astrozoo.train(
        Problem(linear_model, (y,), data_plates={"data": {"y": 0}}),
        LinearGuide, steps=1500, batch=200, learning_rate=0.02, **QUIET,
    )  # fmt: skip
    got = trained.weights["model.w"]
    torch.testing.assert_close(got * (got @ expected).sign(), expected, atol=0.05, rtol=0)
    torch.testing.assert_close(trained.weights["model.s"], noise.sqrt(), atol=0.02, rtol=0)
    assert trained.status is Status.BUDGET_SPENT
    covariance = torch.outer(expected, expected) + noise * torch.eye(3)
    exact = torch.distributions.MultivariateNormal(torch.zeros(3), covariance).log_prob(y).mean()
    assert trained.curve["elbo"][-20:].mean() == pytest.approx(float(exact), abs=0.03)
    assert dict(pyro.get_param_store()) == store


def test_the_same_seed_gives_the_same_weights_and_leaves_the_problem_alone():
    first = problem()
    before = {n: w.clone() for n, w in first.model.decoder.state_dict().items()}
    digest, state = first.digest, torch.get_rng_state()
    a = astrozoo.train(first, Guide, steps=30, batch=32, seed=4, **QUIET)
    torch.testing.assert_close(torch.get_rng_state(), state)
    b = astrozoo.train(first, Guide, steps=30, batch=32, seed=4, **QUIET)
    c = astrozoo.train(first, Guide, steps=30, batch=32, seed=5, **QUIET)
    assert_same_weights(a, b)
    assert not torch.equal(a.weights["model.noise"], c.weights["model.noise"])
    assert first.digest == digest
    for name, w in first.model.decoder.state_dict().items():
        torch.testing.assert_close(w, before[name], rtol=0, atol=0)
        assert not torch.equal(a.weights[f"model.decoder.{name}"], w)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_gives_the_weights_of_its_tensor(workers):
    a = astrozoo.train(problem(), Guide, steps=10, batch=32, **QUIET)
    b = astrozoo.train(problem(Rows(data())), Guide, steps=10, batch=32, workers=workers, **QUIET)
    assert_same_weights(a, b)
    assert b.data == "Rows of 256 items"


SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import astrozoo
from vae import Guide, problem
from astrozoo.train import _loop
from astrozoo._files import replacing
from astrozoo.train import _checkpoint

_loop.SAVE_EVERY = 0.0
saves = []

def save_file(tensors, path, metadata):
    saves.append(path)
    if len(saves) == 12:
        path.write_bytes(b"half of a file")
        os.kill(os.getpid(), signal.SIGKILL)
    original(tensors, path, metadata)

original, _checkpoint.save_file = _checkpoint.save_file, save_file
astrozoo.train(problem(), Guide, steps=25, batch=32, checkpoint=sys.argv[2], progress=False)
"""


def test_killed_run_resumes_to_the_same_weights_and_curve(tmp_path):
    """Killed in the middle of writing its twelfth checkpoint, within the second pass over the data."""
    path = tmp_path / "run.ckpt"
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(path)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert path.is_file()
    rest = astrozoo.train(problem(), Guide, steps=25, batch=32, checkpoint=path, **QUIET)
    whole = astrozoo.train(problem(), Guide, steps=25, batch=32, **QUIET)
    assert_same_weights(rest, whole)
    for name in ("step", "elbo", "rate"):
        np.testing.assert_array_equal(rest.curve[name], whole.curve[name])
    with pytest.raises(InputError, match="seed 0, expected seed 1"):
        astrozoo.train(problem(), Guide, steps=25, batch=32, seed=1, checkpoint=path, **QUIET)


DISTRIBUTED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import astrozoo
from vae import Guide, problem
t = astrozoo.train(problem(), Guide, steps=6, batch=32, devices=2, progress=False)
t.save(f"{sys.argv[2]}/{os.environ['RANK']}.safetensors")
"""


def test_two_devices_agree(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(DISTRIBUTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(script), str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    a, b = (astrozoo.load_weights(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert_same_weights(a, b)
    assert all(w.isfinite().all() for w in a.weights.values())
    start = problem().model.decoder.state_dict()
    assert not torch.equal(a.part("model.decoder")["network.0.weight"], start["network.0.weight"])


def test_held_out_data_and_precision():
    trained = astrozoo.train(
        problem(), Guide, epochs=40, batch=64, learning_rate=0.01, precision="bf16-mixed",
        held_out=problem(data(100, 7)), gradient_clip=5.0, **QUIET,
    )  # fmt: skip
    curve = trained.curve
    assert trained.stats["steps"] == 160
    assert curve["held_out_elbo"][-1] > curve["held_out_elbo"][0] + 3
    assert curve["held_out_elbo"][-1] == pytest.approx(curve["elbo"][-20:].mean(), abs=1.5)


def test_a_model_without_latents_is_fitted_by_its_likelihood():
    y = torch.randn(500, generator=torch.Generator().manual_seed(2)) + 3

    def model(y):
        mean = pyro.param("mean", torch.zeros(()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    trained = astrozoo.train(
        Problem(model, (y,), data_plates=("data",)), steps=400, batch=50, learning_rate=0.05, **QUIET
    )
    assert float(trained.weights["model.mean"]) == pytest.approx(float(y.mean()), abs=0.03)


def test_a_diverged_run_says_so_and_keeps_finite_weights():
    trained = astrozoo.train(problem(), Guide, steps=300, batch=32, learning_rate=1e30, **QUIET)
    assert trained.status is Status.DIVERGED
    assert all(w.isfinite().all() for w in trained.weights.values())


def nan():
    x = data()
    x[3, 3] = torch.nan
    return x


class Local(nn.Module):
    """A guide with parameters for each element."""

    def __init__(self, problem):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(len(problem.args[0]), 2))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))


class Ragged(Rows):
    def __getitem__(self, i):
        return self.x[i, : 12 - (i == 5)]


def nothing(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([12]).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("make", "guide", "options", "error", "message"),
    [
        (problem, Guide, {"batch": 300}, InputError, "batch: got 300, expected 1 to the 256"),
        (lambda: problem(Rows(data(0))), Guide, {}, InputError, "empty Rows"),
        (lambda: problem(plates={"galaxy": {"x": 0}}), Guide, {}, CaptureError, "no site in data"),
        (lambda: problem(plates={"data": {"x": 3}}), Guide, {}, InputError, "axis 3 of 'x'"),
        (lambda: problem(plates=()), Guide, {}, InputError, "declares data_plates"),
        (lambda: problem(nan()), Guide, {}, DataError, "NaN"),
        (lambda: problem(Rows(nan())), Guide, {}, DataError, "item 3 of the Dataset: got NaN"),
        (lambda: problem(Ragged(data())), Guide, {}, DataError, "item 5 of the Dataset: got \\(11,\\)"),
        (problem, Local, {}, CaptureError, "amortised"),
        (problem, "mean_field", {}, CaptureError, "amortised"),
        (problem, None, {}, CaptureError, "missing \\['z'\\]"),
        (problem, Guide, {"steps": None}, InputError, "neither"),
        (problem, Guide, {"precision": "8"}, InputError, "precision"),
        (problem, Guide, {"devices": 3}, InputError, "multiple of the number of devices"),
        (lambda: Problem(nothing, (data(),), data_plates=PLATES), None, {}, CaptureError, "to train"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, guide, options, error, message):
    def fit():
        return astrozoo.train(make(), guide, **{"steps": 20, "batch": 64, **QUIET, **options})

    with pytest.raises(error, match=message):
        fit()

"""Waiting threads sleep by default; a user's own choice stands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from astrozoo._openmp import CHOICES

SHOW = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"


def policy(code, **variables):
    env = {name: value for name, value in os.environ.items() if name not in CHOICES} | variables
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return run.stdout.strip(), run.stderr


@pytest.mark.parametrize("module", ["astrozoo", "astrozoo.cli", "astrozoo.errors"])
def test_any_import_sets_it_before_torch(module):
    assert policy(f"import {module}; {SHOW}")[0] == "PASSIVE"


def test_the_runtime_that_torch_loads_reads_it():
    _, shown = policy("import astrozoo, torch; torch.ones(10).sum()", OMP_DISPLAY_ENV="true")
    if "OMP_WAIT_POLICY" not in shown:
        pytest.fail(f"torch's OpenMP runtime shows no policy: {shown!r}")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("OMP_WAIT_POLICY", "ACTIVE", "ACTIVE"),
        ("GOMP_SPINCOUNT", "100", "None"),
        ("KMP_BLOCKTIME", "1", "None"),
    ],
)
def test_a_users_choice_stands(name, value, expected):
    assert policy(f"import astrozoo; {SHOW}", **{name: value})[0] == expected


def test_it_is_not_set_where_it_would_come_too_late():
    assert policy(f"import torch, astrozoo; {SHOW}")[0] == "None"

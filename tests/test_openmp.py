"""Waiting threads sleep and are no more than the quota allows; a user's own choice stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from astrozoo._openmp import CHOICES, COUNTS, available_cores

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


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000"}, 8),
        ("0::/a/b", {"a/b/cpu.max": "350000 100000"}, 3),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/elsewhere", {"cpu.max": "400000 100000"}, 4),
        ("3:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "9"}, 8),
        ("3:cpu,x:/a", {"cpu,x/a/cpu.cfs_quota_us": "5", "cpu,x/a/cpu.cfs_period_us": "2"}, 2),
        ("3:cpuacct:/a", {"cpuacct/a/cpu.cfs_quota_us": "9", "cpuacct/a/cpu.cfs_period_us": "9"}, 8),
        ("0::/", {"cpu.max": "9900000 100000"}, 8),
    ],
)  # fmt: skip
def test_quotas_of_both_versions_of_cgroups_count(tmp_path, monkeypatch, cgroup, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, text in {"../../../proc/self/cgroup": cgroup, **files}.items():
        path = Path(os.path.normpath(tmp_path / "sys/fs/cgroup" / name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available_cores(tmp_path) == expected


THREADS = """
import os
from astrozoo import _openmp  # importing astrozoo limits threads by the real quota
os.environ.pop("OMP_NUM_THREADS", None)
{before}
_openmp.available_cores = lambda: 1
_openmp._affinity = lambda: 2
_openmp.limit_threads()
import torch
{after}
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "", "1"),
        ("os.environ['OMP_NUM_THREADS'] = '2'", "", "2"),
        ("", "torch.set_num_threads(2)", "2"),
        ("import torch; torch.set_num_threads(2)", "", "2"),
    ],
)
def test_a_quota_limits_the_threads_unless_the_user_has_chosen(before, after, expected):
    env = {name: value for name, value in os.environ.items() if name not in COUNTS}
    code = THREADS.format(before=before, after=after)
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == expected


def test_threads_are_no_more_than_the_affinity():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import astrozoo, torch; "
    env = {name: value for name, value in os.environ.items() if name not in COUNTS}
    run = subprocess.run(
        [sys.executable, "-c", code + "print(torch.get_num_threads())"],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.strip() == "1"

"""Tasks on Dask: failures are tried again and recorded, the others go on; a full disk ends the run."""

from __future__ import annotations

import pytest
from distributed import Client, LocalCluster

from astrozoo.errors import DataError, InputError, OutputError
from astrozoo.survey.sky.engine import AHEAD, cluster, run_tasks


@pytest.fixture(scope="module")
def client():
    """Two workers in this process, which start at once."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as local,
        Client(local) as client,
    ):
        yield client


def _square(x: int) -> int:
    return x * x


def _some_fail(x: int) -> int:
    if x % 3 == 0:
        raise DataError(f"frame {x}", "a truncated file", "all of it")
    return x


def _second_time(folder: str) -> str:
    from pathlib import Path

    path = Path(folder) / "tried"
    if not path.exists():
        path.touch()
        raise ConnectionError("no answer")
    return "answered"


def _full(x: int) -> int:
    if x == 2:
        raise OutputError("cannot write 2.npz: No space left on device")
    return x


def test_all_tasks_end_once(client):
    ended = list(run_tasks(client, _square, ((str(x), {"x": x}) for x in range(50))))
    assert sorted(e.value for e in ended) == [x * x for x in range(50)]
    assert len({e.name for e in ended}) == 50
    assert not any(e.error for e in ended)


def test_tasks_are_taken_as_workers_become_free(client):
    taken = []

    def tasks():
        for x in range(60):
            taken.append(x)
            yield str(x), {"x": x}

    for k, _ in enumerate(run_tasks(client, _square, tasks())):
        assert len(taken) <= k + 2 + 2 * AHEAD
    assert len(taken) == 60


def test_a_failure_is_recorded_with_its_reason_and_the_rest_goes_on(client):
    ended = {e.name: e for e in run_tasks(client, _some_fail, ((str(x), {"x": x}) for x in range(9)))}
    assert len(ended) == 9
    assert {name for name, e in ended.items() if e.error} == {"0", "3", "6"}
    assert ended["3"].error == "frame 3: got a truncated file, expected all of it"


def test_a_failure_is_tried_again(client, tmp_path):
    (ended,) = run_tasks(client, _second_time, [("x", {"folder": str(tmp_path)})])
    assert ended.value == "answered"
    (tmp_path / "tried").unlink()
    (ended,) = run_tasks(client, _second_time, [("x", {"folder": str(tmp_path)})], retries=0)
    assert "ConnectionError: no answer" in ended.error


def test_a_full_disk_ends_the_run_and_names_the_box(client):
    with pytest.raises(OutputError, match=r"box 2: .*No space left"):
        list(run_tasks(client, _full, ((f"box {x}", {"x": x}) for x in range(50))))


def test_no_tasks(client):
    assert list(run_tasks(client, _square, [])) == []


def test_a_scheduler_that_does_not_answer_is_an_error(monkeypatch):
    import astrozoo.survey.sky.engine as engine

    monkeypatch.setattr(engine, "_CONNECT", "1s")
    with pytest.raises(InputError, match="--scheduler"), cluster(1, "tcp://127.0.0.1:9"):
        pass

from __future__ import annotations

import csv
import json
import re
import resource
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest

from astrozoo import _jobs, _predictive, cli, registry
from astrozoo.diagnostics import report
from astrozoo.types import Outcome, Result, Status, load

_MODEL = """
import pyro, torch
import pyro.distributions as dist
from astrozoo.errors import DataError
from astrozoo.types import Outcome, Page, Problem

class Line:
    def __call__(self, x, y):
        slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope[0] + slope[1] * x, 0.5), obs=y)

def simulate(seed=0):
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)
    noise = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    return (x, 1 + 2 * x + 0.5 * noise), {"slope": torch.tensor([1.0, 2.0])}

def read(path):
    if not path.suffix == ".txt":
        raise DataError(str(path), path.suffix, "a .txt file")
    return simulate(int(path.read_text()))[0]

def problem(data):
    return Problem(Line(), data, name="line", data_plates=("data",))

def check_box(text):
    if "," not in text:
        raise DataError("box", text, "rows,columns")

def job(*, out, path, demo, method, guide, seed, device, box):
    from astrozoo.infer import infer
    (out / "checkpoint").mkdir()
    (out / "extra.txt").write_text(f"{path} {demo} {device} {box}")
    result = infer(problem(simulate(seed)[0]), method, guide, seed=seed)
    return Outcome(result, [Page("Mine", ["Own words."])], {"sources": 3}, {"extra.txt": "more"})

def interrupted(*, out, **settings):
    (out / "checkpoint").mkdir(exist_ok=True)
    (out / "checkpoint" / "part.npz").touch()
    raise KeyboardInterrupt

def broken(**settings):
    raise ZeroDivisionError("one line\\nand another")
"""


@pytest.fixture
def line(tmp_path, monkeypatch) -> registry.Entry:
    """An entry whose model is a file of its own, as every entry's is."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "line_model.py").write_text(_MODEL)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "line_model", raising=False)
    entry = registry.Entry(
        name="line",
        summary="A line",
        citation="none",
        model="line_model:Line",
        guides=("mean_field",),
        methods=("trust_region", "laplace", "hmc"),
        default_guide="mean_field",
        default_method="laplace",
        options={"laplace": {"draws": 200}, "hmc": {"draws": 100, "chains": 4}},
    )
    return _register(monkeypatch, entry)


def _register(monkeypatch, entry):
    monkeypatch.setattr(registry, "_ENTRIES", (entry,))
    return entry


def _with_job(monkeypatch, entry, name):
    box = registry.Option("box", "A part.", metavar="ROWS,COLS", default="all", check="line_model:check_box")
    job = registry.Job(f"line_model:{name}", options=(box,))
    return _register(monkeypatch, replace(entry, jobs={"run": job}))


def call(*words) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main([str(word) for word in words])
    return raised.value.code


def test_run_writes_all_files(line, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert call("run", "line", "--seed", 3, "--out", out, "--strict") == 0
    assert {p.name for p in out.iterdir()} == {"posterior.nc", "report.html", "summary.json"}
    told = json.loads((out / "summary.json").read_text())
    assert (told["model"], told["method"], told["status"]) == ("line", "laplace", "converged")
    assert told["seed"] == 3
    assert told["counts"]["gradient"] >= 0
    assert load(out / "posterior.nc").draws["slope"].shape[-1] == 2
    assert "Simulated truth" in (out / "report.html").read_text()
    said = capsys.readouterr().out
    assert "simulating line with seed 3" in said
    assert "status  converged" in said


def test_run_writes_the_parameters_of_the_model(line, tmp_path):
    result = Result(
        draws={"slope": np.zeros((1, 4, 2))},
        status=Status.CONVERGED,
        seed=0,
        model="line",
        method="svi",
        parameters={"noise": np.array([0.5, 2.0]), "net.weight": np.arange(12.0).reshape(3, 4)},
    )
    _jobs.write(Outcome(result), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["parameters"] == {
        "noise": {"shape": [2], "values": [0.5, 2.0]},
        "net.weight": {"shape": [3, 4], "mean": 5.5, "min": 0.0, "max": 11.0},
    }
    assert "<h2>Parameters of the model</h2>" in (tmp_path / "report.html").read_text()


def test_run_reads_data_and_report_renders_what_was_saved(line, tmp_path):
    (tmp_path / "data.txt").write_text("5")
    assert call("run", "line", "--data", tmp_path / "data.txt", "--out", tmp_path / "out") == 0
    assert call("report", tmp_path / "out" / "posterior.nc", "--out", tmp_path / "again.html") == 0
    assert "<h2>Posterior</h2>" in (tmp_path / "again.html").read_text()


def test_an_entry_may_bring_its_own_job(line, tmp_path, monkeypatch, capsys):
    _with_job(monkeypatch, line, "job")
    assert call("run", "line", "--demo", "--box", "0:3,0:3", "--out", tmp_path) == 0
    assert (tmp_path / "extra.txt").read_text() == "None True cpu 0:3,0:3"
    assert "Own words." in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["sources"] == 3
    assert "extra.txt" in capsys.readouterr().out
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("words", [("line", "--box", "3"), ("--box", "3", "line")])
def test_options_of_a_job_are_checked_before_any_work(line, tmp_path, monkeypatch, capsys, words):
    _with_job(monkeypatch, line, "job")
    assert call("run", *words, "--out", tmp_path / "o") == 3
    assert "box: got 3, expected rows,columns" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("strong_lens", "--crowded"),
            r"expected nothing: it is an option of celeste. strong_lens has (--[\w-]+, )*--setting\b",
        ),
        (
            ("--subhalos", "1", "celeste", "--demo"),
            r"an option of strong_lens. celeste has (--[\w-]+, )*--box, (--[\w-]+, )*--catalog\b",
        ),
        (("celeste", "--demo", "--method", "svi"), "has one way, importance. `astrozoo compare`"),
        (("celeste", "--demo", "--guide", "mean_field"), "--guide: got mean_field, expected nothing"),
        (("celeste", "--demo", "--device", "cuda"), "--device: got cuda, expected nothing"),
        (("celeste", "--demo", "--sweeps", "0"), "--sweeps: got 0, expected 1 or more"),
        (("celeste", "--demo", "--star-fraction", "1.5"), "expected a number between 0 and 1"),
        (("celeste", "--demo", "--sweeps", "many"), "--sweeps: got 'many', expected a value of type int"),
        (("strong_lens", "--demo", "--setting", "gigalense"), "expected one of gigalens, compact, talk"),
        (("celeste", "--demo", "--nonsense", "1"), "--nonsense"),
    ],
)
def test_options_that_a_model_does_not_take_are_refused_with_those_that_it_takes(
    tmp_path, capsys, words, message
):
    assert call("run", *words, "--out", tmp_path / "o") == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert re.search(message, shown)
    assert not (tmp_path / "o").exists()


def test_compare_refuses_options_of_reading_without_data(tmp_path, capsys):
    words = ("compare", "celeste", "--methods", "svi", "--box", "0:9,0:9", "--out", tmp_path)
    assert call(*words) == 2
    assert "--box: got 0:9,0:9, expected --box with --data only" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compare", "sbc"])
def test_a_method_that_does_not_suit_a_model_is_refused_with_the_reason(command, tmp_path, capsys):
    option = "--methods" if command == "compare" else "--method"
    assert call(command, "celeste", option, "laplace", "--out", tmp_path / "o") == 2
    shown = capsys.readouterr().err
    assert "method: got 'laplace', which does not suit celeste (the posterior of a source has a mode" in shown
    assert "expected one of trust_region, svi, hmc, mclmc, nuts, nutpie" in shown
    assert not (tmp_path / "o").exists()


def test_examples_of_commands_name_methods_that_suit_the_model():
    commands = [command.epilog or "" for command in cli.app.registered_commands]
    commands += [line for entry in registry.list_models() for x in entry.examples.values() for line in x]
    named = re.findall(r"astrozoo \w+ (\w+)[^\[;]* --methods? ([\w,]+)", "\n".join(commands))
    assert len(named) >= 3
    for model, methods in named:
        assert set(methods.split(",")) <= set(registry.get(model).methods)


def test_help_on_a_model_shows_its_own_options_and_only_what_it_takes(capsys):
    assert call("run", "celeste", "--help") == 0
    shown = capsys.readouterr().out
    assert "Options of celeste" in shown
    assert "--sweeps" in shown
    assert "[deg]" in shown
    assert "astrozoo run celeste --demo --out demo" in shown
    assert "--method" not in shown
    assert call("run", "strong_lens", "--help") == 0
    shown = capsys.readouterr().out
    assert "--supersample" in shown
    assert "--method" in shown
    assert "--sweeps" not in shown


def test_show_lists_only_what_run_takes(capsys):
    assert call("show", "celeste") == 0
    shown = capsys.readouterr().out
    assert "run: method importance" in shown
    assert "run --box ROWS,COLS" in shown
    assert "run --method" not in shown
    assert "run --guide" not in shown
    assert call("show", "strong_lens") == 0
    shown = capsys.readouterr().out
    assert "run --method auto" in shown
    assert "run --method nutpie" in shown
    assert "run --subhalos N" in shown


def test_compare_writes_a_row_per_method_and_parameter(line, tmp_path):
    assert call("compare", "line", "--methods", "laplace,hmc", "--out", tmp_path) == 0
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["laplace"] * 2 + ["hmc"] * 2
    for row in rows[:2]:
        assert abs(float(row["shift"])) < 0.5
        assert float(row["sd ratio"]) == pytest.approx(1, abs=0.4)
    assert (tmp_path / "report.html").is_file()
    assert load(tmp_path / "hmc.nc").method == "hmc"


def test_a_fit_is_not_lost_for_want_of_replicated_data(line, tmp_path, monkeypatch):
    monkeypatch.setattr(_predictive, "MAX_NUMBERS", 10)
    assert call("run", "line", "--out", tmp_path) == 0
    assert "log likelihoods and replicated data are omitted" in (tmp_path / "summary.json").read_text()
    assert not load(tmp_path / "posterior.nc").predictive


def test_compare_takes_seeds_and_a_saved_reference(line, tmp_path):
    assert call("compare", "line", "--methods", "hmc", "--out", tmp_path / "long") == 0
    words = ("--seeds", 2, "--reference", tmp_path / "long" / "hmc.nc", "--out", tmp_path / "out")
    assert call("compare", "line", "--methods", "laplace", *words) == 0
    with (tmp_path / "out" / "runs.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["reference", "laplace-0", "laplace-1"]
    assert rows["reference"]["median shift"] == "nan"
    for name in ("laplace-0", "laplace-1"):
        row = {key: float(rows[name][key]) for key in ("median w1", "c2st", "c2st null", "elpd", "k-hat")}
        assert row["median w1"] < 0.3
        assert row["c2st"] < row["c2st null"] + 0.05  # exact on a line; 1 in 20 is outside by chance
        assert row["elpd"] < 0
        assert row["k-hat"] < 0.7
    table = pyarrow.parquet.read_table(tmp_path / "out" / "comparison.parquet")
    assert set(table["method"].to_pylist()) == {"reference", "laplace-0", "laplace-1"}
    assert "Distances and predictions" in (tmp_path / "out" / "report.html").read_text()
    other = ("--seed", 5, "--reference", tmp_path / "long" / "hmc.nc", "--out", tmp_path / "out")
    assert call("compare", "line", "--methods", "laplace", *other) == 2


def test_simulations_rank_each_truth_among_its_own_draws(line):
    settings = {"method": "laplace", "guide": "mean_field", "device": "cpu", "options": {}}
    together = _jobs._simulations(line, [3, 4, 5], **settings)["simulations"]
    assert [row["seed"] for row in together] == [3, 4, 5]
    for row in together:
        assert list(row["ranks"]) == ["slope[slope_dim_0=0]", "slope[slope_dim_0=1]"]
        assert row["status"] == "converged"
    data, truth = line.simulate(4)
    result = _jobs.infer(line.problem(data), "laplace", seed=0, draws=4000, progress=False)
    ranks = together[1]["ranks"].values()
    for rank, draws, true in zip(ranks, result.draws["slope"][0].T, truth["slope"], strict=True):
        share = (draws < true.item()).mean()  # 99 draws of the batched fit, against 4000 of one alone
        assert abs(rank / 99 - share) < 5 * (share * (1 - share) / 99) ** 0.5 + 0.01


def test_sbc_goes_on_where_it_was_and_tells_what_is_not_calibrated(line, tmp_path, monkeypatch, capsys):
    asked = []

    def simulations(entry, seeds, **settings):
        asked.append(list(seeds))
        rngs = [np.random.default_rng(seed) for seed in seeds]
        ranks = [(int(rng.integers(0, 100)), int(rng.integers(40, 60))) for rng in rngs]  # draws far too wide
        rows = [
            {"seed": seed, "ranks": {"right": right, "wide": wide}, "status": "converged"}
            for seed, (right, wide) in zip(seeds, ranks, strict=True)
        ]
        return {"simulations": rows}

    monkeypatch.setattr(_jobs, "_simulations", simulations)
    words = ("sbc", "line", "--simulations", 60, "--batch", 25, "--out", tmp_path)
    assert call(*words) == 0
    assert asked == [list(range(25)), list(range(25, 50)), list(range(50, 60))]
    first = (tmp_path / "calibration.csv").read_text()
    rows = {row["parameter"]: row for row in csv.DictReader(first.splitlines())}
    assert float(rows["right"]["p (ecdf)"]) > 0.001 > float(rows["wide"]["p (ecdf)"])
    assert float(rows["wide"]["coverage of 50%"]) == 1
    assert "Not calibrated." in capsys.readouterr().out
    (tmp_path / "simulations" / "25.json").unlink()
    asked.clear()
    assert call(*words) == 0
    assert asked == [list(range(25, 50))]
    assert (tmp_path / "calibration.csv").read_text() == first
    assert "converged" in (tmp_path / "report.html").read_text()
    assert call(*words, "--method", "hmc") == 2
    assert "simulations of" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("run",), ("compare", "--methods", "laplace"), ("sbc",)])
def test_a_folder_that_another_run_writes_into_is_refused_until_that_is_gone(line, tmp_path, capsys, words):
    command, *more = words
    script = "import sys; from astrozoo.cli import _alone; from pathlib import Path\n"
    script += "with _alone(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    asked = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        assert call(command, "line", *more, "--out", tmp_path) == 4
        assert "another run is writing into" in capsys.readouterr().err
        other.kill()
        other.wait()
        if command != "sbc":
            assert call(command, "line", *more, "--out", tmp_path) == 0


def test_compare_records_a_method_that_fails_and_tells(line, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(line.options, "hmc", {"chains": -1})
    assert call("compare", "line", "--methods", "laplace,hmc", "--out", tmp_path) == 1
    assert "hmc failed" in capsys.readouterr().err
    assert "failed: InputError" in (tmp_path / "comparison.csv").read_text()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("run", "lime", "--out", "o"), 2, "did you mean 'line'?"),
        (("run", "line", "--out", "o", "--method", "hmx"), 2, "unknown method of line 'hmx'"),
        (("run", "line", "--out", "o", "--guide", "meanfield"), 2, "did you mean 'mean_field'?"),
        (("run", "line", "--out", "o", "--device", "nowhere"), 2, "--device"),
        (("run", "line", "--out", "o", "--data", "none.txt"), 3, "--data none.txt"),
        (("run", "line", "--out", "o", "--data", "code"), 3, "a .txt file"),
        (("run", "line", "--out", "o", "--data", "code", "--demo"), 2, "one of them"),
        (("run", "line", "--out", "a_file"), 4, "cannot write into a_file"),
        (("run", "line", "--out", "a_file/below"), 4, "cannot write into a_file/below"),
        (("sbc", "line", "--simulations", 5, "--out", "o"), 2, "simulations"),
        (("compare", "line", "--methods", "hmc,", "--out", "o"), 2, "unknown method"),
        (("report", "none.nc", "--out", "r.html"), 3, "no such file"),
        (("report", "a_file", "--out", "r.html"), 3, "unreadable"),
        (("data", "fetch", "nothing"), 2, "unknown data set"),
        (("show", "lime"), 2, "unknown model"),
        (("run", "line"), 2, "--out"),
        (("run", "line", "--out", "o", "--seed", "-1"), 2, "--seed"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_bad_input_is_told_before_any_work(line, tmp_path, monkeypatch, capsys, words, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("x")
    assert call(*words) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_a_full_disk_is_an_output_error(line, tmp_path, monkeypatch, capsys):
    def full(*args, **settings):
        raise OSError(28, "No space left on device")

    _with_job(monkeypatch, line, "job")
    (tmp_path / "summary.json").write_text("earlier")
    monkeypatch.setattr(report.Path, "write_text", full)
    assert call("run", "line", "--out", tmp_path) == 4
    assert "No space left" in capsys.readouterr().err
    assert (tmp_path / "summary.json").read_text() == "earlier"
    assert (tmp_path / "checkpoint").is_dir()


def test_the_unexpected_and_the_interrupted(line, tmp_path, monkeypatch, capsys):
    _with_job(monkeypatch, line, "broken")
    assert call("run", "line", "--out", tmp_path) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines == ["astrozoo: unexpected ZeroDivisionError: one line and another (--debug shows where)"]
    assert call("run", "line", "--out", tmp_path, "--debug") == 1
    assert "Traceback" in capsys.readouterr().err
    _with_job(monkeypatch, line, "interrupted")
    assert call("run", "line", "--out", tmp_path) == 130
    first, last = capsys.readouterr().err.strip().splitlines()
    assert first.endswith(f"kept in {tmp_path / 'checkpoint'}: the same command continues it")
    assert last == "astrozoo: interrupted"


def test_strict_tells_of_a_run_that_did_not_converge(line, tmp_path, monkeypatch):
    monkeypatch.setitem(line.options, "laplace", {"draws": 200, "budget": 1})
    words = ("run", "line", "--method", "laplace", "--out", tmp_path)
    assert call(*words) == 0
    assert load(tmp_path / "posterior.nc").status is Status.BUDGET_SPENT
    assert call(*words, "--strict") == 5


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("run",),
        ("compare",),
        ("sbc",),
        ("train",),
        ("report",),
        ("list",),
        ("show",),
        ("data",),
        ("data", "fetch"),
    ],
)
def test_every_command_has_help_with_an_example(words, capsys):
    assert call(*words, "--help") == 0
    shown = capsys.readouterr().out
    assert "Example" in shown or words in ((), ("data",))


def test_list_show_and_version(capsys):
    assert call("list") == 0
    assert call("show", "celeste") == 0
    assert "nMgy" in capsys.readouterr().out
    assert call("data", "list") == 0
    assert "sdss-2583-2-136" in capsys.readouterr().out
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("astrozoo ")


def test_listing_is_quick_and_needs_no_torch():
    code = "import sys; from astrozoo import cli\ntry: cli.main(['list'])\nfinally: print(*sys.modules)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert ran.returncode == 0, ran.stderr
    assert "celeste" in ran.stdout
    assert not {"torch", "pyro", "arviz", "matplotlib"} & set(ran.stdout.split())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1

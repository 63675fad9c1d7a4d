from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Unpack, get_args, get_origin, get_type_hints

import pytest

import astrozoo
from astrozoo import registry
from astrozoo.errors import DataError, InputError, UnknownNameError


def test_listing_imports_neither_torch_nor_a_model():
    code = (
        "import sys, astrozoo; names = [e.name for e in astrozoo.list_models()]; astrozoo.get('celeste'); "
        "heavy = [m for m in sys.modules if m in ('torch', 'pyro', 'arviz', 'astrozoo.models.celeste')]; "
        "print(names, heavy)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split("] [")[1].strip() == "]"
    assert "celeste" in ran.stdout


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownNameError, match=r"unknown model 'celest': did you mean 'celeste'\?"):
        registry.get("celest")
    with pytest.raises(UnknownNameError, match=r"did you mean 'mean_field'\?"):
        registry.guide("meanfield")


@pytest.mark.parametrize("address", ["no_colon", ":x", "x:", "astrozoo.nowhere:x", "astrozoo.errors:Nothing"])
def test_a_wrong_address_is_an_input_error(address):
    with pytest.raises(InputError, match="address"):
        registry.resolve(address)


def test_a_missing_dependency_is_not_taken_for_a_wrong_address(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        registry.resolve("needs_more:x")


@pytest.mark.parametrize("entry", registry.list_models(), ids=lambda entry: entry.name)
def test_every_entry_is_whole(entry):
    assert entry.default_method in entry.methods
    assert entry.default_guide in entry.guides
    # A method is listed, or refused with a reason; a new one has to be decided on.
    assert sorted([*entry.methods, *entry.unsuited]) == sorted(registry.METHODS)
    assert all(entry.unsuited.values())
    assert set(entry.options) <= set(entry.methods)
    assert entry.summary
    assert entry.citation
    assert entry.module == f"astrozoo.models.{entry.name}"
    assert callable(entry.model_class)
    for name in ("simulate", "problem"):
        assert callable(registry.resolve(f"{entry.module}:{name}"))
    reader = registry.resolve(entry.reader or f"{entry.module}:read")
    taken = set(inspect.signature(reader).parameters)
    for record in get_type_hints(reader).values():
        if get_origin(record) is Unpack:
            taken |= set(get_type_hints(get_args(record)[0]))
    assert {option.name for option in entry.reading} <= taken


@pytest.mark.parametrize("entry", registry.list_models(), ids=lambda entry: entry.name)
def test_jobs_take_their_options_with_the_same_defaults(entry):
    for command, job in entry.jobs.items():
        taken = inspect.signature(registry.resolve(job.function)).parameters
        passed_on = {option.name for option in (*entry.reading, *entry.settings)}
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            passed_on = set()
        for option in job.options:
            if option.name not in taken and option.name in passed_on:
                assert option.default is None, (command, option.name)
            else:
                assert taken[option.name].default == option.default, (command, option.name)
        assert set(job.takes) <= set(taken)


@pytest.mark.parametrize("command", ["run", "compare", "sbc"])
def test_options_of_entries_hide_none_of_the_command(command):
    common = {
        "model",
        "out",
        "data",
        "method",
        "methods",
        "guide",
        "seed",
        "seeds",
        "device",
        "demo",
        "strict",
    }
    common |= {"strict", "reference", "simulations", "batch", "help", "options", "entry", "path"}
    for entry in registry.list_models():
        names = [option.name for option in entry.job(command).options]
        assert len(set(names)) == len(names)
        assert not common & set(names)


def test_options_are_parsed_and_checked(tmp_path):
    number = registry.Option("most_sweeps", "", type=int, default=3, minimum=1)
    assert number.flag == "--most-sweeps"
    assert (number.parse(None), number.parse("5")) == (3, 5)
    for text in ("0", "nan", "1.5"):
        with pytest.raises(InputError, match="--most-sweeps"):
            number.parse(text)
    with pytest.raises(InputError, match=r"0\.5 or more"):
        registry.Option("x", "", type=float, minimum=0.5).parse("nan")
    with pytest.raises(InputError, match="one of a, b"):
        registry.Option("x", "", choices=("a", "b")).parse("c")
    with pytest.raises(DataError, match="nothing there"):
        registry.Option("x", "", type=Path).parse(str(tmp_path / "missing"))


def test_a_command_that_an_entry_does_not_have_is_named():
    with pytest.raises(InputError, match="got survey, expected one of compare, run, sbc"):
        registry.get("strong_lens").job("survey")


@pytest.mark.parametrize("name", list(registry.GUIDES))
def test_general_guides_exist(name):
    assert callable(registry.guide(name))


def test_public_names_resolve():
    for name in astrozoo.__all__:
        assert getattr(astrozoo, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = astrozoo.nothing

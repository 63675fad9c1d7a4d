from __future__ import annotations

import subprocess
import sys

import pytest

import astrozoo
from astrozoo import registry
from astrozoo.errors import InputError, UnknownNameError


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
    assert set(entry.methods) <= set(registry.METHODS)
    assert entry.summary
    assert entry.citation
    assert entry.module == f"astrozoo.models.{entry.name}"
    assert callable(entry.model_class)
    for name in ("simulate", "problem") if entry.job else ("simulate", "read", "problem"):
        assert callable(registry.resolve(f"{entry.module}:{name}"))
    if entry.job:
        assert callable(registry.resolve(entry.job))


@pytest.mark.parametrize("name", list(registry.GUIDES))
def test_general_guides_exist(name):
    assert callable(registry.guide(name))


def test_public_names_resolve():
    for name in astrozoo.__all__:
        assert getattr(astrozoo, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = astrozoo.nothing

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "astrozoo", "models", "guides")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in _SOURCES:
        if (_ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(_ROOT / name, source / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(_ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    ran = subprocess.run(build, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_data_file(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for top, name in ((_ROOT / "astrozoo", "astrozoo"), (_ROOT / "models", "astrozoo/models")):
        expected |= {f"{name}/{p.relative_to(top)}" for p in _shipped(top)}
    expected |= {f"astrozoo/guides/{p.name}" for p in _shipped(_ROOT / "guides")}
    assert expected <= held, f"missing: {sorted(expected - held)}"
    models = {f"astrozoo/models/{name}" for name in ("celeste.py", "celeste_priors_stripe82.json")}
    assert {"astrozoo/py.typed", *models} <= held
    assert not [name for name in held if name.startswith(("tests", "models/", "guides/"))]


def _shipped(folder: Path) -> list[Path]:
    linked = ("models", "guides")
    kinds = (".py", ".json", ".jinja", ".typed", ".yaml")
    found = [p for p in folder.rglob("*") if p.suffix in kinds or p.name == "py.typed"]
    return [p for p in found if p.relative_to(folder).parts[0] not in linked]


def test_the_wheel_imports_from_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import astrozoo, astrozoo.models.celeste as m, astrozoo.guides.celeste as g\n"
        "import astrozoo.cli, astrozoo.diagnostics.report, astrozoo.infer\n"
        f"assert all(x.__file__.startswith({str(site)!r}) for x in (astrozoo, m, g)), m.__file__\n"
        "print(m.load_prior().bands)"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=empty,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "'r'" in ran.stdout

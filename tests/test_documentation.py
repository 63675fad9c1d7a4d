"""Every Python block of the README and of docs/ runs, in order, in one namespace for each document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from astropy.table import Table

from astrozoo.data.lenses import write
from astrozoo.data.sdss import read_field
from astrozoo.data.simulate_lens import simulate_lens

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path) -> list[str]:
    """The Python code of a document, with its lines where they are in the document."""
    text = path.read_text()
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in BLOCK.finditer(text)]


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if blocks(p)], ids=lambda p: p.name)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch, request):
    """A document finds the files that it names: LENS.fits, an SDSS field at FOLDER, sources at mine.csv."""
    code = blocks(path)
    monkeypatch.chdir(tmp_path)
    if any('"FOLDER"' in block for block in code):
        Path("FOLDER").symlink_to(request.getfixturevalue("sdss_folder"))
    if any('"LENS.fits"' in block for block in code):
        write(simulate_lens(0, shape=(44, 44))[0], "LENS.fits")
    if any('"mine.csv"' in block for block in code):
        middle = read_field("FOLDER", bands="r").images[0].wcs.pixel_to_world([1500, 1540], [400, 470])
        Table({"ra": middle.ra.deg, "dec": middle.dec.deg}).write("mine.csv")
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in code:
        exec(compile(block, str(path), "exec"), namespace)


def test_every_document_is_found():
    assert len(DOCUMENTS) > 3
    assert blocks(ROOT / "README.md")

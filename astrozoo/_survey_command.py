"""What the command ``survey`` does: the entry's own survey, and what it prints at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astrozoo._console import print_rows, say
from astrozoo.entry import Entry, resolve

__all__ = ["survey"]


def survey(entry: Entry, *, out: Path, **settings: Any) -> dict[str, Any]:
    """Run an entry's survey; its summary, with ``failures``."""
    summary = resolve(entry.job("survey").function)(out=out, say=say, **settings)
    files = {
        "catalog": "catalogue: Parquet by HEALPix (HATS)",
        "catalog.fits": "the same, one FITS table",
        "failures.csv": "tasks that failed, and why",
        "summary.json": "counts and seconds",
        "report.html": "report",
    }
    failures = summary["failures"]
    print()
    print_rows({**summary, "failures": len(failures)})
    print()
    print_rows({str(out / name): what for name, what in files.items() if (out / name).exists()})
    for failure in failures[:5]:
        say(f"failed: {failure['stage']} {failure['name']}: {failure['reason']}")
    if failures:
        say(f"{len(failures)} tasks failed, the rest is complete; the same command tries them again")
    return summary

"""A survey's folder: what has been done, what failed, and with which settings.

Every result is one file, written under a name that no other process uses and then renamed: two processes that
do the same task, because the first was thought to be dead, both leave a whole file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from astrozoo._files import write_json
from astrozoo.errors import DataError, InputError, OutputError

__all__ = ["Store"]

_MANIFEST = "manifest.json"


class Store:
    """The folder of the work of a survey.

    Args:
        folder: for the work, inside the output folder.
        settings: whatever tells this survey from another; JSON.

    Raises:
        InputError: the folder has work of a survey with other settings; the message names them.
        OutputError: it cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        path = folder / _MANIFEST
        wanted = json.loads(json.dumps(settings))
        if path.exists():
            try:
                had = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(
                    str(path), f"{error}", "a manifest; remove the folder to begin anew"
                ) from error
            for name in wanted.keys() | had.keys():
                if wanted.get(name) != had.get(name):
                    raise InputError(
                        f"{folder}",
                        f"work of a survey with {name} {_short(had.get(name))}",
                        f"{name} {_short(wanted.get(name))}; give another --out, or remove {folder}",
                    )
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {folder}: {error}") from error
        write_json(wanted, path)

    def path(self, stage: str, name: str, suffix: str) -> Path:
        """Where the result of a task is, or will be."""
        folder = self.folder / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}{suffix}"

    def done(self, stage: str, suffix: str) -> set[str]:
        """Names of the tasks of a stage that have a result."""
        folder = self.folder / stage
        if not folder.is_dir():
            return set()
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.name.endswith(suffix) and not e.name.startswith(".")]
        return {name.removesuffix(suffix) for name in names}

    def fail(self, stage: str, name: str, reason: str) -> None:
        """Put a task into quarantine, with its reason."""
        write_json(
            {"stage": stage, "name": name, "reason": reason}, self.path("failed", f"{stage}-{name}", ".json")
        )

    def forgive(self) -> int:
        """Forget all failures, so that they are tried again; their number."""
        failed = self.failures()
        shutil.rmtree(self.folder / "failed", ignore_errors=True)
        return len(failed)

    def failures(self) -> list[dict[str, str]]:
        """The tasks in quarantine: stage, name and reason of each."""
        folder = self.folder / "failed"
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]

    def remove(self) -> None:
        """Remove all work, once the results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."

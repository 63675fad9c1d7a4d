"""A folder on disk where compiled graphs are kept, so that a second process need not compile them again.

The folder is ``$ASTROZOO_CACHE``, or ``compiled`` in the user's cache folder (``~/.cache/astrozoo`` on
Linux); an empty ``ASTROZOO_CACHE`` switches the cache off. Each graph has a folder of its own, whose
files are listed with their SHA-256 in a manifest. It appears under its final name only when it is
complete. Files in it are executed when they are loaded, so the cache is used only if nobody but its owner
can write to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pooch
import torch
from filelock import FileLock

from astrozoo._files import replacing

__all__ = ["MAX_BYTES", "VARIABLE", "Store", "open_store"]

VARIABLE = "ASTROZOO_CACHE"
"""The environment variable that names the folder."""

MAX_BYTES = 2 * 1024**3
"""[bytes] Size of all cached graphs above which the least recently used are deleted. A graph takes 0.5 to
5 MB, so that several hundred fit."""

_MANIFEST = "manifest.json"
"""File in the folder of a cached graph that lists its other files. It is written last."""
_PARTIAL = ".partial-"
"""Prefix of a folder that is being written or deleted."""


class Store:
    """The cached graphs of one machine type.

    Args:
        folder: a private folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where the graph of this key is, or would be."""
        return self.folder / key

    def contains(self, key: str) -> bool:
        """Whether a graph of this key is cached."""
        return (self.path(key) / _MANIFEST).is_file()

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold off other processes (and threads) that would compile the same graph."""
        with FileLock(self.folder / f"{key}.lock"):
            yield

    def verify(self, key: str) -> None:
        """Compare the files of a graph with its manifest, and mark the graph as used now.

        Raises:
            ValueError: a file is missing or has other content.
        """
        folder = self.path(key)
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            path = folder / name
            if not path.is_file() or _sha256(path) != expected:
                raise ValueError(f"{name} is missing or damaged")
        os.utime(folder)

    def add(self, key: str, fill: Callable[[Path], None]) -> None:
        """Have a new folder filled, and give it its name when it is complete.

        Args:
            key: of the graph.
            fill: writes the graph's files to the folder that it is given.
        """
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.folder))
        try:
            fill(partial)
            files = sorted(p for p in partial.rglob("*") if p.is_file() and p.suffix != ".lock")
            manifest = {str(p.relative_to(partial)): _sha256(p) for p in files}
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            if not self.contains(key):
                self.remove(key)
                partial.rename(self.path(key))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._evict(key)

    def remove(self, key: str) -> None:
        """Delete a graph."""
        if self.path(key).exists():
            doomed = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=self.folder))
            self.path(key).rename(doomed / key)  # at once: nobody loads a graph that is half deleted
            shutil.rmtree(doomed)

    def rejection(self, key: str) -> str | None:
        """Why compiled code of this graph was discarded, or None if it never was."""
        path = self._rejection_path(key)
        return path.read_text(encoding="utf-8") if path.is_file() else None

    def reject(self, key: str, reason: str) -> None:
        """Delete a graph, and record that its compiled code is wrong."""
        self.remove(key)
        with replacing(self._rejection_path(key)) as partial:
            partial.write_text(reason, encoding="utf-8")

    def _rejection_path(self, key: str) -> Path:
        return self.folder / f"{key}.rejected.txt"

    def _evict(self, newest: str) -> None:
        """Delete the least recently used graphs until the rest fit into :data:`MAX_BYTES`."""
        with self.lock("evict"):
            used = {p.parent: p.parent.stat().st_mtime for p in self.folder.glob(f"*/{_MANIFEST}")}
            sizes = {
                folder: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) for folder in used
            }
            total = sum(sizes.values())
            for folder in sorted(used, key=lambda f: used[f]):
                if total <= MAX_BYTES:
                    return
                if folder.name != newest:
                    self.remove(folder.name)
                    total -= sizes[folder]


def open_store() -> tuple[Store | None, str | None]:
    """The cache of this machine type, or None and the reason why there is none."""
    setting = os.environ.get(VARIABLE)
    if setting == "":
        return None, None
    root = Path(pooch.os_cache("astrozoo")) / "compiled" if setting is None else Path(setting).expanduser()
    folder = root / machine()
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.mkdir(exist_ok=True, mode=0o700)
        for path in (root, folder):
            info = path.stat()
            if os.name == "posix" and (
                info.st_uid != os.getuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            ):
                return None, (
                    f"compiled graphs are not cached: others may write to {path} (expected a folder of "
                    "your own, mode 0700), and what is in it would be executed"
                )
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write to {folder}")
    except OSError as error:
        return (
            None,
            f"compiled graphs are not cached: {error} (set {VARIABLE} to a folder that can be written to)",
        )
    return Store(folder), None


@cache
def machine() -> str:
    """A name for this type of machine: compiled code runs only on the processor that it was compiled for."""
    described = [torch.__version__, torch.version.git_version, platform.python_version(), platform.machine()]
    described += [torch.backends.cpu.get_cpu_capability(), _compiler()]
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file():
        lines = cpu.read_text(encoding="utf-8", errors="replace").splitlines()
        described += sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    else:
        described.append(platform.processor())
    return hashlib.sha256("\n".join(map(str, described)).encode()).hexdigest()[:16]


def _compiler() -> str:
    """Version of the C++ compiler that inductor would call."""
    command = os.environ.get("CXX", "g++" if shutil.which("g++") else "c++")
    try:
        run = subprocess.run([*command.split(), "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return run.stdout.split("\n")[0]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

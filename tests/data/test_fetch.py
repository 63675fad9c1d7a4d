import bz2
import functools
import hashlib
import http.server
import threading

import pytest

from astrozoo.data import fetch as fetching
from astrozoo.data import root
from astrozoo.data.fetch import datasets, fetch
from astrozoo.errors import DataError, UnknownNameError

CONTENT = b"SIMPLE  =                    T"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A web server with one compressed file, a registry that names it; an empty cache, no local data."""
    served, cache = tmp_path / "served", tmp_path / "cache"
    (tmp_path / "none").mkdir()
    served.mkdir()
    (served / "one.fits.bz2").write_bytes(bz2.compress(CONTENT))
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=str(served))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("ASTROZOO_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(fetching.pooch, "os_cache", lambda project: cache / project)

    def register(digest, url=f"http://127.0.0.1:{server.server_port}/one.fits.bz2"):
        entry = fetching._DataSet("a test", "absent", (fetching._Remote(url, digest),))
        monkeypatch.setitem(fetching._DATASETS, "test", entry)
        return cache / "astrozoo" / "test"

    yield register
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_downloaded_once_and_checked(archive):
    folder = archive(hashlib.sha256(CONTENT).hexdigest())
    assert fetch("test", progress=False) == folder
    assert bz2.decompress((folder / "one.fits.bz2").read_bytes()) == CONTENT
    archive("unused: the file is there", url="http://127.0.0.1:1/one.fits.bz2")
    assert fetch("test", progress=False) == folder


def test_a_wrong_checksum_leaves_no_file(archive):
    folder = archive("0" * 64)
    with pytest.raises(DataError, match="SHA-256"):
        fetch("test", progress=False)
    assert not list(folder.iterdir())


def test_no_network_is_a_clear_error(archive):
    archive("0" * 64, url="http://127.0.0.1:1/one.fits.bz2")
    with pytest.raises(DataError, match="ASTROZOO_DATA"):
        fetch("test", progress=False)


def test_local_data_come_first(tmp_path, monkeypatch):
    folder = tmp_path / "sdss" / "frame_2583_2_136"
    folder.mkdir(parents=True)
    monkeypatch.setenv("ASTROZOO_DATA", str(tmp_path))
    assert fetch("sdss-2583-2-136") == folder


def test_names(monkeypatch):
    assert "sdss-2583-2-136" in datasets()
    with pytest.raises(UnknownNameError, match="sdss-2583"):
        fetch("sdss-2583-2-137")
    monkeypatch.setenv("ASTROZOO_DATA", "/no/such/folder")
    with pytest.raises(DataError, match="ASTROZOO_DATA"):
        root()


def test_checksums_are_those_of_the_local_copy(sdss_folder):
    """The two smallest files of the registry; local copies carry .fits.gz where the archive has .fit."""
    remotes = {remote.name: remote for remote in fetching._DATASETS["sdss-2583-2-136"].files}
    assert len(remotes) == 11
    for name, local in (
        ("psField-002583-2-0136.fit", "psField-002583-2-0136.fits.gz"),
        ("fpM-002583-z2-0136.fit.gz", "fpM-002583-z2-0136.fits.gz"),
    ):
        content = fetching._decompressed(sdss_folder / local, local)
        assert hashlib.sha256(content).hexdigest() == remotes[name].sha256

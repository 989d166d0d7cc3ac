import os
from pathlib import Path

import pytest

from gpt2lab.files import write_bytes


@pytest.mark.parametrize("kind", [str, Path])
def test_bytes_are_written_as_they_are_in_folders_that_are_made(tmp_path, kind):
    content = bytes(range(256)) * 100
    path = write_bytes(kind(tmp_path / "a" / "b" / "file.bin"), content)
    assert path == tmp_path / "a" / "b" / "file.bin"
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("when", ["writing", "putting it in place"])
def test_failed_write_leaves_the_old_file_whole_and_nothing_else(tmp_path, monkeypatch, when):
    path = tmp_path / "page.html"
    path.write_bytes(b"old")
    where = (os, "fsync") if when == "writing" else (Path, "replace")
    monkeypatch.setattr(*where, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def full_disk(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_written_file_has_the_permissions_of_the_umask(tmp_path, umask, mode):
    old = os.umask(umask)
    try:
        path = write_bytes(tmp_path / "file", b"x")
        assert os.umask(umask) == umask
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == mode

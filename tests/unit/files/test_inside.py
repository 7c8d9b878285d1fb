"""Small files of a volume that others may write."""

import os
import socket
from pathlib import Path

import pytest

from sluice_files.inside import LeadsOutside, read_inside


def test_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_inside(tmp_path, tmp_path / "link", 2) == b"ab"


def test_link_out_of_the_volume_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "token").write_text("secret")
    (tmp_path / "volume" / "link").symlink_to(tmp_path / "token")
    with pytest.raises(LeadsOutside):
        read_inside(tmp_path / "volume", tmp_path / "volume" / "link", 9)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name in ("pipe", "folder", "socket", "device"):
            with pytest.raises(OSError, match=r"no regular file|No such device or address|Is a directory"):
                read_inside(tmp_path, tmp_path / name, 9)

"""Files are written whole or not at all, and nothing that is no file is lost."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vaelab.data.folder import find_pictures
from vaelab.errors import InputError
from vaelab.files import check_writable, replacing, write_text

POSIX = pytest.mark.skipif(os.name != "posix", reason="there are no named pipes")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "x.txt", "old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "x.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.txt", "old")]


@POSIX
def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: is no regular file, and would be lost; name another"):
        write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


@POSIX
def test_what_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "inner" / "x.txt")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "inner" / "x.txt").read_text() == "text"


def test_a_place_that_cannot_be_written_to_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "x.html", "page.html")
    with pytest.raises(InputError, match=r"is a folder; name a file in it, such as .*page\.html"):
        check_writable(tmp_path, "page.html")
    with pytest.raises(InputError, match="there is no folder .*nowhere; make it first"):
        check_writable(tmp_path / "nowhere" / "x.html", "page.html")
    monkeypatch.setattr(os, "access", lambda folder, mode: (folder, mode) != (tmp_path, os.W_OK))  # root may write all
    with pytest.raises(InputError, match="nothing can be written in the folder"):
        check_writable(tmp_path / "x.html", "page.html")


def test_a_name_as_long_as_names_can_be(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "text")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]


@POSIX
def test_a_pipe_among_pictures_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b.png: is no regular file; take it out of the folder"):
        find_pictures(tmp_path)

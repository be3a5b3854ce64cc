"""Files are written whole, keep their old content under a second name, and are read with limits."""

import os

import pytest

from tools.errors import UserError
from tools.io.files import alone_in, is_folder_or_device, read_bytes, remove_parts, write_atomically


def write(path, content, previous=None):
    write_atomically(path, lambda file: file.write(content), previous)


def test_the_replaced_file_gets_the_previous_name(tmp_path):
    path, previous = tmp_path / "new" / "last", tmp_path / "new" / "previous"
    for content in (b"1", b"2", b"3"):
        write(path, content, previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"3", b"2")
    assert sorted(os.listdir(path.parent)) == ["last", "previous"]


def test_a_kill_between_the_two_renames_of_a_save_leaves_nothing_behind_the_next_one(tmp_path):
    path, previous = tmp_path / "last", tmp_path / "previous"
    write(path, b"1")
    os.link(path, previous)  # as after the first rename
    write(path, b"2", previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"2", b"1")
    assert sorted(os.listdir(tmp_path)) == ["last", "previous"]


def test_without_hard_links_the_previous_file_is_kept_too(tmp_path, monkeypatch):
    def link(*args):
        raise PermissionError("this file system has no hard links")

    monkeypatch.setattr(os, "link", link)
    path, previous = tmp_path / "last", tmp_path / "previous"
    for content in (b"1", b"2"):
        write(path, content, previous)
    assert (path.read_bytes(), previous.read_bytes()) == (b"2", b"1")


def test_only_unfinished_files_of_this_kind_are_removed(tmp_path):
    names = ["last.pth", f"last.pth.{'0a' * 16}.part", "of the user.part"]
    for name in names:
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [names[0], names[2]]


def test_a_file_is_read_up_to_a_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bytes(path, most=5) == b"12345"
    with pytest.raises(UserError, match="file has more than 4 bytes"):
        read_bytes(path, most=4)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "absent", most=4)


def test_folders_and_pipes_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        assert is_folder_or_device(path)
        with pytest.raises(UserError, match="is not a file"):
            read_bytes(path, most=4)
    (tmp_path / "file").touch()
    assert not is_folder_or_device(tmp_path / "file") and not is_folder_or_device(tmp_path / "absent")


def test_a_folder_is_locked_for_one_block_at_a_time(tmp_path):
    with alone_in(tmp_path), pytest.raises(UserError, match="another process is using"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass

"""Outputs are checked before anything is computed: none is read, none is another's, all can be written."""

import pytest

from common.errors import UserError
from common.outputs import require_output_directory, require_output_files, require_writable


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"picture")
    return tmp_path / "in" / "a.png"


def test_an_output_is_not_what_is_read_however_it_is_spelled(picture, tmp_path):
    link = tmp_path / "link.png"
    link.symlink_to(picture)
    hard = tmp_path / "hard.png"
    hard.hardlink_to(picture)
    for file in (picture, picture.parent / ".." / "in" / "a.png", link, hard):
        with pytest.raises(UserError, match=r"would be written over what is read, .*; choose another --html"):
            require_output_files([tmp_path / "other", file], [picture], flag="--html")


def test_an_output_is_not_among_a_folder_that_is_read(picture):
    with pytest.raises(UserError, match=r"b\.png would be written over what is read"):
        require_output_files([picture.with_name("b.png")], [picture.parent])


def test_two_outputs_are_not_one_file(tmp_path):
    with pytest.raises(UserError, match=r"a\.png would be written twice"):
        require_output_files([tmp_path / "a.png", tmp_path / "x" / ".." / "a.png"])


def test_existing_files_are_replaced_only_beside_a_file_of_the_command(picture, tmp_path):
    own = tmp_path / "in" / "result.json"
    with pytest.raises(UserError, match=r"a\.png exists and is not of this command; move it or choose another --out"):
        require_output_files([picture], own=own)
    require_output_files([picture])
    own.write_text("{}")
    require_output_files([picture], own=own)


def test_an_output_file_is_no_directory_and_its_directory_can_be_made(picture, tmp_path):
    with pytest.raises(UserError, match="in is a directory, expected a file to write"):
        require_output_files([picture.parent])
    with pytest.raises(UserError, match=r"--out .*below cannot be written: Not a directory"):
        require_output_files([picture / "below" / "out.json"])
    require_output_files([tmp_path / "new" / "deep" / "out.json"])
    assert not (tmp_path / "new").exists()


def test_a_directory_that_refuses_a_file_is_named(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"--out .*new cannot be written: Permission denied"):
        require_writable(tmp_path / "new")


def test_a_directory_is_new_or_the_commands_own_and_holds_nothing_that_is_read(picture, tmp_path):
    with pytest.raises(UserError, match=r"a new directory or one with info\.json, got .*in, which holds a\.png"):
        require_output_directory(picture.parent, "info.json")
    for read in (picture, picture.parent):
        with pytest.raises(UserError, match="would be written over what is read"):
            require_output_directory(picture.parent, "a.png", [read])
    require_output_directory(picture.parent, "a.png", [tmp_path / "elsewhere"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".info.123.json").touch()  # of a process that died
    require_output_directory(tmp_path / "empty", "info.json")

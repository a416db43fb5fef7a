"""Folders that are whole or not there."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from llava.mezo.errors import InputError, JournalError
from llava.mezo.new_folder import new_folder


def test_files_are_there_once_all_are_written(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out"
    with new_folder(target, "--to") as folder:
        (folder / "a").write_text("1")
        assert folder.name == "out" and not target.exists()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_an_empty_folder_stays_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    inode = (tmp_path / "out").stat().st_ino
    monkeypatch.chdir(tmp_path / "out")
    with new_folder(Path(), "--to") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a").write_text("1")
        assert folder.name == "out"
    assert Path("deep/a").read_text() == "1" and Path.cwd().stat().st_ino == inode
    assert os.listdir() == ["deep"]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), SafetensorError("(os error 28)"), KeyboardInterrupt()]
)
def test_nothing_is_left_of_what_failed(there: bool, error: BaseException, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if there:
        target.mkdir()
    with pytest.raises(BaseException) as raised, new_folder(target, "--to") as folder:
        (folder / "a").write_text("1")
        raise error
    if isinstance(error, KeyboardInterrupt):
        assert raised.value is error
    else:
        assert raised.type is InputError and str(raised.value) == f"--to {target} cannot be written ({error})"
    assert list(tmp_path.rglob("*")) == ([target] if there else [])


def test_errors_name_the_folder_that_was_asked_for(tmp_path: Path) -> None:
    with (
        pytest.raises(JournalError, match=rf"^{tmp_path}/out/a is odd$"),
        new_folder(tmp_path / "out", "--to") as folder,
    ):
        raise JournalError(f"{folder}/a is odd")


@pytest.mark.parametrize("there", ["file", "folder", "part"])
def test_what_is_there_is_not_written_over(there: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if there == "file":
        target.touch()
    else:
        (target / "a" if there == "folder" else tmp_path / "out.part").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=rf"^--to {target}.* remove it first$"), new_folder(target, "--to"):
        pytest.fail("it was begun")
    assert sorted(tmp_path.rglob("*")) == before

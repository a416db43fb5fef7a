"""Finished, unfinished and unusable output folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import SafetensorError

from llava.errors import InputError
from llava.runs.run_folder import check_writable, prepare_output_dir, refusing_full_disk
from llava.train.zo.resume_points import newest_checkpoint


def make_checkpoint(folder: Path, step: int, complete: bool = True, **arguments: object) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "training_args.json").write_text(json.dumps(arguments))
    if complete:
        (path / "trainer_state.json").write_text("{}")
    return path


def test_newest_complete_checkpoint_wins(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    make_checkpoint(tmp_path, 9)
    expected = make_checkpoint(tmp_path, 10)
    make_checkpoint(tmp_path, 11, complete=False)
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_checkpoint(tmp_path) == expected


def test_finished_run_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 4)
    for name in ("trainer_state.json", "probes.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match=r"finished run.*--overwrite_output_dir.*For more steps.*--model_name_or_path"):
        prepare_output_dir(tmp_path, overwrite=False, journaled=False)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter_config.json")
    with pytest.raises(InputError, match=r"For more steps merge it with its base first.*llava\.model\.merge --adapter"):
        prepare_output_dir(tmp_path, overwrite=False, journaled=False)
    assert newest_checkpoint(tmp_path) is not None
    prepare_output_dir(tmp_path, overwrite=True, journaled=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("peft_type", "merged"), [("PREFIX_TUNING", False), ("HOULSBY", False), ("LORA", True)])
def test_an_adapter_that_cannot_be_merged_cannot_be_trained_further(
    peft_type: str, merged: bool, tmp_path: Path
) -> None:
    (tmp_path / "trainer_state.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": peft_type}))
    with pytest.raises(InputError) as error:
        prepare_output_dir(tmp_path, overwrite=False, journaled=False)
    said = str(error.value)
    assert ("llava.model.merge" in said) == merged
    assert (f"cannot be trained further: no run starts from an adapter, and one of kind {peft_type}" in said) != merged


@pytest.mark.parametrize(
    "kind", ["model-00001-of-00002.safetensors", "adapter_config.json", "mm_projector.safetensors"]
)
def test_a_model_of_another_kind_goes_with_its_run_alone(kind: str, tmp_path: Path) -> None:
    (tmp_path / kind).write_text("{}")
    prepare_output_dir(tmp_path, overwrite=True, journaled=False)
    assert (tmp_path / kind).exists()  # nobody knows whose
    (tmp_path / "training_args.json").write_text("{}")
    prepare_output_dir(tmp_path, overwrite=True, journaled=False)
    assert not (tmp_path / kind).exists()


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to.*OUTPUT_DIR"):
        check_writable(tmp_path / "file" / "below")


def test_a_journal_is_not_outdated_by_a_run_without(tmp_path: Path) -> None:
    (tmp_path / "mezo_journal").mkdir()
    (tmp_path / "mezo_journal" / "header.json").write_text("{}")
    prepare_output_dir(tmp_path, overwrite=False, journaled=True)
    with pytest.raises(InputError, match=r"MeZO run with a journal.*--overwrite_output_dir"):
        prepare_output_dir(tmp_path, overwrite=False, journaled=False)
    prepare_output_dir(tmp_path, overwrite=True, journaled=False)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_in_one_line(tmp_path: Path) -> None:
    full = [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left (os error 28)")]
    full.append(Exception("No space left on device (os error 28)"))  # of tokenizers
    for error in full:
        with pytest.raises(InputError, match="no room left"), refusing_full_disk(tmp_path):
            raise error
    with pytest.raises(OSError, match="other"), refusing_full_disk(tmp_path):
        raise OSError(5, "other")

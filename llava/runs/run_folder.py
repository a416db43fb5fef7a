"""The output folder of a run: is it writable, does it hold a finished or an unfinished run, where to go on.

A run is finished when `trainer_state.json` lies in the folder itself: it is the last thing that training
writes. `checkpoint-N` counts once its own `trainer_state.json` is there, for the same reason.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerState

from llava.errors import InputError, is_full_disk
from llava.mezo.durable import write_durably
from llava.mezo.errors import JournalError
from llava.mezo.journal.files import HEADER, JOURNAL_FOLDER, Journal
from llava.mezo.journal.locking import FolderLock
from llava.mezo.progress import PROBES_FILE
from llava.model.adapter_kinds import MERGED
from llava.model.checkpoint_files import headers, read_json, usable
from llava.runs.run_report import ARGUMENTS_FILE, REPORT_FILE, STATE_FILE
from llava.runs.validation import CURVE_FILE

LOSS_PICTURE = "loss.png"
RUNNING = ".running"
"""A file that is locked, and there, while a run writes to the folder."""
RATE_FILE, RATE_PICTURE = "learning_rate.json", "learning_rate.png"
"""Of a run that found its rate."""
PARTS_OF_MODELS = ("adapter_config.json", "mm_projector.safetensors", "quantized_scales.safetensors")
OF_MODELS = (
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *(*PARTS_OF_MODELS, "adapter_model.safetensors", "non_lora_trainables.safetensors"),
)
"""What runs save, each kind its own files. Beside a model of another kind they would be taken for its."""


def prepare_output_dir(folder: Path, overwrite: bool, journaled: bool) -> None:
    """Make `folder` ready for a run: created, writable, and holding neither a finished run nor one of another kind.

    Args:
        overwrite: start again where a run, finished or not, lies: its checkpoints, model and reports are removed.
        journaled: whether the run keeps a journal.

    Raises:
        InputError: the folder cannot be written to, or it holds such a run and `overwrite` is not set.
    """
    check_writable(folder)
    again = "choose another one, or give --overwrite_output_dir True to start again"
    if overwrite:
        _remove_run(folder)
    elif (folder / STATE_FILE).exists():
        raise InputError(f"--output_dir {folder} holds a finished run ({STATE_FILE}): {again}. {more_steps(folder)}")
    elif (folder / JOURNAL_FOLDER / HEADER).exists() and not journaled:
        raise InputError(
            f"--output_dir {folder} holds a MeZO run with a journal, which this run would outdate: {again}"
        )


def more_steps(folder: Path) -> str:
    """How a finished run is trained further: in another folder, from the last step of its journal or from its model.

    Adapters without a journal that are no change of weights cannot be.
    """
    if not (folder / JOURNAL_FOLDER / HEADER).exists():
        file = folder / "adapter_config.json"
        kind = read_json(file).get("peft_type") if file.exists() else None
        if kind is not None and kind not in MERGED:
            return (
                f"It cannot be trained further: no run starts from an adapter, and one of kind {kind} cannot be merged "
                f"with its base into a model (those that can: {', '.join(MERGED)}). For more steps run it from the "
                "start, with a larger --max_steps or --num_train_epochs"
            )
        if any((folder / name).exists() for name in PARTS_OF_MODELS):  # which no run starts from
            return (
                "For more steps merge it with its base first (`python -m llava.model.merge "
                f"--adapter {folder} --base MODEL --output FOLDER`), and begin a run in another folder with the result"
            )
        return f"For more steps begin a run in another folder with --model_name_or_path {folder}"
    journal = Journal.read(folder / JOURNAL_FOLDER)
    model = f"--model_name_or_path {journal.header.model}" if journal.header.model else "the model of this one"
    where = f"--zo_from_journal {journal.folder}:{len(journal.records)}"
    return f"For more steps begin a run in another folder with {where} and {model}"


def check_writable(folder: Path) -> None:
    """`InputError` when nothing can be written to `folder`; the folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise InputError(
            f"--output_dir {folder} cannot be written to ({error.strerror}): set OUTPUT_DIR or --output_dir"
        ) from error


@contextmanager
def held_alone(folder: Path, flag: str) -> Iterator[None]:
    """Within it, no other process has `folder`, the value of `flag`. InputError: one has. The folder is made."""
    try:
        lock = FolderLock(folder)
    except JournalError as error:
        raise InputError(f"{flag} {folder}: another process works there, or it cannot be written to") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def written_alone(folder: Path, patience: float) -> Iterator[None]:
    """Within it, no other run writes to `--output_dir`. Its journal has a lock of its own, for other commands.

    Args:
        patience: seconds to wait for a process that is about to end.

    Raises:
        InputError: one does, or nothing can be written there.
    """
    check_writable(folder)
    try:
        lock = FolderLock(folder, patience, RUNNING)
    except JournalError as error:
        raise InputError(f"--output_dir {folder}: another run is writing there; wait for it or stop it") from error
    try:
        yield
    finally:
        (folder / RUNNING).unlink(missing_ok=True)
        lock.release()


@contextmanager
def refusing_full_disk(folder: Path) -> Iterator[None]:
    """Turns a full disk into an `InputError`."""
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise InputError(
            f"--output_dir {folder} has no room left ({error}). What was saved before is kept: make room and start the "
            "same run again, it goes on from there"
        ) from error


def flat_arguments(*groups: Any) -> dict[str, Any]:
    """All flags of a run as one JSON object; values that JSON cannot hold are left out."""
    values: dict[str, Any] = {}
    for group in groups:
        values.update(group.to_dict() if hasattr(group, "to_dict") else vars(group))
    return {name: value for name, value in sorted(values.items()) if _is_plain(value)}


def save_arguments(arguments: dict[str, Any], folder: Path) -> None:
    """Write the flags beside the weights they led to."""
    write_durably(folder / ARGUMENTS_FILE, json.dumps(arguments, indent=2) + "\n")


def check_whole(checkpoint: Path) -> None:
    """`InputError` unless every file of the point that a run goes on from is there as a whole, and of that step.

    Args:
        checkpoint: checkpoint-N, a journal's resume-N, or a journal that has neither.
    """
    try:
        for file in sorted(checkpoint.iterdir()):
            if file.suffix == ".safetensors":
                headers(file)
            elif file.name == STATE_FILE:
                _check_state(file, read_json(file))
            elif file.suffix == ".json":
                read_json(file)
    except InputError as error:
        raise InputError(
            f"cannot go on from {checkpoint}: {str(error).rstrip('.')}. Remove that folder to go on from an earlier "
            "point, or give --overwrite_output_dir True to start again"
        ) from error


def remove_weights(folder: Path) -> None:
    """Free the space of a run that is over and of its checkpoints; its command, or its journal, gives them again."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    for file in folder.glob("*.safetensors"):
        file.unlink()


def _check_state(file: Path, values: dict[str, Any]) -> None:
    with usable(str(file)):
        state = TrainerState.load_from_json(str(file))
    steps = re.fullmatch(r"(?:checkpoint|resume)-(\d+)", file.parent.name)
    if not isinstance(state.global_step, int) or "global_step" not in values:
        raise InputError(f"{file}: has no global_step, the number of steps that were done.")
    if steps is not None and state.global_step != int(steps[1]):
        raise InputError(f"{file}: is of step {state.global_step}.")


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, type(None), list, dict))


def _remove_run(folder: Path) -> None:
    for path in folder.glob("checkpoint-*"):
        if re.fullmatch(r"checkpoint-\d+", path.name):
            shutil.rmtree(path)
    if (folder / JOURNAL_FOLDER).is_dir():
        try:
            FolderLock(folder / JOURNAL_FOLDER).release()
        except JournalError as error:
            raise InputError(f"--overwrite_output_dir True: {error}") from error
        shutil.rmtree(folder / JOURNAL_FOLDER)
    was_run = any((folder / name).exists() for name in (STATE_FILE, ARGUMENTS_FILE))
    for pattern in OF_MODELS if was_run else ():
        for path in folder.glob(pattern):
            path.unlink()
    for name in (STATE_FILE, REPORT_FILE, LOSS_PICTURE, RATE_FILE, RATE_PICTURE, CURVE_FILE, PROBES_FILE):
        (folder / name).unlink(missing_ok=True)

"""The output folder of a run: is it writable, does it hold a finished or an unfinished run, where to go on.

A run is finished when `trainer_state.json` lies in the folder itself: it is the last thing that training
writes. `checkpoint-N` counts once its own `trainer_state.json` is there, for the same reason.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerState

from llava.errors import InputError
from llava.mezo.durable import write_durably
from llava.mezo.errors import JournalError
from llava.mezo.journal.files import JOURNAL_FOLDER
from llava.mezo.journal.locking import FolderLock
from llava.model.checkpoint_files import headers, read_json, usable
from llava.runs.run_report import ARGUMENTS_FILE, REPORT_FILE, STATE_FILE

logger = logging.getLogger(__name__)

LOSS_PICTURE = "loss.png"
# Flags that make another run of it; any other change is only warned about.
SAME_IN_A_RUN = (
    "model_name_or_path",
    "data_path",
    "mm_tunable_parts",
    "trainer_mode",
    "vision_tower",
    "mm_projector_type",
    "lora_enable",
    "lora_r",
    "lora_alpha",
    "lora_bias",
    "bits",
    "bf16",
    "zo_seed",
    "zo_noise",
    "seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)
NOT_WORTH_A_WARNING = {"overwrite_output_dir", "disable_tqdm", "local_rank", "resume_from_checkpoint", "run_name"}


def prepare_output_dir(folder: Path, overwrite: bool) -> None:
    """Make `folder` ready for a run: created, writable, and not holding a finished run.

    Args:
        overwrite: start again where a run, finished or not, lies: its checkpoints and reports are removed.

    Raises:
        InputError: the folder cannot be written to, or holds a finished run and `overwrite` is not set.
    """
    check_writable(folder)
    if overwrite:
        _remove_run(folder)
    elif (folder / STATE_FILE).exists():
        raise InputError(
            f"--output_dir {folder} holds a finished run ({STATE_FILE}): choose another one, "
            "or give --overwrite_output_dir True to start again"
        )


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
def refusing_full_disk(folder: Path) -> Iterator[None]:
    """Turns a full disk, which safetensors tells of in words alone, into an `InputError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        numbers = (errno.ENOSPC, errno.EDQUOT)
        if getattr(error, "errno", None) not in numbers and not any(f"os error {n})" in str(error) for n in numbers):
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
            if file.suffix == ".json":
                values = read_json(file)
                if file.name == STATE_FILE:
                    _check_state(file, values)
            elif file.suffix == ".safetensors":
                headers(file)
    except InputError as error:
        raise InputError(
            f"cannot go on from {checkpoint}: {str(error).rstrip('.')}. Remove that folder to go on from an earlier "
            "point, or give --overwrite_output_dir True to start again"
        ) from error


def _check_state(file: Path, values: dict[str, Any]) -> None:
    with usable(str(file)):
        state = TrainerState.load_from_json(str(file))
    steps = re.fullmatch(r"(?:checkpoint|resume)-(\d+)", file.parent.name)
    if not isinstance(state.global_step, int) or "global_step" not in values:
        raise InputError(f"{file}: has no global_step, the number of steps that were done.")
    if steps is not None and state.global_step != int(steps[1]):
        raise InputError(f"{file}: is of step {state.global_step}.")


def check_same_run(checkpoint: Path, arguments: dict[str, Any]) -> None:
    """Whether a run with these flags goes on with what `checkpoint` holds.

    Raises:
        InputError: it is about another model, other data or another method.
    """
    file = checkpoint / ARGUMENTS_FILE
    if not file.exists():
        file = checkpoint.parent / ARGUMENTS_FILE  # a resume point's journal
    if not file.exists():
        logger.warning("%s has no %s: whether it is of a run with these flags is not known", checkpoint, ARGUMENTS_FILE)
        return
    earlier = read_json(file)
    changed = {name for name, value in arguments.items() if name in earlier and earlier[name] != value}
    for name in SAME_IN_A_RUN:
        if name in changed:
            raise InputError(
                f"{checkpoint} is of an unfinished run with --{name} {earlier[name]}, now "
                f"{arguments[name]}: choose another --output_dir, or give --overwrite_output_dir True to start again"
            )
    for name in sorted(changed - NOT_WORTH_A_WARNING):
        logger.warning("--%s was %r when %s was saved and is %r now", name, earlier[name], checkpoint, arguments[name])


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
    for name in (STATE_FILE, REPORT_FILE, LOSS_PICTURE):
        (folder / name).unlink(missing_ok=True)

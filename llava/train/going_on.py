"""How a run goes on: from where it stopped, as it was begun, with the processes that there are now.

The main process decides, since it alone is sure to see all of the run's files, and the others are told.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.mezo.journal.files import JOURNAL_FOLDER
from llava.mezo.messages import exchanged, handed_out, leave, raising_together
from llava.model.base_mark import BASE_SHA256, base_mark
from llava.runs import run_folder, same_run
from llava.runs.run_report import STATE_FILE
from llava.samples.loading import data_files
from llava.train import launches
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.zo.resume_points import check_enough_steps, steps_done
from llava.train.zo.shared_steps import Begun

logger = logging.getLogger(__name__)


def header(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments, checkpoint: Path | None
) -> dict[str, Any]:
    """What is kept beside every checkpoint of a run: its flags, hashes of its data, and what was changed on the way.

    `training_args` takes what the run's steps were made of, if it goes on with another number of processes.

    Args:
        checkpoint: the point that the run goes on from; its files are looked over.

    Raises:
        InputError: the point is damaged, or of a run with other data or flags.
    """
    values = run_folder.flat_arguments(model_args, data_args, training_args)
    values["world_size"], values["data_processes"] = training_args.world_size, training_args.data_processes
    values[launches.LAUNCH] = launches.launch()
    files: dict[str, Any] = {same_run.DATA: same_run.hashes(data_files(data_args.data_path))}
    model = str(model_args.model_name_or_path)
    mark = base_mark(model)
    if mark is not None:  # a hub id that has not been fetched yet has none
        files[BASE_SHA256] = mark
    values |= files
    found: dict[str, Any] = {}
    with raising_together(training_args.device):
        if training_args.process_index == 0:  # flags of others may name the same files by other paths
            found = _history(training_args, values, checkpoint) | files
    found = json.loads(handed_out(json.dumps(found).encode(), 0, training_args.device))
    with raising_together(training_args.device):
        if values[same_run.DATA] != found[same_run.DATA]:
            raise InputError(f"--data_path {data_args.data_path} has other records here than where rank 0 is")
        if mark is not None and found.get(BASE_SHA256, mark) != mark:
            raise InputError(f"--model_name_or_path {model} has other weights here than where rank 0 is")
    values |= found
    then = Begun(values["data_processes"], values["gradient_accumulation_steps"])
    now = Begun(training_args.data_processes, training_args.gradient_accumulation_steps)
    if then != now:
        training_args.begun, training_args.gradient_accumulation_steps = then, 1  # type: ignore[misc]
        if training_args.process_index == 0:
            logger.warning(launches.told(then, now.processes, values[launches.PROCESSES]))
    return values


def _history(training_args: TrainingArguments, values: dict[str, Any], checkpoint: Path | None) -> dict[str, Any]:
    """What a run's flags become by what it was begun with, and what was changed on the way; see `header`."""
    found: dict[str, Any] = {}
    earlier, steps = None, 0
    if checkpoint is not None:
        run_folder.check_whole(checkpoint)
        earlier = same_run.earlier_arguments(checkpoint)
        steps = steps_done(Path(str(training_args.output_dir)), checkpoint)
        begun = launches.settled(training_args, earlier) if earlier and training_args.journal_keeps_all else None
        if begun is not None:
            found |= {"data_processes": begun.processes, "gradient_accumulation_steps": begun.accumulated}
        if training_args.max_steps > 0:  # of epochs it is known once there are batches
            check_enough_steps(f"--max_steps {training_args.max_steps}", training_args.max_steps, steps)
        given = training_args.resume_with_changes
        found[same_run.CHANGES] = same_run.check_same_run(checkpoint, values | found, steps, given)
        logger.info("resuming from %s", checkpoint)
    found[launches.PROCESSES] = launches.process_counts(earlier, steps, training_args.world_size)
    return found


def goes_on_after_restart(folder: Path, training_args: TrainingArguments) -> bool:
    """Whether the launcher has started this launch before, as any rank knows: what it did then is not overwritten."""
    earlier = None if launches.launch() is None else same_run.earlier_arguments(folder / JOURNAL_FOLDER)
    told = exchanged(b"again" if launches.is_started_again(earlier) else b"", training_args.device)
    return any(told)


def run_is_finished(folder: Path, training_args: TrainingArguments) -> bool:
    """Whether a run that the launcher started again had done all, and only its end was cut off."""
    if not any(exchanged(b"done" if (folder / STATE_FILE).exists() else b"", training_args.device)):
        return False
    if training_args.process_index == 0:
        logger.warning("%s was finished before the launcher started it again: nothing is left to do", folder)
    leave()
    return True

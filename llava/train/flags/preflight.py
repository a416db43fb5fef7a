"""What a run needs from disk and hub, looked at before a model is loaded.

Each thing that is missing is one line that names the flag (and the script's variable) to set.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava.errors import InputError, naming, short
from llava.eval.questions import question_and_reference
from llava.model.checkpoint_kind import check_model, check_tower, looks_local
from llava.runs.validation import LOSS
from llava.samples.answers import different_answers
from llava.samples.dataset import LazySupervisedDataset
from llava.samples.loading import JsonRecord, Parts, data_files, is_there, load_parts
from llava.samples.media_files import check_media_files
from llava.samples.record import Record, read_record
from llava.samples.sample_maker import check_marks
from llava.train.objectives import check_questions, chooses, score_of
from llava.train.order import check_batches
from llava.train.zo.resume_points import branching_point, given_checkpoint, has_journal

_GATHER = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
STARTS = (
    *("model_name_or_path", "vision_tower", "pretrain_mm_mlp_adapter"),
    *("resume_from_checkpoint", "zo_from_journal"),
)
"""Paths that a run starts from."""
PATHS = (
    *("data_path", "eval_data_path", "image_folder", "video_folder"),
    *STARTS,
    *("output_dir", "mm_feature_cache", "cache_dir", "logging_dir"),
)


def check_paths(model_args: Any, data_args: Any, training_args: Any) -> None:
    """Data, folders and the journal to start from exist, and model and vision tower can be used as such."""
    values = vars(model_args) | vars(data_args) | vars(training_args)
    for name in PATHS:
        try:
            Path(values.get(name) or "").exists()
        except OSError as error:  # too long a name
            raise InputError(f"--{name} {values[name]} is no path: {error.strerror}") from error
    for file in data_files(data_args.data_path):
        if not is_there(file):
            raise InputError(f"--data_path {file}: no such file; set DATA_PATH or --data_path to a LLaVA JSON")
    for file in data_files(data_args.eval_data_path) if data_args.eval_data_path else ():
        if not is_there(file):
            raise InputError(f"--eval_data_path {file}: no such file; give a LLaVA JSON, or leave it out")
    images, own_class = model_args.vision_tower is not None, model_args.model_class_name is not None
    check_model(model_args.model_name_or_path, "--model_name_or_path", "MODEL", images=images, any_class=own_class)
    if model_args.vision_tower is not None and looks_local(model_args.vision_tower):
        check_tower(model_args.vision_tower, "--vision_tower", "VISION_TOWER")
    for flag, value in (
        ("--pretrain_mm_mlp_adapter", model_args.pretrain_mm_mlp_adapter),
        ("--image_folder (IMAGE_FOLDER)", data_args.image_folder),
        ("--video_folder", data_args.video_folder),
    ):
        if value is not None and not Path(value).exists():
            raise InputError(f"{flag} {value}: no such file or folder")
    _check_apart(model_args, training_args)
    given_checkpoint(training_args.resume_from_checkpoint)
    goes_on = has_journal(Path(training_args.output_dir)) and not training_args.overwrite_output_dir
    if training_args.trainer_mode == "zo" and training_args.zo_from_journal is not None and not goes_on:
        branching_point(training_args.zo_from_journal)


def _check_apart(model_args: Any, training_args: Any) -> None:
    """A run does not write over, or remove, what it starts from."""
    folder = Path(training_args.output_dir).absolute()
    if Path(model_args.model_name_or_path).absolute() == folder:
        raise InputError(
            f"--output_dir {training_args.output_dir} is the folder of --model_name_or_path, which would be written "
            "over: choose another one"
        )
    if not training_args.overwrite_output_dir:
        return
    for name in STARTS:
        value = getattr(model_args, name, None) or getattr(training_args, name, None)
        if value and folder in (Path(value).absolute(), *Path(value).absolute().parents):
            raise InputError(
                f"--overwrite_output_dir True excludes --{name} {value}, which lies in --output_dir and would be "
                "removed: choose another --output_dir"
            )


def check_gathering(training_args: Any) -> None:
    """`InputError` where `--deepspeed` leaves the weights in pieces at the end, so that no model would be saved."""
    config = getattr(training_args, "hf_deepspeed_config", None)  # only there with --deepspeed
    if config is None or not config.is_zero3() or config.is_true(_GATHER) or config.get_value(_GATHER) == "auto":
        return
    raise InputError(
        f"--deepspeed {training_args.deepspeed}: ZeRO stage 3 without {_GATHER} writes no model: set it to true there"
    )


def check_records(data_args: Any, training_args: Any, processes: int) -> Parts:
    """The records, which make at least one batch, and are what `--zo_objective` wants; their files are there."""
    parts = load_parts(data_args.data_path, data_args.seed or 0)
    dataset = _Unprocessed(data_args.data_path, None, copy.copy(data_args), parts)
    if len(dataset) == 0:
        raise InputError(f"--data_path {data_args.data_path} holds no records to train on")
    check_batches(dataset, training_args, processes)
    if training_args.trainer_mode == "zo" and score_of(training_args.zo_objective) is not None:
        check_questions(dataset)
    if chooses(training_args):
        with naming(f"--data_path {data_args.data_path}"):
            different_answers(dataset.records)
    if not data_args.skip_bad_samples:
        _check_media([(dataset.file_of(record.number), record) for record in dataset.records], data_args)
    return parts


def check_validation(data_args: Any, training_args: Any) -> Parts | None:
    """The records of `--eval_data_path`, if it is given: there are some, with answers and the pictures that they name.

    Raises:
        InputError: the first that cannot be used; what only pixels or a tokenizer show is found later.
    """
    if not data_args.eval_data_path:
        return None
    parts = load_parts(data_args.eval_data_path, data_args.seed or 0)
    named: list[tuple[str, Record]] = []
    for number, (file, raw) in enumerate((file, raw) for file, records in parts for raw in records):
        with naming(short(file)):
            named.append((file, read_record(raw, number)))
            if training_args.eval_metric != LOSS:
                question_and_reference(raw, number, data_args.image_folder or "")
    if not named:
        raise InputError(f"--eval_data_path {data_args.eval_data_path} holds no records to evaluate on")
    _check_media(named, data_args)
    return parts


def _check_media(named: Sequence[tuple[str, Record]], data_args: Any) -> None:
    """What can be said of images and videos without opening them."""
    for file, record in named:
        with naming(short(file)), naming(record.name):
            check_marks(record)
    check_media_files(named, data_args.image_folder, data_args.video_folder)


class _Unprocessed(LazySupervisedDataset):
    """The data set before there is a model: those records that can be read, whatever may be wrong with their media."""

    def _usable(self, raw: Sequence[JsonRecord]) -> Iterator[Record]:
        for number, one in enumerate(raw):
            try:
                yield read_record(one, number)
            except InputError as error:
                if not self.settings.skip_bad_samples:
                    raise
                self.skipped.append({"reason": str(error)})

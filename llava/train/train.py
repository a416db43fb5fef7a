"""Train a LLaVA model on LLaVA JSON data, by backpropagation or by zeroth-order steps (MeZO).

    python -m llava.train.train --model_name_or_path M --data_path train.json --image_folder D \
        --output_dir OUT --trainer_mode zo --mm_tunable_parts mm_language_model ...

or `torchrun llava/train/train_mem.py` with the same flags (`llava.train.flags.arguments` has them all). An output
folder that holds an unfinished run is resumed. At the end it holds the model with its card, trainer_state.json,
loss.png and report.json. Exit codes: 2 wrong input, 3 the loss diverged, 4 another process of the run was lost or has
other weights, 130 stopped by a signal (with a checkpoint).
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from llava import conversation
from llava.compatibility import names_of
from llava.errors import EXIT_DIVERGED, EXIT_LOST, EXIT_SIGNAL, command
from llava.mezo.held import agreed
from llava.mezo.journal.files import JOURNAL_FOLDER
from llava.mezo.lost_ranks import RanksError, waiting_for_others
from llava.mezo.messages import answer_within, raising_together
from llava.mezo.progress import PROBES_FILE
from llava.model.checkpoint_files import read_json
from llava.model.loading import not_finite
from llava.model.own_settings import read_config
from llava.model.quantised_scales import train_scales
from llava.model.vocabulary import check_fits
from llava.runs import run_folder, same_run
from llava.runs.plots import plot_loss
from llava.runs.run_card import write_run_card
from llava.runs.run_report import versions, write_report
from llava.runs.runs import samples_per_step
from llava.runs.validation import CURVE_FILE, Curve
from llava.samples.answers import answer_tree, different_answers
from llava.samples.dataset import make_supervised_data_module
from llava.samples.loading import Parts, data_files
from llava.train.callbacks import LogLastStep, Outlook, ProgressBar, SaveArguments, StepTimes, StopOnSignal
from llava.train.flags.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.flags.from_checkpoint import take_from_checkpoint
from llava.train.flags.parsing import parse_arguments
from llava.train.flags.preflight import check_gathering, check_paths, check_records, check_validation
from llava.train.flags.renamed_flags import checkpointing_options
from llava.train.found_rate import found_rate
from llava.train.going_on import goes_on_after_restart, header, run_is_finished
from llava.train.launches import PROCESSES
from llava.train.llava_trainer import LLaVATrainer
from llava.train.memory import peak_memory_bytes
from llava.train.objectives import CollateWithRecords, GeneratedScore, WithRecords, chooses, score_of
from llava.train.order import check_batches
from llava.train.parts import feature_cache
from llava.train.parts.adapters import add_adapter
from llava.train.parts.build import add_vision, get_model, get_tokenizer, quantisation_of_run
from llava.train.parts.saving import adapter_names
from llava.train.parts.tunable import select_trainable, trained_parts
from llava.train.validation import Validation, validation_set
from llava.train.zo.disks import Disks, patience_of_launcher
from llava.train.zo.meeting import meet_anew
from llava.train.zo.resume_points import given_checkpoint, newest_checkpoint, start_of, steps_done
from llava.train.zo.settings import Settings
from llava.utils import setup_logging

__getattr__ = names_of("llava.train.train")  # started by `python -m`, this is __main__

logger = logging.getLogger("llava.train.train")  # also where `python -m` calls it __main__


@command
def train(attn_implementation: str | None = None, argv: list[str] | None = None) -> None:
    """Run a training from the command line (or `argv`).

    Args:
        attn_implementation: overrides the flag of that name.
    """
    try:
        with waiting_for_others(), ExitStack() as held:
            _train(attn_implementation, argv, held)
    except RanksError as error:
        sys.stderr.write(f"error: {error}. What was done before is kept; the same command goes on from there\n")
        sys.exit(EXIT_LOST)


def _train(attn_implementation: str | None, argv: list[str] | None, held: ExitStack) -> None:
    setup_logging()
    meet_anew()
    model_args, data_args, training_args = parse_arguments(argv)
    if attn_implementation is not None:
        training_args.attn_implementation = attn_implementation
    answer_within(training_args.ddp_timeout)
    folder = Path(str(training_args.output_dir))
    journaled = training_args.trainer_mode == "zo" and training_args.zo_journal
    disks = Disks.find(folder, training_args.device) if journaled else Disks()
    again = goes_on_after_restart(folder, training_args)
    if again and run_is_finished(folder, training_args):
        return
    overwrite = training_args.overwrite_output_dir and not again
    if journaled and not overwrite:
        disks.level(folder, [CURVE_FILE, PROBES_FILE])
    check_paths(model_args, data_args, training_args)
    check_gathering(training_args)
    take_from_checkpoint(model_args, data_args, read_config(model_args.model_name_or_path))
    logger.info("reading the records of %s", data_args.data_path)
    parts = check_records(data_args, training_args, training_args.data_processes)
    validated = check_validation(data_args, training_args)
    with raising_together(training_args.device):
        if training_args.process_index == 0 or disks.writes:
            held.enter_context(run_folder.written_alone(folder, patience_of_launcher()))
            run_folder.prepare_output_dir(folder, overwrite, journaled)
    checkpoint = given_checkpoint(training_args.resume_from_checkpoint)
    if checkpoint is None:
        checkpoint = start_of(folder, not disks.several) if journaled else newest_checkpoint(folder)
    if training_args.finds_learning_rate:
        make = partial(trainer_of, model_args, data_args, parts)
        training_args.learning_rate = found_rate(folder, checkpoint, make, training_args, str(model_args.version))
    arguments = header(model_args, data_args, training_args, checkpoint)
    if training_args.trainer_mode == "zo":
        Settings.of(training_args).check_plan(training_args, sum(len(records) for _, records in parts))
    curve = None if validated is None else curve_of(data_args, training_args, checkpoint)

    logger.info("loading the model %s", model_args.model_name_or_path)
    transformers.set_seed(training_args.seed)
    model, tokenizer = build(model_args, data_args, training_args)
    logger.info("looking at the records with its tokenizer")
    trainer = make_trainer(model, tokenizer, model_args, data_args, training_args, parts, validated, curve)
    trainer.run_arguments = arguments
    if journaled:
        trainer.disks = disks  # type: ignore[attr-defined]
    trainer.add_callback(SaveArguments(arguments, folder / JOURNAL_FOLDER, disks.writes))
    times, stop = watched(trainer, partial(steps_done, folder, checkpoint))
    take_steps(trainer, folder, checkpoint)
    if stop.received is not None and trainer.state.global_step < trainer.state.max_steps:
        sys.exit(EXIT_SIGNAL)
    with run_folder.refusing_full_disk(folder):
        finish(trainer, folder, model_args, times)
    leave_together(trainer)


def take_steps(trainer: LLaVATrainer, folder: Path, checkpoint: Path | None) -> None:
    """All steps that are left; the process ends where the loss, or a weight after the last step, is not finite."""
    try:
        with run_folder.refusing_full_disk(folder):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            broken = agreed(not_finite(trainer.model), trainer.model.parameters())  # after the last step no loss tells
            if broken is not None:
                raise FloatingPointError(f"the weight {broken} is not finite{trainer.advice()}")
    except FloatingPointError as error:
        sys.stderr.write(f"error: {error}\n")
        leave_together(trainer)
        sys.exit(EXIT_DIVERGED)


def watched(trainer: LLaVATrainer, done: Callable[[], int]) -> tuple[StepTimes, StopOnSignal]:
    """Callbacks for the person who waits; of them what is asked afterwards.

    Args:
        done: tells the steps that are not taken again, whenever the run starts or goes back.
    """
    args: Any = trainer.args
    zo = args.trainer_mode == "zo"
    planned = Settings.of(args).planned_rows(args) if zo else None
    times, stop = StepTimes(done), StopOnSignal(save=not (zo and args.zo_journal))
    for callback in (Outlook(len(trainer.train_dataset), planned), ProgressBar(done), LogLastStep(), times, stop):
        trainer.add_callback(callback)
    return times, stop


def curve_of(data_args: DataArguments, training_args: TrainingArguments, checkpoint: Path | None) -> Curve:
    """The validation curve of a run, with the points of a run that goes on.

    Raises:
        InputError: these are of another metric, or of other records.
    """
    path = str(data_args.eval_data_path)
    hashes = same_run.hashes(data_files(path))
    if set(hashes) <= set(same_run.hashes(data_files(data_args.data_path))):
        logger.warning("--eval_data_path %s has the records that are trained on, and tells nothing of others", path)
    curve = Curve(training_args.eval_metric, path, hashes)
    if checkpoint is not None:
        folder = Path(str(training_args.output_dir))
        curve.take_up(folder, steps_done(folder, checkpoint), training_args.resume_with_changes)
    return curve


def build(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> tuple[Any, Any]:
    """Model, with the parameters that are trained switched on, and tokenizer."""
    tokenizer = get_tokenizer(model_args, training_args)
    conversation.default_conversation = conversation.get_template(model_args.version)
    model = get_model(model_args, training_args, quantisation_of_run(training_args))
    check_fits(tokenizer, model.config.vocab_size, str(model_args.model_name_or_path))
    if model_args.vision_tower is not None:
        add_vision(model, tokenizer, model_args, data_args, training_args)
    if training_args.lora_enable:
        model = add_adapter(model, training_args)
    scales = train_scales(model) if training_args.zo_quantized_scales else frozenset()
    select_trainable(model, model_args, training_args, adapter_names(model) | scales)
    if training_args.bits != 16 and not training_args.lora_enable:
        model.is_quantized = False  # transformers trains nothing else of such a model than PEFT's adapters
    if checkpointing_options(training_args)["use_reentrant"]:
        model.enable_input_require_grads()  # reentrant checkpoints have gradients only where an input has one
    return model, tokenizer


def make_trainer(
    model: Any,
    tokenizer: Any,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    parts: Parts | None = None,
    validated: Parts | None = None,
    curve: Curve | None = None,
) -> LLaVATrainer:
    """The trainer of a run with its data, its cache of features, its objective and its validation.

    Args:
        parts: as for `LazySupervisedDataset`.
        validated: the same of `--eval_data_path`.
        curve: gets what is measured on these.
    """
    if chooses(training_args):
        data_args.whole_answers_for = f"--zo_objective {training_args.zo_objective}"  # type: ignore[attr-defined]
    data = make_supervised_data_module(tokenizer, data_args, parts)
    dataset, collate = data["train_dataset"], data["data_collator"]
    check_batches(dataset, training_args, training_args.data_processes)  # some may have been skipped
    if validated is not None:
        data["eval_dataset"] = validation_set(tokenizer, data_args, validated)
    zo = training_args.trainer_mode == "zo"
    choices = different_answers(dataset.records) if chooses(training_args) else []
    known = cache = None
    if training_args.mm_feature_cache is not None:
        where = training_args.mm_feature_cache, training_args.mm_feature_cache_gb
        if zo:
            known = feature_cache.tile_features(model, *where)
            collate.find_features = None if known is None else known.find
        else:
            cache = feature_cache.install(model, *where)
    score = score_of(training_args.zo_objective) if zo else None
    if score is not None:
        data |= {"train_dataset": WithRecords(dataset), "data_collator": CollateWithRecords(collate)}
    trainer: Any = trainer_class(training_args.trainer_mode)(
        model=model, args=training_args, processing_class=tokenizer, **data
    )
    if zo:
        trainer.known_features = known
        if choices:
            trainer.answers = answer_tree(choices, tokenizer, dataset.settings.template)
    else:
        trainer.feature_cache = cache
    if curve is not None:
        trainer.validation = Validation(curve, data["eval_dataset"], collate, str(model_args.version), choices)
    if score is not None:
        trainer.objective = GeneratedScore(score, tokenizer, dataset.settings, str(model_args.version))
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


def trainer_of(
    model_args: ModelArguments, data_args: DataArguments, parts: Parts | None, training_args: TrainingArguments
) -> LLaVATrainer:
    """A trainer with a model of its own, to try something out; `parts` as for `make_trainer`."""
    model_args, data_args = copy.copy(model_args), copy.copy(data_args)  # building settles some of them
    transformers.set_seed(training_args.seed)
    model, tokenizer = build(model_args, data_args, training_args)
    return make_trainer(model, tokenizer, model_args, data_args, training_args, parts)


def trainer_class(mode: str) -> type[LLaVATrainer]:
    """The trainer of a `--trainer_mode`."""
    if mode == "zo":
        from llava.train.zo.extended_trainer import ExtendedMeZOTrainer

        return ExtendedMeZOTrainer
    return LLaVATrainer


def leave_together(trainer: LLaVATrainer) -> None:
    """Wait for all ranks and end their group: one that leaves it open may abort, and then the launcher kills all."""
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def finish(trainer: LLaVATrainer, folder: Path, model_args: ModelArguments, times: StepTimes) -> None:
    """Save the model, draw the loss, write the report; `trainer_state.json` last, since it marks a finished run."""
    trainer.save_model()
    if not trainer.args.should_save:
        return
    history = trainer.state.log_history
    curve = None if trainer.validation is None else trainer.validation.curve
    if curve is not None:
        curve.weights_of_step = trainer.state.global_step if trainer.loaded_step is None else trainer.loaded_step
    validation = None if curve is None else curve.report()
    own = trainer.report()
    if any("loss" in entry for entry in history):
        plot_loss(
            history,
            folder / run_folder.LOSS_PICTURE,
            title=f"{'Loss' if curve else 'Training loss'} ({trainer.args.trainer_mode})",
            samples=samples_per_step(trainer.run_arguments),
            validation=validation,
            gradients=own.get("projected_gradients", ()),
            probes=own.get("probes", {}).get("windows", ()),
        )
    report = figures(trainer, model_args, times)
    if validation is not None:
        report["validation"] = validation
    tested, counts = folder / run_folder.RATE_FILE, trainer.run_arguments.get(PROCESSES, [])
    if trainer.args.finds_learning_rate and tested.exists():
        report["range_test"] = read_json(tested)
    report[same_run.CHANGES] = trainer.run_arguments.get(same_run.CHANGES, [])
    if len(counts) > 1:
        report[PROCESSES] = counts
    write_report(folder, report | own)
    write_run_card(folder)
    trainer.save_state()
    logger.info("finished: %s holds the model, README.md and report.json", folder)


def figures(trainer: LLaVATrainer, model_args: ModelArguments, times: StepTimes) -> dict[str, Any]:
    """What report.json says of every run; accuracies are filled in by who measures them."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "preset": None,
        "model": model_args.model_name_or_path,
        "trainer_mode": trainer.args.trainer_mode,
        "mm_tunable_parts": model_args.mm_tunable_parts,
        "trained": trained_parts(trainer.model, trainer.args.adapter, adapter_names(trainer.model)),
        "bits": trainer.args.bits,
        "steps": trainer.state.global_step,
        "accuracy_before": None,
        "accuracy_after": None,
        "final_loss": losses[-1] if losses else None,
        "seconds_per_step": times.median(),
        "peak_memory_bytes": peak_memory_bytes(trainer.args.device),
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "versions": versions(),
        "records": len(trainer.train_dataset),
        "skipped_samples": trainer.train_dataset.skipped,
    }


if __name__ == "__main__":
    train()

"""The model card of a run's folder, from what the run left there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.model.card import sections, write_card
from llava.model.checkpoint_files import read_json
from llava.runs.run_report import ARGUMENTS_FILE, REPORT_FILE
from llava.runs.runs import ANSWERS_FILE, samples_per_step
from llava.samples.loading import data_files


def write_run_card(folder: Path) -> None:
    """README.md of a finished run, from report.json and training_args.json; again after an evaluation."""
    report, flags = read_json(folder / REPORT_FILE), read_json(folder / ARGUMENTS_FILE)
    zo = report["trainer_mode"] == "zo"
    adapter = flags["adapter"] if flags["lora_enable"] else None
    accuracy = {"before training": report["accuracy_before"], "after training": report["accuracy_after"]}
    tags = [*(["mezo", "zeroth-order"] if zo else []), *([adapter] if adapter else [])]
    history = sections(_training(report, flags, zo, adapter), accuracy, _measured(folder / ANSWERS_FILE))
    write_card(folder, str(report["model"]), history, tags)


def _training(report: Mapping[str, Any], flags: Mapping[str, Any], zo: bool, adapter: str | None) -> dict[str, Any]:
    files = ", ".join(f"`{Path(file).name}`" for file in data_files(flags["data_path"]))
    sizes = [flags[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "data_processes")]
    batch = samples_per_step(flags) or "growing"
    precision = next((name for name in ("bf16", "fp16") if flags[name]), "float32")
    parts = report.get("trained") or report["mm_tunable_parts"] or "all but the vision tower"
    of_layers = f", layers {flags['tunable_layers']} of the language model" if flags.get("tunable_layers") else ""
    of_layers += ", matrices alone" if flags.get("freeze_vectors") else ""
    scales = ", scales of quantised layers" if flags["zo_quantized_scales"] else ""
    return {
        "data": files,
        "records": report.get("records"),
        "method": "MeZO, zeroth-order (`--trainer_mode zo`)" if zo else f"backpropagation, `{flags['optim']}`",
        "trained": parts + of_layers + scales,
        "adapter": adapter,
        "trained parameters": f"{report['trainable_parameters']:,}",
        "learning rate": f"{flags['learning_rate']:g}, {flags['lr_scheduler_type']}{_halved(report)}",
        "eps": f"{report['zo_eps']:g}" if zo else None,
        "estimator, rule": f"{flags['zo_estimator']}, {flags['zo_rule']}" if zo else None,
        "batch": f"{batch} = {sizes[0]} a device x {sizes[1]} accumulated x {sizes[2]} processes",
        "began from": _beginning(flags),
        "steps": f"{report['steps']:,}",
        "weights": _chosen(report),
        "seed": f"{flags['seed']}, of the noise {report['zo_seed']}" if zo else flags["seed"],
        "precision": precision if report["bits"] == 16 else f"{precision}, base in {report['bits']} bits",
        "final loss": None if report["final_loss"] is None else f"{report['final_loss']:.4f}",
    }


def _beginning(flags: Mapping[str, Any]) -> str | None:
    """Of a run from a step of a journal: which."""
    given = flags["zo_from_journal"]
    if not given:
        return None
    folder, _, step = given.rpartition(":")
    return f"step {step} of the journal of `{Path(folder).resolve().parent.name}`"


def _halved(report: Mapping[str, Any]) -> str:
    """How often the run went back and halved its rate."""
    times = len(report.get("halvings", ()))
    return f", halved {times} times" if times else ""


def _chosen(report: Mapping[str, Any]) -> str | None:
    """Which step's the weights are, where they are not the last."""
    found = report.get("validation") or {}
    step = found.get("weights_of_step")
    if step in (None, report["steps"]):
        return None
    return f"of step {step:,}, the best by {found['metric']} on `{Path(found['data']).name}` ({found['best']:.4g})"


def _measured(answers: Path) -> str | None:
    if not answers.exists():
        return None
    found = read_json(answers)
    return f"On `{Path(found['settings']['data']).name}`, {found['total']:,} records, metric {found['metric']}."

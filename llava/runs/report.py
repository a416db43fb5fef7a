"""One Markdown page about any number of finished runs: tables, and pictures beside it.

    python -m llava.eval.report RUN_DIR... --output report.md

A RUN_DIR is the output folder of a run, or a folder of such folders. Runs that differ in seeds alone are one row:
mean and standard deviation. The page's rows are also in report_rows.json beside it, for programs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.errors import InputError, command
from llava.mezo.command_line import Parser
from llava.mezo.durable import write_durably
from llava.runs.plots import plot_bars, plot_curves
from llava.runs.run_report import REPORT_FILE
from llava.runs.runs import ZO_SETTINGS, Group, Run, grouped, read_run, rise_after_minimum, share_of_adamw, varying

COLUMN_NAMES = {
    "model_name_or_path": "model",
    "mm_tunable_parts": "parts",
    "tunable_layers": "layers",
    "freeze_vectors": "matrices alone",
    "adapter": "adapter",
    "learning_rate": "lr",
    "lr_scheduler_type": "schedule",
    "per_device_train_batch_size": "batch",
    "gradient_accumulation_steps": "accumulation",
    "max_steps": "steps",
    "train_on_answers_only": "answers only",
    "stratify_answers": "order",
    "evaluation": "evaluated on",
    "zo_eps": "eps",
    "zo_objective": "objective",
    "zo_estimator": "estimator",
    "zo_rule": "rule",
    "zo_num_directions": "directions",
    "zo_noise": "noise",
    "zo_tensor_scales": "scales",
    "zo_batch_growth": "growth",
    "zo_weight_storage": "storage",
}
NOT_OF_CURVES = ("max_steps", "per_device_train_batch_size", "evaluation")  # in their budgets, or not of training
LABEL_WIDTH = 48  # characters of a line
DIVERGED = 10.0  # times the minimum
PART_NAMES = {"mm_language_model": "LM", "mm_mlp_adapter": "projector", "mm_vision_tower": "vision"}
NOTES = """\
run: the output folder. gain: accuracy after minus before; ± is the standard deviation over seeds. share: MeZO's gain
by AdamW's on the same task and parts. rise: how far the training loss, a mean over a tenth of the run, rises above
its minimum later on; the largest of the seeds. peak: of the training process, on a CPU its resident size.
"""


def run_folders(folders: Sequence[Path]) -> Iterator[Path]:
    """The folders that hold a run: those given, or those right below one that is given.

    Raises:
        InputError: a folder without any.
    """
    for folder in folders:
        below = sorted(path.parent for path in folder.glob(f"*/{REPORT_FILE}"))
        if not (folder / REPORT_FILE).is_file() and not below:
            raise InputError(f"{folder}: no {REPORT_FILE} there nor in a folder below; give the output folders of runs")
        yield from [folder] if (folder / REPORT_FILE).is_file() else below


def summary(group: Group, groups: Sequence[Group]) -> dict[str, Any]:
    """The numbers of one row. Accuracies, gains and rises are shares in 0..1, times in seconds, memory in bytes."""
    rises = [rise_after_minimum(run.losses) for run in group.runs]
    return {
        "task": group.task,
        "method": group.method,
        "settings": dict(group.settings),
        "runs": [str(run.folder) for run in group.runs],
        "accuracy_before": group.mean("accuracy_before"),
        "accuracy_after": group.mean("accuracy_after"),
        "accuracy_spread": group.spread("accuracy_after"),
        "gain": group.gain,
        "share_of_adamw": share_of_adamw(group, groups),
        "rise_after_minimum": None if None in rises else max(r for r in rises if r is not None),
        "best_validation": _best_validations(group),
        "final_loss": group.mean("final_loss"),
        "seconds_per_step": group.mean("seconds_per_step"),
        "peak_memory_bytes": group.mean("peak_memory_bytes"),
    }


def _best_validations(group: Group) -> list[dict[str, Any]] | None:
    """Metric, value and step of the best evaluation while training, of each run; None unless all have one."""
    found = [run.report.get("validation") for run in group.runs]
    if any(one is None or one["best"] is None for one in found):
        return None
    return [{"metric": one["metric"], "value": one["best"], "step": one["best_step"]} for one in found if one]


def page(groups: Sequence[Group], title: str, pictures: Mapping[str, str], notes: Sequence[str] = ()) -> str:
    """The whole page; `pictures` are headings and file names, `notes` paragraphs below the table."""
    rows = [summary(group, groups) for group in groups]
    columns = [name for name in varying(groups) if name != "max_steps"]
    lines = [f"# {title}", "", *table(rows, columns), "", NOTES, *notes, *([""] if notes else [])]
    shares = mean_shares(rows)
    if shares:
        lines += ["MeZO's share of AdamW's gain, mean over the rows of a task that have one:", ""]
        lines += ["| task | share % | rows |", "|---|---|---|"]
        lines += [f"| {task} | {100 * share:.1f} | {count} |" for task, (share, count) in shares.items()]
        lines.append("")
    for heading, file in pictures.items():
        lines += [f"## {heading}", "", f"![{heading}]({file})", ""]
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Lines of a Markdown table, a row a group; `columns` are the settings shown."""
    names = ["run", "task", "method", *(COLUMN_NAMES.get(name, name) for name in columns), "steps", "seeds"]
    validated = any(row["best_validation"] for row in rows)
    names += ["best validation"] if validated else []
    names += ["before %", "after %", "gain %", "share %", "rise %", "s/step", "peak MiB"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    folders = names_of_runs([run for row in rows for run in row["runs"]])
    for row in rows:
        steps = row["settings"]["max_steps"]
        cells = [
            together([folders[run] for run in row["runs"]]),
            row["task"],
            row["method"],
            *(setting(row, name) for name in columns),
            str(steps),
            str(len(row["runs"])),
        ]
        cells += [_validation_cell(row["best_validation"])] if validated else []
        cells += [_number(row["accuracy_before"], 100, 1), _number(row["accuracy_after"], 100, 1)]
        if row["accuracy_spread"] is not None:
            cells[-1] += f" ± {100 * row['accuracy_spread']:.1f}"
        cells += [_number(row["gain"], 100, 1, "+"), _number(row["share_of_adamw"], 100, 1)]
        rise = row["rise_after_minimum"]
        cells += ["diverged" if rise is not None and rise > DIVERGED else _number(rise, 100, 1)]
        cells += [_number(row["seconds_per_step"], 1, 3)]
        cells.append(_number(row["peak_memory_bytes"], 2**-20, 0))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def names_of_runs(folders: Sequence[str]) -> dict[str, str]:
    """What each folder is called: its name or, where several have that, its path as it was given."""
    names = [Path(folder).name for folder in folders]
    return {f: name if name and names.count(name) == 1 else f for f, name in zip(folders, names, strict=True)}


def together(names: Sequence[str]) -> str:
    """Names as a shell writes them: a-s{0,1}."""
    start = os.path.commonprefix(names)  # noqa: RUF071 - of characters
    if len(names) == 1 or not start:
        return ", ".join(names)
    return start + "{" + ",".join(name.removeprefix(start) for name in names) + "}"


def _validation_cell(best: Sequence[Mapping[str, Any]] | None) -> str:
    """The mean of the runs' best values by metric, and their steps."""
    values: dict[str, list[float]] = {}
    for one in best or ():
        values.setdefault(one["metric"], []).append(one["value"])
    means = [f"{metric} {sum(found) / len(found):.4f}" for metric, found in values.items()]
    return ", ".join(means) + (f" (step {', '.join(str(one['step']) for one in best)})" if best else "")


def setting(row: Mapping[str, Any], name: str) -> str:
    """A setting as the tables and legends show it."""
    value = row["settings"].get(name)
    if value is None or (name in ZO_SETTINGS and row["method"] == "AdamW"):
        return ""
    if name == "mm_tunable_parts":
        parts = {part.strip() for part in value.split(",")}
        if row["settings"].get("adapter", "none") != "none":  # beside it the language model itself is frozen
            parts = parts - {"mm_language_model"} | {"adapter"}
        return " + ".join(PART_NAMES.get(part, part) for part in sorted(parts))
    if name == "model_name_or_path":
        return Path(value).name
    return _short(value) if isinstance(value, float) else str(value)


def _short(value: float) -> str:
    """A number as people write learning rates: 5e-5, 1e-2, 2."""
    if value == 0 or abs(value) >= 1:
        return f"{value:g}"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _number(value: float | None, factor: float, digits: int, sign: str = "") -> str:
    return "" if value is None else f"{factor * value:{sign}.{digits}f}"


def mean_shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """By task: mean of MeZO's shares over its rows, and how many there are."""
    shares: dict[str, list[float]] = {}
    for row in rows:
        if row["share_of_adamw"] is not None:
            shares.setdefault(row["task"], []).append(row["share_of_adamw"])
    return {task: (sum(values) / len(values), len(values)) for task, values in shares.items()}


def draw(groups: Sequence[Group], stem: Path) -> dict[str, str]:
    """Pictures beside the page: losses by task, accuracies of all groups. Returns headings and file names."""
    pictures = {}
    for task in dict.fromkeys(group.task for group in groups):
        mine = [group for group in groups if group.task == task]
        counted = all(run.samples_per_step for group in mine for run in group.runs)
        curves = {}
        for group in mine:
            told = [name for name in _telling(group, groups) if name not in NOT_OF_CURVES]
            drawn = [_curve(run, counted) for run in group.runs if run.losses]
            curves[f"{_label(group, told)}: {_budget(group)}"] = drawn
        if any(curves.values()):
            file = stem.with_name(f"{stem.name}_loss_{task}.png")
            seen = "samples seen (records, each time they come)" if counted else "optimizer step"
            plot_curves(curves, file, f"{task}: training loss, smoothed", seen)
            pictures[f"Training loss: {task}"] = file.name
    measured = [group for group in groups if group.mean("accuracy_after") is not None]
    if measured:
        sets = {group.settings["evaluation"] for group in measured}
        file = stem.with_name(f"{stem.name}_accuracy.png")
        shown = [(group, _telling(group, groups)) for group in measured]
        bars = [_bar(group, [n for n in names if n != "evaluation" or len(sets) > 1]) for group, names in shown]
        plot_bars(bars, file, "Accuracy before and after training")
        pictures["Accuracy"] = file.name
    return pictures


def _curve(run: Run, counted: bool) -> tuple[Sequence[int], Sequence[float]]:
    """A run's losses over the samples seen or, where these cannot be counted, over the steps."""
    return [step * (run.samples_per_step or 1) if counted else step for step in run.steps], run.losses


def _budget(group: Group) -> str:
    """What a run of the group costs: steps, samples of a step, forwards in all."""
    run = group.runs[0]
    steps = run.report["steps"]
    if run.samples_per_step is None:
        return f"{steps:,} steps"
    text = f"{steps:,} × {run.samples_per_step} samples"
    if run.forwards_per_sample is not None:
        forwards = steps * run.samples_per_step * run.forwards_per_sample
        text += f", {forwards:,} forwards" + ("" if group.method == "MeZO" else " and backwards")
    return text if len(group.runs) == 1 else f"{text}; {len(group.runs)} seeds"


def _telling(group: Group, groups: Sequence[Group]) -> list[str]:
    """The settings that tell the group from others of its task and method."""
    return varying([other for other in groups if (other.task, other.method) == (group.task, group.method)])


def _label(group: Group, columns: Sequence[str]) -> str:
    """The method, with the values of these settings."""
    row = {"settings": group.settings, "method": group.method}
    shown = [(COLUMN_NAMES.get(name, name), setting(row, name)) for name in columns]
    words = [group.method, *(value if name == "parts" else f"{name} {value}" for name, value in shown if value)]
    return textwrap.fill(", ".join(words), LABEL_WIDTH)


def run_name(run: Run, columns: Sequence[str]) -> str:
    """What a single run is called in a legend: its task, method, values of `columns`, and seed."""
    return f"{run.task}: {_label(Group(run.task, run.method, run.settings), columns)}, seed {run.seeds[0]}"


def _bar(group: Group, columns: Sequence[str]) -> dict[str, Any]:
    return {
        "label": _label(group, columns),
        "block": group.task,
        "value": 100 * (group.mean("accuracy_after") or 0.0),
        "spread": 100 * (group.spread("accuracy_after") or 0.0),
        "before": 100 * (group.mean("accuracy_before") or 0.0),
        "series": group.method,
    }


def write(folders: Sequence[Path], output: Path, title: str, notes: Sequence[str] = ()) -> str:
    """Read the runs, write the page, its pictures and the JSON file; returns the page."""
    groups = grouped(read_run(folder) for folder in run_folders(folders))
    stem = output.with_suffix("")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        text = page(groups, title, draw(groups, stem), notes)
        write_durably(output, text)
        content = {"title": title, "groups": [summary(group, groups) for group in groups]}
        write_durably(stem.with_name(f"{stem.name}_rows.json"), json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"--output {output}: cannot write there ({error})") from error
    return text


@command
def main(argv: list[str] | None = None) -> None:
    """Entry point, see the module's docstring."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="output folder of a run, or one of many")
    parser.add_argument("--output", type=Path, required=True, help="the page, a .md file")
    parser.add_argument("--title", default="Runs")
    arguments = parser.parse_args(argv)
    if arguments.output.suffix != ".md":
        raise InputError(f"--output {arguments.output}: must end in .md")
    sys.stdout.write(write(arguments.runs, arguments.output, arguments.title))


if __name__ == "__main__":
    main()

"""What a finished run reports: `report.json` and the small table that the training script ends with."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.mezo.durable import write_durably

REPORT_FILE = "report.json"
STATE_FILE = "trainer_state.json"
ARGUMENTS_FILE = "training_args.json"
REQUIRED_FIELDS = (
    "preset",
    "model",
    "trainer_mode",
    "steps",
    "accuracy_before",
    "accuracy_after",
    "final_loss",
    "seconds_per_step",
    "peak_memory_bytes",
    "trainable_parameters",
    "versions",
)
_PACKAGES = ("llava", "torch", "transformers", "accelerate", "peft", "numpy", "numba", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on, those installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_report(output_dir: str | Path, fields: Mapping[str, Any]) -> Path:
    """Write `output_dir/report.json`, whole or not at all; numbers that are not finite become null.

    Unknown fields are kept. Accuracies are shares in 0..1, or None without an evaluation set.

    Raises:
        ValueError: one of `REQUIRED_FIELDS` is missing.
        InputError: the folder cannot be written.
    """
    missing = [name for name in REQUIRED_FIELDS if name not in fields]
    if missing:
        raise ValueError(f"report fields missing: {', '.join(missing)}")
    path = Path(output_dir) / REPORT_FILE
    text = json.dumps(_json_safe(dict(fields)), indent=2) + "\n"
    try:
        write_durably(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot write the report ({error}); set another --output_dir") from error
    return path


def update_report(output_dir: str | Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Add to or replace fields of `output_dir/report.json`, as after an evaluation; returns the whole report.

    Raises:
        InputError: there is no readable report.
    """
    path = Path(output_dir) / REPORT_FILE
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot read the report ({error})") from error
    report.update(fields)
    write_report(output_dir, report)
    return report


def closing_table(fields: Mapping[str, Any], output_dir: str | Path) -> str:
    """The table a run ends with, one line per figure; figures that are None are left out."""
    bits = fields.get("bits")
    rows = [
        ("bits of the base, also evaluated", None if bits == 16 else _formatted(bits, "{}")),
        ("accuracy before", _percent(fields.get("accuracy_before"))),
        ("accuracy after", _percent(fields.get("accuracy_after"))),
        _best_validation(fields.get("validation")),
        ("final loss", _formatted(fields.get("final_loss"), "{:.4f}")),
        ("steps", _formatted(fields.get("steps"), "{:,}")),
        ("time per step", _formatted(fields.get("seconds_per_step"), "{:.3f} s")),
        ("peak memory", _memory(fields.get("peak_memory_bytes"))),
        ("trainable parameters", _formatted(fields.get("trainable_parameters"), "{:,}")),
        ("skipped samples", _formatted(len(fields.get("skipped_samples") or []) or None, "{:,}")),
        ("files", str(output_dir)),
    ]
    shown = [(name, value) for name, value in rows if value is not None]
    width = max(len(name) for name, _ in shown)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown)


def _best_validation(validation: Mapping[str, Any] | None) -> tuple[str, str | None]:
    """The best value, its step, and whether the saved model is of another one."""
    if validation is None or validation["best"] is None:
        return "validation", None
    best, step, saved = (validation[name] for name in ("best", "best_step", "weights_of_step"))
    other = "" if saved == step else f"; the model is of step {saved:,}"
    return f"best validation ({validation['metric']})", f"{best:.4f} at step {step:,}{other}"


def _formatted(value: Any, form: str) -> str | None:
    return None if value is None else form.format(value)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f} %"


def _memory(size: int | None) -> str | None:
    if size is None:
        return None
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _json_safe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value

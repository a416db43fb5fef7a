"""What MeZO gains on the demo, against AdamW with the study's budgets: mean and spread over three seeds.

    python scripts/study/demo_gain.py --output runs/demo_gain       (about 14 minutes on two CPU cores)

Runs both *_onevision_si.sh demo scripts for each seed (a finished run is not repeated) and writes gain.md and
gain.json: accuracy before and after, gain in points, MeZO's share of AdamW's gain.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("mezo", "adamw")


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo_gain"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(argv)
    reports = {method: [run(method, seed, options.output) for seed in options.seeds] for method in METHODS}
    summary = summarise(reports)
    (options.output / "gain.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    text = table(reports, options.seeds, summary)
    (options.output / "gain.md").write_text(text, encoding="utf-8")
    print(text)


def run(method: str, seed: int, output: Path) -> dict[str, Any]:
    """report.json of the demo with `method` and `seed`; it is run if there is none."""
    folder = output.resolve() / f"{method}-{seed}"
    report = folder / "report.json"
    if not report.exists() or json.loads(report.read_text(encoding="utf-8"))["preset"] is None:
        script = ROOT / "scripts" / "train" / f"{method}_onevision_si.sh"
        words = ["bash", str(script), "demo", "--seed", str(seed), "--zo_seed", str(seed)]
        subprocess.run(words, check=True, env={**os.environ, "OUTPUT_DIR": str(folder)})
    return json.loads(report.read_text(encoding="utf-8"))


def gains(reports: Sequence[dict[str, Any]]) -> list[float]:
    """Points of accuracy gained by each run."""
    return [100 * (report["accuracy_after"] - report["accuracy_before"]) for report in reports]


def summarise(reports: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Mean gains, and MeZO's share of AdamW's."""
    mezo, adamw = (statistics.mean(gains(reports[method])) for method in METHODS)
    return {"mezo_gain": mezo, "adamw_gain": adamw, "share": mezo / adamw}


def table(reports: dict[str, list[dict[str, Any]]], seeds: Sequence[int], summary: dict[str, float]) -> str:
    """One row a run, then the means."""
    lines = [
        "| method | seed | steps | before % | after % | gain | s/step | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, runs in reports.items():
        for seed, report, gain in zip(seeds, runs, gains(runs), strict=True):
            before, after = 100 * report["accuracy_before"], 100 * report["accuracy_after"]
            speed, memory = report["seconds_per_step"], report["peak_memory_bytes"] / 2**20
            figures = f"{before:.1f} | {after:.1f} | {gain:+.1f} | {speed:.4f} | {memory:.0f}"
            lines.append(f"| {method} | {seed} | {report['steps']} | {figures} |")
    spread = {method: statistics.stdev(gains(runs)) if len(runs) > 1 else 0.0 for method, runs in reports.items()}
    lines.append("")
    lines.append(
        f"Mean gain: MeZO {summary['mezo_gain']:+.1f} ± {spread['mezo']:.1f} points, "
        f"AdamW {summary['adamw_gain']:+.1f} ± {spread['adamw']:.1f}; share {100 * summary['share']:.0f} %."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""All that a CUDA device is to show, in one command and a few minutes: equal bits, speed, memory, a run and its replay.

    python scripts/benchmark/gpu.py [--shape 0.5b,7b] [--minutes 4] [--json runs/gpu.json]

    bits      random cases of all kernels against the NumPy reference, bit for bit
    noise     picoseconds an element, as scripts/benchmark/noise.py
    step      the variants of scripts/benchmark/step.py, models with random weights made on the device
    graphs    losses and weights of five steps with CUDA graphs and without; a recording that fails
    memory    peak over the loaded model, each variant in a process of its own
    kernels   where the device's time goes in one of our steps
    run       200 steps of the embedded model, its journal replayed on the CPU and on the device

Prints the device, Markdown tables and what did not fit into the time, and writes JSON. Parts that need a fresh process
are forked, so that the libraries are imported once.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu_runs
import noise
import step
import torch
import transformers
from measuring import add_json, peak_over_loaded

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.graphs import ForwardGraphs, Graphs, record_forwards
from llava.mezo.journal import replay
from llava.mezo.kernels.agreement import disagreements
from llava.mezo.kernels.choice import available, kernel_for
from llava.train.train import train
from llava.train.zo.laid_out_forwards import laid_out_loss
from llava.train.zo.step_inputs import StepInputs

SETTINGS = {"0.5b": ((1, 1500, 2), (4, 800, 1)), "7b": ((1, 1500, 2),)}
"""By shape: rows, tokens of a row, tiles of its image."""
CASES = 90
CASES_SECONDS = 60  # nearly all of it is Triton's compiler, some 4 s a variant that it has not met before


def in_fork(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own that begins as this one, which must not have used CUDA yet.

    Raises:
        RuntimeError: it failed; with its traceback.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        try:
            sender.send((True, function(*arguments)))
        except BaseException:
            sender.send((False, traceback.format_exc()))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        good, result = receiver.recv()
    except EOFError:
        good, result = False, f"{function.__name__} ended without a result"
    process.join()
    if not good:
        raise RuntimeError(result)
    return result


def bits() -> dict[str, Any]:
    """Which of the random cases differ from the reference; as many cases as there is time for."""
    kernel = kernel_for("auto", "cuda")
    end, found = time.monotonic() + CASES_SECONDS, []
    for number in range(CASES):
        found += disagreements(kernel, torch.device("cuda"), range(number, number + 1))
        if time.monotonic() > end:
            break
    return {"kernel": kernel.name, "cases": number + 1, "differences": found}


def card() -> dict[str, Any]:
    """The device and the versions."""
    properties = torch.cuda.get_device_properties(0)
    source, target = (torch.empty(2**30, dtype=torch.uint8, device="cuda") for _ in range(2))
    copied = [noise.nanoseconds(lambda: target.copy_(source), torch.device("cuda"), 7) for _ in range(2)][-1]
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": properties.total_memory / 2**30,
        "copy_tb_per_second": 2 * 2**30 / (copied * noise.ROWS * noise.WIDTH) / 1e3,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "triton": __import__("triton").__version__ if available("triton") else None,
    }


def options_of(shape: str, rows: int, tokens: int, tiles: int) -> argparse.Namespace:
    """As of scripts/benchmark/step.py."""
    words = ["--shape", shape, "--rows", str(rows), "--tokens", str(tokens), "--tiles", str(tiles), "--device", "cuda"]
    return step.parse(words)


def steps(options: argparse.Namespace, repeats: int) -> dict[str, float]:
    """Median milliseconds of each variant, in turns."""
    variants = step.Variants(options)
    functions = {name: variants.function(name) for name in step.VARIANTS}
    runs = step.timed(functions, repeats, variants.device)
    return {name: 1e3 * statistics.median(seconds) for name, seconds in runs.items()}


def memory(options: argparse.Namespace, variant: str) -> float:
    """MiB in use at the peak, over those of the loaded model."""
    variants = step.Variants(options)
    return peak_over_loaded(variants.device, lambda: variants.function(variant), times=4) / 2**20


def kernels(options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds that the device is busy in a step of ours, by groups of kernels."""
    return {name: 1e3 * s for name, s in step.kernel_seconds(step.Variants(options).function("ours")).items()}


def graphs(options: argparse.Namespace) -> dict[str, Any]:
    """Whether five steps give the same losses and weights with graphs and without, and what graphs there were."""
    ends = []
    for wanted in ("off", "auto"):
        variants = step.Variants(options)
        mezo = MeZO(variants.trained, variants.model, MeZOConfig(num_directions=2), lr=1e-4)
        record_forwards(mezo, wanted)
        inputs, loss = (
            StepInputs(variants.model, mezo, options.bucket),
            functools.partial(laid_out_loss, variants.model),
        )
        losses = []
        for number in range(5):
            losses.append(mezo.accumulate(number, loss, inputs(variants.batch)))
            mezo.step()
        ends.append((losses, [p.detach().cpu() for p in variants.trained]))
    (eager, eager_weights), (recorded, weights) = ends
    return {
        "equal": eager == recorded and all(map(torch.equal, eager_weights, weights)),
        "graphs": mezo.recorder.graphs.count if isinstance(mezo.recorder, ForwardGraphs) else 0,
        "losses": recorded,
    }


def failing() -> dict[str, Any]:
    """Whether a function that cannot be recorded runs nevertheless, and another is recorded after it."""
    device = torch.device("cuda")
    graphs = Graphs(device, 2**30)
    ones = {"x": torch.ones(4)}

    def waits(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        if torch.cuda.is_current_stream_capturing():
            torch.randn(4, device=device).tolist()
        return tensors["x"] + 1

    def does_not(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return tensors["x"] * 3

    results = [[graphs.run(f, f, ones).tolist() for _ in range(4)] for f in (waits, does_not)]
    drawn = torch.randn(4, device=device).isfinite().all()
    return {"good": results == [[[2.0] * 4] * 4, [[3.0] * 4] * 4] and bool(drawn), "graphs": graphs.count}


def run() -> dict[str, Any]:
    """200 steps of the embedded model on the device; its journal replayed on the CPU and on the device."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        out = Path(folder) / "run"
        train(argv=gpu_runs.command("--max_steps 200 --per_device_train_batch_size 4 --dataloader_num_workers 2", out))
        report, differing = json.loads((out / "report.json").read_text()), {}
        for device in ("cpu", "cuda"):
            again = Path(folder) / device
            where = ["--model-path", str(gpu_runs.MODEL), "--journal", str(out / "mezo_journal")]
            if replay.main([*where, "--output-dir", str(again), "--device", device]) != 0:
                raise RuntimeError(f"the replay on {device} failed")
            tensors, differing[device] = gpu_runs.compared(out, again)
    return {
        "tensors": tensors,
        "differing": differing,
        "seconds_per_step": report["seconds_per_step"],
        "final_loss": report["final_loss"],
    }


class Budget:
    """Runs parts as long as there is time, and says what was left out."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.longest = 5.0
        self.left_out: list[str] = []

    def part(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Its result; None where it failed, or where it could take longer than what is left."""
        if self.end - time.monotonic() < self.longest:
            self.left_out.append(name)
            return None
        begin = time.monotonic()
        sys.stderr.write(f"{name} ...\n")
        try:
            return in_fork(function, *arguments)
        except RuntimeError as error:
            sys.stderr.write(f"{name} failed:\n{error}\n")
            self.left_out.append(f"{name} (failed: {str(error).strip().splitlines()[-1]})")
            return None
        finally:
            self.longest = max(self.longest, time.monotonic() - begin)


def measure(shapes: Sequence[str], budget: Budget, repeats: int) -> dict[str, Any]:
    """The report."""
    report: dict[str, Any] = {"card": budget.part("card", card), "bits": budget.part("bits", bits)}
    report["failing"] = budget.part("a recording that fails", failing)
    report["run"] = budget.part("run", run)
    settings = [(shape, *numbers) for shape in shapes for numbers in SETTINGS.get(shape, ((1, 1500, 2),))]
    report["steps"] = []
    for shape, rows, tokens, tiles in settings:
        options, label = options_of(shape, rows, tokens, tiles), f"{shape}, {rows} x {tokens}"
        entry: dict[str, Any] = {"setting": label, "ms": budget.part(f"step, {label}", steps, options, repeats)}
        names = ("forwards", "ours", "inplace")
        entry["mib"] = {name: budget.part(f"memory of {name}, {label}", memory, options, name) for name in names}
        report["steps"].append(entry)
    for entry, (shape, rows, tokens, tiles) in zip(report["steps"], settings, strict=True):
        options = options_of(shape, rows, tokens, tiles)
        entry["kernels"] = budget.part(f"kernels, {entry['setting']}", kernels, options)
        if shape != "7b":  # two models of it take long to compare
            entry["graphs"] = budget.part(f"graphs, {entry['setting']}", graphs, options)
    report["noise"] = budget.part("noise", noise.measure, "auto", torch.device("cuda"), 7)
    report["left_out"] = budget.left_out
    return report


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    about = report["card"]
    if about:
        lines.append(
            f"{about['name']} ({about['multiprocessors']} multiprocessors, {about['memory_gib']:.0f} GiB, copies "
            f"{about['copy_tb_per_second']:.1f} TB/s), torch {about['torch']}, triton {about['triton']}, transformers "
            f"{about['transformers']}"
        )
    if report["bits"]:
        wrong = report["bits"]["differences"]
        lines.append(
            f"\nKernel {report['bits']['kernel']}: {len(wrong)} differences in {report['bits']['cases']} random cases."
        )
        lines += wrong[:10]
    if report["failing"]:
        good = "is run as it is" if report["failing"]["good"] else "BREAKS THE RUN"
        lines.append(
            f"A function that cannot be recorded {good}; graphs of another one: {report['failing']['graphs']}."
        )
    if report["run"]:
        found = report["run"]
        lines.append(
            f"\nA run of 200 steps ({1e3 * found['seconds_per_step']:.1f} ms a step), replayed: of {found['tensors']} "
            f"tensors {found['differing']['cpu']} differ on the CPU, {found['differing']['cuda']} on the device."
        )
    lines += ["", "| ms a step | forwards (a) | ours (b) | without graphs | cached | in-place (c) | b / a | c / b |"]
    lines.append("|---" * 8 + "|")
    for entry in report["steps"]:
        ms = entry["ms"]
        if ms:
            cells = [ms[name] for name in ("forwards", "ours", "eager", "cached", "inplace")]
            ratios = ms["ours"] / ms["forwards"], ms["inplace"] / ms["ours"]
            lines.append(
                f"| {entry['setting']} | {' | '.join(f'{x:.1f}' for x in cells)} | {ratios[0]:.2f} | {ratios[1]:.2f} |"
            )
    lines += ["", "| peak over the loaded model, MiB | forwards | ours | in-place |", "|---|---|---|---|"]
    for entry in report["steps"]:
        cells = ["-" if size is None else f"{size:.0f}" for size in entry["mib"].values()]
        lines.append(f"| {entry['setting']} | {' | '.join(cells)} |")
    for entry in report["steps"]:
        if entry.get("kernels"):
            shares = ", ".join(f"{name} {ms:.2f}" for name, ms in entry["kernels"].items())
            lines.append(f"\n{entry['setting']}: the device is busy for (ms) {shares}.")
        if entry.get("graphs"):
            same = "the same losses and weights" if entry["graphs"]["equal"] else "OTHER LOSSES OR WEIGHTS"
            lines.append(
                f"{entry['setting']}: {same} with {entry['graphs']['graphs']} graphs as without, in five steps."
            )
    if report["noise"]:
        lines += ["", noise.markdown(report["noise"], "ps")]
    if report["left_out"]:
        lines.append(f"\nNot measured: {'; '.join(report['left_out'])}.")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.5b,7b", help="comma list of " + ", ".join(step.SHAPES))
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=9)
    add_json(parser, "runs/gpu.json")
    options = parser.parse_args()
    shapes = options.shape.split(",")
    unknown = sorted(set(shapes) - set(step.SHAPES))
    if unknown:
        parser.error(f"--shape {unknown[0]}: allowed are {', '.join(step.SHAPES)}")
    if not in_fork(torch.cuda.is_available):
        parser.error("there is no CUDA device here; scripts/benchmark/step.py measures on a CPU")
    report = measure(shapes, Budget(options.minutes), options.repeats)
    options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()

"""What a MeZO step costs: ours, two plain forwards, and the usual in-place scheme, in time and memory.

    python scripts/benchmark/step.py --shape mid                          (2 minutes on two CPU cores)
    python scripts/benchmark/step.py --shape 0.5b --tokens 1500 --tiles 2 --dtype bf16 --json step.json    (15 minutes)

Times are medians over `--repeats` interleaved runs in one process, and what counts is their ratios. Peak memory, over
that of the loaded model, is taken in a process of its own for each variant: resident size on a CPU,
`max_memory_allocated` on CUDA. Variants:

    forwards   (a) vision once, then two plain forwards without graph, logits at the supervised positions alone
    ours       (b) one step of `llava.mezo`, from a batch on the host
    eager      (b) without CUDA graphs
    cached     (b) with image features that the batch brings with it, as from `--mm_feature_cache`
    inplace    (c) one step of the usual scheme: vision and full float32 logits in each forward

On a GPU, `python scripts/benchmark/gpu.py` does all of it, and more, in a few minutes.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from inplace import InPlaceMeZO
from measuring import Times, add_json, in_own_process, peak_over_loaded, time_calls
from shapes import SHAPES, batch, build, moved

from llava.mezo import MeZO, MeZOConfig, reuse_outputs
from llava.mezo.config import KERNELS, STORAGES
from llava.mezo.graphs import record_forwards
from llava.mezo.kernels.choice import kernel_for
from llava.train.zo.image_modules import frozen_image_modules
from llava.train.zo.laid_out_forwards import laid_out_loss
from llava.train.zo.sparse_loss import last_hidden
from llava.train.zo.step_inputs import StepInputs

VARIANTS = ("forwards", "ours", "eager", "cached", "inplace")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
EPS, LR = 1e-3, 1e-9  # so small a rate that the model stays the same from run to run
KERNEL_GROUPS = {
    "perturbed copies": ("perturb_",),
    "update": ("update_tiles",),
    "matrix products": ("gemm", "nvjet", "cutlass", "splitk"),
    "attention": ("flash", "fmha", "attention"),
    "copies": ("memcpy", "memset", "copy"),
}
"""Beginnings or parts of the names of a GPU's kernels; all others are elementwise operations and reductions."""


class Variants:
    """The model, the batch, and one function for each variant."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        torch.manual_seed(0)
        self.model = build(options.shape, DTYPES[options.dtype], self.device, options.tune, options.layers)
        self.batch = batch(self.model, options.tokens, options.tiles, options.supervised, options.rows)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.options = options
        self.steps = 0

    @functools.cached_property
    def there(self) -> dict[str, Any]:
        """The batch on the device."""
        return moved(self.batch, self.device)

    def function(self, variant: str) -> Callable[[], None]:
        """What is timed. Building it may allocate, calling it is one step."""
        return getattr(self, f"_{variant}")()

    def _forwards(self) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad(), reuse_outputs(frozen_image_modules(self.model)):
                for _ in range(2):
                    self._plain_loss()

        return run

    def _plain_loss(self) -> torch.Tensor:
        """Logits over the whole vocabulary, but at the supervised positions alone."""
        hidden, labels = last_hidden(self.model, self.there)
        targets = labels[:, 1:]
        chosen = targets != -100
        logits = self.model.lm_head(hidden[:, :-1][chosen]).float()
        return torch.nn.functional.cross_entropy(logits, targets[chosen])

    def _ours(self, graphs: str = "auto", more: Mapping[str, Any] | None = None) -> Callable[[], None]:
        config = MeZOConfig(eps=EPS, kernel=self.options.kernel, storage=self.options.storage)
        self.mezo = MeZO(self.trained, self.model, config, lr=LR)
        record_forwards(self.mezo, graphs)
        inputs = StepInputs(self.model, self.mezo, self.options.bucket)
        loss = functools.partial(laid_out_loss, self.model, begun=inputs.begun)

        def run() -> None:
            self.mezo.accumulate(self.steps, loss, inputs({**self.batch, **(more or {})}))
            self.mezo.step()
            self.steps += 1

        return run

    def _eager(self) -> Callable[[], None]:
        return self._ours("off")

    def _cached(self) -> Callable[[], None]:
        frozen = len(frozen_image_modules(self.model))
        if frozen == 0:
            return lambda: None
        encode = self.model.encode_images if frozen == 2 else self.model.get_vision_tower()
        with torch.no_grad():
            features = [encode(image).cpu() for image in self.there["images"]]
        return self._ours(more={"features": features})

    def _inplace(self) -> Callable[[], None]:
        optimizer = InPlaceMeZO(self.trained, EPS, LR)

        def loss() -> torch.Tensor:
            output = self.model(**self.there)
            output.logits = output.logits.float()
            return output.loss

        def run() -> None:
            optimizer.step(self.steps, loss)
            self.steps += 1

        return run


def clock(model: Any, kernel_name: str) -> Times:
    """Seconds spent in parts of our step, by wrapping the functions that do them; for devices that do not queue.

    In none of these one forward hands over to the other, so that what is timed is what is done.
    """
    seconds: Times = defaultdict(lambda: [0.0])
    table = type(kernel_for(kernel_name, "cpu").table([], "gaussian"))
    time_calls(seconds, table, "perturb", "noise")
    time_calls(seconds, table, "look_up", "noise")
    time_calls(seconds, table, "update", "update")
    if frozen_image_modules(model):  # else it is a part of the forwards
        time_calls(seconds, type(model.get_vision_tower()), "forward", "vision")
    return seconds


def timed(functions: Mapping[str, Callable[[], None]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every run of every function, in turns, after two runs of each."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 2):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def times(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every run of every variant."""
    variants = Variants(options)
    chosen = [name for name in VARIANTS if name != "eager" or variants.device.type == "cuda"]
    return timed({name: variants.function(name) for name in chosen}, options.repeats, variants.device)


def parts(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one step of ours by part."""
    variants = Variants(options)
    run = variants.function("ours")
    if variants.device.type == "cuda":
        return kernel_seconds(run)
    seconds = clock(variants.model, options.kernel)
    run()
    found = []
    for _ in range(options.repeats):
        seconds.clear()
        begin = time.perf_counter()
        run()
        total = time.perf_counter() - begin
        spent = {part: sum(each) for part, each in seconds.items()}
        found.append({**spent, "the forwards": total - sum(spent.values()), "total": total})
    return {part: statistics.median(one.get(part, 0.0) for one in found) for part in found[0]}


def kernel_seconds(run: Callable[[], None], steps: int = 3) -> dict[str, float]:
    """Seconds that a GPU is busy in a step, by groups of kernels, from torch.profiler."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            run()
        torch.cuda.synchronize()
    found: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        name = event.key.lower()
        group = next((g for g, known in KERNEL_GROUPS.items() if any(part in name for part in known)), "elementwise")
        found[group] += event.self_device_time_total / 1e6 / steps
    return {**found, "total": sum(found.values())}


def peak_over_weights(options: argparse.Namespace, variant: str) -> dict[str, int]:
    """Bytes in use at the peak of three steps, beyond those after loading, and the size of the weights."""
    variants = Variants(options)
    weights = sum(p.numel() * p.element_size() for p in variants.model.parameters())
    return {"weights": weights, "over_loaded": peak_over_loaded(variants.device, lambda: variants.function(variant))}


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    seconds, memory, share = report["seconds"], report["memory"], report["parts"]
    lines = [report["machine"], report["settings"], ""]
    lines += ["| variant | s/step | of (a) | peak over weights |", "|---|---|---|---|"]
    for name in seconds:
        ratio = seconds[name] / seconds["forwards"]
        over = memory[name]["over_loaded"]
        size = f"{over / 2**20:.0f} MiB ({100 * over / memory[name]['weights']:.1f} %)"
        lines.append(f"| {name} | {seconds[name]:.4f} | {ratio:.2f} | {size} |")
    lines += ["", "| part of our step | s | % |", "|---|---|---|"]
    lines += [f"| {part} | {value:.4f} | {100 * value / share['total']:.1f} |" for part, value in share.items()]
    inplace = seconds["inplace"]
    lines.append("")
    lines.append(
        f"b / a = {seconds['ours'] / seconds['forwards']:.2f}; c / b = {inplace / seconds['ours']:.2f}, from the cache "
        f"{inplace / seconds['cached']:.2f}; memory b / c = "
        f"{memory['ours']['over_loaded'] / memory['inplace']['over_loaded']:.2f}"
    )
    return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
    """Options; `--only` is for the processes that this script starts itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="mid")
    parser.add_argument("--tune", default="mm_language_model", help="comma list, as --mm_tunable_parts")
    parser.add_argument("--layers", help="train these layers of the language model alone, as --tunable_layers")
    parser.add_argument("--rows", type=int, default=1, help="rows of the batch")
    parser.add_argument("--tokens", type=int, help="length of a row; default: 1500, tiny 200")
    parser.add_argument("--tiles", type=int, default=2, help="tiles of each row's image")
    parser.add_argument("--supervised", type=int, default=12, help="supervised tokens of a row")
    parser.add_argument("--bucket", type=int, default=64, help="as --zo_length_bucket")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--storage", choices=STORAGES, default="native")
    parser.add_argument("--kernel", choices=KERNELS, default="auto")
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--repeats", type=int, default=5)
    add_json(parser)
    parser.add_argument("--only", choices=("parts", *VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.tokens = options.tokens or (200 if options.shape == "tiny" else 1500)
    return options


def main(argv: list[str]) -> None:
    """Measure, print, and write the report."""
    options = parse(argv)
    if options.only:
        print(json.dumps(parts(options) if options.only == "parts" else peak_over_weights(options, options.only)))
        return
    runs = times(options)
    model = Variants(options).model
    report = {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {options.device}",
        "settings": f"{options.shape}: {model.num_parameters() / 1e6:.0f}M parameters, "
        f"{sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6:.0f}M trained ({options.tune}"
        f"{f', layers {options.layers}' if options.layers else ''}), "
        f"{options.rows} x {options.tokens} tokens, {options.tiles} tiles, {options.dtype}, storage {options.storage}",
        "seconds": {name: statistics.median(values) for name, values in runs.items()},
        "runs": runs,
        "parts": in_own_process(__file__, *argv, "--only", "parts"),
        "memory": {name: in_own_process(__file__, *argv, "--only", name) for name in runs},
    }
    del model
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What a MeZO step costs: ours, two plain forwards, and the usual in-place scheme, in time and memory.

    python scripts/benchmark/step.py --shape mid                          (2 minutes on two CPU cores)
    python scripts/benchmark/step.py --shape 0.5b --tokens 1500 --tiles 2 --dtype bf16 --json step.json    (15 minutes)

Times are medians over `--repeats` interleaved runs in one process, and what counts is their ratios. Peak memory, over
that of the loaded model, is taken in a process of its own for each variant: resident size on a CPU,
`max_memory_allocated` on CUDA. Variants:

    forwards   (a) vision once, then two plain forwards without graph, logits at the supervised positions alone
    ours       (b) one step of `llava.mezo`
    cached     (b) with the image features from `--mm_feature_cache`
    inplace    (c) one step of the usual scheme: vision and full float32 logits in each forward
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from inplace import InPlaceMeZO
from measuring import in_own_process, peak_over_loaded
from shapes import SHAPES, batch, build, count

from llava.mezo import MeZO, MeZOConfig, reuse_outputs
from llava.mezo.config import KERNELS, STORAGES
from llava.mezo.noise import kernel_for
from llava.train.feature_cache import CachedEncoder, FeatureCache
from llava.train.mezo_trainer import frozen_image_modules
from llava.train.sparse_loss import last_hidden, sparse_loss

VARIANTS = ("forwards", "ours", "cached", "inplace")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
EPS, LR = 1e-3, 1e-9  # so small a rate that the model stays the same from run to run


class Variants:
    """The model, the batch, and one function for each variant."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        torch.manual_seed(0)
        self.model = build(options.shape, DTYPES[options.dtype], self.device, options.tune)
        self.inputs = batch(self.model, options.tokens, options.tiles, options.supervised)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.options = options
        self.steps = 0

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
        hidden, labels = last_hidden(self.model, self.inputs)
        targets = labels[:, 1:]
        chosen = targets != -100
        logits = self.model.lm_head(hidden[:, :-1][chosen]).float()
        return torch.nn.functional.cross_entropy(logits, targets[chosen])

    def _ours(self) -> Callable[[], None]:
        config = MeZOConfig(eps=EPS, kernel=self.options.kernel, storage=self.options.storage)
        optimizer = MeZO(self.trained, self.model, config, lr=LR)

        def run() -> None:
            with reuse_outputs(frozen_image_modules(self.model)):
                optimizer.accumulate(self.steps, lambda: sparse_loss(self.model, self.inputs))
            optimizer.step()
            self.steps += 1

        return run

    def _cached(self) -> Callable[[], None]:
        modules = frozen_image_modules(self.model)
        if len(modules) < 2:
            return lambda: None
        step = self._ours()
        self.folder = tempfile.TemporaryDirectory()
        encode = self.model.encode_images
        encoder = CachedEncoder(encode, modules, FeatureCache(Path(self.folder.name), 2**30))
        with torch.no_grad():
            encoder(torch.cat(self.inputs["images"]))

        def run() -> None:
            encoder._last = None  # the next batch would be another one
            self.model.encode_images = encoder
            try:
                step()
            finally:
                self.model.encode_images = encode

        return run

    def _inplace(self) -> Callable[[], None]:
        optimizer = InPlaceMeZO(self.trained, EPS, LR)

        def loss() -> torch.Tensor:
            output = self.model(**self.inputs)
            output.logits = output.logits.float()
            return output.loss

        def run() -> None:
            optimizer.step(self.steps, loss)
            self.steps += 1

        return run


class Clock:
    """Seconds spent in parts of our step, by wrapping the functions that do them; for devices that do not queue."""

    def __init__(self, model: Any, kernel_name: str) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = 0.0
        kernel = type(kernel_for(kernel_name, "cpu"))
        self._wrap(kernel, "perturb", "noise")
        self._wrap(kernel, "perturb_rows", "noise")
        self._wrap(kernel, "update", "update")
        self._wrap(type(model.get_vision_tower()), "forward", "vision")
        self._wrap(sys.modules["llava.train.sparse_loss"], "next_token_loss", "head")

    def _wrap(self, owner: Any, name: str, part: str) -> None:
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            outer, self._inside = self._inside, 0.0
            begin = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                spent = time.perf_counter() - begin
                self.seconds[part] += spent - self._inside  # noise within the head counts as noise
                self._inside = outer + spent

        setattr(owner, name, timed)


def times(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every run of every variant, in turns, after one run of each."""
    variants = Variants(options)
    functions = {name: variants.function(name) for name in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for repeat in range(options.repeats + 1):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if variants.device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
        print(f"round {repeat} of {options.repeats}", file=sys.stderr)
    return seconds


def parts(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of one step of ours by part."""
    variants = Variants(options)
    run = variants.function("ours")
    clock = Clock(variants.model, options.kernel)
    run()
    found = []
    for _ in range(options.repeats):
        clock.seconds.clear()
        begin = time.perf_counter()
        run()
        total = time.perf_counter() - begin
        found.append({**clock.seconds, "language model": total - sum(clock.seconds.values()), "total": total})
    return {part: statistics.median(one.get(part, 0.0) for one in found) for part in found[0]}


def peak_over_weights(options: argparse.Namespace, variant: str) -> dict[str, int]:
    """Bytes in use at the peak of three steps, beyond those after loading, and the size of the weights."""
    variants = Variants(options)
    weights = sum(p.numel() * p.element_size() for p in variants.model.parameters())
    return {"weights": weights, "over_loaded": peak_over_loaded(variants.device, lambda: variants.function(variant))}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    seconds, memory, share = report["seconds"], report["memory"], report["parts"]
    lines = [f"{report['machine']}; {report['settings']}", ""]
    lines += ["| variant | s/step | of (a) | peak over weights |", "|---|---|---|---|"]
    for name in VARIANTS:
        ratio = seconds[name] / seconds["forwards"]
        over = memory[name]["over_loaded"]
        size = f"{over / 2**20:.0f} MiB ({100 * over / memory[name]['weights']:.1f} %)"
        lines.append(f"| {name} | {seconds[name]:.3f} | {ratio:.2f} | {size} |")
    lines += ["", "| part of our step | s | % |", "|---|---|---|"]
    lines += [f"| {part} | {value:.3f} | {100 * value / share['total']:.1f} |" for part, value in share.items()]
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
    parser.add_argument("--tokens", type=int, help="length of the sequence; default: 1500, tiny 200")
    parser.add_argument("--tiles", type=int, default=2)
    parser.add_argument("--supervised", type=int, default=12, help="supervised tokens")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--storage", choices=STORAGES, default="native")
    parser.add_argument("--kernel", choices=KERNELS, default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("parts", *VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
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
        "settings": f"{options.shape}: {count(model) / 1e6:.0f}M parameters, "
        f"{sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6:.0f}M trained ({options.tune}), "
        f"{options.tokens} tokens, {options.tiles} tiles, {options.dtype}, storage {options.storage}",
        "seconds": {name: statistics.median(values) for name, values in runs.items()},
        "runs": runs,
        "parts": in_own_process(__file__, *argv, "--only", "parts") if options.device == "cpu" else {"total": 0.0},
        "memory": {name: in_own_process(__file__, *argv, "--only", name) for name in VARIANTS},
    }
    del model
    print(table(report))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])

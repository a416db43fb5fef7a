"""Whether every way of training gives on a CUDA device what the CPU makes of its journal, bit for bit.

    python scripts/benchmark/gpu_runs.py [--only offloaded fzoo] [--at_once 4] [--json runs/gpu_runs.json]

The embedded model is trained for some steps in each way, and the journal of the run is replayed on the CPU. A run that
is offloaded, or without graphs, must also end with the weights of the plain one. Each is a process of its own; some
two minutes with `--at_once 4`. Ends with 1 if a weight differs or a run fails. `--device cpu`: a trial of the script.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import add_json

from llava.mezo.tensor_files import TensorFiles

ROOT = Path(__file__).resolve().parents[2]
MODEL, SCAN = ROOT / "playground" / "tiny-llava-onevision", ROOT / "playground" / "data" / "scan"
FLAGS = f"""
    --model_name_or_path {MODEL} --data_path {SCAN / "train.json"} --image_folder {SCAN} --version qwen_1_5
    --trainer_mode zo --bf16 True --learning_rate 1e-4 --lr_scheduler_type constant --mm_tunable_parts mm_language_model
    --per_device_train_batch_size 2 --logging_steps 10 --image_aspect_ratio anyres_max_9
    --image_grid_pinpoints (1x1),...,(6x6) --mm_patch_merge_type spatial_unpad --mm_use_im_patch_token False
    --attn_implementation sdpa --train_on_answers_only True --model_max_length 512 --dataloader_drop_last True
    --report_to none --disable_tqdm True"""
ALL_PARTS = "mm_vision_tower,mm_mlp_adapter,mm_language_model"
AS_PLAIN = {
    "plain": "",
    "without graphs": "--zo_cuda_graphs off",
    "offloaded": "--zo_offload cpu",
    "features cached": "--mm_feature_cache {folder}/features",
}
"""Ways to run the same: all end with the weights of the first."""
WAYS = {
    **AS_PLAIN,
    "all parts": f"--mm_tunable_parts {ALL_PARTS}",
    "all parts, offloaded": f"--mm_tunable_parts {ALL_PARTS} --zo_offload cpu",
    "upper layers": "--tunable_layers 2- --freeze_vectors True",
    "upper layers, without graphs": "--tunable_layers 2- --freeze_vectors True --zo_cuda_graphs off",
    "float32": "--bf16 False",
    "fixed16": "--zo_weight_storage fixed16",
    "stored in float32": "--zo_weight_storage fp32",
    "rademacher, three directions": "--zo_noise rademacher --zo_num_directions 3",
    "sizes by norm": "--zo_tensor_scales norms",
    "one_point": "--zo_estimator one_point",
    "fzoo": "--zo_estimator fzoo --zo_num_directions 4 --zo_noise rademacher",
    "per_example": "--zo_estimator per_example",
    "guided": "--zo_estimator guided --zo_num_directions 3",
    "lowrank": "--zo_estimator lowrank",
    "svrg": "--zo_estimator svrg",
    "normalized": "--zo_rule normalized --learning_rate 1e-3",
    "momentum": "--zo_rule momentum",
    "adam": "--zo_rule adam --zo_noise rademacher",
    "adamu": "--zo_rule adamu",
    "classification": "--zo_objective classification",
    "accuracy": "--zo_objective accuracy",
    "exact match": "--zo_objective exact_match",
    "lora": "--adapter lora --learning_rate 1e-3",
    "lora, offloaded": "--adapter lora --learning_rate 1e-3 --zo_offload cpu",
    "dora": "--adapter dora",
    "prefix": "--adapter prefix --learning_rate 0.1",
    "houlsby": "--adapter houlsby",
    "lora on 4 bits": "--adapter lora --learning_rate 1e-3 --bits 4",
    "scales of 4 bits": "--bits 4 --zo_quantized_scales True",
}
"""What is trained, how it is stored, every estimator, rule and kind of objective."""


def command(changes: str, output: Path) -> list[str]:
    """Flags of train.py for a run of the embedded model: `FLAGS`, where `changes` have no other value."""
    words = f"{FLAGS} {changes} --output_dir {output}".split()
    flags = dict(zip(words[::2], words[1::2], strict=True))
    return [word for pair in flags.items() for word in pair]


def changes_of(way: str, folder: Path, steps: int, device: str) -> str:
    """Of one of `WAYS`, in a folder of its own."""
    return f"--max_steps {steps} {WAYS[way].format(folder=folder)}" + (" --use_cpu True" if device == "cpu" else "")


def run(way: str, parent: Path, steps: int, device: str) -> dict[str, Any]:
    """Train, replay on the CPU, compare; `failed` has the end of what was said if something did."""
    folder = parent / way.replace(" ", "_").replace(",", "")
    folder.mkdir()
    begin = time.monotonic()
    failed = python(["-m", "llava.train.train", *command(changes_of(way, folder, steps, device), folder / "run")])
    found: dict[str, Any] = {"seconds": time.monotonic() - begin}
    if failed is None:
        where = ["--model-path", str(MODEL), "--journal", str(folder / "run" / "mezo_journal")]
        failed = python(["-m", "llava.mezo.replay", *where, "--output-dir", str(folder / "again"), "--device", "cpu"])
    if failed is not None:
        return {**found, "failed": failed}
    report = json.loads((folder / "run" / "report.json").read_text(encoding="utf-8"))
    found |= {"ms_a_step": 1e3 * report["seconds_per_step"], "final_loss": report["final_loss"]}
    return found | dict(zip(("tensors", "differing"), compared(folder / "run", folder / "again"), strict=True))


def python(words: list[str]) -> str | None:
    """Run python; None, or where it failed the end of what it said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=ROOT)
    return None if done.returncode == 0 else "\n".join(done.stderr.strip().splitlines()[-12:])


def compared(one: Path, other: Path) -> tuple[int, int]:
    """Of two checkpoints, how many tensors the first has, and how many of them the other lacks or has otherwise."""
    ours, theirs = TensorFiles(one), TensorFiles(other)
    names = [name for shapes in ours.files.values() for name in shapes]
    return len(names), sum(name not in theirs or not torch.equal(ours.read(name), theirs.read(name)) for name in names)


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """A line a way."""
    lines = ["| trained | final loss | ms a step | tensors | differ, replayed | differ from plain |", "|---" * 6 + "|"]
    for way, one in found.items():
        if "failed" in one:
            lines.append(f"| {way} | FAILED: {one['failed'].splitlines()[-1][:100]} | | | | |")
            continue
        numbers = f"{one['final_loss']:.4f} | {one['ms_a_step']:.1f} | {one['tensors']} | {one['differing']}"
        lines.append(f"| {way} | {numbers} | {one.get('from_plain', '')} |")
    return "\n".join(lines)


def main() -> int:
    """Run all ways, print the table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--at_once", type=int, default=1)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    add_json(parser, "runs/gpu_runs.json")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu shows that the script runs")
    with tempfile.TemporaryDirectory() as parent, ThreadPoolExecutor(options.at_once) as pool:
        one = partial(run, parent=Path(parent), steps=options.steps, device=options.device)
        found = dict(zip(options.only, pool.map(one, options.only), strict=True))
        good = [way for way in AS_PLAIN if way in found and "failed" not in found[way]]
        if "plain" in good:
            folder = {way: Path(parent) / way.replace(" ", "_") / "run" for way in good}
            for way in good[1:]:
                found[way]["from_plain"] = compared(folder["plain"], folder[way])[1]
    print(markdown(found))
    for way, result in found.items():
        if "failed" in result:
            sys.stderr.write(f"\n{way}:\n{result['failed']}\n")
    options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    wrong = [one for one in found.values() if "failed" in one or one["differing"] or one.get("from_plain")]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

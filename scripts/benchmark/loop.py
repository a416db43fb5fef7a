"""Time of the processor around the forwards of a zeroth-order step, and the samples a second that a worker makes.

    python scripts/benchmark/loop.py [--steps 150] [--images 48] [--json loop.json]    (three minutes on two cores)

The loop is that of `llava.train.train` over the embedded model and its drawings; what is left of a step without the
forwards and the update's kernels is the host's. The samples are photographs of 1024 x 768 in tiles of 384.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from measuring import Times, add_json, time_calls
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from transformers import AutoTokenizer

from llava.mezo import MeZO
from llava.mezo.journal.files import Journal
from llava.mezo.trained import TrainedWeights
from llava.model.layout import Geometry
from llava.model.multimodal_encoder.image_processor import SigLipImageProcessor
from llava.samples.dataset import make_supervised_data_module
from llava.train.train import train
from llava.train.zo.extended_trainer import ExtendedMeZOTrainer

PLAYGROUND = Path(__file__).resolve().parents[2] / "playground"
MODEL, SCAN = PLAYGROUND / "tiny-llava-onevision", PLAYGROUND / "data" / "scan"
PINPOINTS = "(1x1),...,(6x6)"
WARM_UP = 20
STEP_SECONDS, BATCH = 0.025, 4


def loop(steps: int) -> dict[str, float]:
    """Milliseconds of a step, medians: `step`, its `forwards` and `update`, and what the `host` takes, in parts."""
    times: Times = defaultdict(lambda: [0.0])
    for owner, method, name in (
        (MeZO, "run_recorded", "forwards"),
        (TrainedWeights, "update", "update"),
        (_MultiProcessingDataLoaderIter, "_next_data", "of it receiving the batch"),
        (Geometry, "lay_out", "of it layout"),
        (Journal, "append", "of it journal"),
    ):
        time_calls(times, owner, method, name)
    begins: list[float] = []
    training_step = ExtendedMeZOTrainer.training_step

    def begin_step(self: ExtendedMeZOTrainer, *args: Any) -> torch.Tensor:
        begins.append(time.perf_counter())
        for values in times.values():
            values.append(0.0)
        return training_step(self, *args)

    ExtendedMeZOTrainer.training_step = begin_step  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        train(argv=words(folder, steps))
    times["step"] = [end - begin for begin, end in zip(begins, begins[1:], strict=False)]
    medians = {name: 1e3 * statistics.median(values[WARM_UP:-1]) for name, values in times.items()}
    whole = zip(*(times[name][-len(begins) :][WARM_UP:-1] for name in ("forwards", "update")), strict=True)
    compute = [sum(parts) for parts in whole]
    medians["host"] = 1e3 * statistics.median(s - c for s, c in zip(times["step"][WARM_UP:], compute, strict=True))
    return medians


def words(folder: str, steps: int) -> list[str]:
    """The flags of a run."""
    flags = {
        "model_name_or_path": MODEL,
        "data_path": SCAN / "train.json",
        "image_folder": SCAN,
        "output_dir": f"{folder}/run",
        "version": "qwen_1_5",
        "trainer_mode": "zo",
        "bf16": True,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": BATCH,
        "max_steps": steps,
        "logging_steps": 10,
        "mm_tunable_parts": "mm_language_model",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": PINPOINTS,
        "mm_patch_merge_type": "spatial_unpad",
        "mm_use_im_patch_token": False,
        "train_on_answers_only": True,
        "model_max_length": 512,
        "group_by_modality_length": True,
        "dataloader_num_workers": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def samples_a_second(images: int) -> float:
    """What one worker makes of photographs: opened, cut to tiles, encoded and collated."""
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), images)
        data_args = SimpleNamespace(
            data_path=str(Path(folder, "data.json")),
            image_folder=folder,
            image_processor=SigLipImageProcessor(),
            image_aspect_ratio="anyres_max_9",
            image_grid_pinpoints=PINPOINTS,
            is_multimodal=True,
            version="qwen_1_5",
            train_on_answers_only=True,
        )
        data = make_supervised_data_module(AutoTokenizer.from_pretrained(MODEL, model_max_length=4096), data_args)
        loader = DataLoader(data["train_dataset"], BATCH, collate_fn=data["data_collator"], num_workers=1)
        marks = [time.perf_counter() for _ in loader]
    return BATCH * (len(marks) - 1) / (marks[-1] - marks[0])


def photographs(folder: Path, count: int) -> None:
    """As large and as hard to decode as a camera's: smooth areas with some grain, as JPEG."""
    random = np.random.default_rng(0)
    records = []
    for number in range(count):
        areas = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((1024, 768))
        grain = random.normal(0, 6, (768, 1024, 3))
        Image.fromarray((np.asarray(areas) + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A photograph."}]
        records.append({"id": number, "image": f"{number}.jpg", "conversations": turns})
    Path(folder, "data.json").write_text(json.dumps(records), encoding="utf-8")


def main() -> None:
    """Print both as Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--images", type=int, default=48)
    add_json(parser)
    options = parser.parse_args()
    for name, least in (("steps", WARM_UP + 3), ("images", BATCH + 1)):  # a time is between two of them
        if getattr(options, name) < least:
            parser.error(f"--{name} {getattr(options, name)}: give {least} or more")
    torch.set_num_threads(1)  # the other core is the worker's
    rate = samples_a_second(options.images)
    report = {**loop(options.steps), "samples a second of one worker": rate}
    report[f"workers for {BATCH} samples in {1e3 * STEP_SECONDS:.0f} ms"] = math.ceil(BATCH / STEP_SECONDS / rate)
    print("\n| milliseconds, or as named | |\n|---|---|")
    for name, value in report.items():
        print(f"| {name} | {value:.2f} |")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

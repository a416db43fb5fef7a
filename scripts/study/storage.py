"""Which way of keeping 16-bit weights trains as well as float32: the experiment behind --zo_weight_storage's default.

    python scripts/study/storage.py --task tiny  --output runs/storage/tiny         (about 40 minutes on two CPU cores)
    python scripts/study/storage.py --task words --output runs/storage/words        (about 100 minutes; needs words.py)

The same model, data order, noise and bfloat16 forward for every scheme:

    inplace     the usual scheme: the weights themselves are perturbed in bfloat16 (+eps, -2 eps, +eps, update)
    nearest     perturbed without touching them, updates rounded to the nearest bfloat16
    native      the same, with stochastic rounding     } these three are
    fixed16     16-bit integers on a grid              } --zo_weight_storage
    fp32        float32 beside the model               }

Writes one JSON file a scheme (finished ones are not repeated) and storage.png: test loss, and how it compares
with that of fp32.
Accuracy is the share of test records whose first answer token is the most likely one of all first answer tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from pictures import plot_against
from settings import ROOT, once
from tqdm.auto import tqdm

from llava.constants import IGNORE_INDEX
from llava.mezo import MeZO, MeZOConfig, reuse_outputs
from llava.mezo.algorithms.interface import Point
from llava.mezo.head import next_token_loss
from llava.mezo.noise import direction_seed
from llava.mezo.updates import update_of
from llava.samples.collator import DataCollatorForSupervisedDataset
from llava.samples.dataset import LazySupervisedDataset
from llava.train.flags.parsing import parse_arguments
from llava.train.train import build
from llava.train.zo.image_modules import frozen_image_modules
from llava.train.zo.sparse_loss import last_hidden, sparse_loss

NAMES = {
    "inplace": "in place",
    "nearest": "rounded to nearest",
    "native": "native",
    "fixed16": "fixed16",
    "fp32": "fp32",
}
TASKS: dict[str, dict[str, Any]] = {
    "tiny": {
        "model": ROOT / "playground" / "tiny-llava-onevision",
        "train": ROOT / "playground" / "data" / "scan" / "train.json",
        "test": ROOT / "playground" / "data" / "scan" / "test.json",
        "images": ROOT / "playground" / "data" / "scan",
        "flags": ["--image_aspect_ratio", "anyres_max_9", "--image_grid_pinpoints", "(1x1),...,(6x6)"],
        "lr": 1e-4,
        "batch": 4,
        "steps": 5000,
    },
    "words": {
        "model": ROOT / "runs" / "words" / "model",
        "train": ROOT / "runs" / "words" / "train.json",
        "test": ROOT / "runs" / "words" / "test.json",
        "images": None,
        "flags": [],
        "lr": 1e-6,
        "batch": 2,
        "steps": 1000,
    },
}
EPS = 1e-3
TEST_BATCH = 10


class Nearest(MeZO):
    """Updates are rounded to the nearest number of the weight's dtype."""

    def step(self, closure: Any = None) -> None:
        proposal = self.course.propose(*self._window.close(2, self.ranks, self.device))
        update = update_of(proposal.moves, [self.param_groups[0]["lr"]], [0.0])
        self._add(update.seeds[0], update.coefficients[0][0])

    @torch.no_grad()
    def _add(self, seed: int, scale: float) -> None:
        self.weights.aim((Point.along(seed, scale),))
        for number, parameter in enumerate(self.storages):
            (copies,) = self.weights.perturbed((number,), (0,))
            parameter.copy_(copies[number])


class InPlace(Nearest):
    """The usual scheme: between the losses, too, the weights themselves are changed, and rounded each time."""

    def accumulate(self, step: int, loss: Callable[[], torch.Tensor]) -> float:  # type: ignore[override]
        seed, losses = direction_seed(self.config.seed, step, 0), []
        for scale in (EPS, -2 * EPS):
            self._add(seed, scale)
            with torch.no_grad():
                losses.append(float(loss()))
        self._add(seed, EPS)
        self._window.add(step, losses)
        return sum(losses) / 2


def make_optimizer(scheme: str, model: torch.nn.Module, lr: float, seed: int) -> MeZO:
    """The optimizer of a scheme over what is trained in `model`."""
    trained = [p for p in model.parameters() if p.requires_grad]
    storage = scheme if scheme in ("native", "fixed16", "fp32") else "native"
    config = MeZOConfig(eps=EPS, seed=seed, storage=storage)
    kinds = {"inplace": InPlace, "nearest": Nearest}
    return kinds.get(scheme, MeZO)(trained, model, config, lr=lr)


def load(task: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Model, training set and test set."""
    words = ["--model_name_or_path", str(task["model"]), "--data_path", str(task["train"])]
    words += ["--version", "qwen_1_5", "--trainer_mode", "zo", "--bf16", "True", "--attn_implementation", "sdpa"]
    words += ["--train_on_answers_only", "True", "--mm_tunable_parts", "mm_language_model", "--output_dir", "unused"]
    words += ["--mm_use_im_patch_token", "False", "--mm_patch_merge_type", "spatial_unpad", *task["flags"]]
    if task["images"] is not None:
        words += ["--image_folder", str(task["images"])]
    model_args, data_args, training_args = parse_arguments(words)
    model, tokenizer = build(model_args, data_args, training_args)
    sets = [LazySupervisedDataset(str(task[name]), tokenizer, data_args) for name in ("train", "test")]
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), *sets


def batches(dataset: Any, size: int, seed: int) -> Iterator[dict[str, Any]]:
    """Endless batches in an order that depends on the seed alone."""
    collate = DataCollatorForSupervisedDataset(tokenizer=dataset.tokenizer)
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(dataset), generator=generator).tolist()
        for first in range(0, len(order) - size + 1, size):
            yield collate([dataset[index] for index in order[first : first + size]])


@torch.no_grad()
def evaluate(model: Any, prepared: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean loss and accuracy over test batches."""
    losses, logits, answers = [], [], []
    for batch in prepared:
        batch = send_to_device(batch, model.device)
        hidden, labels = last_hidden(model, batch)
        losses.append(float(next_token_loss(hidden, model.lm_head.weight, labels)))
        first = (labels != IGNORE_INDEX).int().argmax(dim=1)
        rows = torch.arange(len(labels), device=labels.device)
        logits.append(model.lm_head(hidden[rows, first - 1]).float())
        answers.append(labels[rows, first])
    logit, answer = torch.cat(logits), torch.cat(answers)
    candidates = answer.unique()
    right = candidates[logit[:, candidates].argmax(dim=1)] == answer
    return sum(losses) / len(losses), float(right.float().mean())


def run(scheme: str, task: dict[str, Any], seed: int, test: int) -> dict[str, Any]:
    """Train with one scheme; the losses of all steps, and of `test` test records in between."""
    model, train_set, test_set = load(task)
    made = make_optimizer(scheme, model, task["lr"], seed)
    collate = DataCollatorForSupervisedDataset(tokenizer=test_set.tokenizer)
    records = [test_set[index] for index in range(min(len(test_set), test))]
    prepared = [collate(records[first : first + TEST_BATCH]) for first in range(0, len(records), TEST_BATCH)]
    steps = task["steps"]
    losses, tests, begin = [], [], time.perf_counter()
    source = batches(train_set, task["batch"], seed)
    for step in tqdm(range(steps + 1), desc=scheme, mininterval=10):
        if step % max(1, steps // 5) == 0:
            with made.current_weights():
                loss, accuracy = evaluate(model, prepared)
            tests.append({"step": step, "loss": loss, "accuracy": accuracy})
            tqdm.write(f"{scheme} step {step}: test loss {loss:.4f}, accuracy {100 * accuracy:.1f} %")
        if step < steps:
            batch = send_to_device(next(source), model.device)
            with reuse_outputs(frozen_image_modules(model)):
                losses.append(made.accumulate(step, lambda batch=batch: sparse_loss(model, batch)))
            made.step()
    return {"scheme": scheme, "losses": losses, "tests": tests, "seconds": time.perf_counter() - begin}


def draw(results: list[dict[str, Any]], path: Path, title: str) -> None:
    """Test loss against steps, a line a scheme, and each as a multiple of that of fp32, or of the last one."""
    curves = {NAMES[result["scheme"]]: [(test["step"], test["loss"]) for test in result["tests"]] for result in results}
    plot_against(
        curves, "fp32" if "fp32" in curves else list(curves)[-1], path, title, "test loss (cross entropy per token)"
    )


def main() -> None:
    """Run the schemes that are missing, draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="tiny")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--schemes", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", type=int, default=500, help="test records that are used")
    options = parser.parse_args()
    changes = {name: value for name in ("steps", "lr") if (value := getattr(options, name)) is not None}
    task, results = TASKS[options.task] | changes, []
    for scheme in options.schemes:
        path = options.output / f"{scheme}-{options.seed}.json"
        results.append(once(path, lambda scheme=scheme: run(scheme, task, options.seed, options.test)))
    draw(results, options.output / "storage.png", f"{options.task}: bfloat16 forward, weights kept in five ways")
    for result in results:
        last = result["tests"][-1]
        print(
            f"{result['scheme']:<8} test loss {last['loss']:.4f}  accuracy {100 * last['accuracy']:.1f} %  "
            f"{result['seconds'] / len(result['losses']):.3f} s/step"
        )


if __name__ == "__main__":
    main()

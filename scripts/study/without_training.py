"""What the model gives without its weights being tuned: zero-shot, in-context learning, a linear probe.

    python scripts/study/without_training.py                         (40 minutes on two CPU cores)

On the test set of each task: greedy answers without and with K demonstrations drawn from the training set by seed, and
logistic regression on the last hidden states of the whole training set (the seed draws the folds that choose its
regularisation). A result that is there is not repeated. Writes without_training.md, and a file a result.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from settings import METRIC, Task, chosen_tasks, mean_and_spread, model_of, once, parsed, positive, study_parser
from tqdm import tqdm

from llava.errors import command
from llava.eval.generation import Answerer, load_model
from llava.eval.probe import Features, features_of, probe
from llava.eval.scoring import evaluate
from llava.eval.shots import draw
from llava.samples.loading import load_file

PROBE = "linear probe"


@dataclass
class Bench:
    """A model, and what has been computed with it."""

    options: argparse.Namespace
    features: dict[tuple[str, str], Features] = field(default_factory=dict)

    @cached_property
    def loaded(self) -> tuple[Any, Any, Any]:
        """(model, tokenizer, image processor)."""
        return load_model(model_of(self.options), None, "auto")

    def shots(self, task: Task, number: int, seed: int) -> dict[str, Any]:
        """Accuracy with so many demonstrations."""
        test, train = (load_file(task.file(split)) for split in ("test", "train"))
        demonstrations = draw(train, number, seed, task.images)
        size = max(1, self.options.batch_size // (number + 1))
        found = evaluate(*self.loaded, test, task.images, metric=METRIC, batch_size=size, demonstrations=demonstrations)
        return {name: found[name] for name in ("total", "correct", "accuracy")}

    def probe(self, task: Task, seed: int) -> dict[str, Any]:
        """Accuracy of a probe."""
        sets = [self._features(task, split) for split in ("train", "test")]
        found = probe(*sets, metric=METRIC, seed=seed)
        return {name: value for name, value in found.items() if name != "predictions"}

    def _features(self, task: Task, split: str) -> Features:
        key = (task.name, split)
        if key not in self.features:
            answerer = Answerer(*self.loaded)
            records = load_file(task.file(split))
            self.features[key] = features_of(answerer, records, task.images, self.options.batch_size)
        return self.features[key]


def results(bench: Bench, tasks: list[Task]) -> Iterator[tuple[str, Task, int, Callable[[], dict[str, Any]]]]:
    """(name, task, seed, how to get it) of all results, seed by seed, so that a stopped script has whole rows."""
    options = bench.options
    for seed in options.seeds:
        for task in tasks:
            if seed == options.seeds[0]:
                yield "zero-shot", task, 0, lambda task=task: bench.shots(task, 0, 0)
            yield PROBE, task, seed, lambda task=task, seed=seed: bench.probe(task, seed)
            for number in options.shots:
                yield (
                    f"in context, {number}",
                    task,
                    seed,
                    lambda task=task, seed=seed, number=number: bench.shots(task, number, seed),
                )


def table(found: dict[str, dict[str, list[float]]], tasks: list[Task]) -> str:
    """Mean and standard deviation over the seeds, a row a method."""
    lines = ["| test accuracy % | " + " | ".join(task.name for task in tasks) + " |", "|---" * (1 + len(tasks)) + "|"]
    for name, by_task in found.items():
        cells = []
        for task in tasks:
            cells.append(mean_and_spread([100 * value for value in by_task.get(task.name, [])]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@command
def main() -> None:
    """Do what is missing, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--shots", type=positive, nargs="+", default=[1, 4, 8], help="demonstrations")
    parser.add_argument("--batch_size", type=positive, default=64, help="pictures at a time")
    options = parsed(parser)
    tasks, bench = chosen_tasks(options), Bench(options)
    names = ["zero-shot", *(f"in context, {number}" for number in options.shots), PROBE]
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for name, task, seed, make in results(bench, tasks):
        stem = f"{task.name}-{name.replace(', ', '-').replace(' ', '_')}-s{seed}"
        result = once(options.output / "without_training" / f"{stem}.json", make)
        tqdm.write(f"{stem}: {100 * result['accuracy']:.1f} %")
        found[name].setdefault(task.name, []).append(result["accuracy"])
    text = "# Without training\n\n" + table(found, tasks)
    (options.output / "without_training.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

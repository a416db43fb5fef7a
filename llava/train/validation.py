"""The number that a run is validated by: mean loss, or score of generated answers, of records it is not trained on.

Nothing of a run is moved by it: no random state, no order of data, no weight and no record of a journal. Each process
takes its share of the records, and all of them have the same number.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from llava.constants import IGNORE_INDEX
from llava.errors import naming
from llava.eval.metrics import METRICS
from llava.eval.scoring import evaluate
from llava.mezo.inference import evaluation_mode
from llava.runs.validation import LOSS, Curve
from llava.samples.collator import DataCollatorForSupervisedDataset
from llava.samples.dataset import LazySupervisedDataset
from llava.samples.loading import Parts
from llava.train.objectives import imported_score, scores_of
from llava.train.workers import CollateOrRefuse, ItemsOrRefusals
from llava.train.zo import state

logger = logging.getLogger(__name__)


class Run(Protocol):
    """What is asked of a trainer."""

    args: Any
    model: Any
    accelerator: Any

    def current_weights(self) -> AbstractContextManager[Any]:
        """Within it, a forward sees the weights as they are."""

    def validation_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """Mean over the supervised tokens of what the collator gave, as in training."""

    def step_loss(self, batch: dict[str, Any]) -> torch.Tensor:
        """What its steps lessen."""


def validation_set(tokenizer: Any, data_args: Any, parts: Parts) -> LazySupervisedDataset:
    """The records of `--eval_data_path`, each of them looked at: one that fails later would end a run half-way.

    Raises:
        InputError: a record that cannot be used; none is skipped, since a number is of all of them.
    """
    logger.info("looking at the records of --eval_data_path %s", data_args.eval_data_path)
    own = copy.copy(data_args)
    own.skip_bad_samples, own.whole_answers_for = False, ""
    dataset = LazySupervisedDataset(data_args.eval_data_path, tokenizer, own, parts)
    dataset.examine()
    return dataset


class Validation:
    """Measures a model that is being trained.

    Args:
        curve: gets what is measured.
        dataset: the records.
        collate: makes batches of the dataset's items.
        version: name of the conversation template.
        choices: the answers that can be given; none: any text.
        of_steps: the loss is the run's objective, whatever that is.
    """

    def __init__(
        self,
        curve: Curve,
        dataset: LazySupervisedDataset,
        collate: DataCollatorForSupervisedDataset,
        version: str,
        choices: Sequence[str] = (),
        of_steps: bool = False,
    ) -> None:
        self.curve = curve
        self.dataset = dataset
        self.collate = collate
        self.version = version
        self.choices = choices
        self.of_steps = of_steps

    def measure(self, run: Run) -> float:
        """The metric of the weights as they are; of all processes the same. It may not be finite."""
        states = state.random_states()
        try:
            with torch.no_grad(), run.current_weights(), evaluation_mode(run.model):
                total, count = self._loss(run) if self.curve.metric == LOSS else self._score(run)
        finally:
            state.set_random_states(states)
        if run.args.world_size > 1:
            both = torch.tensor([total, count], dtype=torch.float64, device=run.args.device)
            total, count = run.accelerator.reduce(both, "sum").tolist()
        return total / count

    def _loss(self, run: Run) -> tuple[float, float]:
        """Sum over the supervised tokens of this process's records, and their number."""
        loader: DataLoader[Any] = DataLoader(
            ItemsOrRefusals(Subset(self.dataset, self._own(run))),
            batch_size=run.args.eval_batch_size,
            collate_fn=CollateOrRefuse(self.collate),
            num_workers=run.args.dataloader_num_workers,
            generator=torch.Generator(),  # else it draws a seed from the run's
        )
        loss = run.step_loss if self.of_steps else run.validation_loss
        total, count = 0.0, 0
        for batch in loader:
            tokens = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
            total += float(loss(batch)) * tokens
            count += tokens
        return total, count

    def _score(self, run: Run) -> tuple[float, float]:
        """Sum over this process's records, and their number."""
        metric, settings = self.curve.metric, self.dataset.settings
        records = [self.dataset.list_data_dict[index] for index in self._own(run)]
        if not records:
            return 0.0, 0
        with naming(self.curve.data), without_autocast(run.model):
            result = evaluate(
                run.model,
                self.dataset.tokenizer,
                settings.image_processor,
                records,
                settings.image_folder or "",
                metric=metric if metric in METRICS else "exact",
                batch_size=run.args.eval_batch_size,
                version=self.version,
                progress=False,
                pictures=settings.pictures,
                choices=self.choices,
            )
        if metric in METRICS:
            return float(result["correct"]), len(records)
        predictions, references = ([one[key] for one in result["answers"]] for key in ("prediction", "reference"))
        score = imported_score("eval_metric", metric, [])
        return sum(scores_of(score, "eval_metric", predictions, references, records)), len(records)

    def _own(self, run: Run) -> Sequence[int]:
        return range(run.args.process_index, len(self.dataset), run.args.world_size)


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """The model's own forward, as who loads it has it, in place of accelerate's, which is for training."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            model.__dict__["forward"] = wrapped

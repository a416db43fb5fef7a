"""A run's steps applied to weights in shards: each rank to its own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from llava.mezo.algorithms.course import Course
from llava.mezo.errors import JournalError
from llava.mezo.journal.files import Journal
from llava.mezo.journal.replay import apply_records, group_numbers
from llava.mezo.sharding.whole import fingerprint_of_shards
from llava.mezo.trained import TrainedWeights
from llava.mezo.weights import store


def replay_shards(parameters: Mapping[str, nn.Parameter], journal: Journal, steps: int, kernel: str = "auto") -> None:
    """Change the weights that a journal starts from into those after so many of its steps; all ranks call it.

    Args:
        parameters: of the model in shards, by canonical name.

    Raises:
        JournalError: they are not what the journal starts from, or were kept in another way than the model's own.
    """
    chain = journal.chain()
    for one, following in zip(chain, [*chain[1:], None], strict=True):
        header, parent = one.header, None if following is None else following.header.parent
        last = steps if following is None else 0 if parent is None else parent.steps
        if header.storage != "native":
            raise JournalError(
                f"{one.folder}: weights were kept as {header.storage}; in shards they can be native alone"
            )
        trained = {name: parameters[name] for name in header.names}
        found = fingerprint_of_shards(trained)
        if found != header.fingerprint:
            raise JournalError(
                f"{one.folder} starts from {header.model} with the fingerprint {header.fingerprint}; the given model "
                f"has {found}. Give the one that the run was started with"
            )
        storages, course = [store(parameter, header.storage) for parameter in trained.values()], Course(header)
        noise = course.estimator.kernel_noise
        weights = TrainedWeights(storages, noise, kernel, group_numbers(header), header.sizes)
        apply_records(header, one.records[:last], weights, course)

"""What stops a run stops it with the same error, whether a data loader's worker finds it or the process that trains.

PyTorch raises an exception of a worker anew in the training process, with the worker's whole traceback as its message.
An `InputError` is complete in one line; it is handed over in place of the batch and raised there as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info

from llava.errors import InputError
from llava.train.zo.step_batches import OtherItems


class Refusal(ExceptionWrapper):
    """An error on its way from a worker; data loaders call `reraise` of what they are handed of this class."""

    def __init__(self, error: InputError) -> None:
        self.message = str(error)

    def reraise(self) -> NoReturn:
        raise InputError(self.message)  # made here: one that was kept would keep the loader, by its traceback


class ItemsOrRefusals(OtherItems):
    """A data set that gives, in a worker, a `Refusal` for an item that cannot be made."""

    def __getitem__(self, index: Any) -> Any:
        return _made_or_refused(self.dataset.__getitem__, index)


class CollateOrRefuse:
    """The collator for it: the first `Refusal` of a batch stands for the batch."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Any]) -> Any:
        refusals = [item for item in items if isinstance(item, Refusal)]
        return refusals[0] if refusals else _made_or_refused(self.collate, items)


def _made_or_refused(make: Callable[[Any], Any], given: Any) -> Any:
    try:
        return make(given)
    except InputError as error:
        if get_worker_info() is None:
            raise
        return Refusal(error)

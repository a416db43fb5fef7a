"""A model at any step of a MeZO run, in memory alone: its base model with the journal's updates applied."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llava.errors import InputError
from llava.eval.generation import load_model
from llava.mezo.errors import JournalError
from llava.mezo.journal.base_model import MODEL, recorded_model
from llava.mezo.journal.files import Journal
from llava.mezo.journal.replay import Replay
from llava.mezo.names import parameters_by_name
from llava.mezo.tensor_files import TensorFiles
from llava.model.own_settings import template_of


class JournaledModel:
    """The models of a run, one step after the other.

    Args:
        folder: the run's journal, OUTPUT_DIR/mezo_journal.
        base: its base model; None: where the journal says it came from.

    Raises:
        InputError: a journal that is damaged, or one of a run that saves an adapter or a projector alone.
    """

    def __init__(self, folder: Path, base: str | None) -> None:
        self._folder = folder
        with _as_input_errors():
            self.journal = Journal.read(folder)
        own = folder / MODEL
        if TensorFiles(own).files and not (own / "model.safetensors.index.json").exists():
            if not (own / "model.safetensors").exists():
                raise InputError(
                    f"--journal {folder} is of a run that saves an adapter or a projector alone: write a step "
                    "with `python -m llava.mezo.replay` and give it as --model-path, with --model-base"
                )
            base = str(own)
        with _as_input_errors(" as --model-path"):
            self.path = base or recorded_model(self.journal)
        self._replay: Replay | None = None

    def template(self) -> str:
        """Name of the conversation template that the run was trained with."""
        return template_of(str(self._folder / MODEL), self.path)

    @classmethod
    def named_by(cls, options: argparse.Namespace) -> JournaledModel | None:
        """The run of `--journal`, if there is one; its base is `--model-path` where that is given.

        Args:
            options: with `journal`, `model_path`, `model_base` and `torch_dtype`.

        Raises:
            InputError: flags that have no effect on the model of a run; and as for the class.
        """
        if options.journal is None:
            return None
        if options.model_base is not None or options.torch_dtype != "auto":
            raise InputError("--journal excludes --model-base and --torch-dtype: the run's model and dtype are used")
        return cls(options.journal, options.model_path)

    def step_of(self, step: int | None) -> int:
        """`--step`, or the journal's last one where it is not given. Raises `InputError` if the journal lacks it."""
        step = len(self.journal.records) if step is None else step
        if not 0 <= step <= len(self.journal.records):
            raise InputError(f"--step {step}: the journal has the steps 0 to {len(self.journal.records)}")
        return step

    def load(self, attention: str) -> tuple[Any, Any, Any]:
        """(model, tokenizer, image processor), in the run's dtype, before the first step."""
        dtypes = set(self.journal.header.dtypes)
        loaded = load_model(self.path, None, dtypes.pop() if len(dtypes) == 1 else "auto", attention)
        self._parameters = parameters_by_name(loaded[0])
        missing = [n for one in self.journal.chain() for n in one.header.names if n not in self._parameters]
        if missing:
            raise InputError(f"--model-path {self.path}: the run trained {missing[0]!r}, which this model lacks")
        with _as_input_errors():
            self._replay = Replay(self.journal, lambda name: self._parameters[name].detach())
        return loaded

    def go_to(self, step: int) -> None:
        """Change the loaded model to that after `step` steps, not fewer than before."""
        assert self._replay is not None
        self._replay.advance(step)
        self._replay.copy_into(self._parameters)


@contextmanager
def _as_input_errors(advice: str = "") -> Iterator[None]:
    try:
        yield
    except JournalError as error:
        raise InputError(f"{error}{advice}") from error

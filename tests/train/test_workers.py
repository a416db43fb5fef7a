"""A data loader's workers change nothing about how wrong records stop a run."""

from __future__ import annotations

import gc
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.errors import EXIT_BAD_INPUT, InputError
from llava.train.train import train
from llava.train.workers import CollateOrRefuse, ItemsOrRefusals
from llava.train.zo.step_batches import Together

Flags = Callable[..., list[str]]

ANSWERED = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "picture": ({"image": "lost.png", "conversations": ANSWERED}, "record 'bad' (number 3): image "),
    "batch": ({"image": "a.png", "conversations": ANSWERED[:1]}, "no token of this batch is supervised"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("changes", [{"trainer_mode": "regular"}, {}, {"zo_batch_growth": "0:1,0.5:2"}], ids=str)
def test_the_same_line_with_workers_and_without(
    changes: dict[str, Any], case: str, small_run: Flags, tmp_path: Path, capfd: Any
) -> None:
    record, message = BAD[case]
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")
    good = [{"id": str(k), "image": "a.png", "conversations": ANSWERED} for k in range(3)]
    (tmp_path / "data.json").write_text(json.dumps([*good, record | {"id": "bad"}]))
    said = []
    for workers in (0, 4):
        settings = {"mm_tunable_parts": "mm_mlp_adapter", "max_steps": 8, "dataloader_num_workers": workers}
        settings |= {"data_path": tmp_path / "data.json", "image_folder": tmp_path, "train_on_answers_only": True}
        settings |= {"gradient_checkpointing": False, "output_dir": tmp_path / f"out{workers}"}
        argv = small_run(**settings | changes)
        assert error_of(lambda argv=argv: train(argv=argv)) == str(EXIT_BAD_INPUT)
        said.append(capfd.readouterr().err.split("error: ")[1:])
    assert said[0] == said[1] and len(said[0]) == 1
    assert message in said[0][0] and said[0][0].count("\n") == 1
    assert multiprocessing.active_children() == []


def error_of(run: Callable[[], Any]) -> str | None:
    """What it raises, as text. Nothing keeps the exception, and with it the loader: a worker of the next one would
    inherit both.
    """
    try:
        run()
    except (InputError, SystemExit) as error:
        return str(error)
    finally:
        gc.collect()
    return None


class Numbers(torch.utils.data.Dataset[int]):
    lengths = (1, 2)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 2:
            raise InputError("number 2 is bad")
        return index


def collate(items: list[Any]) -> list[Any]:
    if 3 in items:
        raise InputError("a batch is bad")
    return items


def loaded(dataset: Any, indices: Any, workers: int) -> list[Any]:
    loader = torch.utils.data.DataLoader(
        ItemsOrRefusals(dataset),
        sampler=indices,
        batch_size=1,
        num_workers=workers,
        collate_fn=CollateOrRefuse(collate),
    )
    return list(loader)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("indices", "message"),
    [([0, 1, 2], "number 2 is bad"), ([3], "a batch is bad"), ([[0], [1, 2]], "number 2 is bad")],
)
def test_an_error_arrives_as_it_is(indices: list[Any], message: str, workers: int) -> None:
    dataset = Together(Numbers()) if isinstance(indices[0], list) else Numbers()
    assert error_of(lambda: loaded(dataset, indices, workers)) == message


def test_good_batches_arrive_and_the_data_set_is_asked_for_all_else() -> None:
    assert loaded(Numbers(), [0, 1], 2) == [[0], [1]]
    assert ItemsOrRefusals(Numbers()).lengths == (1, 2)

"""The micro-batches of a run that was begun with other processes: the same, each once, as many to each rank."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from llava.errors import InputError
from llava.train import launches
from llava.train.zo.epoch_sampler import EpochSampler
from llava.train.zo.shared_steps import Begun, CollateParts, Part, SharedSteps, TogetherInParts
from llava.train.zo.step_batches import PARTS, StepSampler


def steps_of_then(records: int, batch: int, drop: bool, begun: Begun) -> list[list[list[int]]]:
    """The micro-batches of each step as transformers' loop and accelerate have them, written out."""
    batches = BatchSampler(range(records), batch, drop)
    shards = [list(BatchSamplerShard(batches, begun.processes, k)) for k in range(begun.processes)]
    if begun.processes == 1:
        shards = [list(batches)]  # which accelerate leaves alone
    rounds = list(zip(*shards, strict=True))
    starts = range(0, len(rounds), begun.accumulated)
    return [[own for one in rounds[k : k + begun.accumulated] for own in one] for k in starts]


def shared(sampler: SharedSteps) -> list[list[list[Part]]]:
    """What each rank has in each step."""
    lists = iter(sampler)
    steps = []
    while step := list(itertools.islice(lists, sampler.ranks)):
        steps.append(step)
    return steps


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("records", [1, 7, 12])
def test_every_number_of_processes_has_the_same_steps(records: int, drop: bool) -> None:
    for batch, then, accumulated, ranks in itertools.product((1, 2), (1, 2, 3), (1, 2, 3), (1, 2, 3, 4, 7)):
        begun = Begun(then, accumulated)
        sampler = SharedSteps(range(records), batch, drop, True, begun, ranks)
        expected, found = steps_of_then(records, batch, drop, begun), shared(sampler)
        assert len(sampler) == len(found) * ranks and len(found) == len(expected)
        for step, of_ranks in zip(expected, found, strict=True):
            assert len({len(own) for own in of_ranks}) == 1  # all have as much to do
            in_turns = [part for turn in zip(*of_ranks, strict=True) for part in turn]
            assert [part.rows for part in in_turns if part.weight] == step
            assert {part.weight for part in in_turns} <= {0, 1}


def test_planned_steps_and_records_by_themselves() -> None:
    order = StepSampler(EpochSampler(range(100), 0), [4, 8], 2)  # type: ignore[arg-type]
    sampler = SharedSteps(order, 2, False, True, Begun(2, 1), 1)
    assert len(sampler) == 2
    assert shared(sampler) == [
        [[Part([0, 1], 2), Part([2, 3], 2)]],
        [[Part([4, 5], 2), Part([8, 9], 2), Part([6, 7], 2), Part([10, 11], 2)]],
    ]
    alone = SharedSteps(range(8), 4, True, True, Begun(2, 1), 4, by_example=True)
    assert shared(alone) == [[[Part([2 * k], 1), Part([2 * k + 1], 1)] for k in range(4)]]


def test_items_are_made_and_collated_part_by_part() -> None:
    items = TogetherInParts([10, 11, 12])[[Part([0, 2], 1), Part([1], 0)]]
    batch = CollateParts(lambda rows: {"rows": list(rows)})([items])
    assert batch == {PARTS: [({"rows": [10, 12]}, 1), ({"rows": [11]}, 0)]}
    assert CollateParts(lambda rows: {"rows": list(rows)})([1, 2]) == {"rows": [1, 2]}  # of an evaluation


def arguments(processes: int, accumulated: int, **changes: Any) -> SimpleNamespace:
    ways = SimpleNamespace(split_batches=changes.pop("split_batches", False), dispatch_batches=None)
    values = {"zo_estimator": "spsa", "per_device_train_batch_size": 1, "output_dir": "runs/a"}
    sizes = {"data_processes": processes, "gradient_accumulation_steps": accumulated}
    return SimpleNamespace(**values | sizes | changes, accelerator_config=ways)


def test_what_a_run_goes_on_as() -> None:
    then = {"data_processes": 4, "gradient_accumulation_steps": 2}
    assert launches.settled(arguments(4, 2), then) is None  # as it is
    assert launches.settled(arguments(1, 2), then) == Begun(4, 2)
    assert launches.settled(arguments(1, 8), then) == Begun(4, 2)  # the global batch was kept by hand
    assert launches.settled(arguments(1, 3), then) is None  # another run, which the flags tell
    assert launches.settled(arguments(2, 2, split_batches=True), then) is None
    with pytest.raises(InputError, match="begun with 4 processes and goes on with as many alone, not 2"):
        launches.settled(arguments(2, 1, zo_estimator="guided"), then | {"gradient_accumulation_steps": 1})
    with pytest.raises(InputError, match="8 records of a step of runs/a cannot be shared out evenly to 3"):
        launches.settled(arguments(3, 2, zo_estimator="per_example"), then)


def test_what_the_log_says_of_other_processes() -> None:
    counts = [{"after_step": 0, "processes": 4}, {"after_step": 9, "processes": 2}]
    line = launches.told(Begun(4, 1), 2, counts)
    assert line.startswith("after step 9 the run goes on with 2 processes; it was begun with 4.")
    assert line.endswith("the same bits")
    assert launches.told(Begun(4, 1), 3, counts).endswith("they cannot be shared out evenly")
    assert launches.told(Begun(4, 1), 6, counts).endswith("2 of the processes have nothing to add")


@pytest.mark.parametrize(
    ("environment", "earlier", "expected"),
    [
        ({}, {"launch": "a"}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "1"}, None, True),
        ({"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "a"}, {"launch": "a"}, True),
        ({"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "b"}, {"launch": "a"}, False),
        ({"TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_RUN_ID": "none"}, {"launch": "none"}, False),
    ],
)
def test_whether_a_launcher_starts_a_run_again(
    environment: dict[str, str], earlier: dict[str, str] | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launches.is_started_again(earlier) is expected

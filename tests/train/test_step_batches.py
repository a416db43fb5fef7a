"""Steps of unequal size and steps in parts."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_runs import same, weights
from torch.utils.data import DataLoader, SequentialSampler

import llava.train.train as command
from llava.errors import InputError
from llava.mezo.journal.files import Journal
from llava.mezo.ranks import Ranks
from llava.samples.dataset import make_supervised_data_module
from llava.train.flags.parsing import parse_arguments
from llava.train.train import build, train
from llava.train.zo.epoch_sampler import EpochSampler
from llava.train.zo.extended_trainer import ExtendedMeZOTrainer
from llava.train.zo.forwards import Forwards
from llava.train.zo.settings import Settings
from llava.train.zo.step_batches import PARTS, Growth, MicroBatches, StepSampler, Together

Flags = Callable[..., list[str]]


def test_a_stage_has_its_share_of_all_records() -> None:
    rows = Growth.parse("0:4,0.3:20").rows(2200)
    assert len(rows) == 2200 and rows == sorted(rows)
    assert abs(sum(n for n in rows if n == 4) / sum(rows) - 0.3) < 0.002
    assert Growth.parse("0:4").rows(3) == [4, 4, 4]
    assert set(Growth.parse("0:1,0.5:2,0.75:8").rows(100)) == {1, 2, 8}


@pytest.mark.parametrize(
    "text", ["4", "0:4,1:8", "0:4,nan:8", "0:4,0.3:0", "0.1:4", "0:4,0.5:8,0.2:16", "0:4,0:8", "", "0:4.5"]
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--zo_batch_growth .*: give stages SHARE:RECORDS"):
        Growth.parse(text)


def test_every_record_comes_once_an_epoch_and_ranks_share_a_step() -> None:
    order = EpochSampler(SequentialSampler(range(10)), seed=0)
    rows = [2, 2, 4, 8, 4, 8, 2]
    steps = list(StepSampler(order, rows, ranks=2))
    assert len(steps) == len(StepSampler(order, rows, 2)) == 14
    assert [len(one) for one in steps] == [n // 2 for n in rows for _ in range(2)]
    assert list(itertools.chain.from_iterable(steps)) == (list(range(10)) * 3)[:30]


def test_parts_are_collated_one_by_one() -> None:
    collate = MicroBatches(lambda items: {"rows": list(items)}, rows=2)
    loader: DataLoader[Any] = DataLoader(
        Together("abcdefg"), 1, sampler=[[0, 1, 2], [3], [4, 5, 6]], collate_fn=collate
    )
    found = [[(part["rows"], rows) for part, rows in batch[PARTS]] for batch in loader]
    assert found == [[(["a", "b"], 2), (["c"], 1)], [(["d"], 1)], [(["e", "f"], 2), (["g"], 1)]]
    assert [rows for _, rows in collate(["a", "b", "c"])[PARTS]] == [2, 1]


def make(flags: list[str]) -> ExtendedMeZOTrainer:
    model_args, data_args, training_args = parse_arguments(flags)
    model, tokenizer = build(model_args, data_args, training_args)
    data = make_supervised_data_module(tokenizer, data_args)
    return ExtendedMeZOTrainer(model=model, args=training_args, processing_class=tokenizer, **data)


@pytest.fixture()
def flags(text_run: Flags) -> Flags:
    return functools.partial(text_run, max_steps=4)


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"zo_batch_growth": "0:1,0.4:3", "per_device_train_batch_size": 2}, [[1], [1], [1], [2, 1]]),
        (
            {"zo_estimator": "svrg", "zo_anchor_steps": 2, "zo_anchor_batches": 3, "per_device_train_batch_size": 1},
            [[1, 1, 1], [1], [1, 1, 1], [1]],
        ),
        (
            {"zo_estimator": "per_example", "per_device_train_batch_size": 3, "dataloader_drop_last": True},
            [[1, 1, 1]] * 4,
        ),
    ],
)
def test_a_step_has_the_records_that_are_planned(
    changes: dict[str, Any], rows: list[list[int]], flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(flags(**changes))
    seen: list[list[int]] = [[] for _ in rows]
    accumulate = Forwards.accumulate

    def noted(self: Forwards, step: int, inputs: dict[str, Any], size: int) -> float:
        assert len(inputs["input_ids"]) == size
        seen[step].append(size)
        return accumulate(self, step, inputs, size)

    monkeypatch.setattr(Forwards, "accumulate", noted)
    trainer.train()
    assert seen == rows


@pytest.mark.slow
def test_parts_do_not_change_what_a_step_is(flags: Flags, tmp_path: Path) -> None:
    """Six records at once, and in parts of four and two."""
    losses = []
    for size in (6, 4):
        folder = tmp_path / str(size)
        train(argv=flags(zo_batch_growth="0:6", per_device_train_batch_size=size, output_dir=folder))
        losses.append([record.losses for record in Journal.read(folder / "mezo_journal").records])
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zo_batch_growth": "0:4", "max_steps": -1, "num_train_epochs": 1}, "--zo_batch_growth needs --max_steps"),
        ({"zo_batch_growth": "0:4", "gradient_accumulation_steps": 2}, "excludes --gradient_accumulation_steps 2"),
        ({"zo_batch_growth": "0:4", "zo_estimator": "per_example"}, "excludes --zo_estimator per_example"),
        ({"zo_batch_growth": "4"}, "give stages SHARE:RECORDS"),
        ({"zo_estimator": "svrg", "zo_anchor_batches": 0}, "--zo_anchor_batches 0 must be at least 1"),
        ({"zo_estimator": "svrg", "weight_decay": 0.1}, "--weight_decay 0.1 excludes --zo_estimator svrg"),
        ({"zo_estimator": "per_example", "zo_num_directions": 2}, "--zo_num_directions 2 excludes"),
        (
            {"zo_estimator": "per_example", "zo_parallel": "both", "per_device_train_batch_size": 2},
            "--zo_parallel 'both' excludes --zo_estimator per_example",
        ),
        (
            {"zo_estimator": "fzoo", "zo_num_directions": 1},
            "--zo_estimator fzoo takes .*, and --zo_num_directions is 1; it must be at least 2",
        ),
        (
            {"zo_rule": "adam", "zo_noise": "gaussian"},
            "--zo_rule adam needs --zo_noise rademacher .* --zo_noise is 'gaussian' and --zo_num",
        ),
        ({"zo_rule": "adamu", "zo_estimator": "svrg"}, "--zo_rule adamu is its own estimator, and --zo_estimator is"),
        ({"zo_estimator": "per_example", "per_device_train_batch_size": 2}, "needs --dataloader_drop_last True"),
        (
            {"zo_estimator": "per_example", "per_device_train_batch_size": 1, "dataloader_drop_last": True},
            "at least 2 and at most 4096, and it has 1: change --per_device_train_batch_size",
        ),
        (
            {"zo_estimator": "guided", "zo_num_directions": 4, "gradient_accumulation_steps": 2},
            "excludes --zo_estimator guided",
        ),
        ({"zo_estimator": "lowrank", "zo_kernel": "numba"}, "kernel 'numba' has no directions of low rank"),
        ({"zo_tensor_scales": "nowhere.json"}, "one of none, norms, rms or a JSON file"),
    ],
)
def test_what_does_not_go_together_is_refused_before_loading(
    changes: dict[str, Any], message: str, flags: Flags
) -> None:
    with pytest.raises(InputError, match=message):
        parse_arguments(flags(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zo_batch_growth": "0:4,0.3:20"}, "a step would have 20 records, some of them twice"),
        ({"zo_batch_growth": f"0:{10**20}"}, f"a step would have {10**20} records"),
        (
            {"zo_estimator": "svrg", "zo_anchor_batches": 4, "per_device_train_batch_size": 2},
            "--zo_anchor_batches 4: a step would have 8 records",
        ),
        ({"zo_batch_growth": "0:2,0.5:3", "ranks": 2}, "--zo_batch_growth 0:2,0.5:3: 3 records cannot be shared out"),
    ],
)
def test_steps_that_cannot_be_had_are_refused_before_loading(
    changes: dict[str, Any],
    message: str,
    flags: Flags,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "build", lambda *args: pytest.fail("the model was loaded"))
    monkeypatch.setattr(Settings, "ranks", lambda self: Ranks(count=changes.get("ranks", 1)))
    with pytest.raises(SystemExit):
        train(argv=flags(**{name: value for name, value in changes.items() if name != "ranks"}))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (
            None,
            {"*.mlpp.*": 2},
            "error: --zo_tensor_scales FILE: '*.mlpp.*' decides no trained weight; their names",
        ),
        (
            {"*.mlp.*": 2},
            {"*.mlp.*": 4},
            "size of noise (--zo_tensor_scales) of model.layers.0.mlp.down_proj.weight",
        ),
    ],
)
def test_a_file_of_sizes_that_does_not_fit_is_one_line(
    first: dict[str, float] | None,
    then: dict[str, float],
    message: str,
    flags: Flags,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "sizes.json"
    if first is not None:
        file.write_text(json.dumps(first))
        monkeypatch.setattr(command, "finish", lambda *args: None)  # an unfinished run is gone on with
        train(argv=flags(zo_tensor_scales=file, max_steps=1))
    file.write_text(json.dumps(then))
    with pytest.raises(SystemExit):
        train(argv=flags(zo_tensor_scales=file, max_steps=1))
    assert message.replace("FILE", str(file)) in capsys.readouterr().err


def test_a_file_of_sizes_that_does_not_fit_is_told_of_without_a_journal_too(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sizes.json"
    file.write_text(json.dumps({"*.mlpp.*": 2}))
    with pytest.raises(SystemExit):
        train(argv=flags(zo_tensor_scales=file, max_steps=1, zo_journal=False))
    assert f"error: --zo_tensor_scales {file}: '*.mlpp.*' decides no trained weight" in capsys.readouterr().err


def test_sizes_by_rms_of_weights_on_a_grid_are_the_same_without_a_journal(flags: Flags, tmp_path: Path) -> None:
    """Sizes are those of the weights before these are on the grid, whoever takes them."""
    changes = {"zo_tensor_scales": "rms", "zo_weight_storage": "fixed16", "max_steps": 2}
    train(argv=flags(**changes, zo_journal=True, output_dir=tmp_path / "with"))
    train(argv=flags(**changes, zo_journal=False, output_dir=tmp_path / "without"))
    assert same(weights(tmp_path / "without"), weights(tmp_path / "with"))
    train(argv=flags(**changes | {"zo_tensor_scales": "none"}, output_dir=tmp_path / "none"))
    assert not same(weights(tmp_path / "none"), weights(tmp_path / "with"))


@pytest.mark.parametrize("grouped", [True, False])
def test_planned_steps_that_may_mix_modalities_are_told_of_once(
    grouped: bool, flags: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    train(argv=flags(zo_batch_growth="0:2,0.5:3", group_by_modality_length=grouped))
    told = [line for line in capsys.readouterr().err.splitlines() if "may have several modalities" in line]
    assert len(told) == grouped
    assert all("--group_by_modality_length True with --zo_batch_growth" in line for line in told)


def test_a_stage_that_never_comes_is_told_of(flags: Flags, caplog: pytest.LogCaptureFixture) -> None:
    *_, args = parse_arguments(flags(zo_batch_growth="0:2,0.9:4"))
    Settings.of(args).check_plan(args, records=7)
    assert "--zo_batch_growth 0:2,0.9:4: no step of 4 has 4 records" in caplog.messages[-1]

"""The journal: sizes, what is refused, what survives a kill, and replay of the weights."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from named_weights import same, weights_of
from torch import nn

from llava.mezo import MeZO, MeZOConfig, no_decay_names
from llava.mezo.errors import JournalError
from llava.mezo.journal import files as journal_module
from llava.mezo.journal.__main__ import main
from llava.mezo.journal.base_model import recorded_model, recorded_name
from llava.mezo.journal.files import HEADER, RECORDS, Journal
from llava.mezo.journal.fingerprint import fingerprint
from llava.mezo.journal.header import parse_header
from llava.mezo.journal.locking import FolderLock
from llava.mezo.journal.records import Record, encode
from llava.mezo.journal.replay import Replay

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
X = torch.randn(16, 12, generator=torch.Generator().manual_seed(1))
Y = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
SIZE = 44
"""Bytes of a record with two losses and two learning rates."""


def make_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.LayerNorm(20), nn.Tanh(), nn.Linear(20, 3)).to(dtype)


def make_optimizer(model: nn.Module, storage: str = "native", kernel: str = "auto", **options: Any) -> MeZO:
    exempt = no_decay_names(model)
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if n not in exempt], "lr": 1e-2, "weight_decay": 0.1},
        {"params": [p for n, p in named if n in exempt], "lr": 3e-3, "weight_decay": 0.0},
    ]
    return MeZO(groups, model, MeZOConfig(eps=1e-3, seed=5, storage=storage, kernel=kernel, **options))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    if step % 7 == 5:
        return torch.tensor(float("nan"))  # such a step is recorded and not applied
    dtype = next(model.parameters()).dtype
    rows = slice(step % 4, None, 4)
    return (model(X[rows].to(dtype)).float() - Y[rows]).square().mean()


def run(
    folder: Path,
    steps: int,
    dtype: torch.dtype = torch.float32,
    storage: str = "native",
    parent: Journal | None = None,
    first: int = 0,
    start: dict[str, torch.Tensor] | None = None,
    seen: Callable[[int, MeZO, nn.Module], None] | None = None,
    **options: Any,
) -> tuple[MeZO, nn.Module]:
    """A run that goes on from its journal, up to `steps`; the learning rate falls."""
    model = make_model(dtype)
    model.load_state_dict(start if start is not None else model.state_dict())
    base = fingerprint(weights_of(model))
    optimizer = make_optimizer(model, storage, **options)
    optimizer.journal = Journal.open(folder, optimizer.journal_header("base", base), parent, first)
    done = len(optimizer.journal.records)
    with closing(optimizer.journal):
        optimizer.catch_up(0, done)
        for step in range(done, steps):
            for group, rate in zip(optimizer.param_groups, (1e-2, 3e-3), strict=True):
                group.setdefault("initial_lr", rate)
                group["lr"] = rate * (1 - step / 1000)
            optimizer.accumulate(step, lambda step=step: loss_of(model, step))
            optimizer.step()
            if seen is not None:
                seen(step + 1, optimizer, model)
    return optimizer, model


def weights(optimizer: MeZO, model: nn.Module) -> dict[str, torch.Tensor]:
    with optimizer.exported():
        return weights_of(model)


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of ten steps; to be read alone."""
    folder = tmp_path_factory.mktemp("ten") / "journal"
    run(folder, 10)
    return folder


def damaged(ten: Path, tmp_path: Path, records: bytes | None = None, header: bytes | None = None) -> Path:
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ten, folder)
    if records is not None:
        (folder / RECORDS).write_bytes(records)
    if header is not None:
        (folder / HEADER).write_bytes(header)
    return folder


class TestFormat:
    @pytest.mark.parametrize("rates, size", [(1, 36), (2, 44), (3, 52)])
    def test_at_most_64_bytes_a_step_with_one_direction(self, ten: Path, rates: int, size: int) -> None:
        header = Journal.read(ten).header
        groups = tuple(replace(header.groups[0], rate=rate) for rate in range(rates))
        assert replace(header, groups=groups).record_bytes == size
        assert 20_000 * size < 1_300_000

    @pytest.mark.parametrize("directions", [1, 2, 7])
    def test_16_bytes_more_for_each_further_direction(self, ten: Path, directions: int) -> None:
        header = replace(Journal.read(ten).header, num_directions=directions)
        header = replace(header, groups=(replace(header.groups[0], rate=0),))
        record = Record(0, True, tuple(map(float, range(header.losses))), (1e-6,))
        assert len(encode(record, 0)) == header.record_bytes == 36 + 16 * (directions - 1)

    def test_a_header_is_read_as_it_was_written(self, ten: Path) -> None:
        header = Journal.read(ten).header
        assert parse_header(header.to_bytes()) == header
        assert header.names == ("0.bias", "0.weight", "1.bias", "1.weight", "3.bias", "3.weight")
        assert header.shapes[1] == (20, 12)

    def test_records_hold_what_the_steps_measured(self, tmp_path: Path) -> None:
        measured = []
        run(tmp_path / "j", 8, seen=lambda step, optimizer, _: measured.append(optimizer.last), num_directions=2)
        records = Journal.read(tmp_path / "j").records
        assert [(r.step, r.applied) for r in records] == [(m.step, m.applied) for m in measured]
        assert [r.applied for r in records] == [True] * 5 + [False, True, True]
        assert [r.losses for r in records[:5]] == [m.losses for m in measured[:5]]
        assert records[3].rates == (1e-2 * 0.997, 3e-3 * 0.997)

    def test_a_recorded_step_of_a_process_without_an_example(self, tmp_path: Path) -> None:
        """As where a run goes on with more processes than a step has micro-batches: the record has the losses."""
        optimizer, model = run(tmp_path / "j", 3)
        expected = weights(optimizer, model)
        model = make_model()
        optimizer = make_optimizer(model)
        base = fingerprint(weights_of(model))
        optimizer.journal = Journal.open(tmp_path / "j", optimizer.journal_header("base", base))
        with closing(optimizer.journal):
            for step in range(3):
                optimizer.accumulate(step, lambda: pytest.fail("it is known"), weight=0)
                optimizer.step()
        assert same(weights(optimizer, model), expected)

    def test_the_documented_reader_reads_it(self, ten: Path) -> None:
        text = (Path(__file__).parents[2] / "docs" / "journal_format.md").read_text(encoding="utf-8")
        code = text.split("```python\n")[1].split("```")[0]
        scope: dict[str, Any] = {}
        exec(code, scope)
        header, records = scope["read_journal"](str(ten))
        journal = Journal.read(ten)
        assert header["names"] == list(journal.header.names)
        assert [r["losses"] for r in records if r["applied"]] == [r.losses for r in journal.records if r.applied]


class TestRefused:
    def test_every_single_bit(self, ten: Path, tmp_path: Path) -> None:
        data = (ten / RECORDS).read_bytes()
        folder = damaged(ten, tmp_path)
        for place in range(0, 8 * SIZE * 3):
            changed = bytearray(data[: SIZE * 3])
            changed[place // 8] ^= 1 << place % 8
            (folder / RECORDS).write_bytes(changed)
            with pytest.raises(JournalError, match=f"record {place // 8 // SIZE} "):
                Journal.read(folder)

    @pytest.mark.parametrize(
        "edit",
        [
            lambda r: r[:3] + r[4:],
            lambda r: r[1:],
            lambda r: [*r[:2], r[3], r[2], *r[4:]],
            lambda r: [*r[:4], r[2], *r[4:]],
            lambda r: [r[0], r[0], *r[1:]],
        ],
        ids=["one missing", "first missing", "exchanged", "copied", "twice"],
    )
    def test_other_records_or_another_order(
        self, ten: Path, tmp_path: Path, edit: Callable[[list[bytes]], Any]
    ) -> None:
        data = (ten / RECORDS).read_bytes()
        records = [data[k : k + SIZE] for k in range(0, len(data), SIZE)]
        with pytest.raises(JournalError, match="does not check"):
            Journal.read(damaged(ten, tmp_path, b"".join(edit(records))))

    def test_records_of_another_run(self, ten: Path, tmp_path: Path) -> None:
        other_header = replace(Journal.read(ten).header, model="elsewhere").to_bytes()
        with pytest.raises(JournalError, match="record 0 does not check"):
            Journal.read(damaged(ten, tmp_path, header=other_header))

    def test_a_record_with_a_right_checksum_and_wrong_contents(self, ten: Path, tmp_path: Path) -> None:
        journal = Journal.read(ten)
        start = zlib.crc32((ten / HEADER).read_bytes())
        first = journal.records[0]
        for wrong, message in [
            (replace(first, step=1), "is of step 1"),
            (replace(first, rates=(float("inf"), 0.0)), "learning rates"),
            (replace(first, losses=(float("nan"), 0.5)), "losses that are not finite"),
        ]:
            with pytest.raises(JournalError, match=message):
                Journal.read(damaged(ten, tmp_path, encode(wrong, start)))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"version": 3}, "version 3; this program reads version 2"),
            ({"version": 1}, r"version 1, whose noise this program does not compute: replay it with llava 0\.1\.0"),
            ({"format": "other"}, "not that of a journal"),
            ({"eps": 0.0}, "eps"),
            ({"eps": "x"}, "form"),
            ({"names_hash": "0" * 64}, "names_hash"),
            ({"names": ["0.weight", "0.bias", "1.bias", "1.weight", "3.bias", "3.weight"]}, "names_hash"),
            ({"storage": "int4"}, "storage"),
            ({"noise": "cauchy"}, "noise"),
            ({"seed": -1}, "seed"),
            ({"num_directions": True}, "num_directions"),
            ({"groups": []}, "form|groups"),
            ({"record_bytes": 52}, "record_bytes"),
            ({"more": 1}, "unknown"),
            ({"shapes": [[1]]}, "shapes"),
            ({"parent": {"steps": 1}}, "form"),
            ({"stored": {"nobody": ["x"]}}, "stored"),
            ({"stored": {"0.bias": "x"}}, "form"),
            ({"names": ["a", "a", "b", "c", "d", "e"]}, "names"),
            ({"names": "abcdef"}, "form"),
            ({"names": ["\ud800", "b", "c", "d", "e", "f"]}, "form"),
            ({"model": "a\nb"}, "model"),
            ({"eps": 10**308}, "eps"),
            ({"version": 2.0}, "version 2.0"),
            ({"groups": [{"parameters": [0, 1, 2, 3, 4, 5], "weight_decay": 0.0, "rate": 0, "x": 1}]}, "form"),
        ],
    )
    def test_headers(self, ten: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        values = json.loads((ten / HEADER).read_bytes()) | change
        with pytest.raises(JournalError, match=message):
            Journal.read(damaged(ten, tmp_path, header=json.dumps(values).encode()))

    def test_a_header_with_a_key_twice(self, ten: Path, tmp_path: Path) -> None:
        header = (ten / HEADER).read_bytes().replace(b'"seed": 5', b'"seed": 5, "seed": 6')
        with pytest.raises(JournalError, match="not JSON"):
            Journal.read(damaged(ten, tmp_path, header=header))

    def test_a_file_that_is_missing(self, ten: Path, tmp_path: Path) -> None:
        folder = damaged(ten, tmp_path)
        (folder / RECORDS).unlink()
        with pytest.raises(JournalError, match=r"records\.bin is missing"):
            Journal.read(folder)

    @pytest.mark.parametrize("field, value", [("storage", "fp32"), ("num_directions", 3), ("noise", "rademacher")])
    def test_a_run_with_other_settings(self, ten: Path, tmp_path: Path, field: str, value: Any) -> None:
        folder = damaged(ten, tmp_path)
        header = replace(Journal.read(ten).header, **{field: value})
        with pytest.raises(JournalError, match=f"another {field}"):
            Journal.open(folder, header)

    def test_a_base_model_with_other_weights(self, ten: Path, tmp_path: Path) -> None:
        with pytest.raises(JournalError, match="fingerprint"):
            Journal.open(damaged(ten, tmp_path), replace(Journal.read(ten).header, fingerprint="0" * 64))
        start = weights_of(make_model())
        start["0.bias"][0] += 1
        with pytest.raises(JournalError, match="fingerprint"):
            Replay(Journal.read(ten), start.__getitem__)

    def test_a_relative_model_is_found_beside_it(
        self, ten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "else").mkdir()
        monkeypatch.chdir(tmp_path / "else")

        def named(name: str) -> Any:
            header = replace(Journal.read(ten).header, model=name)
            return SimpleNamespace(folder=tmp_path / "project" / "runs" / "a" / "mezo_journal", header=header)

        assert recorded_model(named("models/tiny")) == "models/tiny"  # it may be a hub id as well
        with pytest.raises(
            JournalError, match=r"\./models/tiny, which is not there, neither in .*else nor in a folder"
        ):
            recorded_model(named("./models/tiny"))
        model = tmp_path / "project" / "models" / "tiny"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        assert Path(recorded_model(named("models/tiny"))).samefile(model)
        monkeypatch.chdir(tmp_path / "project")
        assert recorded_name("models/tiny") == str(model)
        assert recorded_name("lmms-lab/a-model") == "lmms-lab/a-model"

    def test_a_step_that_the_weights_are_not_before(self, tmp_path: Path) -> None:
        optimizer, model = run(tmp_path / "j", 3)
        optimizer.accumulate(1, lambda: loss_of(model, 1))  # recorded, and applied already
        with pytest.raises(JournalError, match="step 1 cannot be applied to weights before step 3"):
            optimizer.step()

    def test_a_second_writer(self, ten: Path, tmp_path: Path) -> None:
        folder = damaged(ten, tmp_path)
        first = Journal.open(folder, Journal.read(ten).header)
        with pytest.raises(JournalError, match="another run is writing"):
            Journal.open(folder, first.header)
        first.close()
        Journal.open(folder, first.header).close()

    def test_a_lock_that_is_waited_for(self, tmp_path: Path) -> None:
        first = FolderLock(tmp_path)
        release = threading.Timer(0.3, first.release)
        release.start()
        FolderLock(tmp_path, patience=30.0).release()
        release.join()

    def test_a_child_that_outlives_its_parent_does_not_hold_the_lock(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        holder = context.Process(target=_locked_with_a_child, args=(tmp_path, sender))
        holder.start()
        child = receiver.recv()
        with pytest.raises(JournalError, match="another run is writing"):
            FolderLock(tmp_path)
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
        FolderLock(tmp_path).release()
        os.kill(child, signal.SIGKILL)  # ProcessLookupError if it was gone already

    def test_groups_that_no_longer_share_a_learning_rate(self, tmp_path: Path) -> None:
        model = make_model()
        groups = [{"params": [p], "lr": 1e-2} for p in model.parameters()]
        optimizer = MeZO(groups, model)
        optimizer.journal = Journal.open(tmp_path / "j", optimizer.journal_header("", fingerprint(weights_of(model))))
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        optimizer.param_groups[2]["lr"] = 1.0
        optimizer.accumulate(0, lambda: loss_of(model, 0))
        with pytest.raises(JournalError, match="equal rates at the start"):
            optimizer.step()


def _locked_with_a_child(folder: Path, sender: Connection) -> None:
    lock = FolderLock(folder)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    sender.send(child.pid)
    child.join()
    lock.release()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_crash_the_reader_or_are_taken_for_others(ten: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Random bytes and random edits: refused, or read as the records that were written, up to some point."""
    header, records = (ten / HEADER).read_bytes(), (ten / RECORDS).read_bytes()

    def edited(original: bytes) -> bytes:
        if data.draw(st.booleans()):
            return data.draw(st.binary(max_size=300))
        begin = data.draw(st.integers(0, len(original)))
        end = data.draw(st.integers(begin, min(len(original), begin + 60)))
        return original[:begin] + data.draw(st.binary(max_size=60)) + original[end:]

    which = data.draw(st.sampled_from(["header", "records", "both"]))
    new_header = header if which == "records" else edited(header)
    new_records = records if which == "header" else edited(records)
    expected = Journal.read(ten)
    try:
        found = Journal.read(damaged(ten, tmp_path, new_records, new_header))
    except JournalError:
        return
    assert repr(found.records) == repr(expected.records[: len(found.records)])


class TestDurable:
    def test_a_record_that_was_cut_off_is_left_out(self, ten: Path, tmp_path: Path) -> None:
        data = (ten / RECORDS).read_bytes()
        header = Journal.read(ten).header
        for size in range(9 * SIZE, len(data)):
            folder = damaged(ten, tmp_path, data[:size])
            journal = Journal.read(folder)
            assert len(journal.records) == 9 and journal.torn == size - 9 * SIZE
            journal = Journal.open(folder, header)
            journal.append(Journal.read(ten).records[9])
            journal.close()
            assert (folder / RECORDS).read_bytes() == data

    def test_zeros_after_a_power_cut_are_left_out(self, ten: Path, tmp_path: Path) -> None:
        data = (ten / RECORDS).read_bytes()
        for lost in range(0, 2 * SIZE, 3):  # a page ends anywhere
            tail = data[: len(data) - lost] + bytes(lost) if lost else data
            journal = Journal.read(damaged(ten, tmp_path, tail + bytes(SIZE * 3 + 7)))
            assert len(journal.records) == 10 - -(-lost // SIZE)

    @pytest.mark.parametrize("part", [0, 20])
    def test_a_full_disk_loses_no_step(self, part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "j"
        whole = run(tmp_path / "whole", 9)
        run(folder, 4)
        write = os.write

        def full(file: int, data: bytes) -> int:
            if part and len(data) == SIZE:
                return write(file, data[:part])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(journal_module.os, "write", full)
        with pytest.raises(JournalError, match=r"step 4 cannot be recorded .No space left on device.*not applied"):
            run(folder, 9)
        monkeypatch.undo()
        assert len(Journal.read(folder).records) == 4
        assert same(weights(*run(folder, 9)), weights(*whole))

    @pytest.mark.parametrize(
        ("sync_steps", "seconds", "expected"), [(None, 0.0, 9), (None, 0.1, 2), (1, 0.1, 9), (4, 0.0, 2), (100, 0.0, 0)]
    )
    def test_how_often_the_disk_is_waited_for(
        self, sync_steps: int | None, seconds: float, expected: int, ten: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """Each record where that is quick, else one in `sync_steps`, or one a second; at the end all are there."""
        given, now, synced = Journal.read(ten), 0.0, 0

        def slow(file: int) -> None:
            nonlocal now, synced
            now, synced = now + seconds, synced + 1

        monkeypatch.setattr(journal_module.time, "monotonic", lambda: now)
        monkeypatch.setattr(journal_module.os, "fsync", slow)
        journal = Journal.open(tmp_path / "journal", given.header)
        journal.sync_steps, synced = sync_steps, 0
        for record in given.records[:9]:
            journal.append(record)
            now += 0.15
            assert len(Journal.read(tmp_path / "journal").records) == record.step + 1  # whatever becomes of the process
        assert synced == expected
        journal.close()
        assert synced == expected + 1

    def test_a_folder_that_cannot_be_written(self, ten: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(JournalError, match="cannot be made"):
            Journal.open(tmp_path / "file" / "journal", Journal.read(ten).header)

    @pytest.mark.slow
    @pytest.mark.parametrize("storage", ["native", "fixed16", "fp32"])
    def test_killed_a_hundred_times_it_ends_as_if_nothing_had_happened(self, storage: str, tmp_path: Path) -> None:
        steps, kills, chosen = 400, 0, random.Random(storage)
        expected = weights(*run(tmp_path / "whole", steps, torch.bfloat16, storage))
        folder = tmp_path / "killed"
        context = multiprocessing.get_context("fork")
        lengths, done, size = set(), 0, 0
        while kills < 34 or done <= 20 or len(lengths) < 2:  # in each of three storages
            child = context.Process(target=_slowly, args=(folder, steps, storage))
            child.start()
            wanted = size + chosen.randrange(
                400
            )  # bytes, up to eleven steps: time alone would count on a quiet machine
            while size < wanted and child.is_alive():
                time.sleep(0.0005)
                size = (folder / RECORDS).stat().st_size if (folder / HEADER).exists() else 0
            time.sleep(chosen.uniform(0.0, 0.008))
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            kills += 1
            if (folder / HEADER).exists():
                journal, size = Journal.read(folder), (folder / RECORDS).stat().st_size
                lengths.add(size % journal.header.record_bytes)
                done = len(journal.records)
            assert done < steps, "the last kill came after the last step"
        assert same(weights(*run(folder, steps, torch.bfloat16, storage)), expected)


def _slowly(folder: Path, steps: int, storage: str) -> None:
    """In a process of its own: steps whose records are written in three parts with a pause between them."""
    torch.set_num_threads(1)
    write = os.write

    def in_parts(file: int, data: bytes) -> int:
        for part in (data[:10], data[10:40], data[40:]):
            write(file, part)
            time.sleep(0.002)
        return len(data)

    journal_module.os.write = in_parts  # type: ignore[assignment]
    run(folder, steps, torch.bfloat16, storage)


def test_the_folder_of_the_run_is_nearly_right(tmp_path: Path) -> None:
    run(tmp_path / "mezo_journal", 1)
    with pytest.raises(JournalError, match=f"is no journal.*give {tmp_path / 'mezo_journal'}"):
        Journal.read(tmp_path)


@pytest.mark.slow
class TestReplay:
    @pytest.mark.parametrize("storage", ["native", "fixed16", "fp32"])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("kernel", ["torch", "auto"])
    def test_gives_the_weights_of_every_step(
        self, dtype: torch.dtype, storage: str, kernel: str, tmp_path: Path
    ) -> None:
        seen = {0: weights_of(make_model(dtype))}
        run(
            tmp_path / "j",
            12,
            dtype,
            storage,
            seen=lambda step, optimizer, model: seen.update({step: weights(optimizer, model)}),
            num_directions=2,
        )
        for stops in ([0, 1, 2, 5, 6, 12], [12], [7]):
            start = weights_of(make_model(dtype))
            replay = Replay(Journal.read(tmp_path / "j"), start.__getitem__, kernel)
            for stop in stops:
                replay.advance(stop)
                if stop or storage != "fixed16":  # a grid rounds the smallest weights at the start
                    assert same({name: replay.weight(name) for name in replay.names}, seen[stop]), stop

    def test_large_weights_go_part_by_part(self, tmp_path: Path) -> None:
        model = nn.Linear(1100, 2000, bias=False, dtype=torch.bfloat16)
        base = model.weight.detach().clone()
        optimizer = MeZO([model.weight], model, MeZOConfig(storage="fixed16"), lr=1e-3)
        optimizer.journal = Journal.open(tmp_path, optimizer.journal_header("", fingerprint({"weight": base})))
        for step in range(3):
            optimizer.accumulate(step, lambda: model.weight.float().square().mean())
            optimizer.step()
        replay = Replay(Journal.read(tmp_path), {"weight": base}.__getitem__)
        replay.advance(3)
        assert torch.equal(replay.weight("weight"), optimizer.storages[model.weight].exported())

    def test_steps_that_are_not_there(self, ten: Path) -> None:
        replay = Replay(Journal.read(ten), weights_of(make_model()).__getitem__)
        replay.advance(5)
        for step in (4, 11):
            with pytest.raises(ValueError, match=f"step {step} is asked for"):
                replay.advance(step)

    def test_a_branch_follows_its_parents(self, tmp_path: Path) -> None:
        states: dict[int, dict[str, torch.Tensor]] = {}
        run(tmp_path / "a", 9, torch.bfloat16, seen=lambda n, o, m: states.update({n: weights(o, m)}))
        branch = weights(
            *run(tmp_path / "b", 8, torch.bfloat16, "fixed16", Journal.read(tmp_path / "a"), 6, start=states[6])
        )
        third = weights(*run(tmp_path / "c", 5, torch.bfloat16, "fp32", Journal.read(tmp_path / "b"), 8, start=branch))
        shutil.rmtree(tmp_path / "a")  # a branch holds what it needs
        shutil.rmtree(tmp_path / "b")
        journal = Journal.read(tmp_path / "c")
        assert [len(one.records) for one in journal.chain()] == [6, 8, 5]
        replay = Replay(journal, weights_of(make_model(torch.bfloat16)).__getitem__)
        replay.advance(5)
        assert same({name: replay.weight(name) for name in sorted(replay.names)}, third)

    def test_a_parent_that_was_exchanged(self, ten: Path, tmp_path: Path) -> None:
        run(tmp_path / "b", 2, parent=Journal.read(ten), first=5, start=_at(ten, 5))
        os.truncate(tmp_path / "b" / "parent" / RECORDS, 4 * SIZE)
        with pytest.raises(JournalError, match=r"has 4 records.*expects 5"):
            Journal.read(tmp_path / "b")


def _at(folder: Path, step: int) -> dict[str, torch.Tensor]:
    replay = Replay(Journal.read(folder), weights_of(make_model()).__getitem__)
    replay.advance(step)
    return {name: replay.weight(name) for name in replay.names}


class TestCommand:
    def test_check(self, ten: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["check", str(ten)]) == 0
        assert "10 records, all in order" in capsys.readouterr().out
        data = bytearray((ten / RECORDS).read_bytes())
        data[SIZE + 20] ^= 4
        assert main(["check", str(damaged(ten, tmp_path, bytes(data)))]) == 2
        assert "record 1 does not check" in capsys.readouterr().err

    def test_show(self, ten: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["show", str(ten), "--last", "2"]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ["8", "9"]
        assert main(["show", str(ten), "--json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert lines[0]["eps"] == 1e-3 and lines[10]["step"] == 9 and len(lines) == 11
        with pytest.raises(SystemExit, match="2"):
            main(["show", str(ten), "--last", "-2"])
        assert "--last -2 must be at least 0" in capsys.readouterr().err

    def test_not_a_journal(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["show", str(tmp_path)]) == 2
        assert "header.json is missing" in capsys.readouterr().err

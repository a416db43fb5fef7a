"""Runs whose processes come and go: the same bits, whoever did the steps, and a journal on every disk."""

from __future__ import annotations

import functools
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finished_runs import report_of, same, weights
from launching import TRAIN, codes, launch_elastic, run_on, run_ranks, start_ranks, torchrun
from safetensors.torch import load_file, save_file

from llava.errors import EXIT_LOST
from llava.mezo.journal.files import HEADER, RECORDS, Journal
from llava.mezo.journal.kept import kept_journals
from llava.train.train import train
from llava.train.zo import disks, watch
from llava.train.zo.disks import Disks

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_picture_of_the_loss")]

Flags = Callable[..., list[str]]


@pytest.fixture()
def small_run(small_run: Flags) -> Flags:
    """Command line of a zeroth-order run of eight steps in two epochs, one record at a time."""
    return functools.partial(small_run, max_steps=8, lr_scheduler_type=None, dataloader_drop_last=False)


def journal_of(folder: Path) -> Path:
    return folder / "mezo_journal"


def stopped_after(whole: Path, steps: int, folder: Path) -> Path:
    """A copy of a finished run as it was when its processes were killed, while a further record was written."""
    shutil.copytree(journal_of(whole), journal_of(folder), ignore=shutil.ignore_patterns("resume-*"))
    size = Journal.read(journal_of(whole)).header.record_bytes
    os.truncate(journal_of(folder) / RECORDS, (steps + 1) * size - 7)
    return folder


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit: records and weights."""
    assert (journal_of(one) / RECORDS).read_bytes() == (journal_of(other) / RECORDS).read_bytes()
    assert same(weights(one), weights(other))


@pytest.mark.parametrize(
    "changes",
    [
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},  # epochs end within a step
        pytest.param({"group_by_modality_length": True, "dataloader_drop_last": True}, marks=pytest.mark.long),
        pytest.param({"zo_batch_growth": "0:2,0.5:4"}, marks=pytest.mark.long),
        pytest.param(
            {"zo_estimator": "per_example", "per_device_train_batch_size": 2, "dataloader_drop_last": True},
            marks=pytest.mark.long,
        ),
    ],
    ids=["accumulated", "grouped", "growth", "per_example"],
)
def test_other_processes_go_on_with_the_same_steps(changes: dict[str, Any], small_run: Flags, tmp_path: Path) -> None:
    """From two to one and on to three, in the middle of an epoch: all end as the run that was never stopped."""
    run = functools.partial(small_run, **changes)
    log = tmp_path / "log"
    run_ranks([run(output_dir=tmp_path / "two")] * 2, log)
    train(argv=run(output_dir=stopped_after(tmp_path / "two", 3, tmp_path / "then_one")))
    assert_same_run(tmp_path / "two", tmp_path / "then_one")
    counts = [{"after_step": 0, "processes": 2}, {"after_step": 3, "processes": 1}]
    assert report_of(tmp_path / "then_one")["process_counts"] == counts
    assert "process_counts" not in report_of(tmp_path / "two") and report_of(tmp_path / "two")["changes"] == []

    back = stopped_after(tmp_path / "then_one", 5, tmp_path / "then_more")
    more = 2 if changes.get("zo_estimator") == "per_example" else 3  # to which micro-batches go unevenly
    run_ranks([run(output_dir=back)] * more, log)
    assert_same_run(tmp_path / "two", back)
    assert report_of(back)["process_counts"] == [*counts, {"after_step": 5, "processes": more}]
    assert report_of(back)["changes"] == []


@pytest.mark.parametrize(
    "adapter", [{}, pytest.param({"adapter": "lora", "lora_r": 4}, marks=pytest.mark.long)], ids=["", "lora"]
)
def test_machines_without_a_shared_disk(adapter: dict[str, Any], small_run: Flags, tmp_path: Path) -> None:
    """One begins, another joins late with an empty disk, and goes on with what it was sent when the first is lost."""
    run = functools.partial(small_run, gradient_accumulation_steps=2, **adapter)
    log, whole = tmp_path / "log", tmp_path / "whole"
    train(argv=run(output_dir=whole))
    first, joined = stopped_after(whole, 3, tmp_path / "first"), tmp_path / "joined"
    run_ranks([run(output_dir=first), run(output_dir=joined)], log)
    assert_same_run(whole, first)
    for name in (RECORDS, HEADER, "model/config.json"):
        assert (journal_of(joined) / name).read_bytes() == (journal_of(first) / name).read_bytes()
    counts = json.loads((journal_of(joined) / "training_args.json").read_text())["process_counts"]
    assert counts == [{"after_step": 0, "processes": 1}, {"after_step": 3, "processes": 2}]
    assert not (joined / "trainer_state.json").exists()  # what is saved at the end is the main process's
    assert not list(tmp_path.glob("*/.disk-*")) and not list(tmp_path.rglob("*.incoming"))

    survivor, replaced = stopped_after(joined, 6, tmp_path / "survivor"), tmp_path / "replaced"
    run_ranks([run(output_dir=replaced), run(output_dir=survivor)], log)
    assert_same_run(whole, replaced)
    assert (journal_of(survivor) / RECORDS).read_bytes() == (journal_of(whole) / RECORDS).read_bytes()


def test_disks_of_two_new_machines_and_a_base_that_differs(
    small_run: Flags, bases: dict[str, Path], tmp_path: Path
) -> None:
    log, other = tmp_path / "log", tmp_path / "base"
    disks = [tmp_path / "a", tmp_path / "b"]
    run_ranks([small_run(output_dir=disk, max_steps=2) for disk in disks], log)
    assert len({(journal_of(disk) / RECORDS).read_bytes() for disk in disks}) == 1

    shutil.copytree(bases["qwen2-base-tied"], other)
    tensors = load_file(other / "model.safetensors")
    for name, row, said in (  # the mark of a base has no second row
        ("model.embed_tokens.weight", 1, "its copy of the base model has other weights"),
        ("model.norm.weight", 0, f"--model_name_or_path {other} has other weights here than where rank 0 is"),
    ):
        tensors[name][row] += 1.0
        save_file(tensors, other / "model.safetensors", {"format": "pt"})
        apart = small_run(output_dir=tmp_path / "d", max_steps=2, model_name_or_path=other)
        assert codes(start_ranks([small_run(output_dir=tmp_path / "c", max_steps=2), apart], log)) == [2, 2]
        assert said in log.read_text()

    foreign = stopped_after(disks[0], 1, tmp_path / "e")
    (journal_of(foreign) / HEADER).write_text(
        (journal_of(foreign) / HEADER).read_text().replace('"seed": 0', '"seed": 0 ')
    )
    os.truncate(journal_of(foreign) / RECORDS, 0)
    log.unlink()
    changed = [small_run(output_dir=disk, max_steps=2) for disk in (disks[1], foreign)]
    assert codes(start_ranks(changed, log)) == [2, 2]
    assert f"{journal_of(foreign)} is not of the run that rank 0 has there" in log.read_text()


def train_and_diverge(words: list[list[str]]) -> None:
    """With the command line of this rank; at six steps the losses are called diverged, until the run has gone back."""
    own = words[int(os.environ.get("RANK", 0))]
    folder = journal_of(Path(own[own.index("--output_dir") + 1]))
    why = "diverged by step 6"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "WINDOW", 2)
        patch.setattr(watch, "diverging", lambda losses, *_: None if len(losses) != 6 or kept_journals(folder) else why)
        train(argv=own)


@pytest.mark.long
def test_machines_without_a_shared_disk_go_back_together(small_run: Flags, tmp_path: Path) -> None:
    """And where one of them was lost before it did, its disk becomes as that of the other."""
    run = functools.partial(small_run, zo_on_divergence="halve", learning_rate=1e-2)
    train_and_diverge([run(output_dir=tmp_path / "whole", gradient_accumulation_steps=2)])
    disks, log = [tmp_path / "a", tmp_path / "b"], tmp_path / "log"
    words = [run(output_dir=disk) for disk in disks]
    run_on(2, train_and_diverge, (words,), log)
    (kept,) = kept_journals(journal_of(disks[0]))
    whole = (journal_of(tmp_path / "whole") / RECORDS).read_bytes()
    for disk in disks:
        assert (journal_of(disk) / RECORDS).read_bytes() == whole
        assert len(Journal.read(kept.inside(journal_of(disk))).records) == 6

    for name in ("trainer_state.json", "report.json"):
        (disks[0] / name).unlink()
    shutil.copy(kept.inside(journal_of(disks[0])) / RECORDS, journal_of(disks[0]) / RECORDS)
    shutil.rmtree(kept.inside(journal_of(disks[0])))
    size = Journal.read(journal_of(disks[1])).header.record_bytes
    os.truncate(journal_of(disks[1]) / RECORDS, (kept.back_to + 1) * size)
    run_on(2, train_and_diverge, (words,), log)
    for disk in disks:
        assert (journal_of(disk) / RECORDS).read_bytes() == whole and kept_journals(journal_of(disk)) == [kept]


def test_records_come_before_what_was_gone_back_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that had the latter alone, with records of before, would be taken for the one that is furthest."""
    for name in (HEADER, RECORDS, "diverged-1-at-4-back-to-2"):
        (journal_of(tmp_path) / name).mkdir(parents=True)
    monkeypatch.setattr(Journal, "read", lambda _: SimpleNamespace(records=[None] * 2))
    monkeypatch.setattr(disks, "exchanged", lambda told, _: [told, b"[0, 3]"])
    monkeypatch.setattr(disks, "handed_out", lambda data, *_: data)
    monkeypatch.setattr(Disks, "_check_alike", lambda *_: None)
    copied: list[str] = []
    monkeypatch.setattr(Disks, "copy", lambda self, folder, names, source: copied.extend(names))
    Disks(0, (0, 1)).level(tmp_path)
    assert copied == [RECORDS, "diverged-1-at-4-back-to-2", HEADER]


@pytest.mark.long
def test_a_process_that_does_not_answer_ends_the_others(small_run: Flags, tmp_path: Path) -> None:
    """Without a launcher that would end them: after --ddp_timeout seconds, with a line that says what to do."""
    run = small_run(output_dir=tmp_path / "out", max_steps=10_000, ddp_timeout=10)
    ranks = start_ranks([run] * 2, tmp_path / "log")
    try:
        wait_for(lambda: records_of(tmp_path / "out") >= 3)
        os.kill(ranks[1].pid, signal.SIGSTOP)
        ranks[0].join(60)
        assert ranks[0].exitcode == EXIT_LOST, (tmp_path / "log").read_text()[-3000:]
    finally:
        for rank in ranks:
            rank.kill()
    assert "error: rank 0 of 2: another process of this run has ended" in (tmp_path / "log").read_text()
    assert len(Journal.read(journal_of(tmp_path / "out")).records) >= 3


def test_killed_ranks_are_started_again(small_run: Flags, tmp_path: Path) -> None:
    """Two times, by the agent of torchrun, at random moments of the steps; nothing of it is left in the end."""
    out, pids, run = tmp_path / "killed", tmp_path / "pids", functools.partial(small_run, max_steps=60)
    pids.mkdir()
    run_ranks([run(output_dir=tmp_path / "whole")] * 2, tmp_path / "log")
    words = run(output_dir=out, overwrite_output_dir=True)  # which is for the first start alone
    killed = threading.Thread(target=kill_twice, args=(out, pids, random.Random(3)))
    killed.start()
    launch_elastic(words, 2, 2, tmp_path / "log", pids)
    killed.join()
    assert len(list(pids.glob("killed.*"))) == 2
    assert_same_run(tmp_path / "whole", out)
    assert report_of(out)["changes"] == [] and "process_counts" not in report_of(out)


def kill_twice(out: Path, pids: Path, chosen: random.Random) -> None:
    """A rank of the first start, and one of the second, some steps after each."""
    for restart in range(2):
        ranks = [pids / f"rank.{restart}.{rank}" for rank in range(2)]
        wait_for(lambda ranks=ranks: all(rank.exists() for rank in ranks))  # type: ignore[misc]
        more = records_of(out) + chosen.randint(1, 10)
        wait_for(lambda more=more: records_of(out) >= more)  # type: ignore[misc]
        victim = chosen.choice(ranks)
        os.kill(int(victim.read_text()), signal.SIGKILL)
        (pids / f"killed.{victim.name}.after.{records_of(out)}").touch()


@pytest.mark.long
def test_torchrun_killed_twenty_times(small_run: Flags, tmp_path: Path) -> None:
    """As a user starts it; ranks are killed while they import, load, agree, replay and train."""
    kills, steps, out, chosen = 20, 420, tmp_path / "killed", random.Random(20)
    run = functools.partial(small_run, max_steps=steps)
    run_ranks([run(output_dir=tmp_path / "whole")] * 2, tmp_path / "log")
    words = run(output_dir=out, overwrite_output_dir=True)
    with (tmp_path / "torchrun").open("w") as log:
        agent = subprocess.Popen(torchrun(words, 2, f"--max-restarts={kills}"), stdout=log, stderr=log)
    try:
        dead: set[int] = set()
        for _ in range(kills):
            ranks = new_ranks(agent, dead)
            until = time.monotonic() + (chosen.uniform(0.0, 40.0) if chosen.random() < 0.4 else math.inf)
            more = records_of(out) + chosen.randint(1, 12)
            wait_for(lambda until=until, more=more: records_of(out) >= more or time.monotonic() >= until)  # type: ignore[misc]
            assert agent.poll() is None, (tmp_path / "torchrun").read_text()[-3000:]
            os.kill(chosen.choice(sorted(ranks)), signal.SIGKILL)
            dead |= ranks
        assert agent.wait(300) == 0, (tmp_path / "torchrun").read_text()[-3000:]
    finally:
        agent.kill()
    assert_same_run(tmp_path / "whole", out)
    assert report_of(out)["changes"] == [] and "process_counts" not in report_of(out)


@pytest.mark.long
def test_a_machine_joins_and_is_lost(small_run: Flags, tmp_path: Path) -> None:
    """Two agents, each with a disk: the second comes while the first trains, and goes with all that it has."""
    run = functools.partial(small_run, max_steps=600, gradient_accumulation_steps=2)
    train(argv=run(output_dir=tmp_path / "whole"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-backend=c10d", f"--rdzv-id={port}", "--nnodes=1:2"]
    meeting += ["--nproc_per_node=1", "--max-restarts=9", "--rdzv-conf=last_call_timeout=2", "--local-addr=127.0.0.1"]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # without it torch 2.13 lets nobody join
    disks, agents = [tmp_path / "first", tmp_path / "second"], []
    try:
        for disk, records in zip(disks, (20, 200), strict=True):
            words = [sys.executable, "-m", "torch.distributed.run", *meeting, str(TRAIN), *run(output_dir=disk)]
            with (tmp_path / f"{disk.name}.log").open("w") as log:
                agents.append(subprocess.Popen(words, stdout=log, stderr=log, env=environment))
            wait_for(lambda disk=disk, records=records: records_of(disk) >= records)  # type: ignore[misc]
        for process in (*new_ranks(agents[1], set(), 1), agents[1].pid):
            os.kill(process, signal.SIGKILL)
        assert agents[0].wait(300) == 0, (tmp_path / "first.log").read_text()[-3000:]
    finally:
        for agent in agents:
            agent.kill()
    assert_same_run(tmp_path / "whole", disks[0])
    assert [one["processes"] for one in report_of(disks[0])["process_counts"]] == [1, 2, 1]


def records_of(folder: Path) -> int:
    """Whole records that a journal has by now."""
    try:
        return (journal_of(folder) / RECORDS).stat().st_size // 44
    except FileNotFoundError:
        return 0


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def new_ranks(agent: subprocess.Popen[bytes], dead: set[int], count: int = 2) -> set[int]:
    """Process ids of what torchrun has started."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")

    def found() -> set[int]:
        return {int(child) for child in children.read_text().split() if is_rank(int(child))} - dead

    wait_for(lambda: len(found()) == count)
    return found()


def is_rank(process: int) -> bool:
    try:
        return b"train_mem.py" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False

"""A run that its launcher starts again: torchrun does when a process was killed, or a machine comes or goes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from llava.errors import InputError
from llava.train.zo.shared_steps import Begun

LAUNCH, PROCESSES = "launch", "process_counts"
"""Keys beside a run's flags: the launcher's name for the launch, and with how many processes it went on when."""


def launch() -> str | None:
    """What torchrun calls this launch; None without it, and where it has no name of its own."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name in (None, "", "none") else name


def is_started_again(earlier: Mapping[str, Any] | None) -> bool:
    """Whether the launcher has started this very launch before.

    Args:
        earlier: what lies beside the flags of the run in the output folder, if there is one.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") or 0) > 0:
        return True
    name = launch()  # torchrun does not count the starts for a machine that comes or goes
    return name is not None and earlier is not None and earlier.get(LAUNCH) == name


def settled(args: Any, earlier: Mapping[str, Any]) -> Begun | None:
    """What the steps of a run that goes on are made of; None where it has other flags than it was begun with.

    Args:
        args: training arguments.
        earlier: the flags of then.

    Raises:
        InputError: these steps cannot be shared out to so many processes.
    """
    now = Begun(args.data_processes, args.gradient_accumulation_steps)
    then = Begun(earlier.get("data_processes") or now.processes, earlier.get("gradient_accumulation_steps") or 1)
    same = now.accumulated == then.accumulated or now.micro_batches == then.micro_batches
    ways = args.accelerator_config
    if now == then or not same or ways.split_batches or ways.dispatch_batches:
        return None
    examples = then.micro_batches * args.per_device_train_batch_size
    if args.zo_estimator == "guided":
        raise InputError(
            f"--zo_estimator guided takes one batch a process: {args.output_dir} was begun with {then.processes} "
            f"processes and goes on with as many alone, not {now.processes}"
        )
    if args.zo_estimator == "per_example" and examples % now.processes:
        raise InputError(
            f"--zo_estimator per_example: the {examples} records of a step of {args.output_dir} cannot be shared out "
            f"evenly to {now.processes} processes"
        )
    return then


def process_counts(earlier: Mapping[str, Any] | None, steps: int, processes: int) -> list[dict[str, int]]:
    """With how many processes a run went on after which step, up to now."""
    counts: list[dict[str, int]] = list((earlier or {}).get(PROCESSES, ()))
    if not counts and earlier and earlier.get("world_size"):
        counts = [{"after_step": 0, "processes": earlier["world_size"]}]
    if not counts or counts[-1]["processes"] != processes:
        counts = [*counts, {"after_step": steps, "processes": processes}]
    return counts


def told(begun: Begun, processes: int, counts: Sequence[Mapping[str, int]]) -> str:
    """The line of the log for a run that goes on with other processes."""
    batches, after = begun.micro_batches, counts[-1]["after_step"]
    line = (
        f"after step {after} the run goes on with {processes} processes; it was begun with {begun.processes}. A step "
        f"has the same {batches} micro-batches as before, so that it ends with the same bits"
    )
    if batches < processes:
        return f"{line}; {processes - batches} of the processes have nothing to add"
    return f"{line}; they cannot be shared out evenly" if batches % processes else line

"""What is known of a run's time before it starts, from measurements: `run_and_evaluate.py` says it.

The steps of 0.5b and 7b are those of docs/performance.md; the demo's minutes are of two cores of a cloud machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MODELS = {preset: f"lmms-lab/llava-onevision-qwen2-{preset}-si" for preset in ("0.5b", "7b")}
DEMO_STEPS = 3000
DEMO_MINUTES = {"zo": (3, 6), "regular": (2, 3)}
"""Of so many steps with both evaluations, on two CPU cores."""


@dataclass(frozen=True)
class Measured:
    """A step of MeZO on the language model, in bfloat16 and with one direction, as docs/performance.md has it.

    Attributes:
        seconds: of the step.
        records: of the step.
        what: its size, for people.
    """

    device: str
    seconds: float
    records: int
    what: str


MEASURED = {
    "0.5b": (
        Measured("one NVIDIA H200", 0.0309, 4, "4 records of 800 tokens, 1 tile"),
        Measured("two CPU cores with bfloat16 instructions", 7.73, 1, "1 record of 1,500 tokens, 2 tiles"),
    ),
    "7b": (Measured("one NVIDIA H200", 0.1121, 1, "1 record of 1,500 tokens, 2 tiles"),),
}


def batch_of(args: Any, processes: int) -> int:
    """Records of a step with these training arguments."""
    return int(args.per_device_train_batch_size * processes * args.gradient_accumulation_steps)


def steps_of(args: Any, records: int, processes: int) -> int:
    """Steps of a run with these training arguments; by epochs, where --max_steps does not say."""
    if args.max_steps > 0:
        return int(args.max_steps)
    batch = batch_of(args, processes)
    epoch = records // batch if args.dataloader_drop_last else -(-records // batch)
    return max(1, round(args.num_train_epochs * max(1, epoch)))


def lines(preset: str, mode: str, steps: int, batch: int, records: int) -> Sequence[str]:
    """What to tell before a run of so many steps, each of `batch` of the `records`.

    Args:
        mode: zo or regular.
    """
    said = [f"{steps:,} steps of {batch:,} records: {steps * batch:,} records seen, of {records:,}"]
    if preset == "demo":
        low, high = DEMO_MINUTES[mode]
        idle = "two CPU cores that do nothing else"
        said.append(f"the demo's {DEMO_STEPS:,} steps take {low} to {high} minutes on {idle}, with both evaluations")
    elif mode == "zo" and preset in MEASURED:
        for one in MEASURED[preset]:
            hours = one.seconds * batch / one.records * steps / 3600
            said.append(
                f"about {hours:.2g} hours of steps on {one.device}, where one of {one.what} took {one.seconds:g} s"
            )
        said.append("longer rows and slower cards take more in proportion: docs/performance.md counts for other cards")
    else:
        said.append("nothing of this kind was timed at this size; the progress bar has an estimate after a few steps")
    return said

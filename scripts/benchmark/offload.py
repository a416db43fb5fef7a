"""What `--zo_offload cpu` needs of a card and of the bus: counted for shapes of OPT and LLaVA; timed with a card.

    python scripts/benchmark/offload.py                                   (all shapes, counted: 4 minutes)
    python scripts/benchmark/offload.py --shape opt-13b --time 5          (on CUDA: five steps, random weights)

Counting runs the engine's own step on a card that is not there (`fake_device.py`): tensors have shapes and no values.
OPT's shapes are run as ZO2's figures were taken (Wang et al. 2025, https://github.com/liangyuwang/zo2: fp16, one row of
2,048 tokens, all of them supervised, every weight trained); LLaVA's in bfloat16 on a row of 1,500 tokens with two
tiles, the language model trained, the tower run in each step. ZO2's are what the driver reported, CUDA's context and
the allocator's reserve among it; what is counted here has neither.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import opt
import shapes
import torch
from fake_device import CARD, fake_card
from torch import nn

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.offloading.optimizer import OffloadedMeZO
from llava.train.methods import RESERVE
from llava.train.zo.laid_out_forwards import laid_out_loss

ZO2 = {
    "opt-1.3b": 3.75,
    "opt-2.7b": 4.14,
    "opt-6.7b": 4.99,
    "opt-13b": 6.18,
    "opt-30b": 8.86,
    "opt-66b": 12.07,
    "opt-175b": 18.04,
}
"""GB of the card, as its README gives them (November 2026)."""
SHAPES = (*list(opt.SHAPES)[1:], "0.5b", "7b", "13b", "72b")
STEPS = 5


@dataclass(frozen=True)
class Count:
    """Bytes of the last of some steps, when the order of layers is known and an update waits.

    Attributes:
        weights: of the whole model, which the host holds.
        trained: of these.
        peak: of the card, over all steps.
        layers: the most that the card holds of stored weights.
        up, down: across the bus in a step.
    """

    weights: int
    trained: int
    peak: int
    layers: int
    up: int
    down: int


def count(shape: str) -> Count:
    """Of a step with weights offloaded to a card that is not there."""
    real, batch = prepared(shape)
    with fake_card() as memory, mock.patch("llava.mezo.optimizer.measure", _no_losses):
        faked(real)
        mezo, step = steps_of(real, batch, CARD)
        for number in range(STEPS):
            bus = mezo.weights.bus  # type: ignore[attr-defined]
            up, down = bus.up_bytes, bus.down_bytes
            step(number)
        weights, trained = (sum(p.numel() * p.element_size() for p in some) for some in _parameters(real))
        slots = mezo.weights.slots.bytes  # type: ignore[attr-defined]
        return Count(weights, trained, memory.peak, slots, bus.up_bytes - up, bus.down_bytes - down)


def prepared(shape: str, device: str = "meta") -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A model with random weights, or on the meta device, and the tensors of a batch on the host."""
    if shape in opt.SHAPES:
        torch.set_default_dtype(torch.float16)
        try:
            with torch.device(device):
                model: Any = opt.Decoder(shape)
        finally:
            torch.set_default_dtype(torch.float32)
        return model, {"ids": torch.zeros(1, opt.POSITIONS, dtype=torch.int64)}
    model = shapes.build(shape, torch.bfloat16, torch.device(device), "mm_language_model")
    batch = shapes.batch(model, 1200 if shape == "tiny" else 1500, 2, 12)
    return model, {**model.geometry.lay_out(batch, 1).tensors(), "images": torch.cat(batch["images"])}


def steps_of(model: Any, batch: dict[str, torch.Tensor], device: torch.device) -> tuple[MeZO, Callable[[int], None]]:
    """The optimizer, and a function that takes the step of a number."""
    trained = _parameters(model)[1]
    mezo = OffloadedMeZO(trained, model, MeZOConfig(), lr=1e-9, device=device)
    there = {name: tensor.to(device) for name, tensor in batch.items()}

    def of_opt(number: int) -> None:
        mezo.accumulate(number, lambda: model(there["ids"]))
        mezo.step()

    def of_llava(number: int) -> None:
        with mezo.plain():
            vectors = mezo.run_recorded("vision", lambda given: model.encode_images(given["images"]), there)
        tensors = {name: tensor for name, tensor in there.items() if name != "images"}
        mezo.accumulate(number, functools.partial(laid_out_loss, model), {**tensors, "vectors": vectors.flatten(0, 1)})
        mezo.step()

    return mezo, of_opt if "ids" in there else of_llava


def faked(model: nn.Module) -> None:
    """Its parameters and buffers become the host's, as these are on the fake device."""
    made: dict[torch.Tensor, torch.Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    there = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_weight = table is module._parameters
                    made[tensor] = nn.Parameter(there, tensor.requires_grad) if is_weight else there
                table[name] = made[tensor]  # type: ignore[assignment]


def _parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """All, and those that are trained."""
    return list(model.parameters()), [p for p in model.parameters() if p.requires_grad]


def _no_losses(points: Any, weights: Any, run: Any, undone: Any = ()) -> list[float]:
    weights.aim(points)
    run(len(points))
    return [1.0] * len(points)


def timed(shape: str, steps: int) -> str:
    """Median of some steps on the card, and its peak, as a line."""
    device = torch.device("cuda", torch.cuda.current_device())
    model, batch = prepared(shape, "cuda")  # a host takes minutes to draw so many numbers
    model.to("cpu")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    mezo, step = steps_of(model, batch, device)
    seconds = []
    for number in range(steps + 2):
        begin = time.perf_counter()
        step(number)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    median = sorted(seconds[2:])[len(seconds[2:]) // 2]
    bus = mezo.weights.bus  # type: ignore[attr-defined]
    rate = bus.up_bytes / (steps + 2) / median / 1e9
    peak, reserved = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9
    free, total = torch.cuda.mem_get_info()
    return (
        f"{shape} on {torch.cuda.get_device_name()}: {median:.3f} s a step, {rate:.1f} GB/s up, peak {peak:.2f} GB of "
        f"the card, {reserved:.2f} with what torch keeps; the driver says {(total - free) / 1e9:.2f} of all processes"
    )


def table(found: dict[str, Count]) -> str:
    """As Markdown."""
    lines = ["| shape | weights, on the host | card: peak | of it two layers | up a step | down a step | ZO2 | less |"]
    lines.append("|---" * 8 + "|")
    for shape, one in found.items():
        cells = [one.weights, one.peak, one.layers, one.up, one.down]
        theirs = ZO2.get(shape)
        less = "" if theirs is None else f"{theirs / (one.peak / 1e9 + RESERVE):.1f} times"
        numbers = " | ".join(f"{cell / 1e9:.2f}" for cell in cells)
        lines.append(f"| {shape} | {numbers} | {'' if theirs is None else theirs} | {less} |")
    lines += ["", f"GB (10^9 bytes). `less`: with {RESERVE:g} GB added to the peak for what a driver reports besides."]
    return "\n".join(lines)


def main() -> None:
    """Count, or time, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=(*opt.SHAPES, *shapes.SHAPES), action="append", help="default: most of them")
    parser.add_argument("--time", type=int, metavar="STEPS", help="run so many steps on CUDA in place of counting")
    options = parser.parse_args()
    chosen = options.shape or SHAPES
    if options.time is not None:
        if not torch.cuda.is_available():
            parser.error("--time needs a CUDA device; without it memory and bytes are counted")
        for shape in chosen:
            print(timed(shape, options.time), flush=True)
        return
    print(table({shape: count(shape) for shape in chosen}))


if __name__ == "__main__":
    main()

"""Every method's memory by part, and its time: rows of the table that `llava.train.plan` shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llava.train.cards import Card, language_operations, vision_operations
from llava.train.footprint import (
    HALF,
    NF4,
    SINGLE,
    Batch,
    Sizes,
    adafactor_states,
    forward_bytes,
    graph_bytes,
    largest,
)
from llava.train.parts.tunable import LANGUAGE_MODEL, VISION_TOWER

GB = 1e9
RESERVE = 1.0
"""GB that a card must have beyond what is counted: CUDA's context, workspaces of products, holes of the allocator."""
HOST_MEMORY, HOST_RESERVE = 64.0, 4.0
"""GB of the host, if it is not said, and what it must have beyond the weights: the system, Python, batches."""
SHOTS = (1, 4, 8)
LORA_RANK = 64
OPT_VOCABULARY = 50_272
WITHOUT, WITH = "", ", checkpointing"
LOMO_NOTE = "no clipping by the norm"


@dataclass(frozen=True)
class Row:
    """A method: bytes by part, and its time.

    Attributes:
        forwards: of a step, or of an answer, in forwards of the language model on the batch; a backward pass counts as
            two.
        vision: the same of the tower: once, if it is not trained.
        moved: bytes that the step itself reads and writes beside its forwards.
        trains: whether it changes weights.
        note: what else is to know.
        host: bytes of weights that lie in the host's memory, and cross the bus once a step.
    """

    name: str
    bytes: dict[str, float] = field(default_factory=dict)
    forwards: float = 1.0
    vision: float = 1.0
    moved: float = 0.0
    trains: bool = True
    note: str = ""
    host: float = 0.0

    @property
    def total(self) -> float:
        """All bytes at the time when they are most."""
        return sum(self.bytes.values())

    def fits(self, gpu_memory: float, host_memory: float = HOST_MEMORY) -> bool:
        """Whether a card of so many GB takes it, and the host what it is to hold."""
        on_host = not self.host or self.host / GB + HOST_RESERVE <= host_memory
        return on_host and self.total / GB + RESERVE <= gpu_memory

    def seconds(self, of: Sizes, batch: Batch, card: Card) -> float:
        """Of a step on a card, counted."""
        operations = self.forwards * language_operations(of, batch) + self.vision * vision_operations(of, batch)
        weights = self.host or self.bytes["weights"]
        computing = card.seconds(operations, self.forwards * weights) + card.moving(self.moved)
        return max(computing, card.fetching(self.host))  # the next layer comes up meanwhile


def rows(of: Sizes, batch: Batch, parts: frozenset[str], rank: int = LORA_RANK) -> list[Row]:
    """All methods. `parts` are trained by those that train the model itself; `batch` is that of a step."""
    return [*_without_training(of, batch), *_backpropagation(of, batch, parts, rank), *_mezo(of, batch, parts, rank)]


def _without_training(of: Sizes, batch: Batch) -> Iterator[Row]:
    weights = float(HALF * of.weights)
    for shots in (0, *SHOTS):
        longer = Batch(batch.rows, batch.tokens * (shots + 1), batch.tiles * (shots + 1), 1)
        cache = longer.positions * of.layers * 2 * of.keys * HALF
        name = f"in context, {shots}" if shots else "zero-shot"
        held = {"weights": weights, "activations": forward_bytes(of, longer), "cache": float(cache)}
        yield Row(name, held, shots + 1.0, shots + 1.0, trains=False)
    states = (of.layers + 1) * batch.positions * of.width * HALF
    activations = forward_bytes(of, batch) + states
    yield Row("linear probe", {"weights": weights, "activations": activations}, note="one forward a record in all")


def _backpropagation(of: Sizes, batch: Batch, parts: frozenset[str], rank: int) -> Iterator[Row]:
    for suffix, forwards in ((WITHOUT, 3.0), (WITH, 4.0)):
        yield from _with_lora(of, batch, rank, suffix, forwards)
        yield from _full(of, batch, parts, suffix, forwards)


def _with_lora(of: Sizes, batch: Batch, rank: int, suffix: str, forwards: float) -> Iterator[Row]:
    """Adapters in float32, on a base in 16 or in 4 bits."""
    adapter, shapes = float(SINGLE * of.lora(rank)), of.lora_matrices(rank)
    activations = graph_bytes(of, batch, suffix == WITH, lora=True, tower=False)
    for name, weights in (("LoRA", float(HALF * of.weights)), ("QLoRA", _quantised(of))):
        held = {"weights": weights + adapter, "activations": activations}
        for optimizer, states in (("AdamW", 2 * adapter), ("Adafactor", float(adafactor_states(shapes)))):
            whole = held | {"gradients": adapter, "optimizer": states}
            yield Row(f"{name} + {optimizer}{suffix}", whole, forwards, moved=2 * (2 * adapter + states))
        fused = held | {"gradients": float(SINGLE * largest(shapes))}
        yield Row(f"{name} + LOMO{suffix}", fused, forwards, moved=4 * adapter, note=LOMO_NOTE)


def _full(of: Sizes, batch: Batch, parts: frozenset[str], suffix: str, forwards: float) -> Iterator[Row]:
    """All weights of these parts."""
    tower = VISION_TOWER in parts
    vision = 3.0 if tower else 1.0  # which no checkpoint runs again
    number, shapes = of.trained(parts), of.shapes(parts)
    activations = graph_bytes(of, batch, suffix == WITH, lora=False, tower=tower)
    trained = [("AdamW", number, 2 * SINGLE * number, ""), ("Adafactor", number, adafactor_states(shapes), "")]
    if suffix == WITH and LANGUAGE_MODEL in parts:
        trained.append(("a layer at a time", of.layer, 2 * SINGLE * of.layer, "--cycle_blocks"))
    for name, with_masters, states, note in trained:
        held = _held(of, with_masters, float(states), activations)
        moved = 2 * (held["masters"] + held["optimizer"] + held["gradients"])
        yield Row(f"full, {name}{suffix}", held, forwards, vision, moved, note=note)
    held = {"weights": float(HALF * of.weights), "gradients": float(HALF * largest(shapes)), "activations": activations}
    for name, moments in (("LOMO", 0.0), ("AdaLomo", float(adafactor_states(shapes)))):
        moved = 4.0 * HALF * number + 2 * moments
        yield Row(f"full, {name}{suffix}", held | {"optimizer": moments}, forwards, vision, moved, note=LOMO_NOTE)


def _held(of: Sizes, number: int, states: float, activations: float) -> dict[str, float]:
    """Weights in bfloat16 with float32 masters; the larger of a backward pass and the optimizer's step.

    In the backward pass gradients are bfloat16 and activations are there; in the step gradients are float32.
    """
    gradients = {"activations": activations, "gradients": float(HALF * number)}
    in_step = {"activations": 0.0, "gradients": float(SINGLE * number)}
    held = max((gradients, in_step), key=lambda one: sum(one.values()))
    return {"weights": float(HALF * of.weights), "masters": float(SINGLE * number), "optimizer": states, **held}


def _mezo(of: Sizes, batch: Batch, parts: frozenset[str], rank: int) -> Iterator[Row]:
    forward = forward_bytes(of, batch)
    whole = float(HALF * of.weights)
    copies = 2.0 * HALF * of.layer  # of a layer, perturbed both ways
    if LANGUAGE_MODEL not in parts:
        copies = 2.0 * HALF * largest(of.shapes(parts))
    adapter = float(SINGLE * of.lora(rank))
    of_adapter = 2 * adapter / of.layers
    # both copies of a weight are made (6 bytes), and it is updated (4)
    held, vision = {"weights": whole, "copies": copies, "activations": forward}, 2.0 if VISION_TOWER in parts else 1.0
    yield Row("MeZO, full", held, 2.0, vision, 10.0 * of.trained(parts))
    yield Row("MeZO, LoRA", {"weights": whole + adapter, "copies": of_adapter, "activations": forward}, 2.0)
    quantised = _quantised(of) + adapter
    yield Row("MeZO, 4-bit with LoRA", {"weights": quantised, "copies": of_adapter, "activations": forward}, 2.0)
    yield offloaded(of, batch, parts)


def offloaded(of: Sizes, batch: Batch, parts: frozenset[str]) -> Row:
    """MeZO with `--zo_offload cpu`: two layers are on the card, and copies of a matrix; both forwards run at once.

    `scripts/benchmark/offload.py` counts what the engine does: this is 5 to 12 % more from 7b on.
    """
    matrix = max((into * out for into, out in of.linears), default=largest(of.shapes(parts)))
    held = {"weights": 2.0 * HALF * of.layer, "copies": 2.0 * HALF * matrix}
    held["activations"] = 2 * forward_bytes(of, batch)
    vision = 2.0 if VISION_TOWER in parts else 1.0
    return Row("MeZO, offloaded", held, 2.0, vision, 10.0 * of.trained(parts), host=float(HALF * of.weights))


def largest_offloaded(gpu_memory: float, host_memory: float, batch: Batch) -> float:
    """Weights of the largest decoder of OPT's proportions, 128 of width for each layer, that could be trained so."""
    found = 0.0
    for width in range(512, 32_768, 128):
        layer = 12.0 * width**2
        weights = layer * width / 128 + OPT_VOCABULARY * width
        activations = 2 * batch.positions * 32 * width
        on_card = HALF * (2 * layer + 2 * 4.0 * width**2) + activations
        if HALF * weights / GB + HOST_RESERVE <= host_memory and on_card / GB + RESERVE <= gpu_memory:
            found = weights
    return found


def _quantised(of: Sizes) -> float:
    """Bytes of the weights with the language model's linear layers in 4 bits, and the others in 16."""
    linear = sum(into * out for into, out in of.linears)
    return NF4 * linear + HALF * (of.weights - linear)

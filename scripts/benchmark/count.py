"""Operations and bytes of a step, counted; and what they predict on GPUs that are not at hand.

    python scripts/benchmark/count.py [--shape 0.5b|7b] [--tokens 1500] [--tiles 2] [--directions 1]      (seconds)

For our step and for the usual in-place scheme (three perturbations and an update that write all trained weights,
vision and full float32 logits in each forward), language model tuned, bfloat16. Prints Markdown.

What is assumed of products and bytes is in `llava/train/cards.py`; products are bound by reading weights where that
takes longer, and noise takes the lanes' time that was measured on an H200 (`*_SLOTS`), or that of its bytes if that is
longer. Launches, attention masks, norms and activations are left out on both sides. docs/performance.md has what was
measured on the H200, where it differs from this, and why. A last table has the study's runs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from shapes import SHAPES, build

from llava.train.cards import BANDWIDTH_SHARE, CARDS, MATRIX_SHARE, Card
from llava.train.parts.tunable import LANGUAGE_MODEL, PROJECTOR, VISION_TOWER, parts_of

PERTURB_SLOTS, UPDATE_SLOTS, NORMAL_SLOTS = 27.8, 21.8, 56.7
"""Time of an integer lane, in clocks, for an element of bfloat16 at both points, in the update, and from torch.normal
and add: 1.795, 1.41 and 3.67 ps on an H200, times its lanes. Counting instructions is not enough: those of noise from a
table of 65,536 entries were 38.5 (PTX), and took 83, since each lane of such a look-up costs a cache line."""
BYTES = 2


@dataclass(frozen=True)
class Model:
    """Sizes of a model and of a batch."""

    body: int
    """Weights of the language model's matrices, without embedding and head."""
    table: int
    """Weights of the embedding table, and of the head."""
    tied: bool
    vision: int
    """Weights of tower and projector."""
    layers: int
    width: int
    tokens: int
    patches: int
    tiles: int
    tower_layers: int
    tower_width: int
    supervised: int

    @property
    def trained(self) -> int:
        """Weights of the language model."""
        return self.body + self.table * (1 if self.tied else 2)

    @property
    def language_operations(self) -> float:
        """Of one forward of the body: two for each weight and token, and attention's two products (causal: half)."""
        return 2.0 * self.body * self.tokens + 2.0 * self.layers * self.width * self.tokens**2

    @property
    def vision_operations(self) -> float:
        """Of the tower on all tiles."""
        tokens = self.patches * self.tiles
        return 2.0 * self.vision * tokens + 4.0 * self.tower_layers * self.tower_width * self.patches * tokens


def sizes(shape: str, tokens: int, tiles: int, supervised: int) -> Model:
    """Counted on the model itself, built without memory."""
    with torch.device("meta"):
        model = build(shape, torch.bfloat16, torch.device("meta"), LANGUAGE_MODEL)
    parts: dict[str, int] = {}
    for part, _, parameter in parts_of(model):
        parts[part] = parts.get(part, 0) + parameter.numel()
    config, tower = model.config, model.get_vision_tower()
    table = config.vocab_size * config.hidden_size
    tied = bool(config.tie_word_embeddings)
    return Model(
        body=parts[LANGUAGE_MODEL] - table * (1 if tied else 2),
        table=table,
        tied=tied,
        vision=parts[VISION_TOWER] + parts[PROJECTOR],
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        tokens=tokens,
        patches=tower.num_patches_per_side**2,
        tiles=tiles,
        tower_layers=tower.config.num_hidden_layers - 1,
        tower_width=tower.config.hidden_size,
        supervised=supervised,
    )


def counts(model: Model, directions: int) -> dict[str, dict[str, float]]:
    """For both schemes: matrix operations, elements of noise, bytes that are read and written beside activations."""
    forwards = 2 * directions
    head = 2.0 * model.table * model.supervised
    # body and head are perturbed for both forwards at once (read, written twice), all are updated (read, written)
    perturbed = directions * (model.body + model.table)
    ours = {
        "vision operations": model.vision_operations,
        "language operations": forwards * (model.language_operations + head),
        "noise elements": perturbed + directions * model.trained,
        "noise bytes": BYTES * (3.0 * perturbed + 2.0 * model.trained),
        "weight bytes": BYTES * (model.vision + forwards * (model.body + model.table)),
        "logit bytes": 0.0,
    }
    passes = 4 * directions  # + eps, - 2 eps, + eps, update
    logits = 4.0 * model.tokens * model.table / model.width
    inplace = {
        "vision operations": forwards * model.vision_operations,
        "language operations": forwards * (model.language_operations + 2.0 * model.table * model.tokens),
        "noise elements": float(passes * model.trained),
        # z written and read, the weight read and written
        "noise bytes": BYTES * 4.0 * passes * model.trained,
        "weight bytes": BYTES * forwards * float(model.vision + model.body + model.table),
        # in bfloat16 (written, read), in float32 (written, read for the maximum, the sum, the choice)
        "logit bytes": forwards * logits * (0.5 + 0.5 + 1 + 3),
    }
    return {"ours": ours, "inplace": inplace}


def seconds(count: dict[str, float], scheme: str, device: Card, model: Model) -> dict[str, float]:
    """Predicted seconds of a step by part."""
    rate = device.memory * BANDWIDTH_SHARE
    matrix = (count["vision operations"] + count["language operations"]) / (device.matrix * MATRIX_SHARE)
    forwards = max(matrix, count["weight bytes"] / rate)
    by_bytes = count["noise bytes"] / rate
    if scheme == "inplace":
        noise = max(by_bytes, count["noise elements"] * NORMAL_SLOTS / device.lanes)
        return {"forwards": forwards, "noise and update": noise, "logits": count["logit bytes"] / rate}
    updated = float(model.trained)
    slots = (count["noise elements"] - updated) * PERTURB_SLOTS + updated * UPDATE_SLOTS
    return {"forwards": forwards, "noise and update": max(by_bytes, slots / device.lanes)}


def tables(model: Model, directions: int) -> str:
    """Counts and predictions as Markdown."""
    found = counts(model, directions)
    lines = ["| a step | ours | in-place |", "|---|---|---|"]
    for name in found["ours"]:
        scale, unit = (1e12, "T") if name.endswith("operations") else (1e9, "GB" if name.endswith("bytes") else "G")
        lines.append(f"| {name}, {unit} | {found['ours'][name] / scale:.3g} | {found['inplace'][name] / scale:.3g} |")
    parts = ("forwards", "noise and update")
    header = ["ms a step", *(f"ours: {part}" for part in parts), "step"]
    header += [*(f"in-place: {part}" for part in (*parts, "logits")), "step", "ratio"]
    lines += ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for device in CARDS.values():
        ours, other = (seconds(found[scheme], scheme, device, model) for scheme in ("ours", "inplace"))
        mine, theirs = sum(ours.values()), sum(other.values())
        cells = [*(ours[part] for part in parts), mine, *other.values(), theirs]
        numbers = " | ".join(f"{1e3 * cell:.0f}" for cell in cells)
        lines.append(f"| {device.name} | {numbers} | {theirs / mine:.1f} |")
    return "\n".join(lines)


def study_seconds(model: Model, device: Card) -> dict[str, float]:
    """Seconds a step of the study's runs, by what is trained: MeZO with a batch of 4, AdamW with a batch of 1.

    Backpropagation counts as two forwards, and AdamW reads and writes weights and moments and reads gradients. Without
    the tower trained its forward is once a step, or never with cached features.
    """
    matrix, memory = device.matrix * MATRIX_SHARE, device.memory * BANDWIDTH_SHARE
    found = counts(model, 1)["ours"]
    noise = seconds(found, "ours", device, model)["noise and update"]
    vision, language = found["vision operations"], found["language operations"]
    backprop = 3 * (model.language_operations + 2.0 * model.table * model.tokens)
    adamw = BYTES * 7.0 / memory  # seconds a trained weight
    both = (model.trained + model.vision) / model.trained
    return {
        "MeZO, LM or LM + projector": 4 * (vision + language) / matrix + noise,
        "the same, features cached": 4 * language / matrix + noise,
        "MeZO, LM + projector + vision": 4 * (2 * vision + language) / matrix + both * noise,
        "AdamW, LM or LM + projector": (vision + backprop) / matrix + adamw * model.trained,
        "AdamW, LM + projector + vision": (3 * vision + backprop) / matrix + adamw * both * model.trained,
    }


def study_table(model: Model) -> str:
    """What the study's runs should take, as Markdown: 5,000 steps of MeZO, 3,000 of AdamW."""
    lines = ["| run | " + " | ".join(f"{d.name}: s a step | training, min" for d in CARDS.values()) + " |"]
    lines.append("|---" * (1 + 2 * len(CARDS)) + "|")
    by_device = [study_seconds(model, device) for device in CARDS.values()]
    for name in by_device[0]:
        steps = 3000 if name.startswith("AdamW") else 5000
        cells = [f"{found[name]:.2f} | {steps * found[name] / 60:.0f}" for found in by_device]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--tiles", type=int, default=2)
    parser.add_argument("--supervised", type=int, default=12)
    parser.add_argument("--directions", type=int, default=1)
    options = parser.parse_args()
    model: Any = sizes(options.shape, options.tokens, options.tiles, options.supervised)
    print(f"{options.shape}: {model.trained / 1e6:.0f}M trained, vision {model.vision / 1e6:.0f}M\n")
    print(tables(model, options.directions))
    print(f"\nThe study's runs:\n\n{study_table(model)}")


if __name__ == "__main__":
    main()

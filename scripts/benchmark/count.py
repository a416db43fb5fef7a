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
from dataclasses import dataclass, replace

from shapes import SHAPES

from llava.train.cards import CARDS, Card, language_operations, vision_operations
from llava.train.footprint import Batch, Sizes
from llava.train.parts.tunable import LANGUAGE_MODEL, PROJECTOR, VISION_TOWER
from llava.train.plan import sizes

PERTURB_SLOTS, UPDATE_SLOTS, NORMAL_SLOTS = 27.8, 21.8, 56.7
"""Time of an integer lane, in clocks, for an element of bfloat16 at both points, in the update, and from torch.normal
and add: 1.795, 1.41 and 3.67 ps on an H200, times its lanes. Counting instructions is not enough: those of noise from a
table of 65,536 entries were 38.5 (PTX), and took 83, since each lane of such a look-up costs a cache line."""
BYTES = 2


@dataclass(frozen=True)
class Case:
    """Sizes of a model and of a batch."""

    of: Sizes
    batch: Batch

    @property
    def trained(self) -> int:
        """Weights of the language model."""
        return self.of.parts[LANGUAGE_MODEL]

    @property
    def read(self) -> int:
        """Of these, what one forward reads whole: all but an embedding table that is not the head as well."""
        tables = self.of.matrices[LANGUAGE_MODEL].count((self.of.vocabulary, self.of.width))
        return self.trained - self.of.table * (tables - 1)

    @property
    def vision(self) -> int:
        """Weights of tower and projector."""
        return self.of.parts[VISION_TOWER] + self.of.parts[PROJECTOR]

    @property
    def all_logits(self) -> float:
        """Operations of a forward of the language model whose head is at every position."""
        return language_operations(self.of, replace(self.batch, supervised=self.batch.tokens))


def counts(case: Case, directions: int) -> dict[str, dict[str, float]]:
    """For both schemes: matrix operations, elements of noise, bytes that are read and written beside activations."""
    forwards, vision = 2 * directions, vision_operations(case.of, case.batch)
    # what a forward reads is perturbed for both at once (read, written twice), all are updated (read, written)
    perturbed = directions * case.read
    ours = {
        "vision operations": vision,
        "language operations": forwards * language_operations(case.of, case.batch),
        "noise elements": perturbed + directions * case.trained,
        "noise bytes": BYTES * (3.0 * perturbed + 2.0 * case.trained),
        "weight bytes": BYTES * float(case.vision + forwards * case.read),
        "logit bytes": 0.0,
    }
    passes = 4 * directions  # + eps, - 2 eps, + eps, update
    logits = 4.0 * case.batch.positions * case.of.vocabulary
    inplace = {
        "vision operations": forwards * vision,
        "language operations": forwards * case.all_logits,
        "noise elements": float(passes * case.trained),
        # z written and read, the weight read and written
        "noise bytes": BYTES * 4.0 * passes * case.trained,
        "weight bytes": BYTES * forwards * float(case.vision + case.read),
        # in bfloat16 (written, read), in float32 (written, read for the maximum, the sum, the choice)
        "logit bytes": forwards * logits * (0.5 + 0.5 + 1 + 3),
    }
    return {"ours": ours, "inplace": inplace}


def seconds(count: dict[str, float], scheme: str, device: Card, case: Case) -> dict[str, float]:
    """Predicted seconds of a step by part."""
    forwards = device.seconds(count["vision operations"] + count["language operations"], count["weight bytes"])
    by_bytes = device.moving(count["noise bytes"])
    if scheme == "inplace":
        noise = max(by_bytes, count["noise elements"] * NORMAL_SLOTS / device.lanes)
        return {"forwards": forwards, "noise and update": noise, "logits": device.moving(count["logit bytes"])}
    updated = float(case.trained)
    slots = (count["noise elements"] - updated) * PERTURB_SLOTS + updated * UPDATE_SLOTS
    return {"forwards": forwards, "noise and update": max(by_bytes, slots / device.lanes)}


def tables(case: Case, directions: int) -> str:
    """Counts and predictions as Markdown."""
    found = counts(case, directions)
    lines = ["| a step | ours | in-place |", "|---|---|---|"]
    for name in found["ours"]:
        scale, unit = (1e12, "T") if name.endswith("operations") else (1e9, "GB" if name.endswith("bytes") else "G")
        lines.append(f"| {name}, {unit} | {found['ours'][name] / scale:.3g} | {found['inplace'][name] / scale:.3g} |")
    parts = ("forwards", "noise and update")
    header = ["ms a step", *(f"ours: {part}" for part in parts), "step"]
    header += [*(f"in-place: {part}" for part in (*parts, "logits")), "step", "ratio"]
    lines += ["", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for device in CARDS.values():
        ours, other = (seconds(found[scheme], scheme, device, case) for scheme in ("ours", "inplace"))
        mine, theirs = sum(ours.values()), sum(other.values())
        cells = [*(ours[part] for part in parts), mine, *other.values(), theirs]
        numbers = " | ".join(f"{1e3 * cell:.0f}" for cell in cells)
        lines.append(f"| {device.name} | {numbers} | {theirs / mine:.1f} |")
    return "\n".join(lines)


def study_seconds(case: Case, device: Card) -> dict[str, float]:
    """Seconds a step of the study's runs, by what is trained: MeZO with a batch of 4, AdamW with a batch of 1.

    Backpropagation counts as two forwards, and AdamW reads and writes weights and moments and reads gradients. Without
    the tower trained its forward is once a step, or never with cached features.
    """
    found = counts(case, 1)["ours"]
    noise = seconds(found, "ours", device, case)["noise and update"]
    vision, language = found["vision operations"], found["language operations"]
    backprop = 3 * case.all_logits
    adamw = device.moving(BYTES * 7.0)  # of a trained weight
    both = (case.trained + case.vision) / case.trained
    return {
        "MeZO, LM or LM + projector": device.products(4 * (vision + language)) + noise,
        "the same, features cached": device.products(4 * language) + noise,
        "MeZO, LM + projector + vision": device.products(4 * (2 * vision + language)) + both * noise,
        "AdamW, LM or LM + projector": device.products(vision + backprop) + adamw * case.trained,
        "AdamW, LM + projector + vision": device.products(3 * vision + backprop) + adamw * both * case.trained,
    }


def study_table(case: Case) -> str:
    """What the study's runs should take, as Markdown: 5,000 steps of MeZO, 3,000 of AdamW."""
    lines = ["| run | " + " | ".join(f"{d.name}: s a step | training, min" for d in CARDS.values()) + " |"]
    lines.append("|---" * (1 + 2 * len(CARDS)) + "|")
    by_device = [study_seconds(case, device) for device in CARDS.values()]
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
    case = Case(sizes(options.shape), Batch(1, options.tokens, options.tiles, options.supervised))
    print(f"{options.shape}: {case.trained / 1e6:.0f}M trained, vision {case.vision / 1e6:.0f}M\n")
    print(tables(case, options.directions))
    print(f"\nThe study's runs:\n\n{study_table(case)}")


if __name__ == "__main__":
    main()

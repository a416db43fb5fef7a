"""How much of a slope is rounding: bfloat16 forwards at several eps beside float32 ones, along the same directions.

    python scripts/study/rounding.py --output runs/study/rounding            (fifteen minutes on two CPU cores)

The model, the sentences and the methods are those of snippets.py: the weights that a method trains, before the first
step and after a run of `--steps`, along Gaussian directions. What rounding adds to a slope goes with 1 / eps and hardly
depends on the slope, which falls while a run trains: an eps that is large enough at first is too small later. The
*share* of rounding, or for a large eps of curvature, in the squared slopes in bfloat16 is 1 - r^2, r the correlation of
these with slopes in float32 at a small eps. Writes rounding.md, rounding.json and rounding.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from pictures import plot_shares
from settings import positive
from snippets import METHODS, Study, frozen_modules, sentences_parser
from torch.nn import functional
from tqdm import tqdm

from llava.errors import command
from llava.mezo import MeZO, MeZOConfig, reuse_outputs
from llava.mezo.algorithms.interface import Point
from llava.mezo.curvature import probe_seed
from llava.mezo.durable import write_durably

TITLE = "Rounding and curvature in slopes of bfloat16 forwards"
EXACT = 3e-4
"""eps of the slopes in float32."""
SIZES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
MEZO = [name for name, method in METHODS.items() if method.kind == "mezo" and not method.lora]

Slopes = Mapping[str, Sequence[float]]
"""By side: from the weights on, as `fzoo` has them, or between both sides, as `spsa`; one a batch and direction."""


def loss(study: Study, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """As that of the study, but without its autocast: float32 weights have float32 forwards here."""
    logits = model.lm_head(study.states(model, batch))[:, study.words]
    return functional.cross_entropy(logits.float(), batch["right"])


def slopes(study: Study, model: Any, eps: float, options: argparse.Namespace) -> Slopes:
    """Of some batches along some directions, the same for every model and eps."""
    trained = [p for p in model.parameters() if p.requires_grad]
    mezo = MeZO(trained, model, MeZOConfig(eps=eps), lr=0.0)
    frozen, found = frozen_modules(model), []
    for batch in islice(study.batches(options.batch, 0, False), options.batches):
        for number in tqdm(range(options.directions), desc=f"eps {eps:g}", leave=False):
            points = [Point.along(probe_seed(0, number), scale) for scale in (eps, -eps, 0.0)]
            with reuse_outputs(frozen):
                found.append(mezo.losses_at(points, lambda batch=batch: loss(study, model, batch)))
    mezo.release()
    return {
        "one side": [(ahead - here) / eps for ahead, _, here in found],
        "both sides": [(ahead - behind) / (2 * eps) for ahead, behind, _ in found],
    }


def share_of_others(found: Sequence[float], exact: Sequence[float]) -> float:
    """Of the squares, what is not along the exact values: from 0 to 1."""
    along = sum(a * b for a, b in zip(found, exact, strict=True))
    return 1 - along**2 / (sum(a * a for a in found) * sum(b * b for b in exact))


def measured(study: Study, model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Root mean square of the exact slopes, and shares by eps and side; the model is in float32 after that."""
    rounded = {eps: slopes(study, model, eps, options) for eps in SIZES}
    exact = slopes(study, model.float(), EXACT, options)["both sides"]
    shares = {
        side: {f"{eps:g}": share_of_others(rounded[eps][side], exact) for eps in SIZES} for side in rounded[EXACT]
    }
    return {"rms": (sum(slope**2 for slope in exact) / len(exact)) ** 0.5, "shares": shares}


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a state and side."""
    lines = [
        f"| weights | slopes, root mean square | slopes from | {' | '.join(f'eps {eps:g}' for eps in SIZES)} |",
        f"|---|---|---|{'---|' * len(SIZES)}",
    ]
    for state, one in found.items():
        for side, shares in one["shares"].items():
            shown = " | ".join(f"{100 * share:.0f} %" for share in shares.values())
            lines.append(f"| {state} | {one['rms']:.1f} | {side} | {shown} |")
    return "\n".join(lines) + "\n"


@command
def main() -> None:
    """Measure before and after, then write the page."""
    parser = sentences_parser(__doc__, "runs/study/rounding")
    parser.add_argument("--method", choices=MEZO, default="FZOO, upper half, eps 3e-3", help="of snippets.py")
    parser.add_argument("--rate", type=float, default=1e-2, help="of the method's run")
    parser.add_argument("--batches", type=positive, default=3)
    parser.add_argument("--directions", type=positive, default=16, help="of each batch")
    parser.add_argument("--steps", type=positive, default=500, help="of MeZO, as for snippets.py")
    options = parser.parse_args()
    study, method = Study(options), METHODS[options.method]
    found = {"before training": measured(study, study.load(method), options)}
    model = study.load(method)
    losses = study.tune(model, method, options.rate, seed=0)
    found[f"after {len(losses)} steps"] = measured(study, model, options)
    options.output.mkdir(parents=True, exist_ok=True)
    text = f"# {TITLE}\n\n{table(found)}"
    (options.output / "rounding.md").write_text(text, encoding="utf-8")
    write_durably(options.output / "rounding.json", json.dumps(found, indent=2) + "\n")
    curves = {
        f"{state}, {side}": [(float(eps), share) for eps, share in shares.items()]
        for state, one in found.items()
        for side, shares in one["shares"].items()
    }
    plot_shares(curves, options.output / "rounding.png", TITLE)
    print(text)


if __name__ == "__main__":
    main()

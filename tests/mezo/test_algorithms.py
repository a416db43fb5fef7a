"""Every estimator and rule: equal to plain code, resumed and replayed bit for bit, and what is refused."""

from __future__ import annotations

import copy
import itertools
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain_algorithms
import pytest
import torch
from torch import nn

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.algorithms.choice import ESTIMATORS, RULES
from llava.mezo.algorithms.course import Course
from llava.mezo.fingerprint import fingerprint
from llava.mezo.journal import Journal
from llava.mezo.journal_format import JournalError
from llava.mezo.noise import direction_seed, direction_values
from llava.mezo.reference import Weights, perturbed, stored
from llava.mezo.replay import Replay

STEPS, BAD = 9, 4
X = torch.randn(16, 12, generator=torch.Generator().manual_seed(1))
Y = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))


def configs() -> list[MeZOConfig]:
    """All that can be combined."""
    found = []
    for estimator, rule, directions, noise in itertools.product(ESTIMATORS, RULES, (1, 3), ("gaussian", "rademacher")):
        options: dict[str, Any] = {"estimator": estimator, "rule": rule, "num_directions": directions, "noise": noise}
        try:
            found.append(MeZOConfig(eps=1e-2, seed=3, window=3, momentum=0.8, rms_decay=0.7, **options))
        except ValueError:
            continue
    return found


CONFIGS = configs()
each_config = pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c.estimator}-{c.rule}-{c.num_directions}-{c.noise}"
)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3)).to(torch.bfloat16)


def trained(model: nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in sorted(model.named_parameters())}


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    if step == BAD:
        return torch.tensor(float("nan"))
    rows = slice(step % 4, None, 4)
    return (model(X[rows].bfloat16()).float() - Y[rows]).square().mean()


def make_optimizer(model: nn.Module, config: MeZOConfig) -> MeZO:
    return MeZO(model.parameters(), model, config, lr=3e-3)


def run(optimizer: MeZO, model: nn.Module, steps: range) -> list[Weights]:
    """The weights after each step."""
    found = []
    for step in steps:
        optimizer.accumulate(step, lambda step=step: loss_of(model, step))
        optimizer.step()
        found.append(trained(model))
    return found


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name].view(torch.int16), other[name].view(torch.int16)) for name in one)


def test_there_are_many_combinations() -> None:
    assert len(CONFIGS) >= 20
    assert {(c.estimator, c.rule) for c in CONFIGS} >= set(itertools.product(("spsa", "one_point"), RULES))
    assert {c.rule for c in CONFIGS if c.estimator == "fzoo"} == {"sgd", "normalized", "momentum"}


@each_config
def test_it_equals_plain_code(config: MeZOConfig) -> None:
    estimate, rule = getattr(plain_algorithms, config.estimator), getattr(plain_algorithms, config.rule)
    model, twin = make_model(), make_model()
    optimizer = make_optimizer(model, config)
    weights, history, before = trained(model), [], []
    for step in range(STEPS):

        def loss_at(seed: int, scale: float, weights: Weights = weights, step: int = step) -> float:
            twin.load_state_dict(perturbed(weights, seed, scale, config.noise))
            return float(loss_of(twin, step))

        seeds = [direction_seed(config.seed, step, k) for k in range(config.num_directions)]
        losses, grads = estimate(loss_at, seeds, config, before)
        if step != BAD:
            history.append(grads)
            before = losses
            weights = moved(weights, rule(history, config), config.noise)
        (after,) = run(optimizer, model, range(step, step + 1))
        assert optimizer.last is not None and optimizer.last.applied == (step != BAD)
        if step != BAD:
            assert list(optimizer.last.losses) == losses
            assert [tuple(term) for term in optimizer.last.terms] == grads
        assert same(after, weights), step


def moved(weights: Weights, factors: list[tuple[int, float]], noise: str) -> Weights:
    result = {}
    for number, name in enumerate(sorted(weights)):
        weight = weights[name]
        u = weight.float().numpy().reshape(-1).copy()
        for seed, factor in factors:
            u = u + np.float32(-3e-3 * factor) * direction_values(seed, number, 0, u.size, noise)
        result[name] = stored(u, factors[0][0], number, weight.dtype).reshape(weight.shape)
    return result


@each_config
def test_a_run_goes_on_from_its_state_or_its_journal_and_is_replayed(config: MeZOConfig, tmp_path: Path) -> None:
    model = make_model()
    base = fingerprint(trained(model))
    optimizer = make_optimizer(model, config)
    optimizer.journal = Journal.open(tmp_path, optimizer.journal_header("", base))
    states, saved = [trained(model)], {}
    with closing(optimizer.journal):
        for step in range(STEPS):
            states += run(optimizer, model, range(step, step + 1))
            if step == 5:
                saved = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})

    resumed = make_model()
    resumed.load_state_dict(saved["model"])
    continued = make_optimizer(resumed, config)
    continued.load_state_dict(saved["optimizer"])
    assert same(run(continued, resumed, range(6, STEPS))[-1], states[-1])

    again = make_model()
    restarted = make_optimizer(again, config)
    restarted.journal = Journal.open(tmp_path, restarted.journal_header("", base))
    with closing(restarted.journal):
        restarted.catch_up(0, STEPS)
        assert same(trained(again), states[-1])
        (further,) = run(restarted, again, range(STEPS, STEPS + 1))
    (expected,) = run(continued, resumed, range(STEPS, STEPS + 1))
    assert same(further, expected)

    replay = Replay(Journal.read(tmp_path), trained(make_model()).__getitem__)
    for stop in (0, 3, BAD + 1, 7, STEPS):
        replay.advance(stop)
        assert same({name: replay.weight(name) for name in replay.names}, states[stop]), stop


@each_config
def test_losses_are_taken_as_often_as_the_points_say(config: MeZOConfig) -> None:
    model, calls = make_model(), []
    optimizer = make_optimizer(model, config)

    def loss() -> torch.Tensor:
        calls.append(1)
        return loss_of(model, 0)

    optimizer.accumulate(0, loss)
    expected = {
        "spsa": 2 * config.num_directions,
        "one_point": config.num_directions,
        "fzoo": 1 + config.num_directions,
    }
    assert len(calls) == Course(config).losses == expected[config.estimator]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "spsa2"}, "estimator is 'spsa2'; it must be one of spsa, one_point, fzoo"),
        ({"rule": "adamw"}, "rule is 'adamw'; it must be one of sgd, normalized, momentum, adam"),
        ({"estimator": "fzoo", "noise": "rademacher"}, "num_directions is 1; it must be at least 2"),
        ({"estimator": "fzoo", "num_directions": 8}, "noise is 'gaussian'"),
        ({"rule": "adam"}, "noise is 'gaussian'"),
        ({"rule": "adam", "noise": "rademacher", "num_directions": 2}, "num_directions 2"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"rms_decay": -0.1}, "rms_decay is -0.1"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeZOConfig(**options)


def test_normalized_steps_do_not_follow_the_size_of_the_loss() -> None:
    """A loss sixteen times as large gives the same step."""
    finals = []
    for size in (1.0, 16.0):
        model = make_model().float()
        optimizer = MeZO(model.parameters(), model, MeZOConfig(rule="normalized"), lr=1e-3)
        for step in range(5):
            optimizer.accumulate(step, lambda: size * (model(X) - Y).square().mean())  # noqa: B023
            optimizer.step()
        finals.append(trained(model))
    for name in finals[0]:
        assert torch.allclose(finals[0][name], finals[1][name], atol=1e-6)


def test_a_journal_whose_update_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = make_model()
    base = trained(model)
    optimizer = make_optimizer(model, CONFIGS[0])
    optimizer.journal = Journal.open(tmp_path, optimizer.journal_header("", fingerprint(base)))
    with closing(optimizer.journal):
        run(optimizer, model, range(1))
    journal = Journal.read(tmp_path)
    journal.records[0] = replace(journal.records[0], losses=(1.7e308, -1.7e308))
    with pytest.raises(JournalError, match="record 0 was applied with an update that is not finite"):
        Replay(journal, base.__getitem__).advance(1)

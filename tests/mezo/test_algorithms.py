"""Every estimator and rule: equal to plain code, resumed and replayed bit for bit, and what is refused."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain_algorithms
import pytest
import torch
from named_weights import same, weights_of
from torch import nn

from llava.mezo import MeZO, MeZOConfig
from llava.mezo.algorithms.choice import ESTIMATORS, RULES
from llava.mezo.algorithms.interface import Term
from llava.mezo.algorithms.normalized import Normalized
from llava.mezo.errors import JournalError
from llava.mezo.journal.files import Journal
from llava.mezo.journal.fingerprint import fingerprint
from llava.mezo.journal.header import parse_header
from llava.mezo.journal.replay import Replay
from llava.mezo.noise import direction_seed, direction_values, low_rank_values
from llava.mezo.reference import Weights, stored

STEPS, BAD = 9, 4
X = torch.randn(16, 12, generator=torch.Generator().manual_seed(1))
Y = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))


def configs() -> list[MeZOConfig]:
    """All that can be combined."""
    found = []
    for estimator, rule, directions, noise in itertools.product(ESTIMATORS, RULES, (1, 3), ("gaussian", "rademacher")):
        options: dict[str, Any] = {"estimator": estimator, "rule": rule, "num_directions": directions, "noise": noise}
        try:
            found.append(MeZOConfig(**COMMON, **options))
        except ValueError:
            continue
    clipped = [c for c in found if (c.estimator, c.num_directions) == ("spsa", 3) and c.noise == "gaussian"]
    return [*found, *(replace(config, clip=0.1) for config in clipped)]


COMMON: dict[str, Any] = {"eps": 1e-2, "seed": 3, "window": 3, "momentum": 0.8, "rms_decay": 0.7}
COMMON |= {"anchor_steps": 3, "rank": 2, "basis_steps": 2}
CONFIGS = configs()
each_config = pytest.mark.parametrize(
    "config",
    [
        # the torch kernel alone has directions of low rank, and it takes its time
        pytest.param(c, marks=pytest.mark.slow if c.estimator == "lowrank" and c.num_directions > 1 else ())
        for c in CONFIGS
    ],
    ids=lambda c: f"{c.estimator}-{c.rule}-{c.num_directions}-{c.noise}" + ("-clipped" if c.clip else ""),
)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 3)).to(torch.bfloat16)


def loss_of(model: nn.Module, step: int, example: int | None = None) -> torch.Tensor:
    if step == BAD:
        return torch.tensor(float("nan"))
    rows = slice(step % 4, None, 4) if example is None else slice(step % 4 + example, step % 4 + example + 1)
    return (model(X[rows].bfloat16()).float() - Y[rows]).square().mean()


def make_optimizer(model: nn.Module, config: MeZOConfig) -> MeZO:
    return MeZO(model.parameters(), model, config, lr=plain_algorithms.LR)


def run(optimizer: MeZO, model: nn.Module, steps: range) -> list[Weights]:
    """The weights after each step."""
    found = []
    examples = range(optimizer.config.num_directions) if optimizer.course.estimator.per_example else [None]
    for step in steps:
        for example in examples:
            optimizer.accumulate(step, lambda step=step, example=example: loss_of(model, step, example))
        optimizer.step()
        found.append(weights_of(model))
    return found


def test_there_are_many_combinations() -> None:
    linear = {"sgd", "normalized", "momentum"}
    rules = {name: {c.rule for c in CONFIGS if c.estimator == name} for name in ESTIMATORS}
    assert rules == dict.fromkeys(ESTIMATORS, linear) | {"spsa": set(RULES), "one_point": linear | {"adam"}}


@each_config
def test_it_equals_plain_code(config: MeZOConfig) -> None:
    rule = getattr(plain_algorithms, config.rule)
    estimate = getattr(plain_algorithms, "adamu_estimate" if config.rule == "adamu" else config.estimator)
    model, twin = make_model(), make_model()
    optimizer = make_optimizer(model, config)
    weights: Weights = weights_of(model)
    past: list[plain_algorithms.Past] = []
    for step in range(STEPS):

        def loss_at(
            *pairs: tuple[int, float], example: int | None = None, weights: Weights = weights, step: int = step
        ) -> float:
            twin.load_state_dict(added(weights, pairs, config))
            return float(loss_of(twin, step, example))

        losses, grads = estimate(loss_at, seeds_of(config, step), config, past)
        if step != BAD:
            history = [plain_algorithms.clipped(pairs, config) for pairs in (*(one.grads for one in past), grads)]
            past.append(plain_algorithms.Past(losses, grads, rule(history, config)))
            weights = moved(weights, past[-1].moves, config)
        (after,) = run(optimizer, model, range(step, step + 1))
        assert optimizer.last is not None and optimizer.last.applied == (step != BAD)
        if step != BAD:
            assert list(optimizer.last.losses) == losses
            assert [tuple(term) for term in optimizer.last.terms] == grads
        assert same(after, weights), step


def test_a_clip_decides_and_a_journal_without_one_reads_as_before(tmp_path: Path) -> None:
    grads, headers = [], []
    for clip in (0.0, 0.02):
        model = make_model()
        optimizer = make_optimizer(model, MeZOConfig(**COMMON, clip=clip))
        header = optimizer.journal_header("base", fingerprint(weights_of(model)))
        before = weights_of(model)
        run(optimizer, model, range(1))
        assert optimizer.last is not None and abs(optimizer.last.terms[0].projected_grad) > 0.02
        grads.append(float((weights_of(model)["0.weight"] - before["0.weight"]).float().norm()))
        headers.append(header.to_bytes())
        assert parse_header(header.to_bytes()) == header
    assert grads[1] < 0.7 * grads[0]
    assert b'"clip"' not in headers[0] and b'"clip": 0.02' in headers[1]
    with pytest.raises(JournalError, match="clip"):
        parse_header(headers[1].replace(b'"clip": 0.02', b'"clip": -1'))


def seeds_of(config: MeZOConfig, step: int) -> list[int]:
    seeds = [direction_seed(config.seed, step, k) for k in range(config.num_directions)]
    if config.estimator != "lowrank":
        return seeds
    upper = [direction_seed(config.seed, step // config.basis_steps, k) for k in range(config.num_directions)]
    return [high >> 32 << 32 | low % 2**32 for high, low in zip(upper, seeds, strict=True)]


def z_of(seed: int, number: int, weight: torch.Tensor, config: MeZOConfig) -> np.ndarray:
    """Flat."""
    if config.estimator == "lowrank" and weight.dim() == 2:
        return low_rank_values(seed, number, 0, *weight.shape, config.rank).reshape(-1)
    return direction_values(seed, number, 0, weight.numel(), config.noise)


def plus_noise(u: np.ndarray, pairs: Any, number: int, weight: torch.Tensor, config: MeZOConfig) -> np.ndarray:
    for seed, factor in pairs:
        u = u + np.float32(factor) * z_of(seed, number, weight, config)
    return u


def added(weights: Weights, pairs: Any, config: MeZOConfig) -> Weights:
    result = {}
    for number, name in enumerate(sorted(weights)):
        weight = weights[name]
        u = plus_noise(weight.float().numpy().reshape(-1), pairs, number, weight, config)
        result[name] = torch.from_numpy(u).reshape(weight.shape).to(weight.dtype)
    return result


def moved(weights: Weights, factors: list[tuple[int, float]], config: MeZOConfig) -> Weights:
    result = {}
    for number, name in enumerate(sorted(weights)):
        weight = weights[name]
        pairs = [(seed, -plain_algorithms.LR * factor) for seed, factor in factors]
        u = plus_noise(weight.float().numpy().reshape(-1), pairs, number, weight, config)
        result[name] = stored(u, factors[0][0], number, weight.dtype).reshape(weight.shape)
    return result


@pytest.mark.slow
@each_config
def test_a_run_goes_on_from_its_state_or_its_journal_and_is_replayed(config: MeZOConfig, tmp_path: Path) -> None:
    model = make_model()
    base = fingerprint(weights_of(model))
    optimizer = make_optimizer(model, config)
    optimizer.journal = Journal.open(tmp_path, optimizer.journal_header("", base))
    states = [weights_of(model)]
    with closing(optimizer.journal):
        for step in range(STEPS):
            states += run(optimizer, model, range(step, step + 1))
            if step == 5:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")

    saved = torch.load(tmp_path / "saved.pt", weights_only=True)  # plain values alone
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
        assert same(weights_of(again), states[-1])
        (further,) = run(restarted, again, range(STEPS, STEPS + 1))
    (expected,) = run(continued, resumed, range(STEPS, STEPS + 1))
    assert same(further, expected)

    replay = Replay(Journal.read(tmp_path), weights_of(make_model()).__getitem__)
    for stop in (0, 3, BAD + 1, 7, STEPS):
        replay.advance(stop)
        assert same({name: replay.weight(name) for name in replay.names}, states[stop]), stop


@pytest.mark.parametrize("algorithm", [{"rule": "momentum"}, {"rule": "adam"}, {"estimator": "svrg"}], ids=str)
def test_a_state_with_named_tuples_and_one_with_lists_are_loaded_too(algorithm: dict[str, str]) -> None:
    """The first is what was saved before states were plain."""
    config, weights = MeZOConfig(**COMMON, noise="rademacher", **algorithm), []
    for kind in (tuple, lambda pair: Term(*pair), list):
        model = make_model()
        optimizer = make_optimizer(model, config)
        run(optimizer, model, range(3))
        state = copy.deepcopy(optimizer.state_dict())
        state["course"] |= {name: of_pairs(state["course"][name], kind) for name in ("estimator", "rule")}
        other = make_optimizer(model, config)
        other.load_state_dict(state)
        weights.append(run(other, model, range(5, 7))[-1])
    assert same(weights[1], weights[0]) and same(weights[2], weights[0])


def of_pairs(memory: Any, kind: Callable[[Any], Any]) -> Any:
    """A memory with each pair of a seed and a number as another kind."""
    if not isinstance(memory, tuple):
        return memory
    if len(memory) == 2 and isinstance(memory[1], float):
        return kind(memory)
    return tuple(of_pairs(part, kind) for part in memory)


@each_config
def test_losses_are_taken_as_often_as_the_points_say(config: MeZOConfig) -> None:
    """At the first step, and at one between two anchors."""
    model, calls = make_model(), []
    optimizer = make_optimizer(model, config)
    n = config.num_directions
    expected = {"spsa": 2 * n, "one_point": n, "fzoo": 1 + n, "per_example": 2 * n, "guided": n + 2, "lowrank": 2 * n}
    expected |= {"svrg": 2 * n}
    for step in range(2):
        calls.clear()
        for example in range(n if config.estimator == "per_example" else 1):

            def loss(step: int = step, example: int = example) -> torch.Tensor:
                calls.append(1)
                return loss_of(model, step, example)

            optimizer.accumulate(step, loss)
        optimizer.step()
        assert len(calls) == expected[config.estimator]
        expected["svrg"] = 4 * n
    assert optimizer.last is not None and len(optimizer.last.losses) == expected[config.estimator]


def test_what_is_shown_of_a_step_is_the_difference_along_its_last_direction() -> None:
    for config in CONFIGS:
        if config.estimator in ("fzoo", "per_example", "one_point"):  # not of two losses of the step
            continue
        model = make_model()
        optimizer = make_optimizer(model, config)
        for step in range(2):
            run(optimizer, model, range(step, step + 1))
            last, n = optimizer.last, config.num_directions
            assert last is not None
            wanted = (last.losses[-2] - last.losses[-1]) / (2 * config.eps)
            if config.estimator == "svrg" and step:
                wanted = (last.losses[2 * n - 2] - last.losses[2 * n - 1]) / (2 * config.eps) - wanted
            assert optimizer.course.estimator.shown(last.losses, last.terms) == pytest.approx(wanted), config


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ({"rule": "momentum"}, {"rule": "sgd"}, "whose rule is 'momentum', and here it is 'sgd'"),
        ({"rule": "sgd"}, {"rule": "momentum"}, "whose rule is 'sgd', and here it is 'momentum'"),
        ({"estimator": "svrg"}, {"estimator": "one_point"}, "whose estimator is 'svrg'"),
        ({"estimator": "one_point"}, {"estimator": "one_point", "num_directions": 2}, "whose num_directions is 1"),
    ],
)
def test_a_state_of_another_algorithm_is_refused(there: dict[str, Any], here: dict[str, Any], message: str) -> None:
    model = make_model()
    saved = make_optimizer(model, MeZOConfig(**there))
    run(saved, model, range(2))
    state = saved.state_dict()
    other = make_optimizer(make_model(), MeZOConfig(**here))
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    del state["course"]["of"]  # of before: taken as it is
    again = make_optimizer(make_model(), MeZOConfig(**there))
    again.load_state_dict(state)
    assert again.course.state_dict()["rule"] == saved.course.state_dict()["rule"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "spsa2"}, "estimator is 'spsa2'; it must be one of spsa, one_point, fzoo, per_example"),
        ({"rule": "adamw"}, "rule is 'adamw'; it must be one of sgd, normalized, momentum, adam"),
        ({"estimator": "fzoo", "noise": "rademacher"}, "num_directions is 1; it must be at least 2"),
        ({"estimator": "fzoo", "num_directions": 8}, "noise is 'gaussian'"),
        ({"rule": "adam"}, "noise is 'gaussian'"),
        ({"rule": "adam", "noise": "rademacher", "num_directions": 2}, "num_directions 2"),
        ({"rule": "adam", "noise": "rademacher", "estimator": "svrg"}, "must be spsa or one_point"),
        ({"rule": "adamu", "num_directions": 2}, "num_directions is 2; it must be 1"),
        ({"rule": "adamu", "estimator": "guided", "num_directions": 4}, "estimator is 'guided'; leave it out"),
        ({"estimator": "guided"}, "at least 2"),
        ({"estimator": "per_example"}, "at least 2"),
        ({"estimator": "lowrank", "noise": "rademacher"}, "gaussian factors"),
        ({"anchor_steps": 0}, "anchor_steps is 0"),
        ({"rank": 65}, "rank is 65"),
        ({"basis_steps": 0}, "basis_steps is 0"),
        ({"tensor_scales": "large"}, "one of none, norms, rms or a JSON file"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"rms_decay": -0.1}, "rms_decay is -0.1"),
        ({"clip": -1.0}, "clip is -1.0; it must be a finite number above 0, or 0 for none"),
        ({"clip": float("inf")}, "clip is inf"),
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
        finals.append(weights_of(model))
    for name in finals[0]:
        assert torch.allclose(finals[0][name], finals[1][name], atol=1e-6)


@pytest.mark.parametrize("zeros", [0, 1, 3])
def test_normalized_steps_begin_with_the_first_gradient_that_is_not_0(zeros: int) -> None:
    """As if those before had not been: later ones are clipped at three of its size, and not at 0."""
    config = MeZOConfig(rule="normalized", rms_decay=0.99)
    rule, memory, factors, plain = Normalized(config), Normalized.start, [], []
    grads = [0.0] * zeros + [1.0, 5.0, -2.0]
    for step, grad in enumerate(grads):
        memory, (move,) = rule.moves(memory, [Term(7, grad)])
        factors.append(move.factor)
        plain += [factor for _, factor in plain_algorithms.normalized([[(7, g)] for g in grads[: step + 1]], config)]
    mean_squares = (0.99 + 9) / 1.99, (0.99**2 + 0.99 * 9 + 4) / (0.99**2 + 0.99 + 1)
    expected = [0.0] * zeros + [1.0, 3 / math.sqrt(mean_squares[0]), -2 / math.sqrt(mean_squares[1])]
    assert factors == pytest.approx(expected, rel=1e-12)
    assert plain == factors


def test_normalized_steps_go_on_after_a_gradient_of_0_without_memory() -> None:
    rule, memory, factors = Normalized(MeZOConfig(rule="normalized", rms_decay=0.0)), Normalized.start, []
    for grad in (2.0, 0.0, -3.0):
        memory, (move,) = rule.moves(memory, [Term(7, grad)])
        factors.append(move.factor)
    assert factors == [1.0, 0.0, -1.0]


def test_a_journal_whose_update_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = make_model()
    base = weights_of(model)
    optimizer = make_optimizer(model, CONFIGS[0])
    optimizer.journal = Journal.open(tmp_path, optimizer.journal_header("", fingerprint(base)))
    with closing(optimizer.journal):
        run(optimizer, model, range(1))
    journal = Journal.read(tmp_path)
    journal.records[0] = replace(journal.records[0], losses=(1.7e308, -1.7e308))
    with pytest.raises(JournalError, match="record 0 was applied with an update that is not finite"):
        Replay(journal, base.__getitem__).advance(1)

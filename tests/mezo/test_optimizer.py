"""MeZO end to end on small models: what it promises about weights, estimates, windows, groups and bad losses."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from named_weights import same, weights_of
from torch import nn
from torch.nn import functional

from llava.mezo import MeZO, MeZOConfig, no_decay_names
from llava.mezo.noise import direction_seed, direction_values
from llava.mezo.reference import mezo_step

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Tiny(nn.Module):
    """Embedding, a block that is called twice, norm, dropout, a vector used outside its owner, a tied head."""

    def __init__(self, width: int = 24, vocabulary: int = 31) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.block = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.5)
        self.newline = nn.Parameter(torch.randn(width) * 0.1)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids) + self.newline
        hidden = hidden + self.block(hidden)
        hidden = self.dropout(hidden + self.block(hidden))
        logits: torch.Tensor = self.head(self.norm(hidden))
        return logits


def make_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    model = Tiny().to(dtype)
    with torch.no_grad():
        model.newline[0] = -0.0
    return model


IDS = torch.randint(0, 31, (8, 5), generator=torch.Generator().manual_seed(1))
NEXT = torch.randint(0, 31, (8, 5), generator=torch.Generator().manual_seed(2))


def loss_of(model: nn.Module, rows: slice = slice(None)) -> torch.Tensor:
    return functional.cross_entropy(model(IDS[rows]).float().flatten(0, 1), NEXT[rows].flatten())


def groups_of(model: nn.Module, lr: float, weight_decay: float = 0.0) -> list[dict[str, object]]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return [
        {"params": list(parameters), "param_names": list(names), "lr": lr, "weight_decay": weight_decay},
        {"params": [], "param_names": [], "lr": lr, "weight_decay": 0.0},
    ]


def train(
    model: nn.Module,
    steps: range,
    lr: float = 1e-3,
    config: MeZOConfig | None = None,
    loss: Callable[[], torch.Tensor] | None = None,
) -> MeZO:
    optimizer = MeZO(groups_of(model, lr, weight_decay=0.1), model, config)
    for step in steps:
        optimizer.accumulate(step, loss or (lambda: loss_of(model)))
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_weights_do_not_drift(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    before = weights_of(model)
    optimizer = train(model, range(50), lr=0.0)
    assert optimizer.last is not None and optimizer.last.applied and optimizer.last.projected_grad != 0
    assert same(before, weights_of(model))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exception_in_a_forward_leaves_the_model_as_it_was(dtype: torch.dtype) -> None:
    model = make_model(dtype).train()
    model.block[1].eval()
    before, flags = weights_of(model), [m.training for m in model.modules()]
    tables = [m._parameters for m in model.modules()]
    optimizer = MeZO(groups_of(model, 1e-3), model)

    def fails(*_: object) -> None:
        raise KeyError("in the middle")

    handle = model.norm.register_forward_pre_hook(fails)
    with pytest.raises(KeyError, match="in the middle"):
        optimizer.accumulate(0, lambda: loss_of(model))
    handle.remove()
    assert same(before, weights_of(model)) and flags == [m.training for m in model.modules()]
    assert all(now is then for now, then in zip([m._parameters for m in model.modules()], tables, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    optimizer.accumulate(0, lambda: loss_of(model))
    assert same(before, weights_of(model))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", ["reference", "torch", "numba"])
@pytest.mark.parametrize(("noise", "directions"), [("gaussian", 1), ("gaussian", 3), ("rademacher", 2)])
def test_equals_the_reference(dtype: torch.dtype, kernel: str, noise: str, directions: int) -> None:
    if kernel == "numba":
        pytest.importorskip("numba")
    config = MeZOConfig(eps=1e-2, num_directions=directions, noise=noise, seed=5, kernel=kernel)
    model, twin = make_model(dtype).eval(), make_model(dtype).eval()
    names = dict(twin.named_parameters())  # the tied matrix once, as embed.weight
    weight_decay = dict.fromkeys(names, 0.1)
    optimizer = MeZO(groups_of(model, 1e-2, weight_decay=0.1), model, config)
    assert list(optimizer.names) == sorted(names)

    def twin_loss(weights: dict[str, torch.Tensor]) -> float:
        tied = {**weights, "head.weight": weights["embed.weight"]}
        logits = torch.func.functional_call(twin, tied, (IDS,))
        return float(functional.cross_entropy(logits.float().flatten(0, 1), NEXT.flatten()))

    weights = {name: p.detach().clone() for name, p in names.items()}
    for step in range(3):
        optimizer.accumulate(step, lambda: loss_of(model))
        optimizer.step()
        weights, projected_grads = mezo_step(weights, twin_loss, step, config, 1e-2, weight_decay)
        assert optimizer.last is not None
        assert [term.projected_grad for term in optimizer.last.terms] == projected_grads
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name]), name


def autograd_direction(model: nn.Module, optimizer: MeZO, seed: int) -> float:
    """grad . z in float64."""
    loss_of(model).backward()
    total = 0.0
    for number, p in enumerate(optimizer.storages):
        assert isinstance(p, nn.Parameter) and p.grad is not None
        z = direction_values(seed, number, 0, p.numel(), "gaussian").astype(np.float64)
        total += float(p.grad.double().flatten() @ torch.from_numpy(z))
    model.zero_grad()
    return total


def test_agrees_with_the_directional_derivative() -> None:
    model = make_model().eval()
    optimizer = MeZO(groups_of(model, 0.0), model, MeZOConfig(eps=5e-4))
    for step in range(20):
        # the last sum in float64: the rounding of a float32 loss over 2 eps would be near the tolerance
        optimizer.accumulate(step, lambda: functional.cross_entropy(model(IDS).double().flatten(0, 1), NEXT.flatten()))
        optimizer.step()
        assert optimizer.last is not None
        (direction,) = optimizer.last.terms
        expected = autograd_direction(model, optimizer, direction.seed)
        assert direction.projected_grad == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_mean_of_many_estimates_points_along_the_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    x, y = torch.randn(20, 6), torch.randn(20, 3)

    def loss() -> torch.Tensor:
        return functional.mse_loss(model(x), y)

    optimizer = MeZO(groups_of(model, 0.0), model, MeZOConfig(num_directions=64, eps=1e-3))
    estimate = np.zeros(21)
    for step in range(40):
        optimizer.accumulate(step, loss)
        optimizer.step()
        assert optimizer.last is not None
        for d in optimizer.last.terms:
            z = [
                direction_values(d.seed, number, 0, p.numel(), "gaussian")
                for number, p in enumerate(optimizer.storages)
            ]
            estimate += d.projected_grad * np.concatenate(z)
    loss().backward()
    grads = [p.grad.flatten() for p in optimizer.storages if p.grad is not None]
    gradient = torch.cat(grads).double().numpy()
    cosine = estimate @ gradient / np.linalg.norm(estimate) / np.linalg.norm(gradient)
    assert cosine > 0.98
    assert estimate @ gradient / 2560 == pytest.approx(gradient @ gradient, rel=0.2)


def test_seed_zero_is_a_seed_and_the_global_generator_plays_no_part() -> None:
    finals = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        model = make_model()
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        optimizer = train(model, range(3), config=MeZOConfig(seed=seed))
        assert torch.equal(state, torch.get_rng_state())
        assert optimizer.last is not None and optimizer.last.terms[0].seed == direction_seed(seed, 2, 0)
        finals.append(weights_of(model))
    assert same(finals[0], finals[1]) and not same(finals[0], finals[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_that_was_stopped_and_resumed_is_the_same_run(dtype: torch.dtype) -> None:
    whole, parted = make_model(dtype), make_model(dtype)
    train(whole, range(6))
    optimizer = train(parted, range(3))
    saved = copy.deepcopy(parted.state_dict()), copy.deepcopy(optimizer.state_dict())
    resumed = make_model(dtype, seed=9)
    resumed.load_state_dict(saved[0])
    continued = MeZO(groups_of(resumed, 77.0, 0.3), resumed)
    continued.load_state_dict(saved[1])
    assert continued.param_groups[0]["lr"] == 1e-3 and continued.state_dict()["state"] == {}
    for step in range(3, 6):
        continued.accumulate(step, lambda: loss_of(resumed))
        continued.step()
    assert same(weights_of(whole), weights_of(resumed))


def test_accumulated_batches_equal_one_batch() -> None:
    one, four = make_model(), make_model()
    config = MeZOConfig(eps=1e-2)
    whole, parts = MeZO(groups_of(one, 1e-4), one, config), MeZO(groups_of(four, 1e-4), four, config)
    for step in range(4):
        mean = whole.accumulate(step, lambda: loss_of(one))
        whole.step()
        means = [parts.accumulate(step, lambda i=i: loss_of(four, slice(2 * i, 2 * i + 2))) for i in range(4)]  # type: ignore[misc]
        parts.step()
        assert mean == pytest.approx(sum(means) / 4, rel=1e-5)
        assert whole.last is not None and parts.last is not None
        assert whole.last.projected_grad == pytest.approx(parts.last.projected_grad, abs=2e-3)
    for a, b in zip(one.parameters(), four.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_loss_is_not_applied_and_counted(bad: float) -> None:
    model = make_model()
    before = weights_of(model)
    optimizer = MeZO(groups_of(model, 1e-2, weight_decay=0.1), model)
    for count in (1, 2):
        optimizer.accumulate(count, lambda: loss_of(model))
        optimizer.accumulate(count, lambda: bad)
        optimizer.step()
        assert optimizer.bad_steps == count and optimizer.last is not None and not optimizer.last.applied
    assert same(before, weights_of(model))
    optimizer.accumulate(3, lambda: loss_of(model))
    optimizer.step()
    assert optimizer.bad_steps == 0 and optimizer.last.applied and not same(before, weights_of(model))


def test_a_coefficient_beyond_float32_is_not_applied() -> None:
    model = make_model()
    before = weights_of(model)
    optimizer = MeZO(groups_of(model, 1e30), model)
    values = iter([1e30, -1e30])
    optimizer.accumulate(0, lambda: next(values))
    optimizer.step()
    assert optimizer.last is not None and not optimizer.last.applied and same(before, weights_of(model))


def test_learning_rates_and_decay_are_per_group() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    first, second, third = (m.weight.detach().clone() for m in model)  # type: ignore[union-attr,operator]
    groups = [
        {"params": [model[0].weight], "lr": 0.0, "weight_decay": 0.5},
        {"params": [model[1].weight], "lr": 0.5, "weight_decay": 0.5},
        {"params": [model[2].weight], "lr": 1e-3},
    ]
    optimizer = MeZO(groups, model, MeZOConfig(eps=1.0))
    values = iter([2.0, 2.0])
    optimizer.accumulate(0, lambda: next(values))
    optimizer.step()  # projected gradient 0: decay alone
    assert torch.equal(model[0].weight, first) and torch.equal(model[2].weight, third)
    assert torch.equal(model[1].weight, second * 0.75)


def test_no_decay_is_decided_by_structure() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    model = nn.Module()
    model.language_model = transformers.Qwen2ForCausalLM(config)
    model.patches = nn.Conv2d(3, 4, 2)
    model.normalizer = nn.Linear(3, 3)  # a name that a substring rule would take for a norm
    model.groups = nn.GroupNorm(2, 4)
    exempt = no_decay_names(model)
    assert "language_model.model.norm.weight" in exempt
    decayed = {name for name, _ in model.named_parameters()} - exempt
    assert decayed == {
        "language_model.model.embed_tokens.weight",
        *(f"language_model.model.layers.0.self_attn.{p}_proj.weight" for p in "qkvo"),
        *(f"language_model.model.layers.0.mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
        *(["language_model.lm_head.weight"] if not config.tie_word_embeddings else []),
        "patches.weight",
        "normalizer.weight",
    }


def test_works_with_schedulers_and_accelerate() -> None:
    model = make_model()
    optimizer = MeZO(groups_of(model, 1e-3), model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.accumulate(0, lambda: loss_of(model))
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 5e-4
    optimizer.zero_grad()

    accelerate = pytest.importorskip("accelerate")
    prepared = accelerate.Accelerator(cpu=True).prepare_optimizer(optimizer)
    optimizer.accumulate(1, lambda: loss_of(model))
    prepared.step()
    assert optimizer.last is not None and optimizer.last.step == 1 and prepared.param_groups is optimizer.param_groups


def test_wrapped_models_number_alike() -> None:
    model = make_model()
    plain = MeZO(groups_of(model, 1e-3), model)
    wrapper = nn.Module()
    wrapper.module = model
    wrapped = MeZO(list(reversed(groups_of(model, 1e-3))), wrapper)
    assert plain.names == wrapped.names and plain.names_hash == wrapped.names_hash and len(plain.names_hash) == 64
    assert plain.names[2] == "block.2.bias"


class TestRefusals:
    def test_windows(self) -> None:
        model = make_model()
        optimizer = MeZO(groups_of(model, 1e-3), model)
        with pytest.raises(RuntimeError, match="accumulate"):
            optimizer.step()
        optimizer.accumulate(4, lambda: 1.0)
        with pytest.raises(ValueError, match="step 5 in the window of step 4"):
            optimizer.accumulate(5, lambda: 1.0)
        for step in (-1, 0.5, True):
            with pytest.raises(ValueError, match=f"step is {step}; it must be an integer of at least 0"):
                optimizer.accumulate(step, lambda: 1.0)  # type: ignore[arg-type]
        for weight in (-1.0, float("nan")):
            with pytest.raises(ValueError, match=f"weight is {weight}"):
                optimizer.accumulate(4, lambda: 1.0, weight=weight)
        with pytest.raises(ValueError, match="closure"):
            optimizer.step(lambda: 1.0)
        with pytest.raises(ValueError, match=r"shape \(2,\).*one number"):
            optimizer.accumulate(4, lambda: torch.ones(2))
        with pytest.raises(TypeError, match="the loss is None; it must be a number or a tensor of one element"):
            optimizer.accumulate(4, lambda: None)  # type: ignore[arg-type, return-value]
        with pytest.raises(TypeError, match=r"the loss is 1\.0; it must be a tensor of one element"):
            optimizer.accumulate(4, lambda inputs: 1.0, {"x": torch.ones(1)})

    def test_weights_of_examples(self) -> None:
        model = make_model()
        optimizer = MeZO(groups_of(model, 1e-3), model, MeZOConfig(estimator="per_example", num_directions=2))
        with pytest.raises(
            ValueError, match=r"weight is 2\.0; with the estimator per_example, of no mean, it must be 1"
        ):
            optimizer.accumulate(0, lambda: 1.0, weight=2.0)

    def test_numbers_of_numpy_count_steps(self) -> None:
        optimizer = MeZO(groups_of(model := make_model(), 1e-3), model)
        optimizer.accumulate(np.int64(3), lambda: np.float32(1))  # type: ignore[arg-type, return-value]
        optimizer.step()
        assert optimizer.last is not None and type(optimizer.last.step) is int

    def test_parameters(self) -> None:
        model = make_model()
        with pytest.raises(ValueError, match="every parameter group is empty"):
            MeZO([{"params": []}], model)
        with pytest.raises(ValueError, match="not in the model"):
            MeZO([nn.Parameter(torch.ones(2))], model)
        with pytest.raises(ValueError, match="float64"):
            wide = make_model(torch.float64)
            MeZO(wide.parameters(), wide)
        model.newline.requires_grad_(False)
        with pytest.raises(ValueError, match=r"shape \(24,\).*frozen"):
            MeZO(model.parameters(), model)
        with pytest.raises(ValueError, match="meta device"), torch.device("meta"):
            meta = nn.Linear(2, 2)
            MeZO(meta.parameters(), meta)

    def test_groups(self) -> None:
        model = make_model()
        with pytest.raises(ValueError, match="lr of group 0 is -1"):
            MeZO(model.parameters(), model, lr=-1)
        with pytest.raises(ValueError, match="weight_decay of group 0 is nan"):
            MeZO(model.parameters(), model, weight_decay=float("nan"))
        optimizer = MeZO([model.newline], model)
        with pytest.raises(ValueError, match="when it is built"):
            optimizer.add_param_group({"params": [model.norm.weight]})

    @pytest.mark.parametrize("setting", ["lr", "weight_decay"])
    @pytest.mark.parametrize("value", [float("nan"), -1e-3, float("inf")])
    def test_groups_that_are_changed_later(self, setting: str, value: float) -> None:
        """Nothing has happened then: with a rate in range the same step is taken."""
        model = make_model()
        optimizer = MeZO([{"params": [model.newline]}, {"params": [model.norm.weight]}], model, lr=1e-2)
        before, group = weights_of(model), optimizer.param_groups[1]
        usual = group[setting]
        optimizer.accumulate(0, lambda: model.newline.sum())
        group[setting] = value
        with pytest.raises(ValueError, match=f"^{setting} of group 1 is {value}; it must be at least 0$"):
            optimizer.step()
        assert same(weights_of(model), before) and optimizer.last is None
        group[setting] = usual
        optimizer.step()
        assert optimizer.last is not None and optimizer.last.applied and not same(weights_of(model), before)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("eps", 0.0, "eps is 0.0; .*above 0"),
        ("eps", float("nan"), "eps is nan"),
        ("eps", "1e-3", "must be a number"),
        ("num_directions", 0, "from 1 to 4096"),
        ("num_directions", 1.5, "an integer"),
        ("seed", -1, "seed is -1"),
        ("seed", 2**64, "from 0 to"),
        ("seed", True, "an integer"),
        ("max_bad_steps", 0, "at least 1"),
        ("noise", "normal", "gaussian, rademacher"),
        ("kernel", "cuda", "auto, reference, torch, numba, triton"),
    ],
)
def test_configuration_is_checked(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeZOConfig(**{field: value})  # type: ignore[arg-type]

"""MeZOTrainer over a bare `transformers.Trainer`: what it needs of its surroundings, and nothing of `llava.model`.

The module is loaded with a stand-in for `llava.train.llava_trainer` that adds `create_optimizer(self)` alone, which
is how it sits in a tree with another LLaVATrainer. Runs with transformers 4.40 to 5.x.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import llava.train
from llava.mezo import MeZOConfig
from llava.mezo.reference import mezo_step

WIDTH, VOCABULARY = 8, 11
ZO = {
    "zo_eps": 1e-3,
    "zo_num_directions": 1,
    "zo_noise": "gaussian",
    "zo_seed": 0,
    "zo_kernel": "torch",
    "zo_weight_storage": "native",
    "zo_max_bad_steps": 3,
    "zo_on_divergence": "warn",
    "zo_cuda_graphs": "auto",
    "zo_graph_memory_gb": 4.0,
    "zo_journal": False,
    "zo_estimator": "spsa",
    "zo_batch_growth": None,
    "zo_objective": "loss",
    "zo_anchor_steps": 5,
    "zo_rule": "sgd",
    "zo_window": 20,
    "zo_probe_steps": 0,
}


class PlainTrainer(transformers.Trainer):
    """A base trainer as other trees have it: AdamW over one group, no `model` argument."""

    def create_optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer is None:
            trained = [p for p in self.model.parameters() if p.requires_grad]
            group = {"params": trained, "lr": self.args.learning_rate, "weight_decay": self.args.weight_decay}
            self.optimizer = torch.optim.AdamW([group])
        return self.optimizer


class Tower(nn.Module):
    """Counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, WIDTH)
        self.calls = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.tanh(self.linear(image))


class Toy(nn.Module):
    """A regression on a frozen tower's view of an image and on token embeddings, laid out as a LLaVA model is."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = Tower().requires_grad_(False)
        self.mm_projector = nn.Linear(WIDTH, WIDTH)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 1)
        self.autocast: list[bool] = []
        self.dtypes: set[torch.dtype] = set()
        self.losses: list[float] = []

    def get_model(self) -> Toy:
        return self

    def get_vision_tower(self) -> Tower:
        return self.vision_tower

    def forward(self, ids: torch.Tensor, image: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        self.autocast.append(torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled())
        dtype = self.head.weight.dtype
        hidden = self.embed(ids).mean(dim=1) + self.mm_projector(self.vision_tower(image.to(dtype)))
        output = self.head(self.norm(hidden))
        self.dtypes.add(output.dtype)
        loss = (output.double().squeeze(1) - target.double()).square().mean()
        self.losses.append(float(loss.detach()))
        return {"loss": loss}


class Records(list):  # type: ignore[type-arg]
    """A plain list that remembers which records were asked for."""

    def __init__(self, records: list[dict[str, torch.Tensor]]) -> None:
        super().__init__(records)
        self.asked: list[int] = []

    def __getitem__(self, index: Any) -> Any:
        self.asked.append(index)
        return super().__getitem__(index)


def make_model(dtype: torch.dtype = torch.float32) -> Toy:
    torch.manual_seed(0)
    model = Toy().to(dtype)
    with torch.no_grad():
        model.norm.bias[0] = -0.0
    return model


def make_records(count: int = 16) -> Records:
    generator = torch.Generator().manual_seed(1)
    return Records(
        [
            {
                "ids": torch.randint(0, VOCABULARY, (4,), generator=generator),
                "image": torch.randn(3, generator=generator),
                "target": torch.randn((), generator=generator) + 2.0,
            }
            for _ in range(count)
        ]
    )


def collate(records: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([record[name] for record in records]) for name in records[0]}


@pytest.fixture()
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """llava/train/zo/trainer.py, loaded over the plain trainer and under another name."""
    stand_in = ModuleType("llava.train.llava_trainer")
    stand_in.LLaVATrainer = PlainTrainer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    # transformers 4.40 reads its own pickles of random states, which later torch refuses by default
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    file = Path(llava.train.__path__[0]) / "zo" / "trainer.py"
    spec = importlib.util.spec_from_file_location("mezo_trainer_alone", file)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def make_trainer(
    trainer_class: type[transformers.Trainer],
    folder: Path,
    model: Toy | None = None,
    records: Records | None = None,
    **changes: Any,
) -> Any:
    zo = {name: changes.pop(name, value) for name, value in ZO.items()}
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    args = transformers.TrainingArguments(**settings)
    for name, value in zo.items():
        setattr(args, name, value)
    return trainer_class(
        model=make_model() if model is None else model,
        args=args,
        train_dataset=make_records() if records is None else records,
        data_collator=collate,
    )


Make = Callable[..., Any]


@pytest.fixture()
def mezo(module: ModuleType, tmp_path: Path) -> Make:
    """Makes a MeZOTrainer; changes to its arguments by keyword."""
    return lambda folder="run", **changes: make_trainer(module.MeZOTrainer, tmp_path / folder, **changes)


def bits(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    signed = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
    return {name: weight.detach().clone().view(signed[weight.dtype]) for name, weight in weights.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def steps_of(trainer: Any) -> list[dict[str, float]]:
    """The log entries of steps (the last entry of a run is its summary)."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_flags_that_it_cannot_honour_are_refused(mezo: Make) -> None:
    with pytest.raises(ValueError, match=r"--auto_find_batch_size .*excludes --trainer_mode zo"):
        mezo(auto_find_batch_size=True)


def test_no_optimizer_of_another_package_is_asked_for(mezo: Make) -> None:
    assert mezo(optim="adamw_bnb_8bit").args.optim == "adamw_torch"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"zo_batch_growth": "0:2,0.5:4", "max_steps": 6}, [1, 1, 1, 1, 2, 2]),
        ({"zo_estimator": "per_example", "dataloader_drop_last": True, "max_steps": 3}, [2, 2, 2]),
    ],
)
def test_a_step_in_parts(changes: dict[str, Any], parts: list[int], mezo: Make) -> None:
    """Both points of each part, over as many records as are planned, none twice in an epoch."""
    model, records = make_model(), make_records()
    trainer = mezo(model=model, records=records, per_device_train_batch_size=2, **changes)
    trainer.train()
    assert len(model.losses) == 2 * sum(parts)
    rows = 2 if changes.get("zo_batch_growth") else 1
    used = records.asked[: rows * sum(parts)]  # a loader may be a batch ahead
    assert len(used) == rows * sum(parts) == len(set(used))
    assert len(steps_of(trainer)) == len(parts)


def test_a_step_is_algorithm_1_over_the_window(mezo: Make) -> None:
    model, records = make_model(), make_records()
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    decayed = {name: 0.1 for name, p in model.named_parameters() if p.dim() > 1}
    trainer = mezo(
        model=model,
        records=records,
        gradient_accumulation_steps=3,
        per_device_train_batch_size=2,
        max_steps=2,
        weight_decay=0.1,
        zo_seed=7,
        zo_num_directions=2,
    )
    trainer.train()
    twin, order = make_model(), records.asked[:12]

    for step in range(2):
        window = [order[6 * step + 2 * batch :][:2] for batch in range(3)]

        def loss(weights: dict[str, torch.Tensor], window: list[list[int]] = window) -> float:
            twin.load_state_dict({**twin.state_dict(), **weights})
            with torch.no_grad():
                return sum(float(twin(**collate([list(records)[i] for i in batch]))["loss"]) for batch in window) / 3

        config = MeZOConfig(eps=1e-3, seed=7, num_directions=2)
        trained, projected_grads = mezo_step(trained, loss, step, config, 1e-3, decayed)
        assert steps_of(trainer)[step]["projected_grad"] == projected_grads[-1]
    assert same(bits(trained), bits({name: p for name, p in model.named_parameters() if p.requires_grad}))


def test_the_log_shows_a_zeroth_order_step(mezo: Make) -> None:
    trainer = mezo(gradient_accumulation_steps=2, max_steps=6, logging_steps=2)
    trainer.train()
    entries = steps_of(trainer)
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    for number, entry in enumerate(entries):
        assert "grad_norm" not in entry and entry["step_time"] > 0
        assert entry["projected_grad"] == (entry["loss_plus"] - entry["loss_minus"]) / 2e-3 != 0
        losses = trainer.model.losses[8 * number : 8 * number + 8]  # two steps of two micro-batches and two points
        assert entry["loss"] == pytest.approx(sum(losses) / 8, abs=1e-4)
        ends = (losses[4] + losses[6]) / 2, (losses[5] + losses[7]) / 2  # whichever of both points was first
        assert sorted([entry["loss_plus"], entry["loss_minus"]]) == pytest.approx(sorted(ends))
    assert not any("projected_grad" in entry for entry in trainer.state.log_history if "train_runtime" in entry)


@pytest.mark.slow
def test_gradients_are_cleared_again_after_it(module: ModuleType, mezo: Make) -> None:
    """Its loop looks for none; nothing of that stays with a model, be it one that `model_init` made."""
    given = mezo()
    others = {"train_dataset": given.train_dataset, "data_collator": collate}
    made = module.MeZOTrainer(args=given.args, model_init=make_model, **others)
    for trainer in (given, made):
        model = trainer.model
        trainer.train()
        assert "zero_grad" not in vars(model) | vars(trainer.model)


def test_the_loss_goes_down(mezo: Make) -> None:
    trainer = mezo(max_steps=60, learning_rate=2e-2, per_device_train_batch_size=16, logging_steps=5)
    trainer.train()
    losses = [entry["loss"] for entry in steps_of(trainer)]
    assert len(losses) == 12 and losses[-1] < 0.4 * losses[0]


def test_frozen_vision_parts_run_once_per_micro_batch(mezo: Make) -> None:
    trainer = mezo(gradient_accumulation_steps=2, max_steps=3, zo_num_directions=2)
    trainer.train()
    assert len(trainer.model.losses) == 3 * 2 * 4 and trainer.model.vision_tower.calls == 3 * 2
    assert trainer.model.training  # as it was before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "storage"),
    [(torch.float32, "native"), (torch.bfloat16, "native"), (torch.bfloat16, "fixed16"), (torch.bfloat16, "fp32")],
)
def test_a_resumed_run_is_the_same_run(mezo: Make, tmp_path: Path, dtype: torch.dtype, storage: str) -> None:
    settings = {
        "zo_weight_storage": storage,
        "max_steps": 7,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 1,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.1,
        "save_strategy": "steps",
        "save_steps": 3,
        "bf16": dtype == torch.bfloat16,
    }
    whole = mezo("whole", model=make_model(dtype), **settings)
    whole.train()
    saved = load_file(tmp_path / "whole" / "checkpoint-3" / "model.safetensors")
    resumed = mezo("resumed", model=make_model(dtype), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert same(bits(whole.model.state_dict()), bits(resumed.model.state_dict()))
    assert not same(bits(saved), bits(whole.model.state_dict()))
    logged = ("step", "loss", "projected_grad", "loss_plus", "loss_minus", "learning_rate")
    first, second = ([[entry[name] for name in logged] for entry in steps_of(t)] for t in (whole, resumed))
    assert first == second and len(resumed.model.losses) == 4 * 2 * 2


@pytest.mark.parametrize("journal", [True, False])
def test_it_does_not_go_on_from_a_run_with_gradients(journal: bool, mezo: Make, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(PlainTrainer, tmp_path / "run", weight_decay=0.1, **saving).train()
    with pytest.raises(ValueError, match=r"checkpoint-4 is of a run with another optimizer .*another --output_dir"):
        mezo("run", zo_journal=journal, **saving).train(resume_from_checkpoint=True)
    (tmp_path / "run" / "checkpoint-4" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-4 has no state of an optimizer.*another --output_dir"):
        mezo("run", zo_journal=journal, **saving).train(resume_from_checkpoint=True)


def test_without_a_journal_it_does_not_go_on_from_one(mezo: Make) -> None:
    mezo("run", zo_journal=True).train()
    again = mezo("run")
    again.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in steps_of(again)] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["native", "fixed16"])
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_run_resumes_from_its_journal_alone(
    mezo: Make, tmp_path: Path, storage: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava.train.zo import journaled_run, resume_points

    monkeypatch.setattr(journaled_run, "RESUME_SECONDS", seconds)
    settings = {"zo_journal": True, "zo_weight_storage": storage, "max_steps": 9, "logging_steps": 2, "bf16": True}
    whole = mezo("whole", model=make_model(torch.bfloat16), **settings)
    whole.train()

    class Stops(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    stopped = mezo("stopped", model=make_model(torch.bfloat16), **settings)
    stopped.add_callback(Stops())
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    journal = tmp_path / "stopped" / "mezo_journal"
    resumed = mezo("stopped", model=make_model(torch.bfloat16), **settings)
    resumed.train(resume_from_checkpoint=str(resume_points.start_of(tmp_path / "stopped")))
    assert (len(list(journal.glob("resume-*"))) == 1) == (seconds == 0.0)
    assert same(bits(whole.model.state_dict()), bits(resumed.model.state_dict()))
    assert len(resumed.model.losses) == 4 * 2, "a step that was recorded was measured again"
    logged = ("step", "loss", "projected_grad", "loss_plus", "loss_minus", "learning_rate")
    first, second = ([[entry[name] for name in logged] for entry in steps_of(t)] for t in (whole, resumed))
    assert first == second
    with pytest.raises(ValueError, match="is the journal of another run"):
        mezo("stopped", model=make_model(torch.bfloat16), **settings).train()


@pytest.mark.parametrize("storage", ["native", "fixed16", "fp32"])
def test_evaluation_during_training_sees_the_weights(mezo: Make, storage: str) -> None:
    model = make_model(torch.bfloat16)
    trainer = mezo(model=model, bf16=True, max_steps=4, zo_weight_storage=storage)
    trainer.label_names = ["target"]  # by which the Trainer knows that there is a loss to evaluate

    class Evaluate(transformers.TrainerCallback):
        losses: ClassVar[list[float]] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.losses.append(trainer.evaluate(make_records())["eval_loss"])

    trainer.add_callback(Evaluate())
    trainer.train()
    assert len(Evaluate.losses) == 4 and len(set(Evaluate.losses)) > 1
    assert Evaluate.losses[-1] == trainer.evaluate(make_records())["eval_loss"]


def test_four_accumulated_records_equal_a_batch_of_four(mezo: Make) -> None:
    start = make_model().state_dict()
    ends, logs, orders = [], [], []
    for batch, accumulation in ((4, 1), (1, 4)):
        records = make_records()
        trainer = mezo(
            records=records,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=6,  # more than the four of an epoch
        )
        trainer.train()
        ends.append(trainer.model.state_dict())
        logs.append(steps_of(trainer))
        orders.append(records.asked[:24])
    assert orders[0] == orders[1]
    for name in ("loss", "projected_grad", "loss_plus", "loss_minus", "epoch"):
        assert [e[name] for e in logs[0]] == pytest.approx([e[name] for e in logs[1]], rel=2e-3, abs=2e-3), name
    moved = max(float((ends[0][name] - start[name]).abs().max()) for name in start)
    apart = max(float((ends[0][name] - ends[1][name]).abs().max()) for name in start)
    assert moved > 1e-2 and apart < 1e-3 * moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_learning_rate_of_zero_changes_no_bit(mezo: Make, dtype: torch.dtype) -> None:
    model = make_model(dtype)
    before = bits(model.state_dict())
    trainer = mezo(model=model, learning_rate=0.0, weight_decay=0.1, max_steps=20)
    trainer.train()
    assert steps_of(trainer)[-1]["projected_grad"] != 0
    assert same(before, bits(model.state_dict()))


def test_bf16_is_the_weights_dtype_and_no_autocast(mezo: Make) -> None:
    model = make_model(torch.bfloat16)
    before = bits(model.state_dict())
    trainer = mezo(model=model, bf16=True)
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16"  # which accelerate turns into autocast for other trainers
    assert len(model.autocast) == 8 and not any(model.autocast)
    assert model.dtypes == {torch.bfloat16} and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not same(before, bits(model.state_dict()))


def test_the_plain_trainer_does_run_under_autocast(tmp_path: Path) -> None:
    """So that the test above can fail."""
    trainer = make_trainer(PlainTrainer, tmp_path, bf16=True, max_steps=1)
    trainer.train()
    assert trainer.model.autocast == [True]


class Failing(Toy):
    """Its loss is not finite from the given forward on."""

    def __init__(self, first_bad: int, last_bad: int) -> None:
        super().__init__()
        self.bad = range(first_bad, last_bad + 1)

    def forward(self, ids: torch.Tensor, image: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = super().forward(ids, image, target)["loss"]
        return {"loss": loss * float("nan") if len(self.losses) in self.bad else loss}


def test_a_run_that_diverged_stops_with_its_last_good_weights(module: ModuleType, mezo: Make, tmp_path: Path) -> None:
    good = mezo("good", max_steps=3)
    good.train()
    torch.manual_seed(0)
    model = Failing(first_bad=7, last_bad=10**6)
    model.load_state_dict(make_model().state_dict())
    trainer = mezo("bad", model=model, max_steps=20, zo_max_bad_steps=2)
    with pytest.raises(module.DivergedError, match=r"last 2 steps .*--zo_max_bad_steps 2.*checkpoint-5"):
        trainer.train()
    assert trainer.state.global_step == 5 and len(model.losses) == 10
    saved = load_file(tmp_path / "bad" / "checkpoint-5" / "model.safetensors")
    assert same(bits(saved), bits(good.model.state_dict()))
    assert same(bits(model.state_dict()), bits(good.model.state_dict()))


class Rising(Toy):
    """Its loss, and so its slope, is 4 % larger in each forward."""

    def forward(self, ids: torch.Tensor, image: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = super().forward(ids, image, target)["loss"]
        return {"loss": loss * 1.04 ** len(self.losses)}


@pytest.mark.parametrize("what", ["warn", "stop", "off"])
def test_a_run_tells_that_it_diverges(
    what: str, module: ModuleType, mezo: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    settings = {"max_steps": 100, "learning_rate": 1e-6, "zo_on_divergence": what, "zo_journal": True}
    trainer = mezo(what, model=Rising(), **settings)
    logging.getLogger("llava").propagate = True
    with pytest.raises(module.DivergedError) if what == "stop" else nullcontext() as stopped:
        trainer.train()
    told = [message for message in caplog.messages if message.startswith("diverged by step 75: the loss is")]
    assert len(told) == (0 if what == "off" else 1)
    assert trainer.state.global_step == (75 if what == "stop" else 100)
    if stopped is not None:
        assert str(stopped.value) == told[0]
        assert "(half of it: 5e-07)" in told[0] and told[0].endswith(f"{tmp_path / what / 'mezo_journal'}:12")


def test_a_step_that_was_recorded_shows_the_rate_it_was_taken_with(mezo: Make) -> None:
    mezo(zo_journal=True, max_steps=3, lr_scheduler_type="cosine").train()
    again = mezo(zo_journal=True, max_steps=5, learning_rate=7e-4)
    again.train(resume_from_checkpoint=True)
    shown, taken = [e["learning_rate"] for e in steps_of(again)], [r.rates[0] for r in again.mezo.journal.records]
    assert shown == taken and taken[0] == 1e-3 > taken[1] > taken[2] and taken[3:] == [7e-4] * 2


def test_single_bad_steps_do_not_stop_a_run(mezo: Make) -> None:
    torch.manual_seed(0)
    model = Failing(first_bad=3, last_bad=6)
    trainer = mezo(model=model, max_steps=6, zo_max_bad_steps=3)
    trainer.train()
    assert trainer.state.global_step == 6 and trainer.mezo.bad_steps == 0


class Shaky(Records):
    """Its pictures are drawn anew each time they are asked for, as an augmentation would."""

    def __getitem__(self, index: Any) -> Any:
        record = super().__getitem__(index)
        return {**record, "image": record["image"] + 0.1 * torch.randn(3)}


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2},
        {"zo_estimator": "svrg", "zo_anchor_steps": 2},
        {"zo_estimator": "per_example", "dataloader_drop_last": True},
        {"zo_estimator": "guided", "zo_num_directions": 3},
        {"zo_batch_growth": "0:2,0.5:6"},
    ],
)
def test_probes_change_no_bit_of_a_run(changes: dict[str, Any], mezo: Make, tmp_path: Path) -> None:
    ends, counts = [], []
    for name, every in (("with", 3), ("without", 0)):
        settings = {"zo_probe_steps": every, "max_steps": 8, "zo_journal": True, **changes}
        trainer = mezo(name, records=Shaky(make_records()), **settings)
        trainer.train()
        ends.append((tmp_path / name / "mezo_journal" / "records.bin").read_bytes())
        assert len(ends[-1]) > 8 * 30 and ends[-1] == ends[0]
        counts.append(len(trainer.model.losses))
        assert bool(trainer.probing.probes.found) == bool(every)
    parts = 4 if "per_example" in changes.values() else 1
    assert counts[0] - counts[1] == 3 * 6 * parts and not (tmp_path / "without" / "probes.json").exists()


def test_probes_are_slope_and_curvature_of_drawn_batches(mezo: Make, tmp_path: Path) -> None:
    """The same whether a batch is measured as a whole or in parts, and nothing but the loss's own along a direction."""
    found = []
    for name, changes in (("whole", {}), ("parts", {"zo_estimator": "per_example", "dataloader_drop_last": True})):
        trainer = mezo(name, zo_probe_steps=4, learning_rate=0.0, zo_eps=1e-2, max_steps=5, **changes)
        trainer.train()
        found.append(trainer.probing.probes.found)
    (first, second), (others, _) = ([*one.values()] for one in found)
    for one, other in zip(first, others, strict=True):
        assert (other.loss, other.slope) == pytest.approx((one.loss, one.slope), rel=1e-4)
        assert other.curvature == pytest.approx(one.curvature, abs=0.05)
    assert first[0].loss != first[1].loss and first[0].slope * first[1].slope != 0
    assert {probe.slope for probe in first}.isdisjoint(probe.slope for probe in second)


@pytest.mark.parametrize("journal", [True, False])
def test_probes_survive_a_run_that_is_killed(journal: bool, mezo: Make, tmp_path: Path) -> None:
    """Just after a probe whose step was not recorded; without a journal the run goes on from an earlier checkpoint."""
    settings = {"zo_probe_steps": 2, "max_steps": 8, "zo_journal": journal, "save_steps": 3}
    settings["save_strategy"] = "no" if journal else "steps"  # with a journal all recorded steps go through the loop
    mezo("whole", **settings).train()
    stopped = mezo("stopped", **settings)

    class Stops(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    stopped.add_callback(Stops())
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    assert list(stopped.probing.probes.found) == [0, 2, 4]
    (file,) = (tmp_path / "stopped").glob("probes.json")
    file.write_text(file.read_text().replace('"step": 4', '"step": 99'))  # what is taken again is not believed
    resumed = mezo("stopped", **settings)
    resumed.train(resume_from_checkpoint=True if journal else str(tmp_path / "stopped" / "checkpoint-3"))
    files = [(tmp_path / name / "probes.json").read_bytes() for name in ("whole", "stopped")]
    assert files[0] == files[1] and files[0].count(b'"step"') == 4
    assert len(resumed.model.losses) == 2 * (4 if journal else 5) + 2 * 6, "something was measured again"


@pytest.mark.parametrize(("eps", "told"), [(1e-9, 1), (1e-2, 0)])
def test_rounding_in_what_steps_follow_is_told_once(
    eps: float, told: int, mezo: Make, caplog: pytest.LogCaptureFixture
) -> None:
    mezo(zo_probe_steps=1, learning_rate=0.0, zo_eps=eps, max_steps=12).train()
    assert sum("is rounding: a larger --zo_eps" in record.message for record in caplog.records) == told


def test_probes_of_a_count_are_refused(mezo: Make) -> None:
    with pytest.raises(ValueError, match="--zo_probe_steps 5 excludes --zo_objective accuracy"):
        mezo(zo_probe_steps=5, zo_objective="accuracy")

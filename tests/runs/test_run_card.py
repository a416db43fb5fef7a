"""What the card of a run says of its weights."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from llava.runs import run_card

VALIDATION = {"metric": "exact", "data": "data/val.json", "best": 0.9, "weights_of_step": 40}


def test_the_best_step_is_named_where_it_is_not_the_last() -> None:
    report = {"steps": 200, "validation": VALIDATION}
    assert run_card._chosen(report) == "of step 40, the best by exact on `val.json` (0.9)"
    assert run_card._chosen(report | {"steps": 40}) is None
    assert run_card._chosen({"steps": 200}) is None


def test_what_was_trained_is_said_as_the_run_found_it() -> None:
    """Reports of earlier runs have the flag alone."""
    report: dict[str, Any] = {"mm_tunable_parts": "mm_mlp_adapter", "bits": 16, "steps": 4, "trainable_parameters": 9}
    report["final_loss"] = None
    flags = defaultdict(lambda: None, optim="sgd", data_path=".json", learning_rate=1.0)
    assert run_card._training(report, flags, False, "lora")["trained"] == "mm_mlp_adapter"
    report["trained"] = "adapter lora (mm_language_model), mm_mlp_adapter"
    assert run_card._training(report, flags, False, "lora")["trained"] == report["trained"]


def test_a_run_from_a_journal_says_which() -> None:
    begun = {"zo_from_journal": "runs/first/mezo_journal:40"}
    assert run_card._beginning(begun) == "step 40 of the journal of `first`"
    assert run_card._beginning({"zo_from_journal": None}) is None


def test_a_rate_that_was_halved_is_not_shown_alone() -> None:
    assert run_card._halved({"halvings": [{"after_step": 50, "back_to_step": 12}] * 2}) == ", halved 2 times"
    assert run_card._halved({}) == ""

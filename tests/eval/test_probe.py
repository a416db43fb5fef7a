"""Linear probing: the right states, the only optimum of the regression, and the command."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional

from llava.errors import InputError
from llava.eval import probe as command
from llava.eval.generation import Answerer, Decoding
from llava.eval.logistic import best_strength, fit
from llava.eval.probe import Features, features_of, probe
from llava.eval.questions import question_and_reference


def test_states_are_what_the_head_makes_the_first_token_of(loaded, records, tmp_path):
    model, tokenizer, _ = loaded
    questions = [question_and_reference(record, k, tmp_path)[0] for k, record in enumerate(records)]
    states = features_of(Answerer(*loaded), records, tmp_path, batch_size=4, progress=False).states
    assert states.shape == (6, model.config.hidden_size) and states.dtype == torch.float32
    ids = model.lm_head(states).argmax(1)
    answers = Answerer(*loaded).answer(questions, Decoding(max_new_tokens=1))
    assert [text.strip() for text in tokenizer.batch_decode(ids[:, None], skip_special_tokens=True)] == answers
    alone = features_of(Answerer(*loaded), records, tmp_path, batch_size=1, progress=False).states
    torch.testing.assert_close(states, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("strength", [1e-2, 1.0, 1e4])
def test_the_fit_is_the_optimum(strength):
    """At the only optimum of a strictly convex objective the gradient, written out here, is zero."""
    torch.manual_seed(0)
    rows, classes = torch.randn(60, 5), torch.arange(60) % 3
    found = fit(rows, classes, 3, strength, tolerance=1e-6)
    shares = functional.softmax(rows.double() @ found.weight.T + found.bias, dim=1)
    errors = shares - functional.one_hot(classes, 3)
    of_weight = strength * errors.T @ rows.double() + found.weight
    assert of_weight.abs().max() / (strength * 60) < 2e-6
    assert errors.sum(0).abs().max() / 60 < 2e-6


def test_two_points_have_the_solution_of_one_equation():
    """At x = 1 and x = -1 with C = 1 the weights are w and -w, and w solves w = 2 / (1 + exp(2 w)) ... per class."""
    found = fit(torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1]), 2, 1.0, tolerance=1e-8)
    w = float(found.weight[0, 0])
    assert float(found.weight[1, 0]) == pytest.approx(-w, abs=1e-6) and w > 0
    low, high = 0.0, 2.0
    for _ in range(60):  # bisection
        middle = (low + high) / 2
        low, high = (middle, high) if middle < 2 / (1 + torch.e ** (2 * middle)) else (low, middle)
    assert w == pytest.approx(low, abs=1e-5)


def test_cross_validation_takes_little_regularisation_only_where_it_helps():
    torch.manual_seed(1)
    classes = torch.arange(100) % 2
    small = torch.stack([classes * 0.2 - 0.06, torch.randn(100)], dim=1)  # what tells is smaller than the noise
    assert best_strength(small, classes, 2, seed=0, strengths=(1e-4, 1e2)) == 1e2
    separate = torch.stack([classes * 2.0 - 1, torch.zeros(100)], dim=1)
    assert best_strength(separate, classes, 2, seed=0, strengths=(1.0, 10.0)) == 1.0  # of equals the smallest


def test_answers_that_training_does_not_have_are_counted_and_wrong():
    train = Features(torch.tensor([[1.0], [-1.0]] * 5), ["Yes", "No"] * 5)
    test = Features(torch.tensor([[2.0], [-2.0], [1.0]]), ["yes.", "No", "Maybe"])
    found = probe(train, test)
    assert found["predictions"] == ["Yes", "No", "Yes"]
    assert (found["correct"], found["unseen"], found["classes"]) == (2, 2, 2)
    with pytest.raises(InputError, match="--train-data has 1 different answers"):
        probe(Features(train.states[:2], ["Yes", "Yes"]), test)


def test_the_command_writes_its_result(checkpoint, records, tmp_path, capsys, refused):
    (tmp_path / "train.json").write_text(json.dumps(records * 2))
    (tmp_path / "empty.json").write_text("[]")
    words = ["--model-path", str(checkpoint), "--train-data", str(tmp_path / "train.json")]
    words += ["--data", str(tmp_path / "data.json"), "--image-folder", str(tmp_path)]
    command.main([*words, "--output", str(tmp_path / "out" / "probe.json")])
    found = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert found["total"] == 6 and found["settings"]["version"] == "qwen_1_5"
    assert f"accuracy {found['accuracy']:.4f}" in capsys.readouterr().out
    for wrong, message in (
        (["--output", "x.txt"], "must end in .json"),
        (["--metric", "bleu"], "exact, choice"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--version", "qwen"], "'qwen' is not a conversation template"),
        (["--train-data", str(tmp_path / "data.json")], "--train-data is --data"),
        (["--data", str(tmp_path / "empty.json"), "--model-path", "none"], "empty.json holds no records"),
    ):
        assert message in refused(command.main, [*words, "--output", str(tmp_path / "p.json"), *wrong])

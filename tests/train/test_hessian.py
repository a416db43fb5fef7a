"""Products with a Hessian, against differences of gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from llava.train.flags.parsing import parse_arguments
from llava.train.hessian import Hessian
from llava.train.train import build, make_trainer


def by_differences(hessian: Hessian, vector: torch.Tensor, step: float) -> torch.Tensor:
    """The product, by a move along the vector to either side."""
    parts = vector.split([weight.numel() for weight in hessian.weights])
    ends = []
    for scale in (step, -2 * step):
        with torch.no_grad():
            for weight, part in zip(hessian.weights, parts, strict=True):
                weight += scale * part.view_as(weight)
        ends.append(sum(hessian.gradient(loss) for loss in hessian.losses) / len(hessian.losses))
    with torch.no_grad():
        for weight, part in zip(hessian.weights, parts, strict=True):
            weight += step * part.view_as(weight)
    return (ends[0] - ends[1]) / (2 * step)


def test_the_whole_matrix_of_a_small_model() -> None:
    """One of attention, with a weight that has no part in the loss."""
    torch.manual_seed(0)
    layer, unused = nn.Linear(4, 12).double(), nn.Parameter(torch.ones(3, dtype=torch.float64))
    batches = [torch.randn(2, 5, 4, dtype=torch.float64) for _ in range(2)]

    def loss(batch: torch.Tensor) -> torch.Tensor:
        query, key, value = layer(batch).chunk(3, -1)
        return (functional.scaled_dot_product_attention(query, key, value, is_causal=True) - batch).square().mean()

    hessian = Hessian([*layer.parameters(), unused], [lambda batch=batch: loss(batch) for batch in batches])
    assert hessian.size == 63
    columns = [hessian.times(column) for column in torch.eye(63, dtype=torch.float64)]
    differences = [by_differences(hessian, column, 1e-5) for column in torch.eye(63, dtype=torch.float64)]
    assert torch.stack(columns).abs().max() > 0.01 and not torch.stack(columns)[-3:].any()
    torch.testing.assert_close(torch.stack(columns), torch.stack(differences), rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_that_of_a_run(small_run: Callable[..., list[str]]) -> None:
    """In float32, without dropout, and with an attention that has a second derivative."""
    flags = small_run(
        trainer_mode="regular", bf16=True, adapter="lora", lora_r=4, lora_dropout=0.5, attn_implementation="eager"
    )
    settings = parse_arguments(flags)
    model, tokenizer = build(*settings)
    trainer = make_trainer(model, tokenizer, *settings)
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    hessian = Hessian.of_run(trainer, [batch])
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "sdpa"
    vector = hessian.random(0)
    assert torch.equal(vector, hessian.random(0)) and not torch.equal(vector, hessian.random(1))
    product = hessian.times(vector)
    assert torch.equal(product, hessian.times(vector))
    assert float((product - by_differences(hessian, vector, 1e-4)).norm() / product.norm()) < 1e-2

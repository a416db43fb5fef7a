"""Prompt and prefix tuning with images: what is put in front of what, by hand; the same when it is loaded; MeZO."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_adapters import TINY, adapted, load, moved, with_images

from llava.errors import InputError
from llava.mezo import MeZO, MeZOConfig
from llava.mezo.noise import direction_values
from llava.train.parts.saving import save_lora

KINDS = ("prefix", "prompt")
TOKENS = 3


@pytest.fixture(scope="module", params=KINDS)
def trained(request: Any, tmp_path_factory: Any) -> tuple[Any, Any]:
    """A model as it is in training, and the same loaded."""
    model, tokenizer = adapted(request.param, "--adapter_tokens", str(TOKENS))
    moved(model)
    folder = tmp_path_factory.mktemp("run") / "llava-adapter"
    save_lora(model, folder)
    tokenizer.save_pretrained(folder)
    return model.eval(), load(folder, str(TINY))


def by_hand(model: Any, embeds: torch.Tensor) -> torch.Tensor:
    """Logits [rows, length, words] of the base with the tokens in front, of its own parts alone; no padding."""
    base, own = model.get_base_model(), model.prompt_encoder.default.embedding.weight
    rows = len(embeds)
    if own.shape[1] == embeds.shape[-1]:
        return base(inputs_embeds=torch.cat([own.expand(rows, -1, -1), embeds], dim=1)).logits[:, TOKENS:]
    from transformers import DynamicCache

    cache, heads = DynamicCache(), base.config.num_key_value_heads
    # a token's numbers are, layer for layer, its key and then its value, of all heads
    layers = own.view(TOKENS, base.config.num_hidden_layers, 2, heads, -1)
    for layer in range(layers.shape[1]):
        key, value = (layers[:, layer, k].transpose(0, 1).expand(rows, -1, -1, -1) for k in (0, 1))
        cache.update(key, value, layer)
    return base(inputs_embeds=embeds, past_key_values=cache).logits


@torch.no_grad()
def test_tokens_are_in_front_of_text_and_images(trained: tuple[Any, Any]) -> None:
    model, loaded = trained
    batch = with_images()
    outputs = model(**batch)
    base = model.get_base_model()
    rows = [{n: v[k : k + 1] for n, v in batch.items() if n not in ("attention_mask", "labels")} for k in (0, 1)]
    found, losses = outputs.logits[:, -base_length(model, batch) :], []
    for k, row in enumerate(rows):
        kept = batch["attention_mask"][k].bool()
        row |= {"input_ids": row["input_ids"][:, kept], "labels": batch["labels"][k : k + 1, kept]}
        _, _, _, _, embeds, labels = base.prepare_inputs_labels_for_multimodal(
            row["input_ids"], None, None, None, row["labels"], row["images"], row["modalities"], row["image_sizes"]
        )
        wanted = by_hand(model, embeds)
        torch.testing.assert_close(found[k : k + 1, : wanted.shape[1]], wanted, atol=1e-4, rtol=1e-4)
        chosen = labels[0, 1:] != -100
        losses.append(
            torch.nn.functional.cross_entropy(wanted[0, :-1][chosen], labels[0, 1:][chosen], reduction="none")
        )
    torch.testing.assert_close(outputs.loss, torch.cat(losses).mean(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(**batch, loss_alone=True).loss, outputs.loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(loaded(**batch).logits, outputs.logits)


def base_length(model: Any, batch: Any) -> int:
    """Of the rows with their images, without tokens in front."""
    return int(model.get_base_model()(**batch).logits.shape[1])


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_with_a_cache_is_that_without(trained: tuple[Any, Any], beams: int) -> None:
    model, loaded = trained
    batch = with_images("left")
    asked = {n: batch[n] for n in ("images", "image_sizes", "modalities")}
    arguments = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "num_beams": beams}
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    output = loaded.generate(**inputs, **asked, use_cache=True, **arguments)
    assert output.shape == (2, 6)
    assert torch.equal(output, model.generate(**inputs, **asked, use_cache=True, **arguments))
    if beams > 1:
        assert torch.equal(output, loaded.generate(batch["input_ids"], **asked, use_cache=True, **arguments))
        return
    base = model.get_base_model()
    for k in (0, 1):
        ids = batch["input_ids"][k : k + 1, batch["attention_mask"][k].bool()]
        row = (asked["images"][k : k + 1], "image", asked["image_sizes"][k : k + 1])
        embeds = base.prepare_inputs_labels_for_multimodal(ids, None, None, None, None, *row)[4]
        for token in output[k]:
            assert token == by_hand(model, embeds)[0, -1].argmax()
            embeds = torch.cat([embeds, base.get_input_embeddings()(token[None, None])], dim=1)


def test_tokens_count_as_positions(trained: tuple[Any, Any]) -> None:
    ids = torch.full((1, 4096 - TOKENS + 1), 7)
    with pytest.raises(InputError, match="has 4097 tokens with its images, and the model takes at most 4096"):
        trained[1].generate(ids)
    with pytest.raises(InputError, match="no images were given"):
        trained[1](input_ids=torch.tensor([[5, -200]]))


def test_a_prefix_starts_as_words_in_front() -> None:
    """Its keys and values are those that words have: the model goes on as if it had read them."""
    model, _ = adapted("prefix", "--adapter_tokens", "4")
    base, ids = model.eval().get_base_model(), torch.arange(20, 40)[None]
    with torch.no_grad():
        own = model.prompt_encoder.default.embedding.weight.view(4, base.config.num_hidden_layers, 2, -1)[:, 0, 1]
        layer = base.model.layers[0]
        table = layer.self_attn.v_proj(layer.input_layernorm(base.get_input_embeddings().weight))
        words = torch.cdist(own, table).argmin(dim=1)  # values of the first layer do not depend on the place
        torch.testing.assert_close(table[words], own, atol=1e-5, rtol=1e-5)
        wanted = base(input_ids=torch.cat([words[None], ids], dim=1)).logits[:, 4:]
        torch.testing.assert_close(model(input_ids=ids).logits, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_mezo_perturbs_them(kind: str) -> None:
    model, _ = adapted(kind, "--adapter_tokens", str(TOKENS), "--mm_tunable_parts", "mm_language_model")
    batch, [own] = with_images(), [p for p in model.parameters() if p.requires_grad]
    mezo = MeZO([{"params": [own], "lr": 0.0}], model, MeZOConfig(eps=1e-3, kernel="reference"))
    mezo.accumulate(0, lambda: model(**batch).loss, weight=2)
    mezo.step()
    [term] = mezo.last.terms
    model.eval()(**batch).loss.backward()
    direction = torch.from_numpy(direction_values(term.seed, 0, 0, own.numel(), "gaussian")).view_as(own)
    assert term.projected_grad == pytest.approx(float((own.grad * direction).sum()), rel=0.05) != 0

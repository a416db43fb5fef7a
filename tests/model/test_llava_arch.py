"""The model itself: building it from a config, starting from a plain language model, loss, generation, refusals."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from small_llava import SMALL_QWEN, SMALL_VISION
from transformers import LlamaConfig, Qwen2Config, Qwen2ForCausalLM

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import InputError
from llava.model import LlavaConfig, LlavaLlamaForCausalLM, LlavaQwenConfig, LlavaQwenForCausalLM
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel, unpad_image
from llava.model.vision_modules import _reset_learned_token

PROMPT = [5, 6, IMAGE_TOKEN_INDEX, 7]


def vision_settings(tower, **values) -> SimpleNamespace:
    return SimpleNamespace(**(SMALL_VISION | {"vision_tower": str(tower)} | values))


def tiles(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize(
    ("config_class", "model_class"), [(LlavaQwenConfig, LlavaQwenForCausalLM), (LlavaConfig, LlavaLlamaForCausalLM)]
)
def test_every_family_trains_and_generates(config_class, model_class):
    torch.manual_seed(0)
    model = model_class(config_class(**SMALL_QWEN, **SMALL_VISION))
    ids = torch.tensor([PROMPT])
    output = model(ids, labels=torch.tensor([[5, 6, IGNORE_INDEX, 7]]), images=[tiles()], image_sizes=[(60, 25)])
    output.loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all("post_layernorm" in name for name in missing)
    tokens = model.eval().generate(ids, images=[tiles()], image_sizes=[(60, 25)], max_new_tokens=3, min_new_tokens=3)
    assert tokens.shape == (1, 3)


def test_generation_makes_logits_of_the_last_position_alone(small_model):
    shapes = []
    hook = small_model.lm_head.register_forward_hook(lambda module, given, made: shapes.append(made.shape[1]))
    small_model.generate(torch.tensor([PROMPT]), images=[tiles()], image_sizes=[(60, 25)], max_new_tokens=2)
    hook.remove()
    assert set(shapes) == {1}


def test_loss_is_the_mean_over_supervised_tokens(small_model):
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 10]])
    labels = torch.tensor([[IGNORE_INDEX, 6, 7, 8], [IGNORE_INDEX, IGNORE_INDEX, 9, IGNORE_INDEX]])
    output = small_model(ids, labels=labels)
    log_probabilities = output.logits.float().log_softmax(-1)[:, :-1]
    chosen = [log_probabilities[row, place - 1, labels[row, place]] for row, place in [(0, 1), (0, 2), (0, 3), (1, 2)]]
    torch.testing.assert_close(output.loss, -torch.stack(chosen).mean())
    assert LlavaMetaForCausalLM.accepts_loss_kwargs is False


def test_the_loss_alone_has_the_same_gradients(small_model):
    ids = torch.tensor([PROMPT, PROMPT])
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[0, 1], labels[1, -1] = 6, 9
    inputs = {"labels": labels, "attention_mask": torch.ones_like(ids)}
    inputs |= {"images": [tiles(), tiles()], "image_sizes": [(60, 25), (60, 25)]}
    found = {}
    for alone in (False, True):
        small_model.zero_grad()
        output = small_model(ids, **inputs, loss_alone=alone)
        output.loss.backward()
        named = small_model.named_parameters()
        found[alone] = output.loss.detach(), {name: p.grad.clone() for name, p in named if p.grad is not None}
        assert (output.logits is None) == alone
    assert len(found[True][1]) > 10
    torch.testing.assert_close(found[True], found[False])


def test_dpo_forward_gives_logits_and_spliced_labels(small_model):
    ids = torch.tensor([PROMPT])
    logits, labels = small_model(ids, labels=ids.clone(), images=[tiles(1)], image_sizes=[(32, 32)], dpo_forward=True)
    assert logits.shape[1] == labels.shape[1] == 3 + 16 + 1
    assert (labels == IGNORE_INDEX).sum() == 17


def test_marks_without_images_are_refused(small_model):
    ids = torch.tensor([PROMPT])
    with pytest.raises(InputError, match="no images were given"):
        small_model(ids)
    with pytest.raises(InputError, match="no images were given"):
        small_model.generate(ids)
    with pytest.raises(InputError, match="not inputs_embeds"):
        small_model.generate(ids, inputs_embeds=torch.zeros(1, 2, 32))


def test_text_alone(small_model):
    ids = torch.tensor([[5, 6, 7]])
    reference = Qwen2ForCausalLM(Qwen2Config(**SMALL_QWEN)).eval()
    reference.load_state_dict({name: small_model.state_dict()[name] for name in reference.state_dict()})
    torch.testing.assert_close(small_model(ids).logits, reference(ids).logits)
    tokens = small_model.generate(ids, max_new_tokens=4, do_sample=False)
    assert tokens.tolist() == reference.generate(ids, max_new_tokens=4, do_sample=False)[:, 3:].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_generate_as_they_do_alone(side, small_model):
    rows, pad = [[5, 6, IMAGE_TOKEN_INDEX, 7, 11, 12], [8, IMAGE_TOKEN_INDEX, 9], [10, 11, 12, 13]], 900
    images, sizes = [tiles(3), tiles(1)], [(60, 25), (30, 30)]
    alone = [
        small_model.generate(torch.tensor([rows[0]]), images=images[:1], image_sizes=sizes[:1], max_new_tokens=5),
        small_model.generate(torch.tensor([rows[1]]), images=images[1:], image_sizes=sizes[1:], max_new_tokens=5),
        small_model.generate(torch.tensor([rows[2]]), max_new_tokens=5),
    ]
    padding = [[pad] * (6 - len(row)) for row in rows]
    padded = [pads + row if side == "left" else row + pads for pads, row in zip(padding, rows, strict=True)]
    batch = small_model.generate(
        torch.tensor(padded), images=images, image_sizes=sizes, max_new_tokens=5, pad_token_id=pad
    )
    assert batch.tolist() == [row[0].tolist() for row in alone]


def test_pos_skipping_acts_in_training_only(small_model):
    small_model.config.use_pos_skipping, small_model.config.pos_skipping_range = True, 1000
    inputs = (torch.tensor([PROMPT]), None, None, None, None, [tiles(1)], None, [(32, 32)])
    assert small_model.prepare_inputs_labels_for_multimodal(*inputs)[1] is None
    positions = small_model.train().prepare_inputs_labels_for_multimodal(*inputs)[1]
    assert positions.shape == (1, 20)
    assert (positions.diff() >= 1).all()


# ---------------------------------------------------------------------------------------------- starting a model


def test_plain_language_model_learns_to_see(siglip_folder, tmp_path):
    Qwen2ForCausalLM(Qwen2Config(**SMALL_QWEN)).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    model = LlavaQwenForCausalLM.from_pretrained(tmp_path / "base")
    assert model.get_vision_tower() is None
    model.get_model().initialize_vision_modules(vision_settings(siglip_folder, mm_newline_position="grid"))
    assert model.get_vision_tower().is_loaded
    assert model.get_vision_tower().dtype == model.model.image_newline.dtype == torch.bfloat16
    assert model.model.mm_projector[0].weight.dtype == torch.float32
    assert model.config.mm_newline_position == "grid"
    assert model.config.mm_vision_tower == str(siglip_folder)
    # Parts in different dtypes work together without autocast.
    loss = model(torch.tensor([PROMPT]), labels=torch.tensor([PROMPT]).abs(), images=[tiles(1)], image_sizes=[(9, 9)])
    assert loss.loss.isfinite()
    model.save_pretrained(tmp_path / "run")
    assert LlavaQwenForCausalLM.from_pretrained(tmp_path / "run").config.model_type == "llava_qwen"


def test_modules_of_a_checkpoint_stay(checkpoint, siglip_folder, caplog):
    model = LlavaQwenForCausalLM.from_pretrained(checkpoint)
    before = copy.deepcopy(model.state_dict())
    model.get_model().initialize_vision_modules(vision_settings(siglip_folder, mm_projector_type="linear"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.config.mm_projector_type == "mlp2x_gelu"
    assert model.config.mm_vision_tower == "small-siglip"
    assert "mm_projector_type 'mlp2x_gelu' stays" in caplog.text
    assert all(parameter.requires_grad for parameter in model.model.mm_projector.parameters())


def test_newline_is_added_when_the_merge_type_begins_to_need_it(siglip_folder):
    config = LlavaQwenConfig(**SMALL_QWEN, **(SMALL_VISION | {"mm_patch_merge_type": "flat"}))
    model = LlavaQwenForCausalLM(config)
    assert not hasattr(model.model, "image_newline")
    model.get_vision_tower().is_loaded = True
    model.get_model().initialize_vision_modules(vision_settings(siglip_folder))
    assert model.model.image_newline.shape == (32,)


@pytest.mark.parametrize("prefix", ["model.", "base_model.model.model.", ""])
def test_adapter_to_start_from(prefix, small_model, siglip_folder, tmp_path):
    wanted = {name: torch.randn_like(value) for name, value in small_model.model.mm_projector.state_dict().items()}
    file = tmp_path / "start.safetensors"
    save_file({f"{prefix}mm_projector.{name}": value for name, value in wanted.items()}, file)
    small_model.get_vision_tower().is_loaded = True
    small_model.model.initialize_vision_modules(vision_settings(siglip_folder, pretrain_mm_mlp_adapter=str(file)))
    found = small_model.model.mm_projector.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_adapter_of_another_projector_is_refused(small_model, siglip_folder, tmp_path):
    save_file({"model.mm_projector.weight": torch.zeros(3, 3)}, tmp_path / "x.safetensors")
    small_model.get_vision_tower().is_loaded = True
    with pytest.raises(InputError, match="does not fit --mm_projector_type mlp2x_gelu"):
        small_model.model.initialize_vision_modules(
            vision_settings(siglip_folder, pretrain_mm_mlp_adapter=str(tmp_path / "x.safetensors"))
        )
    with pytest.raises(InputError, match="no adapter at"):
        small_model.model.initialize_vision_modules(
            vision_settings(siglip_folder, pretrain_mm_mlp_adapter=str(tmp_path / "gone"))
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type 'perceiver'"),
        ({"mm_patch_merge_type": "spatial_pad"}, "mm_patch_merge_type 'spatial_pad'.*allowed: flat"),
        ({"mm_patch_merge_type": "flat_unpad"}, "flat has no variants"),
        ({"mm_newline_position": "row"}, "mm_newline_position 'row'.*allowed: grid, frame"),
        ({"mm_spatial_pool_mode": "conv"}, "mm_spatial_pool_mode 'conv'.*allowed: bilinear"),
        ({"add_faster_video": True, "mm_newline_position": "frame"}, "add_faster_video needs"),
        ({"s2": True}, "s2"),
    ],
)
def test_settings_that_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        LlavaQwenForCausalLM(LlavaQwenConfig(**SMALL_QWEN, **(SMALL_VISION | values)))


def test_names_that_others_import():
    assert issubclass(LlavaQwenForCausalLM, LlavaMetaForCausalLM)
    assert issubclass(type(LlavaQwenForCausalLM(LlavaQwenConfig(**SMALL_QWEN)).get_model()), LlavaMetaModel)
    assert LlavaConfig.base_model_type == LlamaConfig.model_type
    # Never without rows or columns, however thin the image.
    assert unpad_image(torch.zeros(2, 4, 4), (1000, 1)).shape[1] >= 1


def test_learned_tokens_start_the_same_where_a_device_is_the_default() -> None:
    """As of a model that is built on a card: their numbers come from a generator of the CPU."""
    tokens = [torch.nn.Parameter(torch.empty(8, device="cpu")) for _ in range(2)]
    _reset_learned_token(tokens[0])
    with torch.device("meta"):
        _reset_learned_token(tokens[1])
    assert torch.equal(*tokens) and tokens[0].std() > 0

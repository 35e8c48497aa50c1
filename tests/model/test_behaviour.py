"""The whole model as users of transformers use it: batches, generation, pipeline, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from laco_deploy.model import LacoConfig, LacoForConditionalGeneration, LacoProcessor
from laco_deploy.training.tokenizer import IMAGE_TOKEN, train_tokenizer
from laco_runtimes.errors import ArgumentError
from laco_runtimes.images import Preprocessing
from tests.bundles import IMAGE_SIZE, PROMPTS, make_random_checkpoint, random_config, random_model
from tests.model.tower_samples import KINDS, laco_config

SPEC = Preprocessing(image_size=IMAGE_SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
TOKENIZER = train_tokenizer([*PROMPTS, "system user assistant You are a helpful assistant."])


def config(**settings: Any) -> LacoConfig:
    """8 x 8 patches, 4 x 4 tokens per tile."""
    values = random_config(vocab_size=len(TOKENIZER)).to_dict()
    image = TOKENIZER.convert_tokens_to_ids(IMAGE_TOKEN)
    return LacoConfig.from_dict({**values, "image_token_id": image, **settings})


def parts(**settings: Any) -> tuple[LacoForConditionalGeneration, LacoProcessor]:
    given = config(**settings)
    return random_model(given, seed=1), LacoProcessor.from_config(given, TOKENIZER, SPEC)


def noise(seed: int, width: int = 20, height: int = 20) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@torch.no_grad()
def last_logits(model: Any, batch: Any) -> Tensor:
    return model(**batch).logits[:, -1]


LAYOUTS: dict[str, dict[str, Any]] = {
    "square": {},
    "newline": {"image_newline": True},
    "anyres": {"image_mode": "anyres"},
    "anyres with newline": {"image_mode": "anyres", "image_newline": True},
    "scaled down": {"image_mode": "anyres", "image_newline": True, "max_tiles": 1},
    "two mergers": {"mergers": [{"after_block": 1}, {"after_block": 3}], "image_mode": "anyres"},
    "pooled video": {"image_newline": True, "video_pool_stride": 3},
}


@pytest.mark.parametrize("settings", LAYOUTS.values(), ids=LAYOUTS)
def test_processor_counts_what_the_model_makes(settings: dict[str, Any]) -> None:
    """H5. Put back (sides of the patch grid in the processor or the model) every count differs, and
    the model refuses the batch."""
    model, processor = parts(**settings)
    texts = ["<image>\nWhere?", "<image><image>", "<video>What is it?", "Where?"]
    images = [[noise(1, 130, 60)], [noise(2), noise(3, 90, 200)], [], []]
    videos = [[], [], [[noise(4), noise(5), noise(6)]], []]
    batch = processor(images, texts, videos, padding=True, return_tensors="pt")
    encoded = model.model.get_image_features(
        batch["pixel_values"],
        batch["image_sizes"],
        batch["num_tiles"],
        batch["is_video"],
        return_dict=True,
    )
    layout = model.config.token_layout
    counts = [len(tokens) for tokens in encoded.pooler_output]
    assert counts[3] == layout.video_tokens(3)
    assert sum(counts) == int((batch["input_ids"] == processor.image_token_id).sum())
    assert last_logits(model, batch).isfinite().all()


@pytest.mark.parametrize("settings", [{}, {"image_mode": "anyres", "image_newline": True}])
def test_batch_of_unlike_samples_answers_as_each_alone(settings: dict[str, Any]) -> None:
    model, processor = parts(**settings)
    texts = ["<image>\nWhere?", "How many dots are there?", "<image> <image>\nName the colour."]
    images = [[noise(1, 130, 60)], [], [noise(2), noise(3)]]
    batch = processor(images, texts, padding=True, return_tensors="pt")
    together = last_logits(model, batch)
    for text, own, found in zip(texts, images, together, strict=True):
        alone = processor(own or None, text, return_tensors="pt")
        torch.testing.assert_close(found, last_logits(model, alone)[0], rtol=0, atol=2e-4)
    answers = model.generate(**batch, max_new_tokens=5, do_sample=False, eos_token_id=None)
    for text, own, found in zip(texts, images, answers, strict=True):
        alone = processor(own or None, text, return_tensors="pt")
        answer = model.generate(**alone, max_new_tokens=5, do_sample=False, eos_token_id=None)
        assert found[-5:].tolist() == answer[0, -5:].tolist()


def test_loss_does_not_depend_on_the_side_of_the_padding() -> None:
    model, processor = parts(image_newline=True)
    texts, images = ["<image>\nWhere?", "<image>\nName the colour."], [noise(1), noise(2)]
    losses = []
    for side in ("left", "right"):
        batch = processor(images, texts, padding=True, padding_side=side, return_tensors="pt")
        labels = batch["input_ids"].clone()
        labels[(labels == processor.image_token_id) | (batch["attention_mask"] == 0)] = -100
        labels[:, 0] = -100
        losses.append(model(**batch, labels=labels).loss)
    torch.testing.assert_close(losses[0], losses[1])


def test_tokens_of_several_images_stand_at_their_own_marks() -> None:
    model, processor = parts(image_newline=True)
    ids = processor([noise(1), noise(2)], "<image>a<image>", return_tensors="pt")
    with mock.patch.object(
        model.model.language_model, "forward", wraps=model.model.language_model.forward
    ) as forward:
        last_logits(model, ids)
    embeds = forward.call_args.kwargs["inputs_embeds"][0]
    with torch.no_grad():
        tiles = model.get_image_features(ids["pixel_values"])
    assert torch.equal(embeds[:16], tiles[0])
    assert torch.equal(embeds[16], model.model.image_newline)
    assert torch.equal(embeds[-17:-1], tiles[1])


def test_image_features_of_tiles_are_as_the_exporter_takes_them() -> None:
    for settings in LAYOUTS.values():
        model, _ = parts(**settings)
        found = model.get_image_features(torch.zeros(3, 3, IMAGE_SIZE, IMAGE_SIZE))
        assert found.shape == (3, model.config.tokens_per_tile, model.config.text.hidden_size)


# Generation.


def test_cached_steps_get_no_pixels() -> None:
    model, processor = parts(image_mode="anyres")
    batch = processor(noise(1, 130, 60), "<image>\nWhere?", return_tensors="pt")
    encoder, language = model.model.vision_encoder, model.model
    with (
        mock.patch.object(encoder, "forward", wraps=encoder.forward) as encode,
        mock.patch.object(language, "forward", wraps=language.forward) as step,
    ):
        model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert encode.call_count == 1
    given = [call.kwargs for call in step.call_args_list]
    assert [kwargs["input_ids"].shape[1] for kwargs in given[1:]] == [1, 1, 1]
    for kwargs in given[1:]:
        assert kwargs["pixel_values"] is None
        assert not kwargs["mm_encoder_outputs"]


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "top_k": 1}])
def test_beams_and_samples_see_the_images_of_their_own_prompt(options: dict[str, Any]) -> None:
    model, processor = parts()
    texts, images = ["<image><image>\nWhere?", "<image>\nWhere?"], [noise(1), noise(2), noise(3)]
    batch = processor(images, texts, padding=True, return_tensors="pt")
    found = model.generate(
        **batch,
        **options,
        do_sample="top_k" in options,
        max_new_tokens=3,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    for index, own in enumerate((images[:2], images[2:])):
        alone = last_logits(model, processor(own, texts[index], return_tensors="pt"))
        rows = found.logits[0][2 * index : 2 * index + 2]  # two beams, or two samples
        torch.testing.assert_close(rows, alone.expand(2, -1), rtol=0, atol=2e-4)


def test_generation_without_cache_gives_the_same() -> None:
    model, processor = parts(image_newline=True)
    batch = processor(noise(1), "<image>\nWhere?", return_tensors="pt")
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    with_cache, without = (model.generate(**batch, **options, use_cache=c) for c in (True, False))
    assert with_cache.tolist() == without.tolist()


def test_pipeline_of_transformers_answers_from_a_folder(tmp_path: Path) -> None:
    folder = make_random_checkpoint(tmp_path / "checkpoint")
    ask = pipeline("image-text-to-text", model=str(folder))
    noise(1).save(tmp_path / "image.png")
    image = {"type": "image", "path": str(tmp_path / "image.png")}
    chat = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
    options = {"max_new_tokens": 6, "return_full_text": False}
    (found,) = ask(text=chat, generate_kwargs={"do_sample": False}, **options)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert isinstance(model, LacoForConditionalGeneration)
    processor = AutoProcessor.from_pretrained(folder)
    batch = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**batch, max_new_tokens=6, do_sample=False)
    answer = processor.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert found["generated_text"] == answer[0]
    both = ask(
        images=[noise(1), noise(2)], text=["<image>\nWhere?", "<image>What is it?"], **options
    )
    assert len(both) == 2


# Training and numerics.


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    torch.manual_seed(0)
    model = LacoForConditionalGeneration(laco_config(kind, [{"after_block": 1}]))
    side, tokens = model.config.image_size, model.config.tokens_per_tile
    pixels = torch.randn(2, 3, side, side)
    ids = torch.tensor([[*[3] * tokens, 5, 6], [7, *[3] * tokens, 8]])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.is_activation_checkpointing
        model.train().zero_grad()
        model(input_ids=ids, pixel_values=pixels, labels=ids).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-7)
        assert gradient.isfinite().all()


def test_gradient_checkpointing_runs_the_blocks_again() -> None:
    model, processor = parts()
    block = model.model.vision_encoder.tower.encoder.layers[0].ffn
    batch = processor(noise(1), "<image>\nWhere?", return_tensors="pt")
    counts = []
    for _ in range(2):
        with mock.patch.object(block, "forward", wraps=block.forward) as forward:
            model.train()(**batch, labels=batch["input_ids"]).loss.backward()
        counts.append(forward.call_count)
        model.activation_checkpointing_enable()
    assert counts == [1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_forward_stays_near_float32(kind: str) -> None:
    """H9. bf16 has the range of fp32; fp16 put in its place overflows on residuals above 65,504,
    as the second part shows."""
    torch.manual_seed(0)
    given = laco_config(kind, [{"after_block": 1}])
    given.image_newline = True
    model = LacoForConditionalGeneration(given).eval()
    side, tokens = given.image_size, given.tokens_per_tile + 1
    inputs = {
        "input_ids": torch.tensor([[*[3] * tokens, 5]]),
        "pixel_values": torch.randn(1, 3, side, side),
    }
    expected = last_logits(model, inputs)
    found = last_logits(model.to(torch.bfloat16), inputs)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.02)
    residual = torch.tensor([7e4, -7e4])
    assert residual.to(torch.bfloat16).isfinite().all()
    assert not residual.to(torch.float16).isfinite().any()


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_sdpa_in_all_parts_and_agrees_with_eager(kind: str) -> None:
    torch.manual_seed(0)
    model = LacoForConditionalGeneration(laco_config(kind, [{"after_block": 2}])).eval()
    encoder, language = model.model.vision_encoder.tower, model.model.language_model
    for part in (model, encoder, language):
        assert part.config._attn_implementation == "sdpa"
    side = model.config.image_size
    inputs = {
        "input_ids": torch.tensor([[*[3] * model.config.tokens_per_tile, 5]]),
        "pixel_values": torch.randn(1, 3, side, side),
    }
    fused = last_logits(model, inputs)
    model.set_attn_implementation("eager")
    for part in (encoder, language):
        assert part.config._attn_implementation == "eager"
    torch.testing.assert_close(last_logits(model, inputs), fused, rtol=1e-4, atol=1e-5)


def test_recorded_hidden_states_are_of_one_length() -> None:
    """H8. Put back (hidden states of the encoder recorded with those of the language model, or
    image features taken from such a record by index) lengths mix: 64 patches before the merger, 16
    tokens behind it."""
    model, processor = parts()
    batch = processor(noise(1), "<image>\nWhere?", return_tensors="pt")
    plain = model.get_image_features(batch["pixel_values"])
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_attentions=True)
    length = batch["input_ids"].shape[1]
    layers = model.config.text.num_hidden_layers
    assert [tuple(state.shape[:2]) for state in output.hidden_states] == [(1, length)] * (
        layers + 1
    )
    assert len(output.attentions or ()) in (0, layers)  # sdpa keeps none
    model.config.output_hidden_states = model.config.vision.output_hidden_states = True
    again = model.get_image_features(batch["pixel_values"])
    assert again.shape == (1, 16, model.config.text.hidden_size)
    assert torch.equal(again, plain)


# The newline vector.


def test_newline_exists_only_where_the_configuration_says_so() -> None:
    plain = LacoForConditionalGeneration(config())
    assert plain.model.image_newline is None
    assert not [name for name in plain.state_dict() if "newline" in name]
    torch.manual_seed(0)
    wide = config(image_newline=True)
    wide.text.hidden_size = 1024
    wide.text.head_dim = 4
    newline = LacoForConditionalGeneration(wide).model.image_newline
    assert newline is not None
    assert newline.shape == (1024,)
    assert abs(float(newline.detach().std()) * 32 - 1) < 0.1  # N(0, 1 / sqrt(D))


def test_newline_and_mergers_are_saved_and_read_back(tmp_path: Path) -> None:
    """H3. Put back (only keys of the projector saved, or a newline that is no parameter) they come
    back as fresh ones."""
    model, _ = parts(image_newline=True)
    model.save_pretrained(tmp_path)
    again = LacoForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.model.image_newline, model.model.image_newline)
    old, new = model.model.vision_encoder.mergers, again.model.vision_encoder.mergers
    for one, other in zip(old.parameters(), new.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(list(old.parameters())) > 0


def test_newline_that_earlier_weights_lack_is_drawn_as_a_fresh_one(tmp_path: Path) -> None:
    # LLaVA's first stage has none; the next one starts from its weights.
    parts()[0].save_pretrained(tmp_path)
    later = LacoConfig.from_dict(
        {**LacoConfig.from_pretrained(tmp_path).to_dict(), "image_newline": True}
    )
    torch.manual_seed(0)
    model, info = LacoForConditionalGeneration.from_pretrained(
        tmp_path, config=later, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"model.image_newline"}
    assert 0.5 < float(model.model.image_newline.detach().std()) * 48**0.5 < 1.5


# Errors.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("num_tiles"), "image_sizes has 1 entries"),
        (
            lambda b: (b.pop("num_tiles"), b.pop("image_sizes")),
            "hold 52 image tokens, the images give 51",
        ),
        (lambda b: b.update(image_sizes=torch.tensor([[20, 20]])), "is cut into"),
        (lambda b: b.pop("image_sizes"), "its size is not given"),
        (lambda b: b.update(mm_encoder_outputs={"image": {}}), "both pixel_values and"),
        (lambda b: b.update(inputs_embeds=torch.zeros(1, 4, 48)), "both or neither"),
        (
            lambda b: (b.pop("input_ids"), b.update(inputs_embeds=torch.zeros(1, 4, 48))),
            "Give input_ids",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    model, processor = parts(image_mode="anyres", image_newline=True)
    batch = dict(processor(noise(1, 112, 56), "<image>ab", return_tensors="pt"))
    change(batch)
    with pytest.raises(ArgumentError, match=message):
        model(**batch)

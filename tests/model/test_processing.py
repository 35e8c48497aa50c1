"""`LacoProcessor`: the runtime's own pixels and ids, and what users of transformers expect."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import AutoImageProcessor, AutoProcessor, CLIPImageProcessorPil

from laco_deploy.model import LacoConfig, LacoImageProcessor, LacoProcessor
from laco_deploy.model.checkpoint import load_checkpoint
from laco_deploy.model.towers import TOWERS
from laco_deploy.training.tokenizer import IMAGE_TOKEN, train_tokenizer
from laco_runtimes.errors import ArgumentError, ImageError
from laco_runtimes.images import Preprocessing, load_image, normalise, preprocess
from laco_runtimes.prompt import encode_text, load_tokenizer
from laco_runtimes.tiling import cut_tiles, select_grid
from tests.bundles import IMAGE_SIZE, PROMPTS, make_random_checkpoint, random_config
from tests.model.older_checkpoint import rewrite_as_older

TINY = Path(__file__).parents[2] / "samples" / "laco-tiny"
PICTURE = TINY / "parity" / "00.png"
QUESTION = "How many dots are there in the picture?"


def tokenizer() -> Any:
    return train_tokenizer([*PROMPTS, "system user assistant You are a helpful assistant."])


def processor(**settings: Any) -> LacoProcessor:
    own = tokenizer()
    config = random_config(vocab_size=len(own))
    config.image_token_id = own.convert_tokens_to_ids(IMAGE_TOKEN)
    for name, value in settings.items():
        setattr(config, name, value)
    spec = Preprocessing(image_size=IMAGE_SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    return LacoProcessor.from_config(config, own, spec)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def image_tokens(batch: Any, ours: LacoProcessor) -> list[int]:
    return (batch["input_ids"] == ours.image_token_id).sum(1).tolist()


def chat(*content: Any) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]
    return [{"role": "user", "content": parts}]


# The same as a runtime.


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewrite_as_older(make_random_checkpoint(tmp_path_factory.mktemp("older") / "checkpoint"))


@pytest.fixture(scope="module", params=["shipped", "older"])
def folder(request: pytest.FixtureRequest, older: Path) -> Path:
    return TINY if request.param == "shipped" else older


def test_ids_and_pixels_are_those_of_the_runtime(folder: Path) -> None:
    ours, checkpoint = AutoProcessor.from_pretrained(folder), load_checkpoint(folder)
    messages = chat({"type": "image", "path": str(PICTURE)}, QUESTION)
    batch = ours.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    template, plain = checkpoint.template, load_tokenizer(folder / "tokenizer.json")
    counts = (checkpoint.config.tokens_per_tile,)
    expected = [*template.system, *template.turn(encode_text(plain, QUESTION), counts)]
    assert batch["input_ids"].tolist() == [expected]
    pixels = preprocess(load_image(PICTURE), checkpoint.preprocessing)
    assert np.array_equal(batch["pixel_values"].numpy(), pixels)


@pytest.mark.parametrize("kind", sorted(TOWERS))
def test_every_tower_gets_the_runtime_pixels_with_its_own_mean_and_std(kind: str) -> None:
    tower = TOWERS[kind]
    spec = Preprocessing(image_size=IMAGE_SIZE, mean=tower.mean, std=tower.std)
    ours = LacoImageProcessor(IMAGE_SIZE, image_mean=tower.mean, image_std=tower.std)
    image = noise(90, 41)
    found = ours(image, return_tensors="np")["pixel_values"]
    assert np.array_equal(found, preprocess(image, spec))


def test_nothing_at_the_border_is_lost() -> None:
    """H6. Put back (shortest edge and centre crop, as AIMv2's and InternViT's published processors
    do) the red strips at both ends of a wide image are gone, as the second part shows."""
    image = Image.new("RGB", (400, 100), "blue")
    for left in (0, 370):
        image.paste("red", (left, 0, left + 30, 100))
    plain = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    found = LacoImageProcessor(56, **plain)(image)["pixel_values"][0]
    assert found[0, :, 0].min() > 0.9
    assert found[0, :, -1].min() > 0.9
    crop = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=56, **plain)
    assert np.asarray(crop(image)["pixel_values"][0])[0].max() < 0.1


def test_no_torchvision_is_needed(older: Path) -> None:
    # With torchvision away, as on a machine without it.
    with mock.patch.dict(sys.modules, {"torchvision": None}):
        ours = AutoProcessor.from_pretrained(older)  # whose file names CLIP's own image processor
        assert type(ours.image_processor) is LacoImageProcessor
        batch = ours(noise(9, 9), "<image>", return_tensors="pt")
    assert batch["pixel_values"].dtype == torch.float32


# Images as users give them.


def test_an_image_may_come_in_many_forms(tmp_path: Path) -> None:
    ours = LacoImageProcessor(IMAGE_SIZE)
    image = noise(30, 20)
    image.save(tmp_path / "image.png")
    data, pixels = (tmp_path / "image.png").read_bytes(), np.asarray(image)
    expected = ours(image)["pixel_values"]
    for form in (
        str(tmp_path / "image.png"),
        tmp_path / "image.png",
        data,
        "data:image/png;base64," + base64.b64encode(data).decode(),
        pixels,
        pixels.transpose(2, 0, 1),
        torch.from_numpy(pixels.copy()),
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        pixels[None],
        [image],
        [[image]],
    ):
        assert np.array_equal(ours(form)["pixel_values"], expected), type(form)


def test_transparency_stands_on_white_as_in_the_runtime() -> None:
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    ours = LacoImageProcessor(IMAGE_SIZE, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    assert ours(image)["pixel_values"].min() == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("missing.png", "no image file"),
        (np.zeros((4, 4, 3)), "uint8"),
        ("data:image/png;base64,###", "not base64"),
    ],
)
def test_bad_images_are_refused(bad: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        LacoImageProcessor(IMAGE_SIZE)(bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ours: ours(noise(9, 9), do_center_crop=True), "do_center_crop = True"),
        (lambda ours: ours(noise(9, 9), crop_size=5), "crop_size = 5"),
        (lambda ours: ours(noise(9, 9), image_mode="any"), "unknown image_mode 'any'"),
        (lambda ours: ours([]), "neither text nor an image"),
        (lambda _: LacoImageProcessor({"height": 5, "width": 6}), "side of a square"),
        (lambda _: LacoImageProcessor({"shortest_edge": 0}), "side of a square"),
        (lambda _: LacoImageProcessor(56, do_resize=False), "do_resize = False"),
        (lambda _: LacoImageProcessor(56, image_mode="tiles"), "unknown image_mode"),
    ],
)
def test_options_that_would_not_be_honoured_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call(LacoImageProcessor(IMAGE_SIZE))


def test_steps_that_are_done_anyway_may_be_named() -> None:
    LacoImageProcessor(IMAGE_SIZE)(noise(9, 9), do_resize=True, do_center_crop=False)


def test_anyres_cuts_an_image_that_is_alone_in_its_prompt() -> None:
    ours = LacoImageProcessor(IMAGE_SIZE, "anyres")
    wide, small = noise(150, 60), noise(20, 20)
    found = ours([[wide], [wide, small]])
    rows, columns = select_grid((60, 150), IMAGE_SIZE)
    assert found["num_tiles"].tolist() == [1 + rows * columns, 1, 1]
    assert found["image_sizes"].tolist() == [[60, 150], [60, 150], [20, 20]]
    tiles = np.stack([normalise(t, ours.preprocessing) for t in cut_tiles(wide, IMAGE_SIZE)])
    assert np.array_equal(found["pixel_values"][:-2], tiles)
    assert ours([wide, small])["num_tiles"].tolist() == [1 + rows * columns, 2]  # two prompts
    assert ours([wide], image_mode="square")["num_tiles"].tolist() == [1]


# Text.


def test_marks_become_as_many_tokens_as_the_model_makes() -> None:
    ours = processor()
    batch = ours(noise(9, 9), "<image>\nWhat is it?", return_tensors="pt")
    ids = batch["input_ids"][0].tolist()
    assert ids[:16] == [ours.image_token_id] * 16
    assert ids[16:] == ours.tokenizer("\nWhat is it?")["input_ids"]
    again = ours(noise(9, 9), f"{IMAGE_TOKEN}\nWhat is it?", return_tensors="pt")
    assert torch.equal(again["input_ids"], batch["input_ids"])


def test_newlines_and_details_are_counted() -> None:
    ours = processor(image_mode="anyres", image_newline=True)
    # 2 x 1 tiles of 4 x 4 tokens: base, and 8 rows of 4 and a newline.
    batch = ours(noise(IMAGE_SIZE, 2 * IMAGE_SIZE), "<image>", return_tensors="pt")
    assert image_tokens(batch, ours) == [16 + 8 * 5]
    both = [noise(IMAGE_SIZE, 2 * IMAGE_SIZE), noise(9, 9)]
    batch = ours(both, "<image> and <image>", return_tensors="pt")
    assert image_tokens(batch, ours) == [2 * 17]  # several images: one tile each


def test_video_frames_are_tiles_with_one_newline_behind_them() -> None:
    frames = [noise(30, 20, seed) for seed in range(3)]
    ours = processor(image_newline=True, image_mode="anyres", video_pool_stride=2)
    for video in (frames, [frames], np.stack([np.asarray(frame) for frame in frames])):
        batch = ours(videos=video, text="<video>Where?", return_tensors="pt")
        assert image_tokens(batch, ours) == [3 * 4 + 1]
        assert batch["num_tiles"].tolist() == [3]
        assert batch["is_video"].tolist() == [True]
        assert batch["pixel_values"].shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_images_and_videos_follow_the_order_of_their_marks() -> None:
    ours = processor()
    first, last, frames = noise(9, 9, 1), noise(9, 9, 2), [noise(9, 9, 3), noise(9, 9, 4)]
    batch = ours([first, last], "<image>a<video>b<image>", frames, return_tensors="np")
    assert batch["num_tiles"].tolist() == [1, 2, 1]
    assert batch["is_video"].tolist() == [False, True, False]
    alone = [ours.image_processor(one)["pixel_values"] for one in (first, *frames, last)]
    assert np.array_equal(batch["pixel_values"], np.concatenate(alone))


def test_unlike_samples_make_one_batch() -> None:
    ours = processor()
    texts = ["<image>\nWhat is it?", "Where?", "<image><image>\nName the colour."]
    given = [[noise(9, 9, 1)], [], [noise(9, 9, 2), noise(9, 9, 3)]]
    batch = ours(given, texts, padding=True, return_tensors="pt")
    assert image_tokens(batch, ours) == [16, 0, 32]
    flat = ours([one for some in given for one in some], texts, padding=True, return_tensors="pt")
    assert all(torch.equal(flat[name], batch[name]) for name in batch)


def test_padding_is_left_to_generate_and_right_where_asked() -> None:
    ours = processor()
    texts = ["Where?", "How many dots are there in the picture?"]
    left = ours(text=texts, padding=True, return_tensors="pt")["attention_mask"][0]
    right = ours(text=texts, padding=True, padding_side="right", return_tensors="pt")
    assert (left[0], left[-1]) == (0, 1)
    assert right["attention_mask"][0].tolist() == left.flip(0).tolist()
    ours.tokenizer.padding_side = "right"
    assert ours(text=texts, padding=True)["attention_mask"][0][0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "<image>"}, "has 1 <image> marks, but 0 images"),
        ({"text": "What?", "images": noise(9, 9)}, "has 0 <image> marks, but 1 images"),
        ({"text": ["<image>", "a"], "images": [[], [noise(9, 9)]]}, r"\[1, 0\] <image> marks"),
        ({"text": "<video>", "images": noise(9, 9)}, "<image> marks"),
        ({"text": "<video>", "videos": "film.mp4"}, "list of its frames"),
        ({"text": "<video>", "videos": np.zeros((0, 9, 9, 3), np.uint8)}, "no frames"),
        ({"text": "a", "audio": [0.0]}, "audio"),
        ({"text": 5}, "list of strings"),
        ({}, "neither text nor an image"),
    ],
)
def test_impossible_prompts_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        processor()(**arguments)


def test_truncation_inside_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="Mismatch in `image` token count"):
        processor()(noise(9, 9), "<image>What?", truncation=True, max_length=8)


def test_pixels_alone_need_no_text() -> None:
    batch = processor()([noise(9, 9), noise(9, 9)], return_tensors="pt")
    assert sorted(batch) == ["image_sizes", "num_tiles", "pixel_values"]


def test_special_ids_are_looked_up_by_name() -> None:
    """H7. Put back (`start, end = tokenizer.additional_special_tokens_ids`, or the image token by
    its place among them) a tokenizer with more of them, as Qwen2.5's, breaks or gives wrong ids."""
    own = tokenizer()
    own.add_special_tokens(
        {"additional_special_tokens": ["<|vision_start|>", IMAGE_TOKEN, "<|box|>", "<|im_start|>"]}
    )
    own.add_tokens([AddedToken("<|last|>", special=True)])
    ours = LacoProcessor(LacoImageProcessor(IMAGE_SIZE), own, merged_grid=(4, 4))
    assert ours.image_token_id == own.get_vocab()[IMAGE_TOKEN]
    batch = ours(noise(9, 9), "<image>", return_tensors="pt")
    assert batch["input_ids"].tolist() == [[ours.image_token_id] * 16]


# Chats.


def test_dialogue_without_system_turn_gets_that_of_llava() -> None:
    ours = processor()
    default = ours.apply_chat_template(chat("Where?"), add_generation_prompt=True)
    assert default == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    )
    own = [{"role": "system", "content": "Be short."}, *chat("Where?")]
    assert ours.apply_chat_template(own).startswith("<|im_start|>system\nBe short.<|im_end|>")
    assert ours.apply_chat_template([{"role": "user", "content": "Where?"}]) in default


def test_a_single_image_goes_to_the_front_of_its_turn_and_several_stay() -> None:
    ours, image, video = processor(), {"type": "image"}, {"type": "video"}
    mark = f"{IMAGE_TOKEN}\n"
    for content, expected in (
        (("Name it: ", image), f"{mark}Name it: "),
        (("Watch: ", video), "<video>\nWatch: "),
        ((image, "and", image), f"{mark}and{mark}"),
        (("a ", image, "b ", video), f"a {mark}b <video>\n"),
    ):
        text = ours.apply_chat_template(chat(*content))
        assert f"user\n{expected}<|im_end|>" in text


def test_turns_follow_one_another_as_in_the_runtime(folder: Path) -> None:
    ours, checkpoint = AutoProcessor.from_pretrained(folder), load_checkpoint(folder)
    plain, template = load_tokenizer(folder / "tokenizer.json"), checkpoint.template
    messages = [
        *chat({"type": "image"}, "What is it?"),
        {"role": "assistant", "content": "A dot"},
        *chat("Where?"),
    ]
    text = ours.apply_chat_template(messages, add_generation_prompt=True)
    expected = [
        *template.system,
        *template.turn(encode_text(plain, "What is it?"), (1,)),
        *encode_text(plain, "A dot"),
        *template.assistant_close,
        *template.turn(encode_text(plain, "Where?")),
    ]
    assert ours.tokenizer(text)["input_ids"] == expected


def test_batches_of_chats_with_images_and_frames() -> None:
    ours = processor(image_newline=True)
    frames = [noise(9, 9, 1), noise(9, 9, 2)]
    chats = [
        chat({"type": "image", "image": noise(9, 9)}, "Where?"),
        chat("Where?"),
        chat({"type": "video", "video": frames}, "Where?"),
    ]
    batch = ours.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    assert image_tokens(batch, ours) == [17, 0, 33]
    assert batch["is_video"].tolist() == [False, True]


# Files.


def test_processor_comes_back_through_the_auto_classes(tmp_path: Path) -> None:
    settings = {
        "image_mode": "anyres",
        "image_newline": True,
        "max_tiles": 4,
        "video_pool_stride": 2,
    }
    ours = processor(**settings)
    LacoConfig(mergers=[]).save_pretrained(tmp_path)  # says which class; its sizes are not read
    ours.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(again, LacoProcessor)
    assert again.to_dict() == ours.to_dict()
    assert again.token_layout == ours.token_layout
    given = (noise(150, 90), "<image>\nWhere?")
    one, other = ours(*given, return_tensors="pt"), again(*given, return_tensors="pt")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_checkpoint_folder_holds_the_processor(tmp_path: Path) -> None:
    folder = make_random_checkpoint(tmp_path / "checkpoint")
    ours = AutoProcessor.from_pretrained(folder)
    assert isinstance(ours, LacoProcessor)
    for backend in ("pil", "torchvision"):
        assert isinstance(
            AutoImageProcessor.from_pretrained(folder, backend=backend), (LacoImageProcessor)
        )
    checkpoint = load_checkpoint(folder)
    assert ours.image_processor.preprocessing == checkpoint.preprocessing
    assert ours.token_layout == checkpoint.config.token_layout
    stated = json.loads((folder / "generation_config.json").read_text())
    assert stated["eos_token_id"] == list(checkpoint.template.stop)
    # As transformers alone would write it: everything in one file.
    (folder / "preprocessor_config.json").unlink()
    assert load_checkpoint(folder).preprocessing == checkpoint.preprocessing


def test_a_processor_needs_what_only_a_checkpoint_knows() -> None:
    own = tokenizer()
    with pytest.raises(ArgumentError, match="merged_grid"):
        LacoProcessor(LacoImageProcessor(IMAGE_SIZE), own)
    with pytest.raises(ArgumentError, match="no <other> token"):
        LacoProcessor(
            LacoImageProcessor(IMAGE_SIZE), own, image_token="<other>", merged_grid=(4, 4)
        )
    with pytest.raises(ArgumentError, match="states no size"):
        LacoProcessor(None, own, merged_grid=(4, 4))
    with pytest.raises(ArgumentError, match="no token 9999"):
        processor(image_token_id=9999)

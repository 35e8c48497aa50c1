"""A folder that transformers.js v4 loads as a LLaVA model, in Node and in a browser.

Facts about it: transformers.js 4.3 src/models/llava, src/models/modeling_utils.js and
src/utils/model-loader.js. It takes the decoder's inputs by name, so `contrib` runs as it is.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxscript import ir

from laco_export.layouts.base import (
    TOKENIZER_CONFIG,
    Layout,
    chat_template,
    read_tokenizer,
    token_text,
    write_json,
)
from laco_runtimes.manifest import TOKENIZER_NAME

if TYPE_CHECKING:
    from laco_export.targets.base import FinishRequest

DTYPES = {
    "fp32": ("fp32", ""),
    "fp16": ("fp16", "_fp16"),
    "int8": ("int8", "_int8"),
    "int8w": ("int8", "_int8"),
    "int4": ("q4", "_q4"),
}
"""Name of a precision in transformers.js, and what it adds to the name of a file."""

LANCZOS = 1
"""With `bicubic` transformers.js does not smooth what it scales down; this it does smooth, which is
nearer to the bicubic of training (and nothing is resized at all if the image has the size)."""


def write(layout: Layout, request: FinishRequest) -> None:
    """Graphs, configurations and tokenizer."""
    folder, facts = request.root / layout.name, request.facts
    graphs = layout.bring(request)
    _name_batch(graphs["decoder"])
    tokenizer, _, tokenizer_config = read_tokenizer(request.root)
    image_token = token_text(tokenizer, request.prompt.image_token_id)
    stop, pad = list(request.prompt.stop), request.prompt.stop[-1]
    dtypes = {
        name: DTYPES[facts.precision[module]][0]
        for module, name in {
            "vision_encoder": "vision_encoder",
            "embed_tokens": "embed_tokens",
            "decoder": "decoder_model_merged",
        }.items()
    }
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": request.prompt.image_token_id,
            "image_token_id": request.prompt.image_token_id,
            "text_config": _text_config(request),
            "vision_config": {
                "model_type": "clip_vision_model",
                "image_size": facts.vision.image_size,
                "patch_size": facts.vision.patch_size,
            },
            "transformers.js_config": {
                "dtype": dtypes,
                "use_external_data_format": {
                    path.name: path.with_name(f"{path.name}_data").is_file()
                    for path in graphs.values()
                },
            },
        },
    )
    write_json(
        folder / "generation_config.json",
        {
            "eos_token_id": stop,
            "pad_token_id": pad,
            "do_sample": False,
            "max_length": facts.language.max_positions,
        },
    )
    _write_processor(request, layout, image_token)
    shutil.copyfile(request.root / TOKENIZER_NAME, folder / TOKENIZER_NAME)
    template = chat_template(request.prompt, tokenizer)
    write_json(
        folder / TOKENIZER_CONFIG,
        {
            **tokenizer_config,
            "tokenizer_class": "Qwen2Tokenizer",
            "add_bos_token": False,
            "chat_template": template,
        },
    )


def _name_batch(path: Path) -> None:
    """Call the rows of the cache what transformers.js knows them by: it makes the empty one."""
    model = ir.load(path)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None:
            names = [getattr(dim, "value", dim) for dim in value.shape]
            value.shape = ir.Shape(["batch_size" if one == "batch" else one for one in names])
    ir.save(model, path)  # weights stay where they are


def _text_config(request: FinishRequest) -> dict[str, Any]:
    language = request.facts.language
    return {
        "model_type": "qwen2",
        "hidden_size": language.hidden_size,
        "num_hidden_layers": language.layers,
        "num_attention_heads": language.heads,
        "num_key_value_heads": language.kv_heads,
        "head_dim": language.head_dim,
        "vocab_size": language.vocab_size,
        "max_position_embeddings": language.max_positions,
    }


def _write_processor(request: FinishRequest, layout: Layout, image_token: str) -> None:
    """What tells transformers.js how many image tokens a prompt holds: a formula of the patch.

    Merging makes the patch larger; what the formula does not reach is added.
    """
    folder, spec = request.root / layout.name, request.preprocessing
    main = request.variants[0]
    patch = spec.image_size // main.merged_grid[0]
    size = {"height": spec.image_size, "width": spec.image_size}
    write_json(
        folder / "preprocessor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": size,
            "resample": LANCZOS,
            "do_center_crop": False,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(spec.mean),
            "image_std": list(spec.std),
        },
    )
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": image_token,
            "patch_size": patch,
            "num_additional_image_tokens": main.tokens_per_tile - (spec.image_size // patch) ** 2,
            "vision_feature_select_strategy": "full",
        },
    )


LAYOUT = Layout(
    name="transformersjs",
    graphs={
        "vision_encoder": "onnx/vision_encoder{dtype}.onnx",
        "embed_tokens": "onnx/embed_tokens{dtype}.onnx",
        "decoder": "onnx/decoder_model_merged{dtype}.onnx",
    },
    dtypes={name: suffix for name, (_, suffix) in DTYPES.items()},
    write=write,
)

__all__ = ["LAYOUT"]

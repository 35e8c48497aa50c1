"""A folder that onnxruntime-genai loads, from 0.14: a model of type `videochat_flash_qwen`.

That is its type of a fixed number of visual tokens per image and plain positions. Facts about it:
src/models/videochat_flash_processor.cpp, multi_modal.cpp and multi_modal_features.cpp of 0.18.
It wants images marked by `<|vision_start|>` and `<|vision_end|>`, which our prompts do not have. So
the template writes them in the place of the two line breaks around an image, and the graph of the
embeddings reads them as those: what reaches the decoder is our prompt, token for token.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnxscript import ir

from laco_export.layouts.base import (
    TOKENIZER_CONFIG,
    Layout,
    chat_template,
    read_tokenizer,
    write_json,
)
from laco_runtimes.errors import ExportError
from laco_runtimes.manifest import TOKENIZER_NAME

if TYPE_CHECKING:
    from laco_export.targets.base import FinishRequest

TYPE = "videochat_flash_qwen"
IMAGE, START, END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
"""Text of tokens that the type knows by these names."""

PROCESSOR = "processor_config.json"


def write(layout: Layout, request: FinishRequest) -> None:
    """Graphs, configurations and tokenizer.

    Raises:
        ExportError: a prompt that cannot be written in the marks of the type.
    """
    folder = request.root / layout.name
    graphs = layout.bring(request)
    marks = _write_tokenizer(request, folder)
    _write_vision(graphs["vision_encoder"], folder / "vision.onnx", request)
    _write_embedding(graphs["embed_tokens"], folder / "embedding.onnx", request, marks)
    write_json(folder / "genai_config.json", _config(request, graphs["decoder"]))
    write_json(folder / PROCESSOR, _processor(request))


def _write_tokenizer(request: FinishRequest, folder: Path) -> dict[str, int]:
    """Write the tokenizer with the marks, and say which ids they have."""
    prompt = request.prompt
    if len(prompt.after_image) != 1:
        raise ExportError(
            "behind an image the prompt has no single token, which onnxruntime-genai needs. "
            "Leave the layout onnxruntime-genai out."
        )
    tokenizer, content, config = read_tokenizer(request.root)
    added: list[dict[str, Any]] = content["added_tokens"]
    if (own := tokenizer.token_to_id(IMAGE)) not in (None, prompt.image_token_id):
        raise ExportError(
            f"{IMAGE} is token {own} of the tokenizer and not the model's image token, which "
            "onnxruntime-genai knows by that name. Leave the layout onnxruntime-genai out."
        )
    for token in added:
        if token["id"] == prompt.image_token_id:
            token["content"] = IMAGE
    free = max(tokenizer.get_vocab_size(with_added_tokens=True), request.facts.language.vocab_size)
    marks: dict[str, int] = {}
    for mark in (START, END):
        marks[mark] = tokenizer.token_to_id(mark) or free + len(marks)
        if tokenizer.token_to_id(mark) is None:
            added.append(
                {
                    "id": marks[mark],
                    "content": mark,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            )
    write_json(folder / TOKENIZER_NAME, content)
    # The break before an image is the last token of the opening: the first mark stands for it.
    opening = tokenizer.decode([prompt.user_open[-1]], skip_special_tokens=False)
    template = chat_template(prompt, tokenizer, image=START + END)
    template = _without_break(template, tokenizer.decode(list(prompt.user_open), False), opening)
    known = {key: value for key, value in config.items() if key != "extra_special_tokens"}
    write_json(
        folder / TOKENIZER_CONFIG,
        {**known, "tokenizer_class": "Qwen2Tokenizer", "chat_template": template},
    )
    return marks


def _without_break(template: str, opening: str, last: str) -> str:
    """A turn with an image opens without its last token."""
    import json

    whole, short = json.dumps(opening), json.dumps(opening.removesuffix(last))
    images = (
        "message['content'] is not string and "
        "message['content'] | selectattr('type', 'equalto', 'image') | list | length > 0"
    )
    return template.replace(
        "{{ " + whole + " }}", "{{ " + short + " if " + images + " else " + whole + " }}"
    )


def _write_vision(source: Path, out: Path, request: FinishRequest) -> None:
    """[1, images, 3, S, S] -> [images * N', D]; the weights are those of `source`, beside it."""
    model = ir.load(source)
    graph = model.graph
    [pixels], [features] = graph.inputs, graph.outputs
    size, width = request.preprocessing.image_size, request.facts.language.hidden_size
    given = ir.val(str(pixels.name), dtype=ir.DataType.FLOAT, shape=[1, "images", 3, size, size])
    pixels.name = "pixel_values_4d"
    squeeze = ir.node("Squeeze", [given, _integers(graph, "outer_axis", 0)])
    ir.convenience.replace_all_uses_with(pixels, squeeze.outputs[0])
    graph.inputs[0] = given
    first = next(iter(graph), None)
    if first is not None:
        graph.insert_before(first, squeeze)
    flat = ir.node("Reshape", [features, _integers(graph, "flat_shape", -1, width)])
    name, features.name = features.name, "image_features_3d"
    flat.outputs[0].name = name
    flat.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    flat.outputs[0].shape = ir.Shape(["image_tokens", width])
    graph.append(flat)
    graph.outputs[0] = flat.outputs[0]
    ir.save(model, out)


def _write_embedding(
    source: Path, out: Path, request: FinishRequest, marks: dict[str, int]
) -> None:
    """Ids and visual tokens to the embeddings of a prompt; marks are read as line breaks.

    `image_features` is [image tokens, D], with none of them after the prompt.
    """
    model = ir.load(source)
    graph, prompt = model.graph, request.prompt
    [ids], [embeds] = graph.inputs, graph.outputs
    features = ir.val(
        "image_features",
        dtype=ir.DataType.FLOAT,
        shape=["image_tokens", request.facts.language.hidden_size],
    )
    before: list[ir.Node] = []
    last = ids
    for mark, index in ((START, prompt.user_open[-1]), (END, prompt.after_image[0])):
        is_mark = ir.node("Equal", [ids, _integers(graph, f"{mark} id", marks[mark], scalar=True)])
        instead = _integers(graph, f"{mark} read as", index, scalar=True)
        chosen = ir.node("Where", [is_mark.outputs[0], instead, last])
        before += [is_mark, chosen]
        last = chosen.outputs[0]
    for node in list(graph):
        for position, value in enumerate(node.inputs):
            if value is ids:
                node.replace_input_with(position, last)
    graph.insert_before(next(iter(graph)), before)

    image = _integers(graph, "image_token", prompt.image_token_id, scalar=True)
    is_image = ir.node("Equal", [ids, image])
    places = ir.node("NonZero", [is_image.outputs[0]])  # [2, places]
    rows = ir.node("Transpose", [places.outputs[0]], {"perm": [1, 0]})
    # An image token that the model itself says has no features, and stays as it is.
    count = ir.node("Shape", [features], {"start": 0, "end": 1})
    zero = _integers(graph, "zero", 0)
    taken = ir.node("Slice", [rows.outputs[0], zero, count.outputs[0], zero])
    spliced = ir.node("ScatterND", [embeds, taken.outputs[0], features])
    name, embeds.name = embeds.name, "text_embeds"
    out_value = spliced.outputs[0]
    out_value.name, out_value.shape, out_value.type = name, embeds.shape, embeds.type
    graph.extend([is_image, places, rows, count, taken, spliced])
    graph.inputs.append(features)
    graph.outputs[0] = out_value
    ir.save(model, out)


def _integers(graph: ir.Graph, name: str, *values: int, scalar: bool = False) -> ir.Value:
    array = np.array(values[0] if scalar else values, np.int64)
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _config(request: FinishRequest, decoder: Path) -> dict[str, Any]:
    language, main = request.facts.language, request.variants[0]
    return {
        "model": {
            "type": TYPE,
            "context_length": language.max_positions,
            "vocab_size": language.vocab_size,
            "eos_token_id": list(request.prompt.stop),
            "pad_token_id": request.prompt.stop[-1],
            "image_token_id": request.prompt.image_token_id,
            "vision": {
                "filename": "vision.onnx",
                "config_filename": PROCESSOR,
                "num_visual_tokens": main.tokens_per_tile,
                "inputs": {"pixel_values": "pixel_values"},
                "outputs": {"image_features": "image_features"},
            },
            "embedding": {
                "filename": "embedding.onnx",
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": {"inputs_embeds": "inputs_embeds"},
            },
            "decoder": {
                "filename": decoder.name,
                "hidden_size": language.hidden_size,
                "num_hidden_layers": language.layers,
                "num_attention_heads": language.heads,
                "num_key_value_heads": language.kv_heads,
                "head_size": language.head_dim,
                "session_options": {"provider_options": []},
                "inputs": {
                    "inputs_embeds": "inputs_embeds",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "num_beams": 1,
            "max_length": language.max_positions,
            "past_present_share_buffer": True,
        },
    }


def _processor(request: FinishRequest) -> dict[str, Any]:
    spec = request.preprocessing
    steps: list[tuple[str, dict[str, Any]]] = [
        ("DecodeImage", {"color_space": "RGB"}),
        (
            "Resize",
            {
                "interpolation": "CUBIC",
                "keep_aspect_ratio": 0,
                "width": spec.image_size,
                "height": spec.image_size,
            },
        ),
        ("Rescale", {"rescale_factor": 1 / 255}),
        ("Normalize", {"mean": list(spec.mean), "std": list(spec.std)}),
        ("Permute3D", {"dims": [2, 0, 1]}),
    ]
    return {
        "processor": {
            "name": "laco_image_processor",
            "transforms": [
                {"operation": {"name": kind.lower(), "type": kind, "attrs": attributes}}
                for kind, attributes in steps
            ],
        }
    }


LAYOUT = Layout(
    name="onnxruntime-genai",
    graphs={
        "vision_encoder": "vision_encoder.onnx",
        "embed_tokens": "embed_tokens.onnx",
        "decoder": "model.onnx",
    },
    dtypes=dict.fromkeys(("fp32", "fp16", "bf16", "int8", "int8w", "int4"), ""),
    write=write,
)

__all__ = ["LAYOUT"]

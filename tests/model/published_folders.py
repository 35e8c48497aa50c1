"""Folders as they are published, and the arithmetic of the code published beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipConfig, SiglipModel

from tests.model.tower_samples import BLOCKS, HEADS, WIDTH, randomize, vision_config

WEIGHTS = "model.safetensors"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a folder in place."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def write_folder(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    save_file(weights, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config))


def siglip_folder(folder: Path, blocks: int = BLOCKS) -> SiglipModel:
    """As google/siglip-*: text tower, image tower, head and scale in one file."""
    text = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "vocab_size": 50,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    image = vision_config("siglip_vision_model", blocks).to_dict()
    model: SiglipModel = randomize(SiglipModel(SiglipConfig(text_config=text, vision_config=image)))
    model.save_pretrained(folder)
    return model


def language_model(**settings: Any) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        vocab_size=50,
        **{"tie_word_embeddings": True, **settings},
    )
    model: Qwen2ForCausalLM = randomize(Qwen2ForCausalLM(config))
    return model


# The arithmetic of the published code on tensors under its own names, written from its layer
# definitions: an encoder that was renamed wrongly cannot agree with it.


def draw(shapes: dict[str, tuple[int, ...]], scale: float = 0.3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}


def fused_attention(tokens: Tensor, qkv: Tensor, heads: int = HEADS) -> Tensor:
    """Attention whose queries, keys and values lie in one matrix, in this order."""
    batch, length, width = tokens.shape
    query, key, value = qkv.reshape(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-2, -1) / math.sqrt(width // heads)
    return (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)


def intern_vision_weights(
    blocks: int = BLOCKS,
    *,
    width: int = WIDTH,
    inner: int = 48,
    patch: int = 7,
    side: int = 8,
    scale: float = 0.3,
) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (1, 1, width),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.patch_embedding.bias": (width,),
        "embeddings.position_embedding": (1, side * side + 1, width),
    }
    for number in range(blocks):
        at = f"encoder.layers.{number}."
        shapes |= {
            at + "attn.qkv.weight": (3 * width, width),
            at + "attn.qkv.bias": (3 * width,),
            at + "attn.proj.weight": (width, width),
            at + "attn.proj.bias": (width,),
            at + "mlp.fc1.weight": (inner, width),
            at + "mlp.fc1.bias": (inner,),
            at + "mlp.fc2.weight": (width, inner),
            at + "mlp.fc2.bias": (width,),
            **{f"{at}norm{i}.{part}": (width,) for i in (1, 2) for part in ("weight", "bias")},
            **{f"{at}ls{i}": (width,) for i in (1, 2)},
        }
    return draw(shapes, scale)


def intern_vision_forward(w: dict[str, Tensor], images: Tensor, heads: int = HEADS) -> Tensor:
    """[B, 3, S, S] -> [B, N, C], CLS dropped."""
    at = "embeddings.patch_embedding."
    width, _, patch, _ = w[at + "weight"].shape
    patches = functional.conv2d(images, w[at + "weight"], w[at + "bias"], stride=patch)
    tokens = patches.flatten(2).transpose(1, 2)
    cls = w["embeddings.class_embedding"].expand(len(images), 1, -1)
    tokens = torch.cat([cls, tokens], dim=1) + w["embeddings.position_embedding"]
    for number in range(sum(name.endswith("ls1") for name in w)):
        at = f"encoder.layers.{number}."

        def linear(x: Tensor, name: str, at: str = at) -> Tensor:
            return functional.linear(x, w[f"{at}{name}.weight"], w[f"{at}{name}.bias"])

        def norm(x: Tensor, name: str, at: str = at) -> Tensor:
            weight, bias = w[f"{at}{name}.weight"], w[f"{at}{name}.bias"]
            return functional.layer_norm(x, (width,), weight, bias, eps=1e-6)

        seen = norm(tokens, "norm1")
        attended = linear(fused_attention(seen, linear(seen, "attn.qkv"), heads), "attn.proj")
        tokens = tokens + attended * w[at + "ls1"]
        inner = functional.gelu(linear(norm(tokens, "norm2"), "mlp.fc1"))
        tokens = tokens + linear(inner, "mlp.fc2") * w[at + "ls2"]
    return tokens[:, 1:]


INTERN_VISION_CONFIG = {
    "architectures": ["InternVisionModel"],
    "auto_map": {"AutoModel": "modeling_intern_vit.InternVisionModel"},
    "attention_dropout": 0.0,
    "drop_path_rate": 0.1,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": WIDTH,
    "image_size": 56,
    "initializer_factor": 1.0,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-6,
    "model_type": "intern_vit_6b",
    "norm_type": "layer_norm",
    "num_attention_heads": HEADS,
    "num_channels": 3,
    "num_hidden_layers": BLOCKS,
    "patch_size": 7,
    "qk_normalization": False,
    "qkv_bias": True,
    "torch_dtype": "bfloat16",
    "use_flash_attn": True,
}


def ml_aim_weights() -> dict[str, Tensor]:
    inner = 48
    shapes: dict[str, tuple[int, ...]] = {
        "preprocessor.pos_embed": (1, 64, WIDTH),
        "preprocessor.patchifier.proj.weight": (WIDTH, 3, 7, 7),
        "preprocessor.patchifier.proj.bias": (WIDTH,),
        "preprocessor.patchifier.norm.weight": (WIDTH,),
        "trunk.post_trunk_norm.weight": (WIDTH,),
    }
    for number in range(BLOCKS):
        at = f"trunk.blocks.{number}."
        shapes |= {
            at + "attn.qkv.weight": (3 * WIDTH, WIDTH),
            at + "attn.proj.weight": (WIDTH, WIDTH),
            at + "mlp.fc1.weight": (inner, WIDTH),
            at + "mlp.fc2.weight": (WIDTH, inner),
            at + "mlp.fc3.weight": (inner, WIDTH),
            at + "norm_1.weight": (WIDTH,),
            at + "norm_2.weight": (WIDTH,),
        }
    return draw(shapes)


def ml_aim_forward(w: dict[str, Tensor], images: Tensor) -> Tensor:
    """[B, 3, 56, 56] -> [B, 64, C]."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.rms_norm(x, (WIDTH,), w[name + ".weight"], eps=1e-5)

    at = "preprocessor.patchifier."
    patches = functional.conv2d(images, w[at + "proj.weight"], w[at + "proj.bias"], stride=7)
    tokens = norm(patches.flatten(2).transpose(1, 2), at + "norm") + w["preprocessor.pos_embed"]
    for number in range(BLOCKS):
        at = f"trunk.blocks.{number}."
        seen = norm(tokens, at + "norm_1")
        attended = fused_attention(seen, seen @ w[at + "attn.qkv.weight"].T)
        tokens = tokens + attended @ w[at + "attn.proj.weight"].T
        seen = norm(tokens, at + "norm_2")
        gate = functional.silu(seen @ w[at + "mlp.fc1.weight"].T)
        inner = gate * (seen @ w[at + "mlp.fc3.weight"].T)
        tokens = tokens + inner @ w[at + "mlp.fc2.weight"].T
    return norm(tokens, "trunk.post_trunk_norm")


ML_AIM_CONFIG = {
    "architectures": ["AIMv2Model"],
    "auto_map": {"AutoModel": "modeling_aimv2.AIMv2Model"},
    "hidden_size": WIDTH,
    "image_size": 56,
    "intermediate_size": 48,
    "model_type": "aimv2",
    "num_attention_heads": HEADS,
    "num_channels": 3,
    "num_hidden_layers": BLOCKS,
    "patch_size": 7,
    "projection_dropout": 0.0,
    "qkv_bias": False,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
    "use_bias": False,
}

"""Qwen2 weights of a Hugging Face folder as one GGUF file.

python -m samples.peers.workers.write_gguf weights/ out.gguf Q8_0

llama.cpp's own converter looks for a tokenizer that it knows; a model of random weights has none,
so the file says that it has no vocabulary and is asked in token ids. Matrices are in the type that
is named; embeddings, which are the head as well, in Q8_0; norms and biases in fp32. Names of
tensors and keys are those of gguf's own tables (`MODEL_ARCH.QWEN2`).
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = "Q8_0"

NAMES: Mapping[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""transformers' modules, inside of a layer where there are many, and GGUF's."""

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def gguf_name(name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`.

    Raises:
        ValueError: no such tensor is known.
    """
    module, _, kind = name.rpartition(".")
    found = LAYER.fullmatch(module)
    inner, place = (found[2], f"blk.{found[1]}.") if found else (module, "")
    if inner not in NAMES:
        raise ValueError(f"{name!r} is not a tensor of Qwen2")
    return f"{place}{NAMES[inner]}.{kind}"


def write(folder: Path, out: Path, kind: str) -> None:
    """Write `out` whole or not at all.

    Args:
        folder: with `config.json` and `model.safetensors` in fp32, head and embeddings tied.
        out: `.gguf`.
        kind: name of a `gguf.GGMLQuantizationType` that gguf can quantise to.
    """
    gguf: Any = importlib.import_module("gguf")
    config = json.loads((folder / "config.json").read_text())
    tensors: Mapping[str, Any] = importlib.import_module("safetensors.numpy").load_file(
        folder / "model.safetensors"
    )
    part = out.with_name(f"{out.name}.part")
    writer = gguf.GGUFWriter(part, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, values in tensors.items():
        if name == "lm_head.weight":
            continue  # tied
        new = gguf_name(name)
        wanted = HEAD if new == "token_embd.weight" else kind
        kind_of = gguf.GGMLQuantizationType[wanted if values.ndim == 2 else "F32"]
        writer.add_tensor(new, gguf.quants.quantize(values, kind_of), raw_dtype=kind_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(out)


def main(arguments: Sequence[str]) -> int:
    folder, out, kind = arguments
    write(Path(folder), Path(out), kind)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

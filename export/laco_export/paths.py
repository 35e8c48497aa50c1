"""Where the fp32 graphs of a bundle are written."""

from __future__ import annotations

from laco_runtimes.graphs import DecoderForm, FlavourName
from laco_runtimes.manifest import MAIN_VARIANT

SOURCE_FLAVOUR: FlavourName = "stateful"
"""The decoder that is the reference, and the source of all other flavours."""


def encoder_folder(variant: str) -> str:
    """Folder of the encoder of a variant."""
    return "onnx" if variant == MAIN_VARIANT else f"baseline/{variant}"


def decoder_stem(flavour: FlavourName) -> str:
    """Name of the decoder's file without its suffix."""
    return "decoder" if flavour == SOURCE_FLAVOUR else f"decoder_{flavour}"


def decoder_path(form: DecoderForm) -> str:
    """Path of the decoder in the flavour of an engine."""
    return f"onnx/{decoder_stem(form.flavour)}.onnx"


__all__ = ["SOURCE_FLAVOUR", "decoder_path", "decoder_stem", "encoder_folder"]

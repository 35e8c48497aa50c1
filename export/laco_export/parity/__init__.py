"""Does the exported engine answer as the PyTorch model does? A ladder, so that an error is located.

1. Pixels of the runtime against those of the checkpoint's own processor (`preprocessing`).
2. The fp32 ONNX graphs against PyTorch, also step by step behind the KV cache (`onnx`).
3. The target engine against the fp32 ONNX graphs: its visual tokens (`vision_encoder`), then logits
   and answers (`language`).

Limits are in `thresholds.ROWS`, by precision.
"""

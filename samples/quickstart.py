"""The ten lines: ask a bundle about an image.

python samples/quickstart.py engine/ samples/images/digit_single.png "What digit is this?"
"""

import sys

from laco_deploy import Pipeline

engine, image, prompt = sys.argv[1:]
pipeline = Pipeline(engine)
reply = pipeline.chat(image, prompt)
print(reply)
print(f"{reply.visual_tokens} visual tokens, first token after {reply.timings.ttft_ms:.0f} ms")

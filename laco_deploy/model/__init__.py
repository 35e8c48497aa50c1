"""The model: transformers classes with LaCo between the encoder's blocks.

Importing this package registers them with the Auto classes of transformers, and with that its
`image-text-to-text` pipeline.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from laco_deploy.model.config import LacoConfig
from laco_deploy.model.merger_spec import MergerSpec
from laco_deploy.model.modeling import LacoForConditionalGeneration, LacoModel
from laco_deploy.model.processing import LacoImageProcessor, LacoProcessor

AutoConfig.register("laco", LacoConfig)
AutoModelForImageTextToText.register(LacoConfig, LacoForConditionalGeneration)
# One class for both backends: with torchvision installed, transformers would ask for the other.
AutoImageProcessor.register(
    LacoConfig,
    image_processor_classes={"pil": LacoImageProcessor, "torchvision": LacoImageProcessor},
)
AutoProcessor.register(LacoConfig, LacoProcessor)

__all__ = [
    "LacoConfig",
    "LacoForConditionalGeneration",
    "LacoImageProcessor",
    "LacoModel",
    "LacoProcessor",
    "MergerSpec",
]

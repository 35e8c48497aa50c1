"""The model: transformers classes with LaCo between the encoder's blocks.

Importing this package registers them with the Auto classes of transformers.
"""

from transformers import AutoConfig, AutoModelForImageTextToText

from laco_deploy.model.config import LacoConfig, MergerSpec
from laco_deploy.model.modeling import LacoForConditionalGeneration, LacoModel

AutoConfig.register("laco", LacoConfig)
AutoModelForImageTextToText.register(LacoConfig, LacoForConditionalGeneration)

__all__ = ["LacoConfig", "LacoForConditionalGeneration", "LacoModel", "MergerSpec"]

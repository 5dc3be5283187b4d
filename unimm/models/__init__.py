"""The models that a user loads, their configs and processors."""

from .building import build_config, build_model
from .conditional_generation import UniMMConditionalConfig, UniMMForConditionalGeneration
from .image_generation import UniMMForImageGeneration, UniMMImageGenerationConfig
from .image_options import ImageOptions
from .image_sampling import GenerateImageOutput
from .processing import UniMMImageProcessor, UniMMProcessor, word_tokenizer

__all__ = [
    "GenerateImageOutput",
    "ImageOptions",
    "UniMMConditionalConfig",
    "UniMMForConditionalGeneration",
    "UniMMForImageGeneration",
    "UniMMImageGenerationConfig",
    "UniMMImageProcessor",
    "UniMMProcessor",
    "build_config",
    "build_model",
    "word_tokenizer",
]

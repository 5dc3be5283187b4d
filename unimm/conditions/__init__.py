"""What steers a generation: classes and texts; each becomes a `Condition`. And the text encoders that read prompts."""

from .base import Condition, Conditioner, stack_conditions
from .class_label import ClassCondition, ClassConditionConfig
from .pooled_text import PooledTextCondition, PooledTextConditionConfig
from .text import TextCondition, TextConditionConfig
from .text_cache import CachedTextEncoder
from .text_encoder import TextEncoder, TextEncoderConfig, TextFeatures

__all__ = [
    "CachedTextEncoder",
    "ClassCondition",
    "ClassConditionConfig",
    "Condition",
    "Conditioner",
    "PooledTextCondition",
    "PooledTextConditionConfig",
    "TextCondition",
    "TextConditionConfig",
    "TextEncoder",
    "TextEncoderConfig",
    "TextFeatures",
    "stack_conditions",
]

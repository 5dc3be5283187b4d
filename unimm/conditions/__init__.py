"""What steers a generation: classes and text features; each becomes a `Condition`."""

from .base import Condition, Conditioner, stack_conditions
from .class_label import ClassCondition, ClassConditionConfig
from .text import TextCondition, TextConditionConfig

__all__ = [
    "ClassCondition",
    "ClassConditionConfig",
    "Condition",
    "Conditioner",
    "TextCondition",
    "TextConditionConfig",
    "stack_conditions",
]

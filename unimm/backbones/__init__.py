"""Backbones: what turns slots into hidden states."""

from .halves import HalvesTransformer, HalvesTransformerConfig
from .llm import LLMAdapter, LLMBackbone, LLMBackboneConfig
from .transformer import VisualTransformer, VisualTransformerConfig

__all__ = [
    "HalvesTransformer",
    "HalvesTransformerConfig",
    "LLMAdapter",
    "LLMBackbone",
    "LLMBackboneConfig",
    "VisualTransformer",
    "VisualTransformerConfig",
]

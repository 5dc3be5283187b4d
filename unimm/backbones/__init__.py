"""Backbones: what turns slots into hidden states."""

from .branched import BranchedTransformer, BranchedTransformerConfig
from .llm import LLMAdapter, LLMBackbone, LLMBackboneConfig
from .transformer import VisualTransformer, VisualTransformerConfig

__all__ = [
    "BranchedTransformer",
    "BranchedTransformerConfig",
    "LLMAdapter",
    "LLMBackbone",
    "LLMBackboneConfig",
    "VisualTransformer",
    "VisualTransformerConfig",
]

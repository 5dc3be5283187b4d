"""Backbones: what turns slots into hidden states."""

from .llm import LLMAdapter, LLMBackbone, LLMBackboneConfig
from .transformer import VisualTransformer, VisualTransformerConfig

__all__ = ["LLMAdapter", "LLMBackbone", "LLMBackboneConfig", "VisualTransformer", "VisualTransformerConfig"]

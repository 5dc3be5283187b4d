"""Backbones: what turns slots into hidden states."""

from .encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from .halves import HalvesTransformer, HalvesTransformerConfig
from .llm import LLMAdapter, LLMBackbone, LLMBackboneConfig
from .transformer import VisualTransformer, VisualTransformerConfig

__all__ = [
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "HalvesTransformer",
    "HalvesTransformerConfig",
    "LLMAdapter",
    "LLMBackbone",
    "LLMBackboneConfig",
    "VisualTransformer",
    "VisualTransformerConfig",
]

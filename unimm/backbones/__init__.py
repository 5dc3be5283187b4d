"""Backbones: what turns slots into hidden states."""

from .branched import BranchedTransformer, BranchedTransformerConfig
from .encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from .halves import HalvesTransformer, HalvesTransformerConfig
from .llm import LLMAdapter, LLMBackbone, LLMBackboneConfig
from .transformer import VisualTransformer, VisualTransformerConfig

__all__ = [
    "BranchedTransformer",
    "BranchedTransformerConfig",
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

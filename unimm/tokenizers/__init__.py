"""Pixels to visual tokens, and back."""

from .base import TokenizerOutput, VisualTokenizer
from .codebook import Codebook, QuantizerOutput
from .kl import KLTokenizer, KLTokenizerConfig
from .multiscale_vq import MultiScaleVQTokenizer, MultiScaleVQTokenizerConfig
from .vq import VQTokenizer, VQTokenizerConfig

__all__ = [
    "Codebook",
    "KLTokenizer",
    "KLTokenizerConfig",
    "MultiScaleVQTokenizer",
    "MultiScaleVQTokenizerConfig",
    "QuantizerOutput",
    "TokenizerOutput",
    "VQTokenizer",
    "VQTokenizerConfig",
    "VisualTokenizer",
]

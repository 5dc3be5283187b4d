"""Pixels to visual tokens, and back."""

from .base import TokenizerOutput, VisualTokenizer
from .bitwise import BitwisePyramidTokenizer, BitwisePyramidTokenizerConfig
from .codebook import Codebook, QuantizerOutput
from .kl import KLTokenizer, KLTokenizerConfig
from .multiscale_vq import MultiScaleVQTokenizer, MultiScaleVQTokenizerConfig
from .vq import VQTokenizer, VQTokenizerConfig

__all__ = [
    "BitwisePyramidTokenizer",
    "BitwisePyramidTokenizerConfig",
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

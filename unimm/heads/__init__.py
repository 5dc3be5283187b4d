"""Prediction heads: the distribution of a token given its hidden state."""

from .base import HeadContext, HeadSample, PredictionHead, TokenSampling
from .bitwise import BitwiseHead, BitwiseHeadConfig
from .categorical import CategoricalHead, CategoricalHeadConfig

__all__ = [
    "BitwiseHead",
    "BitwiseHeadConfig",
    "CategoricalHead",
    "CategoricalHeadConfig",
    "HeadContext",
    "HeadSample",
    "PredictionHead",
    "TokenSampling",
]

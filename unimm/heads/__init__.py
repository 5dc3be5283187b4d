"""Prediction heads: the distribution of a token given its hidden state."""

from .base import HeadContext, HeadSample, PredictionHead, TokenSampling
from .categorical import CategoricalHead, CategoricalHeadConfig

__all__ = [
    "CategoricalHead",
    "CategoricalHeadConfig",
    "HeadContext",
    "HeadSample",
    "PredictionHead",
    "TokenSampling",
]

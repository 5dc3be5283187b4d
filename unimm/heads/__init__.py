"""Prediction heads: the distribution of a token given its hidden state."""

from .base import HeadContext, HeadSample, PredictionHead, TokenSampling
from .categorical import CategoricalHead, CategoricalHeadConfig, SoftmaxHead
from .direction import DirectionHead, DirectionHeadConfig

__all__ = [
    "CategoricalHead",
    "CategoricalHeadConfig",
    "DirectionHead",
    "DirectionHeadConfig",
    "HeadContext",
    "HeadSample",
    "PredictionHead",
    "SoftmaxHead",
    "TokenSampling",
]

"""Prediction heads: the distribution of a token given its hidden state."""

from .base import HeadContext, HeadSample, NoisyTokens, PredictionHead, TokenSampling
from .categorical import CategoricalHead, CategoricalHeadConfig
from .flow import FlowHead, FlowHeadConfig

__all__ = [
    "CategoricalHead",
    "CategoricalHeadConfig",
    "FlowHead",
    "FlowHeadConfig",
    "HeadContext",
    "HeadSample",
    "NoisyTokens",
    "PredictionHead",
    "TokenSampling",
]

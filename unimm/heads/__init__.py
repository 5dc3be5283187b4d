"""Prediction heads: the distribution of a token given its hidden state."""

from .base import HeadContext, HeadSample, PredictionHead, TokenSampling
from .categorical import CategoricalHead, CategoricalHeadConfig
from .phases import PhaseHeads, PhaseHeadsConfig

__all__ = [
    "CategoricalHead",
    "CategoricalHeadConfig",
    "HeadContext",
    "HeadSample",
    "PhaseHeads",
    "PhaseHeadsConfig",
    "PredictionHead",
    "TokenSampling",
]

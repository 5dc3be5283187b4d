"""Prediction heads: the distribution of a token given its hidden state."""

from .base import HeadContext, HeadSample, PredictionHead, TokenSampling
from .categorical import CategoricalHead, CategoricalHeadConfig
from .diffusion import DiffusionHead, DiffusionHeadConfig

__all__ = [
    "CategoricalHead",
    "CategoricalHeadConfig",
    "DiffusionHead",
    "DiffusionHeadConfig",
    "HeadContext",
    "HeadSample",
    "PredictionHead",
    "TokenSampling",
]

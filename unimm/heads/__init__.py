"""Prediction heads: the distribution of a token given its hidden state."""

from .base import HeadSample, PredictionHead
from .categorical import CategoricalHead, CategoricalHeadConfig

__all__ = ["CategoricalHead", "CategoricalHeadConfig", "HeadSample", "PredictionHead"]

"""Prediction heads: the distribution of a token given its hidden state."""

from .base import HeadContext, HeadSample, NoisyTokens, PredictionHead, TokenSampling
from .bitwise import BitwiseHead, BitwiseHeadConfig
from .categorical import CategoricalHead, CategoricalHeadConfig, SoftmaxHead
from .diffusion import DiffusionHead, DiffusionHeadConfig
from .direction import DirectionHead, DirectionHeadConfig
from .flow import FlowHead, FlowHeadConfig
from .flow_transformer import FlowTransformerHead, FlowTransformerHeadConfig
from .phases import PhaseHeads, PhaseHeadsConfig

__all__ = [
    "BitwiseHead",
    "BitwiseHeadConfig",
    "CategoricalHead",
    "CategoricalHeadConfig",
    "DiffusionHead",
    "DiffusionHeadConfig",
    "DirectionHead",
    "DirectionHeadConfig",
    "FlowHead",
    "FlowHeadConfig",
    "FlowTransformerHead",
    "FlowTransformerHeadConfig",
    "HeadContext",
    "HeadSample",
    "NoisyTokens",
    "PhaseHeads",
    "PhaseHeadsConfig",
    "PredictionHead",
    "SoftmaxHead",
    "TokenSampling",
]

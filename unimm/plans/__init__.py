"""Prediction plans: which tokens are predicted together, what they may see, what their slots start from."""

from .attention import NEVER, AttentionRule
from .base import Canvas, PlanInputs, PlanStep, PredictionPlan, SlotPositions, TokenGroup
from .masked_scale import MaskedScalePlan, MaskedScalePlanConfig
from .raster import RasterPlan, RasterPlanConfig
from .scale import ScalePlan, ScalePlanConfig

__all__ = [
    "NEVER",
    "AttentionRule",
    "Canvas",
    "MaskedScalePlan",
    "MaskedScalePlanConfig",
    "PlanInputs",
    "PlanStep",
    "PredictionPlan",
    "RasterPlan",
    "RasterPlanConfig",
    "ScalePlan",
    "ScalePlanConfig",
    "SlotPositions",
    "TokenGroup",
]

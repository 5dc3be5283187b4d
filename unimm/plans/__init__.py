"""Prediction plans: which tokens are predicted together, what they may see, what their slots start from."""

from .base import AttentionRule, Canvas, PlanInputs, PlanStep, PredictionPlan, SlotPositions
from .raster import RasterPlan, RasterPlanConfig
from .scale import ScalePlan, ScalePlanConfig

__all__ = [
    "AttentionRule",
    "Canvas",
    "PlanInputs",
    "PlanStep",
    "PredictionPlan",
    "RasterPlan",
    "RasterPlanConfig",
    "ScalePlan",
    "ScalePlanConfig",
    "SlotPositions",
]

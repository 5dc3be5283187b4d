"""Prediction plans: which tokens are predicted together, what they may see, what their slots start from."""

from .attention import NEVER, AttentionRule
from .base import Canvas, PlanInputs, PlanStep, PredictionPlan, SlotPositions, TokenGroup
from .groups import GroupsPlan, GroupsPlanConfig
from .latent_scale import LatentScalePlan, LatentScalePlanConfig
from .masked import MaskedPlan, MaskedPlanConfig
from .masked_scale import MaskedScalePlan, MaskedScalePlanConfig
from .neighbour import NeighbourPlan, NeighbourPlanConfig
from .raster import RasterPlan, RasterPlanConfig
from .scale import ScalePlan, ScalePlanConfig

__all__ = [
    "NEVER",
    "AttentionRule",
    "Canvas",
    "GroupsPlan",
    "GroupsPlanConfig",
    "LatentScalePlan",
    "LatentScalePlanConfig",
    "MaskedPlan",
    "MaskedPlanConfig",
    "MaskedScalePlan",
    "MaskedScalePlanConfig",
    "NeighbourPlan",
    "NeighbourPlanConfig",
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

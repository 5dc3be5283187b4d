"""Unified multimodal models on the Hugging Face stack: tokenizers, plans, backbones and heads that recombine."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForMultimodalLM, AutoProcessor

from .backbones import (
    BranchedTransformer,
    BranchedTransformerConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    HalvesTransformer,
    HalvesTransformerConfig,
    LLMBackbone,
    LLMBackboneConfig,
    VisualTransformer,
    VisualTransformerConfig,
)
from .conditions import ClassConditionConfig, PooledTextConditionConfig, TextConditionConfig, TextEncoderConfig
from .errors import UniMMError
from .generation import (
    ConstantGuidance,
    ImageIteratorStreamer,
    ImageStreamer,
    IntervalGuidance,
    LinearGuidance,
    ListedGuidance,
    SoftCodes,
)
from .heads import (
    BitwiseHeadConfig,
    CategoricalHeadConfig,
    DiffusionHeadConfig,
    DirectionHeadConfig,
    FlowHeadConfig,
    FlowTransformerHeadConfig,
    PhaseHeadsConfig,
)
from .models import (
    ImageOptions,
    UniMMConditionalConfig,
    UniMMForConditionalGeneration,
    UniMMForImageGeneration,
    UniMMImageGenerationConfig,
    UniMMImageProcessor,
    UniMMProcessor,
)
from .pipelines import ImageGenerationPipeline, pipeline
from .plans import (
    GroupsPlanConfig,
    LatentScalePlanConfig,
    MaskedPlanConfig,
    MaskedScalePlanConfig,
    NeighbourPlanConfig,
    RasterPlanConfig,
    ScalePlanConfig,
)
from .tokenizers import (
    BitwisePyramidTokenizer,
    BitwisePyramidTokenizerConfig,
    KLTokenizer,
    KLTokenizerConfig,
    MultiScaleVQTokenizer,
    MultiScaleVQTokenizerConfig,
    VQTokenizer,
    VQTokenizerConfig,
)
from .tokenizers.losses import (
    PatchDiscriminator,
    PatchDiscriminatorConfig,
    StyleDiscriminator,
    StyleDiscriminatorConfig,
)
from .tokens import TokenKind, TokenLayout, VisualTokens

__version__ = "0.1.0"

for _config in (
    BitwisePyramidTokenizerConfig,
    CategoricalHeadConfig,
    ClassConditionConfig,
    DirectionHeadConfig,
    NeighbourPlanConfig,
    FlowHeadConfig,
    FlowTransformerHeadConfig,
    GroupsPlanConfig,
    HalvesTransformerConfig,
    LatentScalePlanConfig,
    DiffusionHeadConfig,
    MaskedPlanConfig,
    BranchedTransformerConfig,
    MaskedScalePlanConfig,
    PhaseHeadsConfig,
    RasterPlanConfig,
    ScalePlanConfig,
    BitwiseHeadConfig,
    PooledTextConditionConfig,
    TextConditionConfig,
    TextEncoderConfig,
    EncoderDecoderConfig,
    LLMBackboneConfig,
    KLTokenizerConfig,
    MultiScaleVQTokenizerConfig,
    PatchDiscriminatorConfig,
    StyleDiscriminatorConfig,
    VQTokenizerConfig,
    VisualTransformerConfig,
    UniMMConditionalConfig,
    UniMMImageGenerationConfig,
):
    AutoConfig.register(_config.model_type, _config)
for _model in (
    HalvesTransformer,
    EncoderDecoder,
    BitwisePyramidTokenizer,
    BranchedTransformer,
    KLTokenizer,
    LLMBackbone,
    MultiScaleVQTokenizer,
    PatchDiscriminator,
    StyleDiscriminator,
    VQTokenizer,
    VisualTransformer,
    UniMMForConditionalGeneration,
    UniMMForImageGeneration,
):
    AutoModel.register(_model.config_class, _model)
AutoModelForMultimodalLM.register(UniMMConditionalConfig, UniMMForConditionalGeneration)
AutoImageProcessor.register(UniMMConditionalConfig, image_processor_classes={"pil": UniMMImageProcessor})
AutoProcessor.register(UniMMConditionalConfig, UniMMProcessor)

__all__ = [
    "BitwisePyramidTokenizer",
    "BitwisePyramidTokenizerConfig",
    "ConstantGuidance",
    "ImageGenerationPipeline",
    "ImageIteratorStreamer",
    "ImageOptions",
    "ImageStreamer",
    "IntervalGuidance",
    "LinearGuidance",
    "ListedGuidance",
    "SoftCodes",
    "TokenKind",
    "TokenLayout",
    "UniMMConditionalConfig",
    "UniMMError",
    "UniMMForConditionalGeneration",
    "UniMMForImageGeneration",
    "UniMMImageGenerationConfig",
    "UniMMImageProcessor",
    "UniMMProcessor",
    "VisualTokens",
    "pipeline",
]

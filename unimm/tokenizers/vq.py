"""The VQ tokenizer: a convolutional autoencoder around one codebook (VQGAN, LlamaGen, and their many
relatives).

https://huggingface.co/papers/2012.09841 and, with codes of unit length,
https://huggingface.co/papers/2406.06525.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from ..checks import described, require_ids
from ..errors import LayoutError
from ..tokens import VisualTokens, check_ids
from .autoencoder import ConvolutionalTokenizer
from .base import TokenizerOutput, grid_of, sum_losses
from .codebook import Codebook, CodebookTokenizerConfig, QuantizerOutput
from .quantizers import ResidualPyramidQuantizer, VectorQuantizer


class CodebookTokenizer(ConvolutionalTokenizer):
    """A convolutional autoencoder around a quantizer with one codebook; subclasses add the quantizer."""

    config: CodebookTokenizerConfig
    quantizer: VectorQuantizer | ResidualPyramidQuantizer

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def codebook(self) -> torch.Tensor:
        """All codes, `(codebook_size, latent_channels)` fp32."""
        return self.quantizer.codebook.rows()

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Codes of ids: `(…)` integers to `(…, latent_channels)` fp32.

        On an accelerator the range is not checked, because this runs at every step of a drawing: `check_ids` does it.

        Raises:
            LayoutError: no tensor of integers.
            CodebookError: ids outside of the codebook.
        """
        ids = require_ids(ids, "ids", "(…)")
        try:
            return self.quantizer.codebook.lookup(ids)
        except IndexError:
            check_ids(ids, self.codebook_size)
            raise

    def one_id_per_token(self, tokens: VisualTokens) -> torch.Tensor:
        """The ids `(batch, length)` of tokens, once they have been checked against the codebook.

        Raises:
            LayoutError: several ids per token.
            CodebookError: ids outside of the codebook.
        """
        assert tokens.ids is not None
        if tokens.ids.dim() != 2:
            raise LayoutError(
                f"{type(self).__name__} has one codebook and one id per token, given ids of shape {tuple(tokens.ids.shape)}"
            )
        check_ids(tokens.ids, self.codebook_size)
        return tokens.ids

    @abstractmethod
    def quantize(self, features: torch.Tensor) -> QuantizerOutput:
        """Codes, ids and loss terms of `encode_features`' result; in training mode the statistics move."""

    def forward(self, pixel_values: torch.Tensor) -> TokenizerOutput:
        """Reconstruction and loss terms.

        Terms, weighted as the config says: `reconstruction`, `commitment`, `codebook` (not where moving
        averages leave it without a gradient), and `entropy` where its weight is not 0.

        Args:
            pixel_values: `(batch, channels, height, width)` in [-1, 1].
        """
        quantized = self.quantize(self.encode_features(pixel_values))
        reconstruction = self.decode_features(quantized.quantized)
        losses = {
            "reconstruction": self.reconstruction_loss(reconstruction, pixel_values),
            **quantized.losses,
        }
        return TokenizerOutput(
            loss=sum_losses(losses),
            reconstruction=reconstruction,
            losses=losses,
            codebook_usage=quantized.codebook_usage,
            tokens=VisualTokens(self.layout_for(*pixel_values.shape[-2:]), ids=quantized.ids),
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Codebook):
            module.init_own_weights()


class VQTokenizerConfig(CodebookTokenizerConfig):
    """A convolutional autoencoder with one code per latent position; the defaults are LlamaGen's VQ-16."""

    model_type = "unimm_vq_tokenizer"


class VQTokenizer(CodebookTokenizer):
    """Pictures to one grid of ids and back."""

    config: VQTokenizerConfig
    config_class = VQTokenizerConfig
    quantizer: VectorQuantizer

    def __init__(self, config: VQTokenizerConfig):
        super().__init__(config)
        self.quantizer = VectorQuantizer(config)
        self.post_init()

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> VisualTokens:
        ids = self.quantizer.encode(self.encode_features(pixel_values))
        return VisualTokens(self.layout_for(*pixel_values.shape[-2:]), ids=ids)

    def quantize(self, features: torch.Tensor) -> QuantizerOutput:
        return self.quantizer(features)

    def decode(
        self,
        tokens: VisualTokens,
        *,
        size: tuple[int, int] | None = None,
        clamp: bool = True,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        height, width = grid_of(tokens, self)
        self._check_size(size, (height, width))
        if tokens.ids is None:
            codes = tokens.values
            if codes.shape[-1] != self.latent_channels:
                raise LayoutError(
                    f"this tokenizer's latents have {self.latent_channels} channels, given {described(codes)}"
                )
        else:
            codes = self.embed(self.one_id_per_token(tokens))
        return self.decode_features(codes.transpose(1, 2).unflatten(-1, (height, width)), clamp=clamp)

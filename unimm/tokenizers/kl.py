"""KL autoencoders: diffusers' own, as visual tokenizers with continuous latents."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from ..checks import described
from ..configuration import UniMMConfig
from ..dependencies import needed_for
from ..errors import ConfigError, LayoutError, nearest
from ..generation.randomness import Randomness
from ..tokens import TokenLayout, VisualTokens
from .autoencoder import init_convolutional_weights, reconstruction_loss
from .base import TokenizerOutput, VisualTokenizer, grid_of, sum_losses
from .patches import patchify, unpatchify
from .tiling import Tiling


class KLTokenizerConfig(UniMMConfig):
    """A diffusers `AutoencoderKL` and the weights of its losses.

    Args:
        autoencoder: arguments of diffusers' `AutoencoderKL`; what is left out has diffusers' default. Its
            `scaling_factor` and `shift_factor` turn its latents into tokens, `(latent - shift) * scale`.
        patch_size: side of the patches of the latent map that become one token each.
        kl_weight: weight of the Kullback-Leibler divergence from a standard normal, summed over a picture's
            latents.
        squared_error_weight: weight of the mean squared reconstruction error.
        absolute_error_weight: weight of the mean absolute reconstruction error.

    Raises:
        ConfigError: an argument that `AutoencoderKL` does not have.
    """

    model_type = "unimm_kl_tokenizer"
    autoencoder: dict[str, Any] | None = None
    patch_size: int = 1
    kl_weight: float | int = 1e-6
    squared_error_weight: float | int = 1.0
    absolute_error_weight: float | int = 0.0

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        self.autoencoder = dict(self.autoencoder or {})
        if self.patch_size < 1:
            raise ConfigError(f"patch_size must be at least 1, given {self.patch_size}")
        known = set(inspect.signature(_autoencoder_class().__init__).parameters) - {"self"}
        for name in self.autoencoder:
            if name not in known:
                raise ConfigError(f"AutoencoderKL has no argument '{name}'{nearest(name, known)}")


class KLTokenizer(VisualTokenizer):
    """Pictures to one grid of continuous latents and back (https://huggingface.co/papers/2112.10752)."""

    config: KLTokenizerConfig
    config_class = KLTokenizerConfig

    def __init__(self, config: KLTokenizerConfig):
        super().__init__(config)
        self.autoencoder = _autoencoder_class()(**(config.autoencoder or {}))
        self.post_init()

    @classmethod
    def from_diffusers(cls, path: str, **options: Any) -> KLTokenizer:
        """A tokenizer with the weights of a diffusers autoencoder.

        Args:
            path: folder or Hub id, as for `AutoencoderKL.from_pretrained`.
            options: passed on to it, such as `subfolder="vae"` or `revision`.
        """
        loaded = _autoencoder_class().from_pretrained(path, **options)
        known = inspect.signature(type(loaded).__init__).parameters
        settings = {name: value for name, value in loaded.config.items() if name in known}
        model = cls(KLTokenizerConfig(autoencoder=settings)).to(loaded.dtype)
        model.autoencoder.load_state_dict(loaded.state_dict())
        return model.eval()

    @property
    def codebook_size(self) -> None:
        return None

    @property
    def latent_channels(self) -> int:
        return self.autoencoder.config.latent_channels * self.config.patch_size**2

    @property
    def stride(self) -> int:
        return self.config.patch_size * 2 ** (len(self.autoencoder.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(
        self,
        pixel_values: torch.Tensor,
        *,
        generator: torch.Generator | None = None,
        randomness: Randomness | None = None,
    ) -> VisualTokens:
        """Latents of pictures.

        Args:
            pixel_values: `(batch, channels, height, width)` in [-1, 1].
            generator: draws from the posterior; None takes its mean.
            randomness: another source of the draw `posterior`.

        Raises:
            LayoutError: a side is no multiple of the stride.
            ConfigError: no generator.
        """
        if not isinstance(generator, torch.Generator | None):
            raise ConfigError(f"generator must be a torch.Generator, given {described(generator)}")
        posterior = self._posterior(pixel_values)
        if randomness is not None:
            noise = randomness.normal(posterior.mean.shape, "posterior", posterior.mean.device)
            return self._tokens(posterior.mean + posterior.std * noise.to(posterior.mean.dtype))
        latents = posterior.mean if generator is None else posterior.sample(generator)
        return self._tokens(latents)

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
        if tokens.latents is None:
            raise LayoutError("a KL tokenizer decodes latents, given ids: were they made with another tokenizer?")
        if tokens.latents.shape[-1] != self.latent_channels:
            raise LayoutError(
                f"this tokenizer's latents have {self.latent_channels} channels, given {described(tokens.latents)}"
            )
        settings = self.autoencoder.config
        latents = unpatchify(tokens.latents.to(self.dtype), self.config.patch_size, (height, width))
        pixels = self.autoencoder.decode(latents / settings.scaling_factor + (settings.shift_factor or 0.0)).sample
        return pixels.clamp(-1, 1) if clamp else pixels

    def forward(self, pixel_values: torch.Tensor, generator: torch.Generator | None = None) -> TokenizerOutput:
        """Reconstruction and the loss terms `reconstruction` and `kl`, weighted as the config says.

        Args:
            pixel_values: `(batch, channels, height, width)` in [-1, 1].
            generator: draws the latents in training mode (None: torch's global one, as dropout does); in
                evaluation mode the posterior's mean is decoded.

        Raises:
            LayoutError: a side is no multiple of the stride.
        """
        posterior = self._posterior(pixel_values)
        latents = posterior.sample(generator) if self.training else posterior.mean
        pixels = self.autoencoder.decode(latents).sample
        config = self.config
        losses = {
            "reconstruction": reconstruction_loss(
                pixels, pixel_values, config.squared_error_weight, config.absolute_error_weight
            ),
            "kl": config.kl_weight * posterior.kl().float().mean(),
        }
        return TokenizerOutput(
            loss=sum_losses(losses),
            reconstruction=pixels,
            losses=losses,
            tokens=self._tokens(latents.detach()),
        )

    def enable_slicing(self) -> None:
        self.autoencoder.enable_slicing()

    def disable_slicing(self) -> None:
        self.autoencoder.disable_slicing()

    def enable_tiling(self, size: int = 512, overlap: int = 128) -> None:
        """diffusers' own tiling, which also runs attention on tiles and blends over the whole overlap."""
        Tiling(size, overlap, blend=overlap).check(self.stride)
        self.autoencoder.tile_sample_min_size = size
        self.autoencoder.tile_latent_min_size = size * self.config.patch_size // self.stride
        self.autoencoder.tile_overlap_factor = overlap / size
        self.autoencoder.enable_tiling()

    def disable_tiling(self) -> None:
        self.autoencoder.disable_tiling()

    @property
    def last_weight(self) -> torch.Tensor:
        """Weight of the decoder's last convolution."""
        return self.autoencoder.decoder.conv_out.weight

    def _posterior(self, pixel_values: torch.Tensor) -> Any:
        self.check_pixels(pixel_values, self.autoencoder.config.in_channels)
        return self.autoencoder.encode(pixel_values.to(self.dtype)).latent_dist

    def _tokens(self, latents: torch.Tensor) -> VisualTokens:
        settings = self.autoencoder.config
        scaled = (latents - (settings.shift_factor or 0.0)) * settings.scaling_factor
        patch_size = self.config.patch_size
        layout = TokenLayout.grid(*(side // patch_size for side in latents.shape[-2:]))
        return VisualTokens(layout, latents=patchify(scaled, patch_size))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_convolutional_weights(module)


def _autoencoder_class() -> Any:
    with needed_for("KL tokenizers"):
        from diffusers import AutoencoderKL
    return AutoencoderKL

"""Text features in files: what a frozen encoder once gave for a prompt is not computed again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import DataError
from ..files import atomic_file
from .text_encoder import PromptFeatures, TextEncoder

_POOLED = ".pooled"


class CachedTextEncoder(TextEncoder):
    """A text encoder that looks into files first.

    Features lie in `folder/FINGERPRINT/SHARD.safetensors`, where the fingerprint speaks of the encoder's weights,
    tokenizer and config: another encoder, or the same one after a change, never meets them. Shards are written whole or
    not at all, so that any number of processes and data workers may share a folder.

    Args:
        encoder: computes what is missing.
        folder: of the files; several encoders may share one.
        batch_size: prompts that are encoded together, and lie in one shard.
    """

    def __init__(self, encoder: TextEncoder, folder: str | os.PathLike, batch_size: int = 256):
        super().__init__(encoder.config, encoder.model, encoder.tokenizer)
        self.folder = Path(folder) / self.fingerprint
        self.batch_size = batch_size
        self._shards: dict[str, Path] = {}
        self._known: set[str] = set()

    def encode_each(self, prompts: Sequence[str]) -> list[PromptFeatures]:
        """As `TextEncoder.encode_each`; features that were not in the files are there afterwards.

        Raises:
            DataError: a file of the cache is damaged.
            OutputError: the folder cannot be written.
        """
        self.encode_ahead(prompts)
        keys = [_key(prompt) for prompt in prompts]
        rows: dict[str, PromptFeatures] = {}
        for shard in {self._shards[key] for key in keys}:
            rows |= self._read(shard, [key for key in keys if self._shards[key] == shard])
        return [rows[key] for key in keys]

    def encode_ahead(self, prompts: Sequence[str]) -> int:
        """Puts what is missing into the files.

        Args:
            prompts: any number; equal ones are encoded once.

        Returns:
            How many were missing.
        """
        missing = self._missing(prompts)
        if missing:
            # Other processes may have written them since.
            self._find_shards()
            missing = self._missing(missing)
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            self._write(batch, super().encode_each(batch))
        return len(missing)

    def _missing(self, prompts: Sequence[str]) -> list[str]:
        return [prompt for prompt in dict.fromkeys(prompts) if _key(prompt) not in self._shards]

    def _find_shards(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name not in self._known:
                with _opened(path) as shard:
                    self._shards |= {key: path for key in shard.offset_keys() if not key.endswith(_POOLED)}
                self._known.add(path.name)

    def _write(self, prompts: Sequence[str], rows: Sequence[PromptFeatures]) -> None:
        tensors: dict[str, torch.Tensor] = {}
        counts: dict[str, str] = {}
        for key, row in zip(map(_key, prompts), rows, strict=True):
            tensors[key] = row.features.cpu().clone()
            counts[key] = str(row.num_tokens)
            if row.pooled is not None:
                tensors[key + _POOLED] = row.pooled.cpu().clone()
        path = self.folder / f"{_key(' '.join(counts))}.safetensors"
        with atomic_file(path, "wb") as file:
            file.write(save(tensors, metadata=counts))
        self._known.add(path.name)
        self._shards |= dict.fromkeys(counts, path)

    def _read(self, path: Path, keys: Sequence[str]) -> dict[str, PromptFeatures]:
        has_pooled = self.config.pooled is not None
        with _opened(path) as shard:
            counts = shard.metadata()
            return {
                key: PromptFeatures(
                    shard.get_tensor(key).to(self.device),
                    int(counts[key]),
                    shard.get_tensor(key + _POOLED).to(self.device) if has_pooled else None,
                )
                for key in keys
            }


def _key(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(f"the cached text features '{path}' cannot be read: {error}. Remove the file") from error

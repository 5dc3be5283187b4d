"""Watching pictures while they are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from queue import Queue

import torch

from ..errors import ConfigError


@dataclass(frozen=True)
class ImageProgress:
    """Where a drawing stands after a step.

    Args:
        step: number of the step, counted from 0.
        num_steps: steps in all.
        num_tokens: tokens placed so far.
        ids: `(batch, tokens placed so far)`; the whole canvas where tokens are not placed in reading order.
        decode: decodes the canvas as it was after this step.
    """

    step: int
    num_steps: int
    num_tokens: int
    ids: torch.Tensor
    decode: Callable[[], torch.Tensor]

    @cached_property
    def preview(self) -> torch.Tensor:
        """Pixels `(batch, 3, height, width)` in [-1, 1] of what there is; decoded when first asked for.

        The scale plan shows its running reconstruction, the raster plan the canvas so far on mid-grey. The preview of the
        last step is the finished picture.

        Raises:
            ConfigError: the model has no visual tokenizer.
            LayoutError: the plan's canvas cannot be shown before it is finished.
        """
        with torch.no_grad():
            return self.decode()

    @property
    def is_last(self) -> bool:
        return self.step == self.num_steps - 1


class ImageStreamer(ABC):
    """Gets every step of a drawing; give it to `generate` as `streamer`."""

    @abstractmethod
    def put(self, progress: ImageProgress) -> None:
        """Called after every step."""

    @abstractmethod
    def end(self) -> None:
        """Called when the drawing has ended, after an error too."""


class ImageIteratorStreamer(ImageStreamer):
    """Iterates over a drawing that runs in another thread, as transformers' `TextIteratorStreamer` does over text.

    Args:
        every: previews are decoded at every `every`-th step and at the last; the steps between are not given.
        timeout: seconds to wait for the next step, None for ever.

    Raises:
        ConfigError: `every` below 1, or a timeout that is no number.
    """

    def __init__(self, every: int = 1, timeout: float | None = None):
        if not isinstance(every, int) or every < 1:
            raise ConfigError(f"every must be a whole number of at least 1, given {every!r}")
        if timeout is not None and not isinstance(timeout, int | float):
            raise ConfigError(f"timeout must be seconds or None, given {timeout!r}")
        self.every, self.timeout = every, timeout
        self._queue: Queue[ImageProgress | None] = Queue()

    def put(self, progress: ImageProgress) -> None:
        if progress.is_last or (progress.step + 1) % self.every == 0:
            # In the drawing thread: the reader gets pixels, and the device serves one thread.
            _ = progress.preview
            self._queue.put(progress)

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[ImageProgress]:
        while (progress := self._queue.get(timeout=self.timeout)) is not None:
            yield progress

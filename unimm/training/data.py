"""The rows that a recipe names: mixed by weight, and without end where their number is not known."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from ..dependencies import needed_for
from ..errors import DataError, RecipeError
from .recipes import DataSection

if TYPE_CHECKING:
    import datasets
    from datasets import Dataset
    from transformers import TrainingArguments

    from ..data.rows import Row

logger = logging.getLogger(__name__)


class EndlessRows(IterableDataset):
    """A stream that starts over, shuffled anew, when it ends.

    The trainers take a stream for endless: a resumed run finds its place by counting from the first row.

    Args:
        rows: the stream.
    """

    def __init__(self, rows: datasets.IterableDataset):
        self.rows = rows

    def __iter__(self) -> Iterator[Row]:
        # The stream's epoch lies in memory that data workers share, and they do not reach its end together.
        rows = copy.deepcopy(self.rows)
        epoch = 0
        while True:
            rows.set_epoch(epoch)
            empty = True
            for row in rows:
                empty = False
                yield row
            if empty:
                raise DataError("the stream has no rows for this process: use fewer processes or data workers")
            epoch += 1


def load_sections(sections: Sequence[DataSection], *, endless: bool = False) -> Dataset | IterableDataset:
    """The rows of a recipe's data entries.

    Rows of several entries alternate at random, each with the probability of its weight, until every entry has been
    read once; shorter ones are repeated.

    Args:
        sections: entries of a recipe.
        endless: let a stream start over when it ends.

    Raises:
        RecipeError: entries with and without streaming together.
        DataError: as `load_rows`.
    """
    from ..data.loading import load_rows

    with needed_for("data sets"):
        import datasets

    sources: list[Any] = [
        load_rows(
            section.card,
            section.split,
            streaming=section.streaming,
            num_rows=section.num_rows,
            seed=section.seed,
            **section.options,
        )
        for section in sections
    ]
    streams = [isinstance(source, datasets.IterableDataset) for source in sources]
    if len(set(streams)) > 1:
        names = ", ".join(section.card for section, stream in zip(sections, streams, strict=True) if stream)
        raise RecipeError(
            f"data: {names} is streamed and the other entries are not: set streaming alike for all of them"
        )
    rows = sources[0]
    if len(sources) > 1:
        total = sum(section.weight for section in sections)
        rows = datasets.interleave_datasets(
            sources,
            probabilities=[section.weight / total for section in sections],
            seed=sections[0].seed,
            stopping_strategy="all_exhausted",
        )
    return EndlessRows(rows) if endless and streams[0] else rows


def prepare_text(collator: Any, data: Sequence[Dataset | IterableDataset | None], args: TrainingArguments) -> None:
    """Encodes the captions of a run ahead, where its collator keeps text features in files.

    That happens on the accelerator, in the first process. What is still missing after that (streams) is encoded batch
    by batch where batches are made: in this process on the accelerator, or in data workers, which can use the CPU only.

    Args:
        collator: of the run; others than text-conditional ones need no preparation.
        data: training and evaluation rows.
        args: of the run.
    """
    from ..conditions import CachedTextEncoder
    from ..data.collators import CaptionImageCollator

    if not isinstance(collator, CaptionImageCollator):
        return
    encoder = collator.text_encoder.to(args.device)
    is_complete = False
    if isinstance(encoder, CachedTextEncoder):
        with needed_for("data sets"):
            import datasets

        is_complete = all(rows is None or isinstance(rows, datasets.Dataset) for rows in data)
        with args.main_process_first(local=False, desc="encoding captions"):
            for rows in data:
                if isinstance(rows, datasets.Dataset):
                    captions = collator.captions(rows)
                    num_missing = encoder.encode_ahead(captions)
                    logger.info("%d captions, %d of them encoded now: %s", len(captions), num_missing, encoder.folder)
    if is_complete or args.dataloader_num_workers:
        encoder.to("cpu")

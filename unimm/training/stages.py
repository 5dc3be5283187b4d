"""The training stages behind `unimm tokenizer`, `unimm pretrain` and `unimm sft`."""

from __future__ import annotations

import contextlib
import copy
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, set_seed
from rich.console import Console
from transformers import PreTrainedModel

from ..errors import DataError, RecipeError, UniMMError, nearest
from ..files import atomic_folder, write_json
from ..hub.cards import Measurement, write_card
from ..hub.measuring import machine_text, peak_memory
from .assembly import build_parts, picture_sampler
from .callbacks import AverageCallback, SamplesCallback
from .data import load_sections, prepare_text
from .description import ModelDescription, describe_model, describe_tokenizer
from .outputs import RECIPE, MetricsLog, RunFolder
from .publishing import Publication, card_facts, reconstruction_record
from .recipes import FREE_FIELDS, RECIPES, PretrainRecipe, Recipe, SftRecipe, TokenizerRecipe

logger = logging.getLogger(__name__)


@dataclass
class RunResult:
    """What a stage came to.

    Args:
        folder: of the run.
        final: folder for `from_pretrained`; None after a dry run.
        metrics: last values of the training's metrics.
        results: measured figures, each with `n` and `interval`.
        description: parameters, tokens and memory, of a dry run.
        was_finished: the run had been finished before, and nothing was done.
    """

    folder: Path
    final: Path | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    description: ModelDescription | None = None
    was_finished: bool = False


def run_stage(stage: str, words: Sequence[str]) -> RunResult:
    """Runs a stage from command-line words.

    Args:
        stage: `tokenizer`, `pretrain` or `sft`.
        words: see `Recipe.parse`.

    Raises:
        RecipeError: an unknown stage, or as `Recipe.parse`.
        UniMMError: whatever the run finds wrong.
    """
    if stage not in RECIPES:
        raise RecipeError(f"there is no stage '{stage}'{nearest(stage, RECIPES)}")
    runs = {"tokenizer": run_tokenizer, "pretrain": run_pretrain, "sft": run_sft}
    return runs[stage](RECIPES[stage].parse(words))  # type: ignore[operator]


def run_tokenizer(recipe: TokenizerRecipe) -> RunResult:
    """Trains a visual tokenizer.

    Raises:
        UniMMError: whatever the run finds wrong, before it writes anything where that can be.
    """
    from ..data.collators import collator_for
    from .tokenizer_trainer import TokenizerTrainer

    height, width = recipe.height_and_width
    args = recipe.arguments()
    if recipe.dry_run:
        model, _ = build_parts(recipe, on_meta=True)
        return _described(recipe, describe_tokenizer(model, height, width, batch_size=args.per_device_train_batch_size))
    publication = Publication.of(recipe, args)
    with _started(recipe, publication) as (folder, finished):
        if finished is not None:
            return finished
        set_seed(args.seed)
        tokenizer, _ = build_parts(recipe)
        trainer = TokenizerTrainer(
            tokenizer,
            args,
            train_dataset=load_sections(recipe.data, endless=True),
            collator=collator_for(tokenizer, height=height, width=width, **recipe.collator),
            loss=recipe.loss,
            eval_dataset=load_sections(recipe.evaluation.data) if recipe.evaluation.data else None,
            sample_every_steps=recipe.samples.every_steps,
            num_samples=recipe.samples.num,
        )
        metrics = trainer.train()
        record: dict[str, Any] = {}
        if recipe.evaluation.data:
            record = reconstruction_record(recipe, trainer.evaluate())
        with _final_folder(folder) as final:
            if trainer.accelerator.is_main_process:
                trainer.unwrapped.save_pretrained(final)
                measured = _measurements(folder, trainer.step, trainer.accelerator.device)
                _add_to_final(final, recipe, trainer.unwrapped, trainer.average, metrics, record, measured, folder)
        return _finish(folder, trainer.step, metrics, record.get("rows", {}), publication)


def run_pretrain(recipe: PretrainRecipe) -> RunResult:
    """Trains an image generator by likelihood.

    Raises:
        UniMMError: whatever the run finds wrong, before it writes anything where that can be.
    """
    return _run_likelihood(recipe)


def run_sft(recipe: SftRecipe) -> RunResult:
    """Trains a conditional model on conversations with pictures.

    Raises:
        UniMMError: whatever the run finds wrong, before it writes anything where that can be.
    """
    return _run_likelihood(recipe)


def _run_likelihood(recipe: PretrainRecipe) -> RunResult:
    from ..data.collators import collator_for
    from .trainer import UniMMTrainer

    args = recipe.arguments()
    if recipe.evaluation.data and args.eval_strategy == "no":
        raise RecipeError(
            f"{recipe.source}: evaluation.data is never read: set training.eval_strategy to steps or epoch, or leave it out"
        )
    if recipe.evaluation.benchmark and not isinstance(recipe, SftRecipe):
        raise RecipeError(f"{recipe.source}: evaluation.benchmark judges conditional models, which `unimm sft` trains")
    if recipe.dry_run:
        model, processor = build_parts(recipe, on_meta=True)
        description = describe_model(
            model,
            batch_size=args.per_device_train_batch_size,
            tokens_per_sample=_sequence_length(recipe, model, processor),
            half_precision=args.bf16 or args.fp16,
            checkpointing=bool(args.activation_checkpointing),
        )
        return _described(recipe, description)
    publication = Publication.of(recipe, args)
    # The Trainer would push the run's folder as it stands, with a card of its own, and write the token into checkpoints.
    args.push_to_hub, args.hub_token = False, None
    with _started(recipe, publication) as (folder, finished):
        if finished is not None:
            return finished
        set_seed(args.seed)
        model, processor = build_parts(recipe)
        callbacks: list[Any] = []
        drawing: SamplesCallback | None = None
        if recipe.samples.every_steps:
            sampler = picture_sampler(model, processor, recipe.samples)
            drawing = SamplesCallback(sampler, folder.samples, recipe.samples.every_steps)
            callbacks.append(drawing)
        train_rows = load_sections(recipe.data, endless=True)
        eval_rows = load_sections(recipe.evaluation.data) if recipe.evaluation.data else None
        collator = collator_for(model, processor, **recipe.collator)
        prepare_text(collator, [train_rows, eval_rows], args)
        trainer = UniMMTrainer(
            model,
            args,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            data_collator=collator,
            processing_class=processor,
            callbacks=callbacks,
        )
        metrics = {
            name: value
            for name, value in trainer.train().metrics.items()
            if isinstance(value, int | float) and name != "total_flos"
        }
        record: dict[str, Any] = {}
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        if recipe.evaluation.benchmark and trainer.is_world_process_zero():
            record = _benchmark(recipe, model, processor)
        trainer.accelerator.wait_for_everyone()
        with _final_folder(folder) as final:
            trainer.save_model(str(final))
            if trainer.is_world_process_zero():
                # The recipe says what this pickle of arguments would.
                (final / "training_args.bin").unlink(missing_ok=True)
                measured = _measurements(folder, trainer.state.global_step, args.device, drawing)
                _add_to_final(final, recipe, model, trainer.average, metrics, record, measured, folder)
        return _finish(folder, trainer.state.global_step, metrics, record.get("rows", {}), publication)


@contextlib.contextmanager
def _started(recipe: Recipe, publication: Publication | None) -> Iterator[tuple[RunFolder, RunResult | None]]:
    """The run's folder, locked; and the result of a run that was finished before, pushed where that is asked for."""
    state = PartialState()
    folder = RunFolder(recipe.training["output_dir"])
    with contextlib.ExitStack() as stack:
        failed: list[Any] = [None]
        if state.is_main_process:
            try:
                if publication is not None:
                    publication.check_login()
                stack.enter_context(folder.lock())
                if recipe.overwrite:
                    folder.clear()
                folder.start(recipe.resolved(), free=FREE_FIELDS, header=recipe.header())
            except UniMMError as error:
                failed = [error]
        # Otherwise the other processes would wait for one that has given up.
        broadcast_object_list(failed)
        if failed[0] is not None:
            raise failed[0]
        record = folder.finished
        finished = None
        if record is not None:
            logger.info("'%s' is finished (step %d): nothing to do", folder.path, record["step"])
            finished = RunResult(folder.path, folder.final, record["metrics"], record["results"], was_finished=True)
            _publish(folder, publication)
        elif torch.cuda.is_available():
            # Another stage may have run in this process.
            torch.cuda.reset_peak_memory_stats()
        yield folder, finished


@contextlib.contextmanager
def _final_folder(folder: RunFolder) -> Iterator[Path]:
    """A folder, the same in every process, that becomes `final` when all are done."""
    state = PartialState()
    with contextlib.ExitStack() as stack:
        shared: list[Any] = [stack.enter_context(atomic_folder(folder.final)) if state.is_main_process else None]
        broadcast_object_list(shared)
        yield shared[0]
        state.wait_for_everyone()


def _add_to_final(
    final: Path,
    recipe: Recipe,
    model: PreTrainedModel,
    average: AverageCallback | None,
    metrics: Mapping[str, float],
    record: Mapping[str, Any],
    measurements: Sequence[Measurement],
    folder: RunFolder,
) -> None:
    """The moving average, the recipe, the figures and the card, beside the saved model."""
    if average is not None:
        averaged = copy.deepcopy(model)
        averaged.load_state_dict(average.average, strict=False)
        averaged.save_pretrained(final / "ema")
    shutil.copyfile(folder.recipe, final / RECIPE)
    if record:
        write_json(final / "evaluation.json", dict(record))
    grids = sorted(folder.samples.glob("step-*.png"))
    facts = card_facts(
        recipe,
        metrics=metrics,
        records=[record] if record else [],
        measurements=measurements,
        picture=grids[-1] if grids else None,
    )
    write_card(final, model, facts)


def _measurements(
    folder: RunFolder, step: int, device: torch.device, drawing: SamplesCallback | None = None
) -> list[Measurement]:
    """What the run itself has shown of speed and memory."""
    where = machine_text(device)
    logged = MetricsLog(folder.metrics).read()
    measured = []
    if logged:
        measured.append(
            Measurement(f"training of {step:,} steps, evaluations included", f"{logged[-1]['seconds']:,.0f} s", where)
        )
    if drawing is not None and drawing.drawn:
        measured.append(Measurement(f"drawing a grid of {drawing.drawn} pictures", f"{drawing.seconds:.3g} s", where))
    peak = peak_memory(device)
    return measured + ([Measurement("peak memory of training", peak, where)] if peak else [])


def _finish(
    folder: RunFolder,
    step: int,
    metrics: Mapping[str, float],
    results: Mapping[str, Any],
    publication: Publication | None,
) -> RunResult:
    if PartialState().is_main_process:
        folder.finish({"step": step, "metrics": dict(metrics), "results": dict(results)})
    logger.info("finished at step %d: %s", step, folder.final)
    _publish(folder, publication)
    return RunResult(folder.path, folder.final, dict(metrics), dict(results))


def _publish(folder: RunFolder, publication: Publication | None) -> None:
    if publication is not None and PartialState().is_main_process:
        publication.send(folder.final)


def _described(recipe: Recipe, description: ModelDescription) -> RunResult:
    Console().print(description.table())
    return RunResult(Path(recipe.training["output_dir"]), description=description)


def _sequence_length(recipe: PretrainRecipe, model: PreTrainedModel, processor: Any) -> int | None:
    """Tokens per sample: of a conditional model the longest of the first rows, otherwise the picture's."""
    if processor is None:
        return None
    from ..data.collators import collator_for
    from ..data.loading import load_rows

    section = recipe.data[0]
    options = {"streaming": True, "num_rows": 16, "seed": section.seed, **section.options}
    try:
        rows = list(load_rows(section.card, section.split, **options))
    except DataError as error:
        logger.warning("tokens per sample are those of one picture alone, since the data cannot be read: %s", error)
        return None
    return collator_for(model, processor, **recipe.collator)(rows)["input_ids"].shape[1]


def _benchmark(recipe: Recipe, model: PreTrainedModel, processor: Any) -> dict[str, Any]:
    from ..evaluation.benchmarks import run_benchmark

    section = recipe.evaluation
    return run_benchmark(
        section.benchmark or "",
        model,
        processor,
        num=section.num,
        seed=section.seed,
        sampling=section.sampling,
        options=section.options,
    )

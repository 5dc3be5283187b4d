"""The training loop for visual tokenizers, on Accelerate: reconstruction, perceptual and adversarial terms, two optimizers."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import (
    Accelerator,
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    DistributedType,
    skip_first_batches,
)
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, set_seed
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm
from transformers import AutoModel, get_scheduler

from ..data.transforms import save_grid, to_pil
from ..errors import CheckpointError, DataError, RecipeError
from ..tokenizers.base import VisualTokenizer, sum_losses
from ..tokenizers.losses import LPIPS, adaptive_weight, adversarial_discriminator_loss, adversarial_generator_loss
from .arguments import TokenizerArguments
from .averages import RunningMeans, mean_and_interval
from .callbacks import AverageCallback, MetricsCallback, TensorBoardCallback
from .checkpoints import CheckpointStore, step_of
from .engines import check_engine
from .outputs import RunFolder, check_finite
from .recipes import LossSection

logger = logging.getLogger(__name__)

_PROGRESS = "progress_{}.json"


class TokenizerTrainer:
    """Trains any `VisualTokenizer`; survives a kill at any moment.

    One step minimises the tokenizer's own terms, plus `perceptual_weight` times LPIPS, plus, from
    `adversarial_start_step` on, `adversarial_weight * balance` times the generator's loss, where the balance makes both
    gradients equally long at the decoder's last layer (https://huggingface.co/papers/2012.09841, equation 7); then the
    discriminator's loss. What is drawn at random in a step follows from the seed and the step alone.

    Args:
        tokenizer: the tokenizer.
        args: arguments; metrics, grids and checkpoints go into their `output_dir`.
        train_dataset: rows, with or without a length; one without is taken for endless.
        collator: makes `{"pixel_values"}` of a list of rows; must follow from the rows alone.
        loss: perceptual and adversarial terms.
        eval_dataset: held-out rows with a length.
        sample_every_steps: steps between two grids of originals and reconstructions; 0 draws none.
        num_samples: pictures in a grid.

    Raises:
        RecipeError: options that this tokenizer or data cannot serve.
        CheckpointError: perceptual weights are asked for and not there.
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        args: TokenizerArguments,
        *,
        train_dataset: Any,
        collator: Callable[[Sequence[Any]], dict[str, torch.Tensor]],
        loss: LossSection | None = None,
        eval_dataset: Any = None,
        sample_every_steps: int = 0,
        num_samples: int = 8,
    ):
        self.args = args
        self.loss = loss or LossSection()
        self.folder = RunFolder(args.output_dir)
        self.accelerator = Accelerator(
            cpu=args.use_cpu,
            # An accumulation may go on beyond the end of the data, or a resumed run could not find its place by counting.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
            # Broadcast buffers would be changed in place between the discriminator's two passes.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        check_engine(self.accelerator)
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise RecipeError(
                f"a tokenizer and its discriminator train whole or under DDP, not under "
                f"{self.accelerator.distributed_type.value}: launch with another accelerate config"
            )
        self.checkpoints = CheckpointStore(
            args.output_dir,
            is_main=self.accelerator.is_main_process,
            is_local_main=self.accelerator.is_local_main_process,
            wait=self.accelerator.wait_for_everyone,
        )
        self.collator = collator
        self.eval_dataset = eval_dataset
        self.train_dataset = train_dataset
        self.sample_every_steps = sample_every_steps
        self.num_samples = num_samples
        self.step = 0
        self.means = RunningMeans(self.accelerator)
        self.metrics = MetricsCallback(self.folder.metrics)
        self.tensorboard = TensorBoardCallback(self.folder.tensorboard)
        self.average = AverageCallback(args.ema_decay) if args.ema_decay is not None else None
        self._prepare(tokenizer)

    def train(self) -> dict[str, float]:
        """Trains to `max_steps`; goes on from the newest complete checkpoint.

        Returns:
            The last value of every metric.

        Raises:
            RecipeError: the folder holds checkpoints and `resume` is off.
            CheckpointError: the checkpoint is of another number of processes.
            OutputError: the folder cannot be written.
        """
        self._resume()
        if self.args.tensorboard and self.accelerator.is_main_process:
            self.tensorboard.open(self.step)
        bar = tqdm(
            total=self.args.max_steps,
            initial=self.step,
            desc="tokenizer",
            disable=self.args.disable_tqdm or not self.accelerator.is_local_main_process,
        )
        last: dict[str, float] = {}
        batches = self._batches()
        while self.step < self.args.max_steps:
            self._optimizer_step(batches)
            bar.update()
            last |= self._report()
        bar.close()
        self.tensorboard.close()
        return last

    @torch.no_grad()
    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Reconstruction of the held-out rows: PSNR (dB) and absolute error (of pixels in [-1, 1]) with their intervals.

        Raises:
            RecipeError: there are no held-out rows.
        """
        if self.eval_dataset is None:
            raise RecipeError("there are no held-out rows to evaluate on: give evaluation.data")
        self.tokenizer.eval()
        quality: list[torch.Tensor] = []
        errors: list[torch.Tensor] = []
        used: set[int] = set()
        for batch in self.eval_loader:
            output = self._forward(batch["pixel_values"])
            pictures = output.reconstruction.float().clamp(-1, 1)
            difference = pictures - batch["pixel_values"].float()
            quality.append(self.accelerator.gather_for_metrics(psnr(difference)))
            errors.append(self.accelerator.gather_for_metrics(difference.abs().mean(dim=(1, 2, 3))))
            if output.tokens is not None and output.tokens.ids is not None:
                used.update(self.accelerator.gather_for_metrics(output.tokens.ids.flatten(1)).unique().tolist())
        self.tokenizer.train()
        results = {
            "psnr": mean_and_interval(torch.cat(quality)),
            "absolute_error": mean_and_interval(torch.cat(errors)),
        }
        if self.unwrapped.codebook_size:
            share = len(used) / self.unwrapped.codebook_size
            results["codebook_usage"] = {"value": share, "n": self.unwrapped.codebook_size, "interval": (share, share)}
        return results

    @property
    def unwrapped(self) -> VisualTokenizer:
        """The tokenizer without the wrappers that run it in parallel."""
        return self.accelerator.unwrap_model(self.tokenizer)

    @torch.no_grad()
    def draw(self) -> Path:
        """Writes a grid of originals and reconstructions, of the held-out rows where there are some.

        Raises:
            OutputError: the folder cannot be written.
        """
        source = self.train_dataset if self.eval_dataset is None else self.eval_dataset
        if hasattr(source, "__len__"):
            rows = [source[index] for index in range(min(self.num_samples, len(source)))]
        else:
            rows = list(itertools.islice(source, self.num_samples))
        pixels = self.collator(rows)["pixel_values"][: self.num_samples].to(self.accelerator.device)
        tokenizer = self.unwrapped
        tokenizer.eval()
        with self._autocast():
            reconstructions = tokenizer(pixels).reconstruction
        tokenizer.train()
        pairs = zip(to_pil(pixels), to_pil(reconstructions.float().clamp(-1, 1)), strict=True)
        path = self.folder.samples / f"step-{self.step:06d}.png"
        captions = ["original", "reconstruction"] * len(pixels)
        save_grid([one for pair in pairs for one in pair], captions, path, num_columns=4)
        return path

    def _prepare(self, tokenizer: VisualTokenizer) -> None:
        args, loss = self.args, self.loss
        trainable = [one for one in tokenizer.parameters() if one.requires_grad]
        if not trainable:
            raise RecipeError(f"no weight of this {type(tokenizer).__name__} is trainable: it cannot be trained")
        self.perceptual: LPIPS | None = None
        if loss.perceptual_weight:
            self.perceptual = LPIPS.from_files(loss.perceptual_features, loss.perceptual_linear)
            self.perceptual.to(self.accelerator.device)
        if loss.adversarial_weight and loss.adaptive_weight and not hasattr(tokenizer, "last_weight"):
            raise RecipeError(
                f"loss.adaptive_weight balances gradients at the tokenizer's last_weight, which a "
                f"{type(tokenizer).__name__} does not have: set it to false"
            )
        self.tokenizer = self.accelerator.prepare(tokenizer.train())
        self.optimizer = self.accelerator.prepare(self._optimizer(tokenizer, args.learning_rate))
        self.schedule = self._schedule(self.optimizer)
        self.discriminator: Any = None
        if loss.adversarial_weight:
            # Seeded apart, so that the tokenizer's weights do not depend on whether there is a discriminator.
            set_seed(_seed_of(args.seed, "discriminator"))
            discriminator = AutoModel.from_config(_discriminator_config(loss.discriminator))
            self.discriminator = self.accelerator.prepare(discriminator.train())
            rate = args.discriminator_learning_rate or args.learning_rate
            self.discriminator_optimizer = self.accelerator.prepare(self._optimizer(discriminator, rate))
            self.discriminator_schedule = self._schedule(self.discriminator_optimizer)
        self.train_loader = self.accelerator.prepare(self._loader(self.train_dataset, training=True))
        self.length = None if isinstance(self.train_dataset, IterableDataset) else len(self.train_loader)
        if self.length == 0:
            raise DataError(
                f"{len(self.train_dataset)} rows do not fill one batch of {args.per_device_train_batch_size} per process: "
                "lower per_device_train_batch_size"
            )
        self.eval_loader: Any = None
        if self.eval_dataset is not None:
            self.eval_loader = self.accelerator.prepare(self._loader(self.eval_dataset, training=False))

    def _loader(self, dataset: Any, *, training: bool) -> DataLoader:
        args = self.args
        return DataLoader(
            dataset,
            batch_size=args.per_device_train_batch_size if training else args.per_device_eval_batch_size,
            shuffle=training and not isinstance(dataset, IterableDataset),
            drop_last=training,
            collate_fn=self.collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _optimizer(self, model: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        args = self.args
        decayed: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                (decayed if parameter.ndim > 1 and "codebook" not in name else others).append(parameter)
        groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
        )

    def _schedule(self, optimizer: Any) -> Any:
        # Not prepared: Accelerate would step it once per process.
        schedule = get_scheduler(
            self.args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=self.args.warmup_steps,
            num_training_steps=self.args.max_steps,
        )
        self.accelerator.register_for_checkpointing(schedule)
        return schedule

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches from the current step on."""
        done = self.step * self.args.gradient_accumulation_steps
        epoch, skipped = (0, done) if self.length is None else divmod(done, self.length)
        while True:
            loader = skip_first_batches(self.train_loader, skipped) if skipped else self.train_loader
            loader.set_epoch(epoch)
            yield from loader
            epoch, skipped = epoch + 1, 0

    def _optimizer_step(self, batches: Iterator[dict[str, torch.Tensor]]) -> None:
        # Fetched first, because a data loader draws when it is opened, which a resumed run does at another time.
        fetched = [next(batches)["pixel_values"] for _ in range(self.args.gradient_accumulation_steps)]
        # Whatever happened before: a step draws the same.
        set_seed(_seed_of(self.args.seed, self.step, self.accelerator.process_index))
        for pixels in fetched:
            models = [self.tokenizer] + ([self.discriminator] if self.discriminator is not None else [])
            with self.accelerator.accumulate(*models):
                reconstruction = self._tokenizer_pass(pixels)
                if self._is_adversarial:
                    self._discriminator_pass(pixels, reconstruction.detach())
        self.schedule.step()
        if self._is_adversarial:
            self.discriminator_schedule.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.tokenizer, self.step)

    @property
    def _is_adversarial(self) -> bool:
        return self.discriminator is not None and self.step >= self.loss.adversarial_start_step

    def _tokenizer_pass(self, pixels: torch.Tensor) -> torch.Tensor:
        output = self._forward(pixels)
        terms = dict(output.losses)
        likeness = terms["reconstruction"]
        if self.perceptual is not None:
            distance = self.perceptual(output.reconstruction.float(), pixels.float()).mean()
            terms["perceptual"] = self.loss.perceptual_weight * distance
            likeness = likeness + terms["perceptual"]
        if self._is_adversarial:
            discriminator = self.accelerator.unwrap_model(self.discriminator).requires_grad_(False)
            with self._autocast():
                logits = discriminator(output.reconstruction)
            adversarial = adversarial_generator_loss(logits, self.loss.adversarial_loss)
            weight = torch.tensor(self.loss.adversarial_weight, device=adversarial.device)
            if self.loss.adaptive_weight:
                weight = weight * adaptive_weight(
                    likeness, adversarial, self.unwrapped.last_weight, maximum=self.loss.max_adaptive_weight
                )
            terms["adversarial"] = weight * adversarial
            self.means.add("adversarial_weight", weight)
        total = sum_losses(terms)
        self.accelerator.backward(total)
        if self.accelerator.sync_gradients and self.args.max_grad_norm > 0:
            norm = self.accelerator.clip_grad_norm_(self.tokenizer.parameters(), self.args.max_grad_norm)
            self.means.add("grad_norm", norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.means.add("loss", total)
        for name, term in terms.items():
            self.means.add(f"{name}_loss", term)
        difference = output.reconstruction.detach().float().clamp(-1, 1) - pixels.float()
        self.means.add("psnr", psnr(difference).mean())
        if output.codebook_usage is not None:
            self.means.add("codebook_usage", output.codebook_usage)
        return output.reconstruction

    def _discriminator_pass(self, pixels: torch.Tensor, reconstruction: torch.Tensor) -> None:
        self.accelerator.unwrap_model(self.discriminator).requires_grad_(True)
        with self._autocast():
            real, fake = self.discriminator(pixels), self.discriminator(reconstruction)
        loss = adversarial_discriminator_loss(real, fake, self.loss.adversarial_loss)
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self.args.max_grad_norm > 0:
            self.accelerator.clip_grad_norm_(self.discriminator.parameters(), self.args.max_grad_norm)
        self.discriminator_optimizer.step()
        self.discriminator_optimizer.zero_grad()
        self.means.add("discriminator_loss", loss)
        self.means.add("logits_real", real.float().mean())
        self.means.add("logits_fake", fake.float().mean())

    def _forward(self, pixels: torch.Tensor) -> Any:
        with self._autocast():
            return self.tokenizer(pixels)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.args.bf16)

    def _report(self) -> dict[str, float]:
        """Logs, evaluates, draws and saves, where this step has it."""
        args, is_last = self.args, self.step == self.args.max_steps
        logged: dict[str, float] = {}
        if self.step % args.logging_steps == 0 or self.step == 1 or is_last:
            logged = self.means.take() | {"learning_rate": self.schedule.get_last_lr()[0]}
            self._log(logged)
        if self.eval_dataset is not None and (is_last or (args.eval_steps and self.step % args.eval_steps == 0)):
            results = {f"eval_{name}": result["value"] for name, result in self.evaluate().items()}
            self._log(results)
            logged |= results
        draws = self.sample_every_steps and (is_last or self.step % self.sample_every_steps == 0)
        if draws and self.accelerator.is_main_process:
            self.draw()
        if self.step % args.save_steps == 0 or is_last:
            self._save()
        return logged

    def _log(self, values: dict[str, float]) -> None:
        check_finite(values, self.step)
        if self.accelerator.is_main_process:
            self.metrics.write(values, self.step)
            self.tensorboard.write(values, self.step)

    def _save(self) -> None:
        progress = _PROGRESS.format(self.accelerator.process_index)
        with self.checkpoints.write(self.step) as staged:
            self.accelerator.save_state(str(staged))
            (staged / progress).write_text(json.dumps(self.means.state()))
            if self.accelerator.is_main_process:
                self.metrics.save_checkpoint(staged)
                if self.average is not None:
                    self.average.save_checkpoint(staged)
        self.checkpoints.rotate(self.args.save_total_limit)

    def _resume(self) -> None:
        self.checkpoints.clean()
        newest = [self.checkpoints.newest() if self.accelerator.is_main_process else None]
        broadcast_object_list(newest)
        if newest[0] is None:
            self.metrics.start_fresh(self.unwrapped)
            if self.average is not None:
                self.average.start_fresh(self.unwrapped)
            return
        if not self.args.resume:
            raise RecipeError(
                f"resume is off and '{self.args.output_dir}' holds {newest[0].name}: choose another output_dir, or start "
                "over with --overwrite"
            )
        progress = newest[0] / _PROGRESS.format(self.accelerator.process_index)
        if not progress.is_file():
            raise CheckpointError(
                f"'{newest[0]}' has no {progress.name}: it was written by another number of processes. Resume with that "
                "number, or start over in another folder"
            )
        logger.info("resuming from %s", newest[0])
        self.accelerator.load_state(str(newest[0]))
        self.means.load(json.loads(progress.read_text()))
        self.step = step_of(newest[0])
        if self.accelerator.is_main_process:
            self.metrics.load_checkpoint(newest[0])
        if self.average is not None:
            self.average.load_checkpoint(newest[0])


def psnr(difference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, `10 log10(4 / mean(d^2))`, of every picture with pixels in [-1, 1].

    Args:
        difference: `(batch, channels, height, width)` between two pictures.

    Returns:
        `(batch,)`, at most 100.
    """
    return 10 * torch.log10(4 / difference.square().mean(dim=(1, 2, 3)).clamp(min=4e-10))


def _discriminator_config(section: dict[str, Any]) -> Any:
    from ..tokenizers.losses import PatchDiscriminatorConfig, StyleDiscriminatorConfig

    known = {one.model_type: one for one in (PatchDiscriminatorConfig, StyleDiscriminatorConfig)}
    fields = dict(section)
    model_type = fields.pop("model_type", None)
    if model_type not in known:
        raise RecipeError(f"loss.discriminator.model_type must be one of {', '.join(known)}, given {model_type!r}")
    return known[model_type](**fields)


def _seed_of(seed: int, *names: int | str) -> int:
    """A seed for one purpose; different purposes have unrelated ones."""
    numbers = [int.from_bytes(name.encode(), "big") if isinstance(name, str) else name for name in names]
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1)[0])

"""The `unimm` command."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .errors import ConfigError, UniMMError

app = typer.Typer(
    name="unimm",
    help="Train, judge, convert and use unified multimodal models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    # Options may be written as in Python (--top_k) or as on command lines (--top-k).
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)
data_app = typer.Typer(help="Look at, check and export data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
console = Console()

_TRAINING = {
    "help_option_names": ["--help"],
    "allow_extra_args": True,
    "ignore_unknown_options": True,
}
_TRAINING_HELP = "Arguments: --config RECIPE.yaml [--any_field value] [--dry_run] [--tiny] [--overwrite]."


def main() -> None:
    """Runs the command; a user's mistake ends with one message and exit code 1, not with a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except (UniMMError, OSError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)


def _training_command(stage: str, help_text: str) -> None:
    @app.command(name=stage, context_settings=_TRAINING, help=f"{help_text} {_TRAINING_HELP}")
    def command(context: typer.Context) -> None:
        from .training.stages import run_stage

        run_stage(stage, context.args)


_training_command("tokenizer", "Train a visual tokenizer.")
_training_command("pretrain", "Train an image generator.")
_training_command("sft", "Train a conditional model on conversations with pictures.")


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to draw; repeat for several.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What guidance leads away from, for text-conditional models.")
    ] = None,
    label: Annotated[list[int] | None, typer.Option(help="Class to draw; repeat for several.")] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Pictures per prompt or label.")] = 1,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="Of the softmax.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG grid to write.")] = Path("generated.png"),
) -> None:
    """Draw pictures."""
    import torch

    from .data.transforms import save_grid, to_pil

    loaded = _load(model)
    generator = torch.Generator().manual_seed(seed)
    sampling: dict[str, Any] = {
        "guidance_scale": guidance_scale,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "generator": generator,
    }
    if bool(prompt) == bool(label):
        raise ConfigError("give either --prompt or --label (one or several of them)")
    draws_from_condition = hasattr(loaded, "condition")
    if negative_prompt is not None and not (prompt and draws_from_condition):
        raise ConfigError(
            "--negative_prompt belongs to a --prompt for a text-conditional image generator; it has no effect here"
        )
    captions = [one for one in prompt or map(str, label or ()) for _ in range(num_images)]
    if prompt and not draws_from_condition:
        processor = _processor(model, loaded)
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "text", "text": one}]}],
                tokenize=False,
                add_generation_prompt=True,
            )
            for one in captions
        ]
        inputs = processor(text=texts, generation_mode="image")
        ids = loaded.generate(**inputs, generation_mode="image", **sampling)
        pixels = loaded.decode_image_tokens(ids)
    else:
        if not draws_from_condition:
            raise ConfigError(f"a {type(loaded).__name__} draws from a --prompt, not from a --label")
        given: dict[str, Any] = {"prompt": captions, "negative_prompt": negative_prompt}
        if label:
            given = {"labels": [int(one) for one in captions]}
        pixels = loaded.generate(**given, **sampling).images
        if pixels is None:
            raise ConfigError(
                f"'{model}' was converted without its visual tokenizer and gives ids only: convert it with --tokenizer"
            )
    save_grid(to_pil(pixels), captions, out)
    console.print(f"{len(captions)} pictures in {out}")


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a conditional model.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[list[Path] | None, typer.Option(help="Pictures to ask about.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer.")] = 64,
) -> None:
    """Ask a question, with or without pictures."""
    from .data.images import decode_image

    loaded = _load(model)
    processor = _processor(model, loaded)
    pictures = [decode_image(path) for path in image or []]
    content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = processor(text=text, images=pictures or None)
    answer = loaded.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    console.print(
        processor.tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    )


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a conditional model.")],
    benchmark: Annotated[str, typer.Option(help="shapes or digits.")] = "shapes",
    num: Annotated[int, typer.Option(min=1, help="Pictures and questions per row of the table.")] = 1000,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="Of the softmax.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    options: Annotated[str, typer.Option(help="Options of the data set, as JSON.")] = "{}",
    out: Annotated[Path | None, typer.Option(help="JSON file for the record.")] = None,
) -> None:
    """Judge what a model draws and answers; every rate with its n and 95 % interval."""
    from .evaluation.benchmarks import run_benchmark, table_of
    from .files import write_json

    loaded = _load(model)
    sampling = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    try:
        world = json.loads(options)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f'--options must be JSON such as \'{{"backgrounds": ["white"]}}\', given {options!r}'
        ) from error
    processor = _processor(model, loaded)
    record = run_benchmark(benchmark, loaded, processor, num=num, seed=seed, sampling=sampling, options=world)
    console.print(table_of(record))
    if out is not None:
        write_json(out, record)


@app.command()
def verify(
    paths: Annotated[list[Path], typer.Argument(help="Cases of reference numbers, or folders of them.")],
    details: Annotated[bool, typer.Option(help="Also print the rows that are right.")] = True,
) -> None:
    """Compare systems with the numbers of their reference implementations; exits with 1 on a failure."""
    from transformers.utils.logging import disable_progress_bar

    from .verification import find_cases, verify_case

    disable_progress_bar()
    table = Table("system", "case", "tensor", "error", "tolerance", "ok", "note")
    failed, total = 0, 0
    worst: dict[tuple[str, str], float] = {}
    for system, path in find_cases(paths):
        for row in verify_case(system, path):
            total += 1
            failed += not row.ok
            worst[row.system, row.case] = max(worst.get((row.system, row.case), 0.0), row.error)
            if details or not row.ok:
                mark = "[green]yes[/]" if row.ok else "[red]NO[/]"
                table.add_row(
                    row.system, row.case, row.tensor, f"{row.error:.1e}", f"{row.tolerance:.0e}", mark, escape(row.note)
                )
    console.print(table)
    for (system_name, case), error in worst.items():
        console.print(f"{system_name}/{case}: worst error {error:.1e}")
    console.print(f"{total - failed} of {total} rows within tolerance")
    if failed:
        raise typer.Exit(1)


@app.command()
def convert(
    system: Annotated[str, typer.Argument(help="Name of the system, see `unimm list`.")],
    checkpoint: Annotated[Path, typer.Argument(help="Released file or folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="Released file of the visual tokenizer, where it is apart.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Named size; found by the shapes when not given.")] = None,
) -> None:
    """Turn a released checkpoint into a folder that `from_pretrained` loads."""
    from .conversion.checkpoints import convert as run
    from .systems import get_system

    model = run(get_system(system), checkpoint, out, tokenizer=tokenizer, preset=preset)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{type(model).__name__} with {parameters:,} parameters in {out}")


@app.command()
def export(
    system: Annotated[str, typer.Argument(help="Name of the system, see `unimm list`.")],
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model.")],
    out: Annotated[Path, typer.Argument(help="File to write (.safetensors, .pt or .pth).")],
    tokenizer: Annotated[Path | None, typer.Option(help="File for the visual tokenizer's weights.")] = None,
) -> None:
    """Write a model's weights under the names of the reference implementation."""
    from .conversion.checkpoints import export as run
    from .systems import get_system

    run(get_system(system), _load(model), out, tokenizer_output=tokenizer)
    console.print(f"weights in {out}" + (f" and {tokenizer}" if tokenizer else ""))


@app.command(name="list")
def list_systems() -> None:
    """The systems, their presets and papers."""
    from .systems import get_system, system_names

    table = Table("system", "title", "paper", "presets", "code", "weights")
    for name in system_names():
        system = get_system(name)
        table.add_row(
            name, system.title, system.paper, ", ".join(system.presets), system.code_license, system.weights_license
        )
    console.print(table)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="Folder, Hub id, or SYSTEM:PRESET.")],
) -> None:
    """A model's parts, parameters and tokens per picture, without loading weights."""
    import torch
    from transformers import AutoConfig, AutoModel

    from .systems import get_system

    if ":" in model and not Path(model).exists():
        system, preset = model.split(":", 1)
        config = get_system(system).preset(preset).config()
    else:
        config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        skeleton = AutoModel.from_config(config)
    table = Table("part", "class", "parameters")
    for name, child in skeleton.named_children():
        table.add_row(name, type(child).__name__, f"{sum(p.numel() for p in child.parameters()):,}")
    table.add_row("total", type(skeleton).__name__, f"{sum(p.numel() for p in skeleton.parameters()):,}")
    console.print(table)
    if hasattr(skeleton, "layout"):
        console.print(f"tokens per picture: {skeleton.layout.length} ({skeleton.layout})")


@data_app.command(name="check")
def data_check(
    card: Annotated[str, typer.Argument(help="Name or path of a data card.")],
    split: Annotated[str, typer.Option(help="Split to read.")] = "train",
    num_rows: Annotated[int, typer.Option(min=1, help="Rows to read.")] = 100,
) -> None:
    """Read rows of a data set and say what is wrong with them."""
    from .data.loading import check_card

    report = check_card(card, split=split, num_rows=num_rows)
    console.print(report)
    if not report.ok:
        raise typer.Exit(1)


@data_app.command(name="export")
def data_export(
    card: Annotated[str, typer.Argument(help="Name or path of a data card.")],
    out: Annotated[Path, typer.Argument(help="File to write.")],
    split: Annotated[str, typer.Option(help="Split to read.")] = "train",
    num_rows: Annotated[int | None, typer.Option(help="Rows to write, all when not given.")] = None,
) -> None:
    """Write rows as a Parquet file."""
    from .data.loading import export_rows

    export_rows(card, split=split, path=out, num_rows=num_rows)
    console.print(f"rows in {out}")


def _load(model: str) -> Any:
    from transformers import AutoModel

    import unimm  # noqa: F401  (registers the models)

    if not Path(model).exists() and ("/" not in model or model.startswith((".", "/"))):
        raise ConfigError(f"'{model}' is neither a folder here nor a Hub id of the form owner/name")
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise ConfigError(f"the folder '{model}' is no model: it has no config.json")
    return AutoModel.from_pretrained(model).eval()


def _processor(model: str, loaded: Any) -> Any:
    from transformers import AutoProcessor

    from .models import UniMMForConditionalGeneration

    if not isinstance(loaded, UniMMForConditionalGeneration):
        raise ConfigError(
            f"'{model}' holds a {type(loaded).__name__}; prompts and questions need a UniMMForConditionalGeneration"
        )
    return AutoProcessor.from_pretrained(model)


if __name__ == "__main__":
    main()

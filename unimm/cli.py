"""The `unimm` command."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

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
# What a torch.Generator takes, with room for a seed per batch.
_LARGEST_SEED = 2**32 - 1
_OWN = "The model's own default when not given."
_TRAINING_HELP = "Arguments: --config RECIPE.yaml [--any_field value] [--dry_run] [--tiny] [--overwrite]."


def main() -> None:
    """Runs the command; a user's mistake ends with one message and exit code 1, not with a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # One line per request to the Hub is no news.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
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
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance leads away from, with --prompt.")] = None,
    label: Annotated[list[int] | None, typer.Option(help="Class to draw; repeat for several.")] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Pictures per prompt or label.")] = 1,
    guidance_scale: Annotated[float | None, typer.Option(help=f"Classifier-free guidance; 1 is none. {_OWN}")] = None,
    temperature: Annotated[float | None, typer.Option(help=f"Of the softmax. {_OWN}")] = None,
    top_k: Annotated[int | None, typer.Option(help=f"Keep the k likeliest tokens; 0 keeps all. {_OWN}")] = None,
    top_p: Annotated[
        float | None, typer.Option(help=f"Keep the likeliest tokens up to this probability. {_OWN}")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; checked against the model's size.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; checked against the model's size.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=_LARGEST_SEED, help="Of the draws.")] = 0,
    quantization: Annotated[
        Literal["int8", "nf4"] | None,
        typer.Option(help="Weights of the linear layers in 8 or 4 bits, by bitsandbytes."),
    ] = None,
    out: Annotated[Path, typer.Option(help="PNG grid to write.")] = Path("generated.png"),
) -> None:
    """Draw pictures."""
    import torch

    from .data.transforms import save_grid
    from .files import check_output
    from .pipelines import ImageGenerationPipeline

    if bool(prompt) == bool(label):
        raise ConfigError("give either --prompt or --label (one or several of them)")
    if negative_prompt is not None and not prompt:
        raise ConfigError("--negative_prompt goes with --prompt; it has no effect on a --label")
    if out.suffix.lower() != ".png":
        raise ConfigError(f"the grid is a PNG picture: --out must end in .png, given '{out}'")
    if any(not one.strip() for one in prompt or ()):
        raise ConfigError("a --prompt is empty: give at least one word")
    check_output(out)
    loaded = _load(model, quantization)
    processor = None if hasattr(loaded, "condition") else _processor(model, loaded)
    condition: dict[str, Any] = {"labels": label} if label else {"prompt": prompt}
    if negative_prompt is not None:
        condition["negative_prompt"] = negative_prompt
    images = ImageGenerationPipeline(loaded, processor)(
        **condition,
        num_images_per_prompt=num_images,
        guidance_scale=guidance_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        height=height,
        width=width,
        generator=torch.Generator().manual_seed(seed),
    ).images
    captions = [str(one) for one in prompt or label or () for _ in range(num_images)]
    save_grid(images, captions, out)
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

    if not question.strip():
        raise ConfigError("the question is empty: ask something")
    pictures = [decode_image(path) for path in image or []]
    loaded = _load(model)
    processor = _processor(model, loaded)
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
    said = processor.tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    console.print(escape(said))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a conditional model.")],
    benchmark: Annotated[str, typer.Option(help="shapes or digits.")] = "shapes",
    num: Annotated[int, typer.Option(min=1, help="Pictures and questions per row of the table.")] = 1000,
    guidance_scale: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="Of the softmax.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=_LARGEST_SEED, help="Of the draws.")] = 0,
    options: Annotated[str, typer.Option(help="Options of the data set, as JSON.")] = "{}",
    out: Annotated[Path | None, typer.Option(help="JSON file for the record.")] = None,
) -> None:
    """Judge what a model draws and answers; every rate with its n and 95 % interval."""
    from .evaluation.benchmarks import run_benchmark, table_of
    from .files import check_output, write_json

    sampling = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    try:
        world = json.loads(options)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f'--options must be JSON such as \'{{"backgrounds": ["white"]}}\', given {options!r}'
        ) from error
    if not isinstance(world, dict):
        raise ConfigError(f"--options must be a JSON object of names to values, given {options!r}")
    if out is not None:
        check_output(out)
    loaded = _load(model)
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
    license: Annotated[str | None, typer.Option(help="Of the weights, where this release has another one.")] = None,
    license_name: Annotated[str | None, typer.Option(help="Name of the terms, with --license other.")] = None,
    license_link: Annotated[str | None, typer.Option(help="Where those terms stand.")] = None,
) -> None:
    """Turn a released checkpoint into a folder that `from_pretrained` loads, with a card that states its licence."""
    from .conversion.checkpoints import card_facts
    from .conversion.checkpoints import convert as run
    from .systems import get_system

    stated = _license(license, license_name, license_link)
    model = run(get_system(system), checkpoint, out, tokenizer=tokenizer, preset=preset, license=stated)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    terms = card_facts(get_system(system), license=stated).license
    console.print(f"{type(model).__name__} with {parameters:,} parameters in {out}; licence of the weights: {terms}")


@app.command()
def push(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model.")],
    repo_id: Annotated[str, typer.Argument(help="Hub id: owner/name, or a name in your own namespace.")],
    license: Annotated[str | None, typer.Option(help="Of the weights, where the card states none.")] = None,
    license_name: Annotated[str | None, typer.Option(help="Name of the terms, with --license other.")] = None,
    license_link: Annotated[str | None, typer.Option(help="Where those terms stand.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to; created where it does not exist.")] = None,
    message: Annotated[str | None, typer.Option(help="First line of the commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create_pr", help="Open a pull request instead.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Measure speed and memory here, for the card.")] = False,
) -> None:
    """Publish a saved model with its card, as one commit; refused while the licence of the weights is not stated."""
    from .hub.cards import size_text
    from .hub.measuring import measure_use
    from .hub.push import Push

    stated = _license(license, license_name, license_link)
    ready = Push.prepare(model, repo_id, license=stated)
    if measure:
        loaded = _load(str(model))
        processor = _processor(str(model), loaded) if (model / "processor_config.json").is_file() else None
        ready = Push.prepare(model, repo_id, license=stated, measurements=measure_use(loaded, processor))
    console.print(f"{model} to {repo_id}, licence {ready.license}", soft_wrap=True)
    for name, size in ready.files:
        console.print(f"  {size_text(size):>10}  {escape(name)}", highlight=False, soft_wrap=True)
    total = sum(size for _, size in ready.files)
    console.print(f"{len(ready.files)} files, {size_text(total)}")
    commit = ready.send(private=private or None, revision=revision, message=message, create_pr=create_pr)
    console.print(commit.pr_url or commit.commit_url, soft_wrap=True, highlight=False)


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
    memory: Annotated[bool, typer.Option("--memory", help="Also what weights, cache and activations take.")] = False,
) -> None:
    """A model's parts, parameters and tokens per picture, without loading weights."""
    import torch
    from transformers import AutoModel

    from .models.folders import load_config
    from .systems import get_system

    if ":" in model and not Path(model).exists():
        system, preset = model.split(":", 1)
        config = get_system(system).preset(preset).config()
    else:
        config = load_config(model)
    with torch.device("meta"):
        skeleton = AutoModel.from_config(config)
    table = Table("part", "class", "parameters")
    for name, child in skeleton.named_children():
        table.add_row(name, type(child).__name__, f"{sum(p.numel() for p in child.parameters()):,}")
    table.add_row("total", type(skeleton).__name__, f"{sum(p.numel() for p in skeleton.parameters()):,}")
    console.print(table)
    if hasattr(skeleton, "layout"):
        console.print(f"tokens per picture: {skeleton.layout.length} ({skeleton.layout})")
    if memory:
        from .memory import describe_generation

        console.print(describe_generation(config).table())


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


def _license(identifier: str | None, name: str | None, link: str | None) -> Any:
    from .hub.licenses import License

    if identifier is None:
        if name or link:
            raise ConfigError("--license_name and --license_link go with --license other")
        return None
    return License.stated(identifier, name, link)


def _load(model: str, quantization: Literal["int8", "nf4"] | None = None) -> Any:
    import unimm  # noqa: F401  (registers the models)

    from .models.folders import load_model

    if quantization is None:
        return load_model(model)
    from .models.loading import quantization_config

    # It tells of every layer, at every step, that 8-bit products run in half precision.
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
    return load_model(model, quantization_config=quantization_config(quantization))


def _processor(model: str, loaded: Any) -> Any:
    from .models import UniMMForConditionalGeneration
    from .models.folders import load_processor

    if not isinstance(loaded, UniMMForConditionalGeneration):
        raise ConfigError(
            f"'{model}' holds a {type(loaded).__name__}; prompts and questions need a UniMMForConditionalGeneration"
        )
    return load_processor(model)


if __name__ == "__main__":
    main()

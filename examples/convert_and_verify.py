"""A checkpoint in its reference's layout: converted, verified, loaded by `from_pretrained`, and exported back.

    python examples/convert_and_verify.py var var_d16.pth --tokenizer vae_ch160v4096z32.pth
    python examples/convert_and_verify.py llamagen tests/parity/llamagen/c2i

A folder of reference numbers (`tests/parity/SYSTEM/CASE`) brings its own tiny weights, and everything that the reference
computed with them is compared too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModel

from unimm.conversion.checkpoints import convert, export, read_checkpoint
from unimm.systems import get_system
from unimm.verification import Case, verify_case


def main(
    system: Annotated[str, typer.Argument(help="Name of the system, see `unimm list`.")],
    checkpoint: Annotated[Path, typer.Argument(help="Released file, or a folder of reference numbers.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Released file of the tokenizer, where it is apart.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("out/converted"),
) -> None:
    """Converts, verifies, loads and exports a checkpoint."""
    chosen, config = get_system(system), None
    if (checkpoint / "io.safetensors").is_file():
        config = chosen.config_from_reference(Case.load(checkpoint).settings)
        rows = verify_case(chosen, checkpoint)
        for row in rows:
            print(
                f"{'ok' if row.ok else 'WRONG'}  {row.tensor}: error {row.error:.1e} of {row.tolerance:.0e} {row.note}"
            )
        if not all(row.ok for row in rows):
            raise typer.Exit(1)
        checkpoint = checkpoint / "weights.safetensors"

    convert(chosen, checkpoint, out / "model", tokenizer=tokenizer, config=config)
    model = AutoModel.from_pretrained(out / "model").eval()
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters in {out / 'model'}")

    exported = {checkpoint: out / "exported.safetensors"}
    if tokenizer is not None:
        exported[tokenizer] = out / "exported-tokenizer.safetensors"
    export(chosen, model, out / "exported.safetensors", tokenizer_output=exported.get(tokenizer))
    for released, ours in exported.items():
        converter = chosen.converter(model.config if released == checkpoint else model.config.tokenizer_config)
        original, written = converter.unwrap(read_checkpoint(released)), read_checkpoint(ours)
        weights = [name for name in original if not converter.is_ignored(name)]
        same = weights and all(torch.equal(original[name], written[name]) for name in weights)
        print(f"{ours}: {len(weights)} tensors {'equal bit for bit' if same else 'DIFFER from the released ones'}")
        if not same or set(weights) != set(written):
            raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

"""A tiny unified model with random weights: what it draws and says is noise, how it is called is not.

    python examples/stand_in.py [out/stand-in]

The other scripts take its folder wherever they take a model, and so can your own tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModel, Qwen3Config

from unimm import UniMMConditionalConfig, UniMMImageProcessor, UniMMProcessor
from unimm.data.shapes import vocabulary
from unimm.models import word_tokenizer
from unimm.tokenizers import VQTokenizerConfig


def main(folder: Annotated[Path, typer.Argument(help="Where to write.")] = Path("out/stand-in")) -> None:
    """Builds a visual tokenizer and a language model from configs, and saves them with their processor."""
    torch.manual_seed(0)
    visual = VQTokenizerConfig(
        base_channels=8,
        channel_multipliers=(1, 2, 2),  # halves 32 pixels twice: 8 x 8 tokens
        num_residual_blocks=1,
        encoder_channels=16,
        code_channels=8,
        codebook_size=32,
        num_norm_groups=4,
    )
    words = word_tokenizer(vocabulary())  # one token per word of Shapes' captions, questions and answers
    image_processor = UniMMImageProcessor(size={"height": 32, "width": 32})
    processor = UniMMProcessor(image_processor, words, num_visual_tokens=64)
    text = Qwen3Config(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        tie_word_embeddings=False,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    names = ("image", "visual", "image_start", "image_end")
    config = UniMMConditionalConfig(
        text_config=text,
        tokenizer_config=visual,
        image_size=32,
        null_prompt_ids=processor.null_prompt_ids,
        **{f"{name}_token_id": words.convert_tokens_to_ids(f"<|{name}|>") for name in names},
    )
    model = AutoModel.from_config(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    print(f"{type(model).__name__} with {model.num_parameters():,} parameters in {folder}")


if __name__ == "__main__":
    typer.run(main)

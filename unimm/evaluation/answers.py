"""How often a conditional model's short answers are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from .shapes import wilson_interval


def rate_record(successes: int, number: int) -> dict[str, Any]:
    """A rate with its number and 95 % interval, as `evaluate_generations` gives it."""
    return {"n": number, "right": successes / number, "interval": list(wilson_interval(successes, number))}


@torch.no_grad()
def answer_questions(
    model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], *, batch_size: int = 128, max_new_tokens: int = 8
) -> list[str]:
    """The model's greedy answers to rows that end with an assistant's text.

    Args:
        rows: question rows of the one schema; the last message is the expected answer and is not shown.
    """
    answers: list[str] = []
    for start in tqdm(range(0, len(rows), batch_size), desc="answers"):
        batch = rows[start : start + batch_size]
        texts = [
            processor.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)
            for row in batch
        ]
        inputs = processor(text=texts, images=[image for row in batch for image in row["images"]]).to(model.device)
        generated = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=processor.tokenizer.eos_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        new = generated[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


def expected_answers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The text of every row's last message."""
    return [
        " ".join(part["text"] for part in row["messages"][-1]["content"] if part["type"] == "text").strip()
        for row in rows
    ]


def score_answers(
    answers: Sequence[str],
    expected: Sequence[str],
    kinds: Sequence[str],
    kinds_seen: Mapping[str, Counter] | None = None,
) -> dict[str, Any]:
    """Accuracy over all questions and by kind, with the majority baseline beside it.

    Args:
        answers: what the model said.
        expected: what is right.
        kinds: the kind of every question.
        kinds_seen: answers of the training questions by kind; the baseline always gives the commonest one of the kind.
            Without it the commonest answer of the scored questions themselves stands in, which is a stronger baseline.
    """
    if kinds_seen is None:
        counts: dict[str, Counter] = {}
        for kind, answer in zip(kinds, expected, strict=True):
            counts.setdefault(kind, Counter())[answer] += 1
        kinds_seen = counts
    guesses = {kind: counter.most_common(1)[0][0] for kind, counter in kinds_seen.items()}
    right = [answer == wanted for answer, wanted in zip(answers, expected, strict=True)]
    baseline = [guesses.get(kind) == wanted for kind, wanted in zip(kinds, expected, strict=True)]
    by_kind = {
        kind: rate_record(sum(r for r, k in zip(right, kinds, strict=True) if k == kind), sum(k == kind for k in kinds))
        for kind in sorted(set(kinds))
    }
    return {
        "accuracy": rate_record(sum(right), len(right)),
        "majority_baseline": rate_record(sum(baseline), len(baseline)),
        "by_kind": by_kind,
    }

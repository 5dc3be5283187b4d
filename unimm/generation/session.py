"""One sequence of slots that grows through a backbone, step by step."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..backbones.condition import EncodedCondition, join_slots
from ..conditions.base import Condition
from ..plans.base import PredictionPlan
from ..tokens import TokenLayout
from .caches import make_cache


class BackboneSession:
    """Positions, visibility, encoded conditions and the cache of one generation.

    Args:
        plan: gives positions and visibility.
        backbone: what turns slots into hidden states.
        layout: what is being filled.
        condition: all contexts, one under the other.
        num_slots: length of the whole sequence.
        cache: `static` or `dynamic` keeps keys and values, None runs the whole sequence again at every step.
    """

    def __init__(
        self,
        plan: PredictionPlan,
        backbone: Any,
        layout: TokenLayout,
        condition: Condition,
        num_slots: int,
        cache: Literal["static", "dynamic"] | None,
    ):
        self.plan, self.backbone, self.layout, self.condition = plan, backbone, layout, condition
        self.rule = plan.rule(layout, condition)
        self.positions = backbone.encode_positions(plan.positions(layout, condition))
        self.encoded = backbone.encode_condition(condition)
        self.cache = None if cache is None else make_cache(cache, backbone.config.num_hidden_layers, num_slots)
        self.sequence: list[torch.Tensor] = []
        # What steered the parts of the sequence, where it is run again from the start.
        self.steering: list[EncodedCondition] = []
        self.num_calls = 0

    @property
    def num_rows(self) -> int:
        return self.condition.num_rows

    def keep_first_rows(self, number: int) -> None:
        """Drops the other contexts, which have done their work."""
        self.condition = self.condition.first_rows(number)
        self.encoded = self.encoded.first_rows(number)
        self.rule = self.plan.rule(self.layout, self.condition)
        self.positions = self.positions.first_rows(number)
        if self.cache is not None:
            self.cache.batch_select_indices(torch.arange(number, device=self.condition.device))
        self.sequence = [part[:number] for part in self.sequence]
        self.steering = [one.first_rows(number) for one in self.steering]

    def run(
        self,
        slots: torch.Tensor,
        where: slice,
        *,
        alone: bool = False,
        remember: bool = True,
        condition: Condition | None = None,
        **options: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of new slots.

        Args:
            slots: `(rows, slots, hidden)`.
            where: their range in the whole sequence.
            alone: they see each other only, and nobody sees them later.
            remember: later slots see them; otherwise they look at the sequence and leave no trace.
            condition: what steers these slots, instead of the session's condition.
            options: further arguments of the backbone.
        """
        self.num_calls += 1
        encoded = self.encoded if condition is None else self.backbone.encode_condition(condition)
        if alone:
            return self.backbone(
                inputs_embeds=slots,
                positions=self.positions[where],
                rule=self.rule.part(where),
                condition=encoded,
                **options,
            )
        if self.cache is None:
            parts, steering = [*self.sequence, slots], [*self.steering, encoded]
            if remember:
                self.sequence, self.steering = parts, steering
            if condition is not None:
                # Earlier slots keep what steered them.
                encoded = join_slots(steering, [part.shape[1] for part in parts])
            output = self.backbone(
                inputs_embeds=torch.cat(parts, dim=1),
                positions=self.positions[slice(0, where.stop)],
                rule=self.rule,
                condition=encoded,
                **options,
            )
            return _last_slots(output, slots.shape[1])
        output = self.backbone(
            inputs_embeds=slots,
            positions=self.positions[where],
            rule=self.rule,
            condition=encoded,
            cache=self.cache,
            start=where.start,
            **options,
        )
        if not remember:
            self.cache.crop(-slots.shape[1])
        return output


def _last_slots(output: BaseModelOutputWithPast, number: int) -> BaseModelOutputWithPast:
    output.last_hidden_state = output.last_hidden_state[:, -number:]
    if getattr(output, "taps", None) is not None:
        output.taps = [tap[:, -number:] for tap in output.taps]
    return output

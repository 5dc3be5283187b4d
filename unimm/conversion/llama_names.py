"""Names of LlamaGen's transformer in released files, which NAR, DetailFlow and others kept."""

from __future__ import annotations

from .base import Rename

WRAPPERS = ("model", "module", "state_dict", "ema")
#: Condition, token table and blocks; the last norms and the output layers are each system's own.
TRUNK_RULES = (
    Rename("cls_embedding.embedding_table.weight", "condition.embedding.weight"),
    Rename("cls_embedding.cap_proj.fc1.weight", "condition.fc1.weight"),
    Rename("cls_embedding.cap_proj.fc2.weight", "condition.fc2.weight"),
    Rename("cls_embedding.uncond_embedding", "condition.null_features"),
    Rename("tok_embeddings.weight", "plan.token_embedding.weight"),
    Rename("layers.{n}.attention.wqkv.weight", "backbone.layers.{n}.attention.qkv.weight"),
    Rename("layers.{n}.attention.wo.weight", "backbone.layers.{n}.attention.proj.weight"),
    Rename("layers.{n}.feed_forward.w1.weight", "backbone.layers.{n}.feed_forward.gate.weight"),
    Rename("layers.{n}.feed_forward.w2.weight", "backbone.layers.{n}.feed_forward.down.weight"),
    Rename("layers.{n}.feed_forward.w3.weight", "backbone.layers.{n}.feed_forward.up.weight"),
    Rename("layers.{n}.attention_norm.weight", "backbone.layers.{n}.attention_norm.weight"),
    Rename("layers.{n}.ffn_norm.weight", "backbone.layers.{n}.feed_forward_norm.weight"),
)

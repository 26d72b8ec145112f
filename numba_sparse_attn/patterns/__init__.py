"""Which query sees which key: the named patterns, and Pattern, what they all are."""

from __future__ import annotations

from .adaptive_window import adaptive_window
from .axial import axial
from .band import band
from .bigbird import bigbird
from .block_diffusion import block_diffusion
from .block_local import block_local
from .causal import causal
from .chunked_causal import chunked_causal
from .convert import as_pattern
from .dilated_window import dilated_window
from .document_qa import document_qa
from .documents import documents
from .exponential_offsets import exponential_offsets
from .fixed import fixed
from .full import full
from .global_tokens import global_tokens
from .heads import HeadPatterns
from .hierarchical_blocks import hierarchical_blocks
from .indentation import indentation
from .indentation_levels import indentation_levels
from .landmarks import landmarks
from .longformer import longformer
from .multimodal import multimodal
from .multiscale_grid import multiscale_grid
from .neighborhood import neighborhood
from .outline import outline
from .pattern import Pattern
from .periodic_global import periodic_global
from .prefix import prefix
from .random_blocks import random_blocks
from .random_keys import random_keys
from .shifted_windows import shifted_windows
from .sink_window import sink_window
from .sliding_window import sliding_window
from .strided import strided
from .strided_heads import strided_heads
from .tree import tree
from .vertical_slash import vertical_slash

__all__ = [
    "HeadPatterns",
    "Pattern",
    "adaptive_window",
    "as_pattern",
    "axial",
    "band",
    "bigbird",
    "block_diffusion",
    "block_local",
    "causal",
    "chunked_causal",
    "dilated_window",
    "document_qa",
    "documents",
    "exponential_offsets",
    "fixed",
    "full",
    "global_tokens",
    "hierarchical_blocks",
    "indentation",
    "indentation_levels",
    "landmarks",
    "longformer",
    "multimodal",
    "multiscale_grid",
    "neighborhood",
    "outline",
    "periodic_global",
    "prefix",
    "random_blocks",
    "random_keys",
    "shifted_windows",
    "sink_window",
    "sliding_window",
    "strided",
    "strided_heads",
    "tree",
    "vertical_slash",
]

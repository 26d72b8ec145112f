"""A window and the landmarks that a selection has found."""

from __future__ import annotations

import numpy as np

from ..formats.pieces import make_pieces
from ..patterns._spans import runs
from ..patterns.pattern import Pattern
from . import _dense
from ._call import Call, Integers
from .catalogue import Mask

__all__ = ["dense_landmarks", "landmark_pattern"]


def landmark_pattern(call: Call, landmarks: Integers, window: int, name: str) -> Pattern:
    """Every query sees the landmarks, and the keys at most `window` from where it stands itself."""
    low, high = call.offset - window, call.offset + (0 if call.causal else window)
    pieces = [
        make_pieces(rows=(0, call.n_q), columns=(0, call.n_k), differences=(low, high)),
        make_pieces(rows=(0, call.n_q), columns=runs(landmarks), differences=call.differences),
    ]
    return Pattern.from_pieces((call.n_q, call.n_k), np.concatenate(pieces), name=name)


def dense_landmarks(n_q: int, n_k: int, landmarks: Integers, window: int, causal: bool) -> Mask:
    """The same, pair by pair."""
    distance = np.arange(n_k) - np.arange(n_q)[:, None] - (n_k - n_q)
    chosen = np.isin(np.arange(n_k), landmarks)
    return (chosen | (np.abs(distance) <= window)) & _dense.seen(n_q, n_k, causal)

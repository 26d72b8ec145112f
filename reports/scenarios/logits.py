"""Our logits and tokens beside those of Transformers, which reads the same file with code of its own.

    python -m reports.scenarios.logits [--quick]

Needs ``torch``, ``transformers``, ``accelerate`` and ``gguf``. What is right is Transformers' model in
float64, the angles of its rotary embedding, too: Transformers computes these in float32 whatever the model
is in, and at position 1000 they are off by 6e-5, which is most of what float32 does to its logits. Beside our
error stand two others of float32: Transformers' own, and that of our model with the
oracle for attention, which is what the products with the weights alone make of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_sparse_attn import patterns

from . import documents
from .documents import Document
from .gguf import GgufFile
from .model import Pretrained, load_model, model_path
from .options import parse_options
from .runs import Job, Results, Row, run_missing

__all__ = ["run"]

_LENGTHS = (1024,)


class _Transformers:
    """Transformers' model from a GGUF file, and a tokenizer of the library below it.

    What Transformers makes of the file's tokenizer is not used: it reads the merges, but not the rule
    ``smollm`` that cuts digits out before words are looked for.
    """

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        import torch
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import AutoModelForCausalLM

        place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        self._torch = torch
        numbers = {token: number for number, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
        self.tokenizer = Tokenizer(models.BPE(numbers, merges))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        self._single = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
        self._double = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).double().eval()
        self._double.model.rotary_emb = self._exact_rotation()

    def _exact_rotation(self) -> Any:
        """In place of Transformers' module, with the same arguments and results."""
        torch, config = self._torch, self._double.config

        class Rotation(torch.nn.Module):  # type: ignore[name-defined]
            def forward(self, state: Any, position_ids: Any) -> tuple[Any, Any]:
                size = config.hidden_size // config.num_attention_heads
                base = config.rope_parameters["rope_theta"]
                pace = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
                angles = (position_ids[..., None].double() * pace).repeat(1, 1, 2)
                return angles.cos(), angles.sin()

        return Rotation()

    def logits(self, tokens: npt.NDArray[np.int64], *, double: bool) -> npt.NDArray[Any]:
        with self._torch.no_grad():
            model = self._double if double else self._single
            return model(self._torch.from_numpy(tokens)[None]).logits[0].numpy()


def _compare(pretrained: Pretrained, peer: _Transformers, document: Document) -> Row:
    tokens = document.tokens
    model = pretrained.model
    causal = patterns.causal(len(tokens))
    ours, oracle = (
        model.logits(model.hidden(tokens, causal, engine=engine)) for engine in ("cpu", "reference")
    )
    exact, theirs = (peer.logits(tokens, double=double) for double in (True, False))
    # Cut off elsewhere, a text may end in other tokens: both are asked for those of the text as it is.
    text = pretrained.tokenizer.decode(tokens.tolist())
    their_tokens = peer.tokenizer.encode(text).ids
    error, oracle_error, peer_error = ours - exact, oracle - exact, theirs - exact
    return {
        "same_tokens": pretrained.tokenizer.encode(text) == their_tokens,
        "spread": float(exact.std()),
        "max_error": float(np.abs(error).max()),
        "oracle_max_error": float(np.abs(oracle_error).max()),
        "peer_max_error": float(np.abs(peer_error).max()),
        "rms_error": float(np.sqrt(np.mean(error**2))),
        "oracle_rms_error": float(np.sqrt(np.mean(oracle_error**2))),
        "peer_rms_error": float(np.sqrt(np.mean(peer_error**2))),
        "same_best": float((ours.argmax(axis=1) == exact.argmax(axis=1)).mean()),
        "peer_same_best": float((theirs.argmax(axis=1) == exact.argmax(axis=1)).mean()),
    }


def run(arguments: Sequence[str] | None = None) -> Path:
    """Compare on every document; returns the results file."""
    options = parse_options("logits", [], _LENGTHS, arguments)
    path = model_path(options.model)
    pretrained, peer = load_model(path), _Transformers(path, GgufFile(path).metadata)
    results = Results(options.output, "logits", pretrained.facts)
    versions = {name: version(name) for name in ("torch", "transformers", "gguf")}
    jobs = []
    for length in options.lengths:
        for document in documents.language(pretrained.tokenizer, length)[: options.documents]:
            key = {"document": document.name, "digest": document.digest, "tokens": length, **versions}
            jobs.append(Job(key, length, partial(_compare, pretrained, peer, document)))
    run_missing(jobs, results)
    return Path(options.output)


if __name__ == "__main__":
    run()

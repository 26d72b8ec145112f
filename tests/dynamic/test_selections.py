"""Every selection by content against its definition; a new one is tested without an edit here."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from matplotlib.figure import Figure

import numba_sparse_attn as nsa
from numba_sparse_attn import HeadPatterns, Pattern, dynamic, reference
from numba_sparse_attn.dynamic.catalogue import SELECTIONS, Case, Entry

from ..cuda.fake_libraries import Tensor

EXAMPLES = [
    pytest.param(entry, case, id=f"{entry.name}-{number}")
    for entry in SELECTIONS.values()
    for number, case in enumerate(entry.examples())
]
by_entry = pytest.mark.parametrize("entry", SELECTIONS.values(), ids=list(SELECTIONS))
by_example = pytest.mark.parametrize(("entry", "case"), EXAMPLES)
#: Selections that read arrays in GPU memory where they lie: tests/cuda/selection_cases.py has them.
ON_DEVICE = {
    "adaptive",
    "block_top_k",
    "landmarks_by_importance",
    "landmarks_by_structure",
    "moba",
    "nsa_blocks",
    "quest",
    "top_k",
    "vertical_slash",
}
#: Beyond the edge of a tile and of a panel.
LONGER = 300


def masks(patterns):
    return np.stack([pattern.toarray() for pattern in patterns])


def has_causal(entry: Entry) -> bool:
    return "causal" in inspect.signature(entry.select).parameters


@by_example
def test_examples_are_what_the_definition_says(entry: Entry, case: Case) -> None:
    made = entry.patterns(case)
    assert len(made) == case.heads
    assert made[0].shape == (case.n_q, case.n_k)
    expected = entry.brute_force(case)
    np.testing.assert_array_equal(masks(made), expected)
    assert sum(pattern.nnz for pattern in made) == expected.sum()


@by_entry
@pytest.mark.parametrize("seed", range(3))
def test_longer_sequences_are_what_the_definition_says(entry: Entry, seed: int) -> None:
    case = replace(entry.scaled(LONGER), seed=10 * seed)
    np.testing.assert_array_equal(masks(entry.patterns(case)), entry.brute_force(case))


@by_example
def test_causal_means_causal(entry: Entry, case: Case) -> None:
    if not has_causal(entry):
        return
    past = np.tri(case.n_q, case.n_k, case.n_k - case.n_q, dtype=bool)
    for causal in (False, True):
        chosen = replace(case, arguments={**case.arguments, "causal": causal})
        made = masks(entry.patterns(chosen))
        np.testing.assert_array_equal(made, entry.brute_force(chosen))
        assert not causal or not (made & ~past).any()


@by_entry
def test_batch_elements_are_calls_of_their_own(entry: Entry) -> None:
    """Masks of a batch element or head beyond the first are not those of the first (bug 8 of the field)."""
    case = entry.examples()[0]
    pairs = [replace(case, seed=seed).arrays() for seed in (0, 20)]
    q, k = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    made = entry.select(q[None], k[None], **case.arguments)
    assert isinstance(made, HeadPatterns) and made.member_of.shape == (1, 2, case.heads)
    for number, (queries, keys) in enumerate(pairs):
        alone = entry.select(queries, keys, **case.arguments)
        for head in range(case.heads):
            assert made.members[made.member_of[0, number, head]].equals(alone[head])
    nobody = entry.select(q[:0], k[:0], **case.arguments)
    assert nobody.member_of.shape == (0, case.heads) and nobody.shape == (case.n_q, case.n_k)


@by_entry
def test_the_same_call_gives_the_same_pairs_whatever_the_threads(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = entry.scaled(LONGER)
    first = masks(entry.patterns(case))
    monkeypatch.setenv("NSA_NUM_THREADS", "3")
    np.testing.assert_array_equal(masks(entry.patterns(case)), first)


@by_entry
def test_strides_and_types_of_the_arrays(entry: Entry) -> None:
    """Other strides give the same pairs (bug 9 of the field); 16-bit types are computed in float32."""
    case = entry.examples()[0]
    q, k = case.arrays()
    expected = masks(entry.patterns(case))
    strided = [np.repeat(array, 2, axis=-1)[..., ::2] for array in (q, k)]
    assert not strided[0].flags.c_contiguous
    np.testing.assert_array_equal(masks(entry.select(*strided, **case.arguments)), expected)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        half = [array.astype(dtype) for array in (q, k)]
        single = [array.astype(np.float32) for array in half]
        np.testing.assert_array_equal(
            masks(entry.select(*half, **case.arguments)), masks(entry.select(*single, **case.arguments))
        )


@by_entry
def test_attention_over_the_selection_is_the_oracles(entry: Entry) -> None:
    case = entry.examples()[0]
    q, k = case.arrays()
    v = np.random.default_rng(0).standard_normal(k.shape)
    pattern = entry.select(q, k, **case.arguments)
    scale = case.head_dim**-0.5
    out, lse = nsa.sparse_attention(q, k, v, pattern, return_lse=True)
    dout = np.cos(out)
    mask = entry.brute_force(case)
    exact, exact_lse = reference.forward(q, k, v, mask, scale)
    np.testing.assert_allclose(out, exact, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-10, atol=1e-12)
    gradients = nsa.sparse_attention_backward(dout, q, k, v, out, lse, pattern)
    for found, right in zip(gradients, reference.backward(dout, q, k, v, mask, scale), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-9, atol=1e-11)


@by_entry
def test_what_other_patterns_can_do(entry: Entry, tmp_path: Path) -> None:
    """Plans, files, pickles, set operations, pictures."""
    case = entry.examples()[0]
    made = entry.select(*case.arrays(), **case.arguments)
    mask = masks(made)
    plan = nsa.plan(made, heads=case.heads, kv_heads=case.kv_heads, head_dim=case.head_dim)
    assert made[0].name in plan.explain()
    made[0].save(tmp_path / "selected.npz")
    np.testing.assert_array_equal(Pattern.load(tmp_path / "selected.npz").toarray(), mask[0])
    np.testing.assert_array_equal(masks(pickle.loads(pickle.dumps(made))), mask)
    window = nsa.patterns.sliding_window(case.n_q, 2)
    np.testing.assert_array_equal(masks(made | window), mask | window.toarray())
    np.testing.assert_array_equal(masks(made.T), mask.swapaxes(1, 2))
    # A figure that pyplot does not know: it warns where more than twenty stay open.
    assert nsa.plot.plot_pattern(made[0], Figure().add_subplot()).get_title()


@by_entry
def test_flat_arrays_give_one_pattern(entry: Entry) -> None:
    heads = entry.examples()[0].heads
    case = replace(entry.examples()[0], heads=1, kv_heads=1)
    q, k = case.arrays()
    # What has a value a head keeps that of the first.
    arguments = {
        name: value[:1] if isinstance(value, list | np.ndarray) and len(value) == heads else value
        for name, value in case.arguments.items()
    }
    made = entry.select(q[0], k[0], **arguments)
    assert isinstance(made, Pattern)
    assert made.equals(entry.select(q, k, **arguments)[0])
    assert made.name.startswith(f"{entry.name}(")


@by_entry
def test_arrays_are_not_written_to(entry: Entry) -> None:
    case = entry.examples()[0]
    arrays = case.arrays()
    before = [array.copy() for array in arrays]
    made = entry.select(*arrays, **case.arguments)
    selected = masks(made)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)
        array[...] = 0.0  # and the pattern does not follow
    np.testing.assert_array_equal(masks(entry.select(*before, **case.arguments)), selected)
    np.testing.assert_array_equal(masks(made), selected)


@by_entry
def test_refusals(entry: Entry) -> None:
    case = entry.examples()[0]
    q, k = case.arrays()
    if entry.name not in ON_DEVICE:
        with pytest.raises(nsa.EngineError, match="q in GPU memory"):
            entry.select(Tensor(q), Tensor(k), **case.arguments)
    with pytest.raises(nsa.ShapeError, match="one head dimension"):
        entry.select(q, k[..., :-1], **case.arguments)
    with pytest.raises(nsa.DtypeError):
        entry.select(q.astype(int), k.astype(int), **case.arguments)
    if has_causal(entry):
        with pytest.raises(nsa.PatternError, match="causal=1; supported: True or False"):
            entry.select(q, k, **{**case.arguments, "causal": 1})
    if "budget" in case.arguments:
        with pytest.raises(nsa.PatternError, match="budget="):
            entry.select(q, k, **{**case.arguments, "budget": 2.5})
        with pytest.raises(nsa.ArgumentError, match=f"7 values for {case.heads} query heads"):
            entry.select(q, k, **{**case.arguments, "budget": [1] * 7})


def test_everything_exported_is_registered() -> None:
    assert {name for name in dynamic.__all__ if name in SELECTIONS} == set(SELECTIONS)
    assert all(getattr(dynamic, name) is entry.select for name, entry in SELECTIONS.items())
    assert all(
        entry.select.__module__ == f"numba_sparse_attn.dynamic.{name}" for name, entry in SELECTIONS.items()
    )


@by_entry
def test_optional_arguments_are_keyword_only(entry: Entry) -> None:
    for parameter in inspect.signature(entry.select).parameters.values():
        optional = parameter.default is not inspect.Parameter.empty
        assert optional == (parameter.kind is inspect.Parameter.KEYWORD_ONLY), parameter

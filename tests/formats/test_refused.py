"""Every stored file that has to be refused is refused with its own sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given
from scipy import sparse

import numba_sparse_attn as nsa
from numba_sparse_attn.formats import from_indices, from_mask, from_scipy, to_csr
from numba_sparse_attn.formats.npz import read_npz
from numba_sparse_attn.testing import strategies
from reports import make_handbook

FOLDER = Path(__file__).resolve().parents[2] / "formats" / "refused"
SENTENCES = json.loads((FOLDER / "sentences.json").read_text("utf-8"))
#: Keys that the stored index arrays are read for.
KEYS = 4


def load(name):
    path = FOLDER / name
    if path.suffix == ".npz":
        return read_npz(path)
    array = np.load(path, allow_pickle=False)
    return from_mask(array) if name.startswith("mask") else from_indices(array, KEYS)


@pytest.mark.parametrize("name", SENTENCES)
def test_the_file_is_refused_with_its_sentence(name):
    with pytest.raises(nsa.FormatError) as caught:
        load(name)
    assert str(caught.value) == SENTENCES[name]


def test_every_file_has_a_sentence_and_no_two_share_one():
    files = {path.name for path in FOLDER.iterdir() if path.suffix in (".npz", ".npy")}
    assert files == set(SENTENCES) == set(make_handbook.refused_arrays())
    assert len(set(SENTENCES.values())) == len(SENTENCES)


def test_the_files_are_what_the_script_writes(tmp_path):
    make_handbook.write_handbook(tmp_path)
    for name in SENTENCES:
        new, old = np.load(tmp_path / "refused" / name), np.load(FOLDER / name)
        if name.endswith(".npy"):
            np.testing.assert_array_equal(new, old)
            continue
        assert sorted(new.files) == sorted(old.files)
        for member in new.files:
            assert new[member].dtype == old[member].dtype
            np.testing.assert_array_equal(new[member], old[member])
    assert (tmp_path / "tiles_lane_order.png").stat().st_size > 10_000


@given(strategies.malformed_csr_arrays())
def test_malformed_scipy_arrays_never_reach_an_engine(case):
    matrix, words = case
    event(words.split("[")[0].split(" of ")[0])
    n_q, n_k = matrix.shape
    q, k = np.zeros((n_q, 2), np.float32), np.zeros((n_k, 2), np.float32)
    for call in (
        lambda: from_scipy(matrix),
        lambda: nsa.sparse_attention(q, k, k, matrix, engine="reference"),
    ):
        with pytest.raises(nsa.FormatError) as caught:
            call()
        assert caught.value.given.startswith(words)


def test_a_file_that_is_not_an_archive_is_refused(tmp_path):
    path = tmp_path / "some.npz"
    for content in (b"", b"no archive at all", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(nsa.FormatError, match=r"some\.npz, which is no readable \.npz file"):
            read_npz(path)
    np.save(tmp_path / "one.npy", np.eye(3))
    with pytest.raises(nsa.FormatError, match=r"one\.npy, which is no readable"):
        read_npz(tmp_path / "one.npy")
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "missing.npz")


def test_pickled_objects_are_never_loaded(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, format=np.array(b"csr"), data=np.array([print], object))
    with pytest.raises(nsa.FormatError, match="no readable"):
        read_npz(path)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr"])
@pytest.mark.parametrize("old_style", [False, True])
def test_good_files_of_every_format_are_read(tmp_path, kind, old_style):
    mask = np.random.default_rng(3).random((6, 8)) < 0.4
    matrix = sparse.coo_array(mask).asformat(kind)
    if old_style:
        matrix = getattr(sparse, f"{kind}_matrix")(matrix)
    sparse.save_npz(tmp_path / "good.npz", matrix)
    np.testing.assert_array_equal(to_csr(read_npz(tmp_path / "good.npz")).toarray(), mask)

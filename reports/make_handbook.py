"""Writes what the format handbook shows: the picture of the lane order and the stored arrays.

    python reports/make_handbook.py            # into formats/
    python reports/make_handbook.py --into DIR

``formats/lane_order.npz`` is the lane order as numbers, ``formats/refused/`` holds the files that have to
be refused. Their sentences stand in ``formats/refused/sentences.json``, which is written by hand.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_sparse_attn.testing import write_golden

__all__ = ["draw_lane_order", "lane_order", "refused_arrays", "write_handbook"]

FOLDER = Path(__file__).resolve().parent.parent / "formats"
_INK = "#333333"
_BACKGROUND = "#f4f4f4"


def lane_order() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Row and column inside of the tile, ``[half, thread, element]``, of every accumulator element."""
    half, thread, element = np.ix_(np.arange(2), np.arange(128), np.arange(64))
    warp, lane = thread // 32, thread % 32
    row = 64 * half + 16 * warp + lane // 4 + 8 * (element // 2 % 2)
    column = 8 * (element // 4) + 2 * (lane % 4) + element % 2 + 0 * half
    return row.astype(np.uint8), column.astype(np.uint8)


def refused_arrays() -> dict[str, dict[str, npt.NDArray[Any]] | npt.NDArray[Any]]:
    """File name -> the arrays of a ``.npz`` file, or the one array of a ``.npy`` file.

    Every file is a good one with one thing wrong.
    """

    def csr(**changes: Any) -> dict[str, npt.NDArray[Any]]:
        good = {"indptr": [0, 2, 2, 5], "indices": [0, 3, 1, 2, 3], "data": np.ones(5), "shape": [3, 4]}
        return _stored("csr", good | changes)

    def coo(**changes: Any) -> dict[str, npt.NDArray[Any]]:
        good = {"row": [0, 0, 2], "col": [0, 3, 1], "data": np.ones(3), "shape": [3, 4]}
        return _stored("coo", good | changes)

    def bsr(**changes: Any) -> dict[str, npt.NDArray[Any]]:
        good = {"indptr": [0, 1, 2], "indices": [0, 1], "data": np.ones((2, 2, 2)), "shape": [4, 4]}
        return _stored("bsr", good | changes)

    return {
        "csr_indptr_too_short.npz": csr(indptr=[0, 2, 5]),
        "csr_indptr_not_from_zero.npz": csr(indptr=[1, 2, 2, 5]),
        "csr_indptr_decreasing.npz": csr(indptr=[0, 4, 2, 5]),
        "csr_indptr_short_of_the_end.npz": csr(indptr=[0, 2, 2, 4]),
        "csr_indptr_past_the_end.npz": csr(indptr=[0, 2, 2, 6]),
        "csr_indptr_of_floats.npz": csr(indptr=[0.0, 2.0, 2.0, 5.0]),
        "csr_index_negative.npz": csr(indices=[0, -1, 1, 2, 3]),
        "csr_index_out_of_range.npz": csr(indices=[0, 3, 1, 2, 4]),
        "csr_indices_of_floats.npz": csr(indices=[0.0, 3.0, 1.0, 2.0, 3.0]),
        "csr_explicit_zero.npz": csr(data=[1.0, 1.0, 0.0, 1.0, 1.0]),
        "csr_explicit_false.npz": csr(data=[True, True, True, True, False]),
        "csr_nan.npz": csr(data=[1.0, np.nan, 1.0, 1.0, 1.0]),
        "csr_additive_mask.npz": csr(data=[-np.inf, 0.5, 0.5, 0.5, 0.5]),
        "csr_data_missing.npz": csr(data=np.ones(4)),
        "csr_data_complex.npz": csr(data=np.full(5, 1j)),
        "csr_shape_negative.npz": csr(shape=[3, -4]),
        "coo_row_out_of_range.npz": coo(row=[0, 0, 3]),
        "coo_column_negative.npz": coo(col=[0, -3, 1]),
        "coo_lengths_differ.npz": coo(row=[0, 2]),
        "bsr_block_of_zeros.npz": bsr(data=[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]),
        "bsr_block_column_out_of_range.npz": bsr(indices=[0, 2]),
        "bsr_ragged.npz": bsr(shape=[4, 5]),
        "bsr_without_blocks.npz": bsr(data=np.ones((2, 2))),
        "not_a_pattern.npz": {"q": np.ones((3, 4)), "k": np.ones((3, 4))},
        "format_without_rows.npz": _stored("dia", {"data": np.ones((1, 3)), "offsets": [0], "shape": [3, 3]}),
        "indices_past_the_keys.npy": np.array([[0, 1, -1], [2, 4, 0]]),
        "indices_minus_two.npy": np.array([[0, 1, -1], [2, -2, 0]]),
        "indices_of_floats.npy": np.array([[0.0, 1.0], [2.0, 3.0]]),
        "indices_flat.npy": np.array([0, 1, 2]),
        "mask_of_numbers.npy": np.eye(3, dtype=np.float32),
    }


def _stored(kind: str, arrays: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Arrays as ``scipy.sparse.save_npz`` names them."""
    members = {"format": kind.encode("ascii"), "_is_array": True, **arrays}
    return {name: np.asarray(array) for name, array in members.items()}


def draw_lane_order(path: Path) -> None:
    """The accumulator of one warpgroup: whose element is where."""
    import matplotlib
    from matplotlib.figure import Figure

    row, column = (places[0].astype(int) for places in lane_order())
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(12.5, 9.6), layout="constrained")
        whole, zoom = figure.subplots(2, 1, gridspec_kw={"height_ratios": [1.0, 1.5]})
    chosen = 32 + 5  # warp 1, lane 5: neither the first row nor the first column of anything

    colors = matplotlib.colormaps["Pastel1"].colors  # type: ignore[attr-defined]
    image = np.ones((64, 128, 3))
    for thread in range(128):
        image[row[thread], column[thread]] = colors[thread // 32]
    image[row[chosen], column[chosen]] = (0.1, 0.1, 0.1)
    whole.imshow(image, aspect="auto", interpolation="nearest", extent=(0, 128, 64, 0))
    for warp in range(4):
        whole.text(129.5, 16 * warp + 8, f"warp {warp}\nthreads {32 * warp}–{32 * warp + 31}", va="center")
    whole.set_xticks(range(0, 129, 8))
    whole.set_yticks(range(0, 65, 8))
    whole.set_xlabel("column of the tile")
    whole.set_ylabel("row of the half tile")
    whole.set_title("One half tile, 64 × 128. Black: the 64 elements of thread 37 (warp 1, lane 5)")

    zoom.set(xlim=(0, 16), ylim=(16, 0), xticks=range(0, 17, 2), yticks=range(0, 17, 2))
    zoom.set_facecolor(_BACKGROUND)
    for thread in range(32):
        for element in range(8):
            i, j = row[thread, element], column[thread, element]
            shade = 0.95 - 0.09 * (thread % 4) - 0.05 * (thread // 4 % 2)
            color = (1.0, 0.8, 0.2) if thread == 5 else (shade, shade, 1.0)
            zoom.add_patch(matplotlib.patches.Rectangle((j, i), 1, 1, facecolor=color, edgecolor="white"))
            zoom.text(
                j + 0.5, i + 0.5, f"{thread} · e{element}", ha="center", va="center", fontsize=7, color=_INK
            )
    zoom.axvline(8, color=_INK, linewidth=1.2)
    zoom.axhline(8, color=_INK, linewidth=1.2)
    zoom.set_xlabel("column of the tile (continues to 128 in groups of 8)")
    zoom.set_ylabel("row of the warp's 16")
    zoom.set_title("Rows 0–15, columns 0–15 of a warp: lane · element. Yellow: lane 5")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def write_handbook(folder: Path) -> None:
    """Write the picture and every stored array below `folder`."""
    refused = folder / "refused"
    refused.mkdir(parents=True, exist_ok=True)
    draw_lane_order(folder / "tiles_lane_order.png")
    row, column = lane_order()
    write_golden(folder / "lane_order.npz", row=row, column=column)
    for name, content in refused_arrays().items():
        if isinstance(content, dict):
            write_golden(refused / name, **content)
        else:
            np.save(refused / name, content, allow_pickle=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Draw the picture and store the arrays of the format handbook."
    )
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder to write to")
    write_handbook(parser.parse_args().into)

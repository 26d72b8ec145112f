"""The cases: unique names, patterns that exist, and the goals that the project has set itself."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

import numba_sparse_attn as nsa
from benchmarks import cases, graphs, kinds
from benchmarks.peers import PEERS, load_peer
from benchmarks.workload import Host, make_workload
from numba_sparse_attn.dynamic.catalogue import SELECTIONS
from numba_sparse_attn.patterns.catalogue import CATALOGUE

ALL = [*cases.all_cases(), *cases.tiny_cases()]
NAMED = [case for case in ALL if not isinstance(case, kinds.RateCase | kinds.SelectCase)]


def test_names_are_unique_and_have_a_table() -> None:
    names = [case.name for case in ALL]
    assert len(names) == len(set(names))
    assert all(name.count("/") == 1 for name in names)


@pytest.mark.parametrize("case", NAMED, ids=lambda case: case.name)
def test_patterns_exist_and_cross_process_borders(case: kinds.AttentionCase | kinds.BuildCase) -> None:
    spec = kinds.PatternSpec(**asdict(case.spec))
    if not case.name.startswith(("catalogue", "gpu-catalogue")):
        json.dumps(asdict(spec))
    if spec.function in graphs.GRAPHS:
        return
    made = spec.build()
    assert min(made.shape) > 0
    if isinstance(made, nsa.HeadPatterns) and not isinstance(case, kinds.BuildCase):
        assert len(made) == case.heads


def test_the_catalogue_is_covered() -> None:
    names = {case.name for case in ALL}
    for table in ("catalogue", "catalogue_16384", "catalogue_65536"):
        for name in CATALOGUE:
            for direction in ("forward", "backward"):
                assert {f"{table}/{name}_{direction}", f"gpu-{table}/{name}_{direction}"} <= names


def test_every_selection_is_measured() -> None:
    found = [case for case in cases.all_cases() if isinstance(case, kinds.SelectCase)]
    assert {case.selection for case in found if case.length == 4096} == set(SELECTIONS)
    assert all(case.label.startswith(f"{case.selection}(q, k, ") for case in found)


def test_sweeps_are_the_same_on_the_host_and_on_a_gpu() -> None:
    names = {case.name for case in cases.all_cases()}
    for table in ("length/", "density/", "head_dim/", "plan/", "catalogue/", "normaliser/"):
        host = {name for name in names if name.startswith(table)}
        assert host and {f"gpu-{name}" for name in host} <= names


def test_densities_and_lengths_reach_from_end_to_end() -> None:
    found = {case.name: case for case in ALL if case.name.startswith(("density/", "length/"))}
    shares = [1 - case.spec.build().sparsity for name, case in found.items() if "density/" in name]
    assert max(shares) == 1.0 and min(shares) < 0.025
    lengths = [case.spec.arguments["n"] for name, case in found.items() if "length/" in name]
    assert min(lengths) == 1024 and max(lengths) == 1_048_576


def test_what_matters_most_comes_first() -> None:
    """A limit of time cuts the end off."""
    tables = [case.name.split("/")[0] for case in cases.all_cases() if kinds.device_of(case) == "gpu"]
    order = list(dict.fromkeys(tables))
    assert order[:2] == ["gpu", "tile"] and order[-1] == "gpu-quick"
    tables = [case.name.split("/")[0] for case in cases.all_cases() if kinds.device_of(case) == "cpu"]
    order = list(dict.fromkeys(tables))
    assert order[:3] == ["machine", "target", "table"] and order[-1] == "quick"


def test_peers_are_known_and_named_as_listed() -> None:
    for case in ALL:
        assert set(getattr(case, "peers", ())) <= PEERS.keys()
    for name in PEERS:
        assert load_peer(name).name == name


def test_arbitrary_csr_is_canonical() -> None:
    csr = graphs.arbitrary_csr(64, 5, 0).rows()
    assert csr.nnz == 320
    for row in range(64):
        keys = csr.indices[csr.indptr[row] : csr.indptr[row + 1]]
        assert (keys[1:] > keys[:-1]).all() and 0 <= keys[0] and keys[-1] < 64


@pytest.mark.parametrize(
    ("name", "goals"),
    [
        ("target/window_forward", ["speedup over torch_flex >= 2", "share_of_sgemm >= 0.65"]),
        ("target/bigbird_forward", ["speedup over torch_flex >= 1.5"]),
        ("target/document_qa_forward", ["speedup over torch_flex >= 1.5"]),
        ("target/window_backward", ["speedup over torch_sdpa >= 8"]),
        ("build/sliding_window", ["seconds <= 0.02", "tiles_bytes <= 1e+06"]),
        ("build/causal", ["seconds <= 0.06", "tiles_bytes <= 8e+06"]),
        ("build/sliding_window_1m", ["seconds <= 0.3"]),
        ("build/arbitrary_csr", ["seconds <= 1"]),
        ("cold/empty_cache", ["seconds <= 5"]),
        ("cold/warm_cache", ["seconds <= 1.5"]),
    ],
)
def test_goals_are_not_loosened(name: str, goals: list[str]) -> None:
    case = next(case for case in ALL if case.name == name)
    assert [goal.label for goal in case.goals] == goals


@pytest.mark.parametrize("function", ["sliding_window", "bigbird"])
def test_rows_of_a_mask_are_those_of_the_whole(function: str) -> None:
    arguments = CATALOGUE[function].scaled(600)
    case = kinds.AttentionCase("rows", kinds.PatternSpec(function, arguments), head_dim=4)
    workload = make_workload(case, 0, Host())
    ranges = [(0, 64), (300, 364), (536, 600)]
    whole = workload.masks[0]
    picked = workload.mask_rows(2, ranges)
    assert (picked == whole[[row for begin, end in ranges for row in range(begin, end)]]).all()

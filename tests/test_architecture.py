"""The house rules, held from the syntax tree: who imports whom, how long a file is, what is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import numba_sparse_attn as nsa

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "numba_sparse_attn"
LONGEST_FILE = 600

#: Which parts of the package a part may import. A part is a file or a folder right below the package,
#: or one of the rooms of ``cuda``. Parts may import themselves.
BASE = {"errors", "config", "jit"}
HOST = BASE | {"formats", "normalisers"}
DEVICE_ARRAYS = {
    "cuda.view",
    "cuda.dlpack",
    "cuda.streams",
    "cuda.interchange",
    "cuda.memory",
    "cuda.staging",
}
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "jit": {"config", "errors"},
    "reference": set(),
    "reference_scores": set(),
    "reference_normalisers": set(),
    # Descriptions, no computation: engines read them as they read formats.
    "normalisers": {"errors"},
    "formats": BASE | {"normalisers"},
    # Orders of tokens: patterns declare those that suit them, so they stand below patterns.
    "orders": HOST,
    "patterns": HOST | {"orders"},
    "arrays": HOST,
    # Selections by content read q and k and give patterns: below plans and engines, like patterns.
    # Arrays in GPU memory are read there, by kernels that know numbers and no pattern.
    "dynamic": HOST | {"arrays", "orders", "patterns", "cuda.interchange", "cuda.selection"},
    # What users say of scores, and what engines and the oracle are told: below plans, like patterns.
    "scores": HOST | {"arrays", "reference_scores"},
    "cpu": HOST,
    "cuda": HOST,
    "cuda.calls": HOST
    | DEVICE_ARRAYS
    | {"arrays", "cuda.launch", "cuda.changes", "cuda.orders", "cuda.plus_one", "cuda.sinks"},
    "cuda.changes": HOST | DEVICE_ARRAYS,
    "cuda.plus_one": HOST | DEVICE_ARRAYS | {"cuda.device", "cuda.launch"},
    "cuda.sinks": HOST | DEVICE_ARRAYS | {"cuda.device", "cuda.launch"},
    "cuda.ptx": {"errors"},
    "cuda.device": HOST | {"cuda.ptx"},
    "cuda.launch": HOST | {"cuda.streams"},
    "cuda.view": HOST,
    "cuda.dlpack": HOST,
    "cuda.streams": HOST,
    "cuda.interchange": HOST | DEVICE_ARRAYS,
    "cuda.memory": HOST | DEVICE_ARRAYS,
    "cuda.staging": HOST | DEVICE_ARRAYS,
    "cuda.warp": HOST | DEVICE_ARRAYS | {"cuda.device", "cuda.ptx", "cuda.launch", "cuda.changes"},
    "cuda.orders": HOST | DEVICE_ARRAYS | {"cuda.device", "cuda.ptx", "cuda.launch"},
    "cuda.selection": HOST | DEVICE_ARRAYS | {"arrays", "cuda.device", "cuda.launch"},
    "cuda.tile": HOST | DEVICE_ARRAYS | {"cuda.device", "cuda.ptx", "cuda.launch", "cuda.changes"},
    "choices": HOST | {"patterns"},
    "reference_engine": HOST | {"reference", "reference_normalisers", "scores"},
    "ordering": HOST | {"choices", "orders", "patterns"},
    "planner": HOST
    | {
        "arrays",
        "choices",
        "ordering",
        "orders",
        "patterns",
        "scores",
        "cpu",
        "cuda",
        "cuda.calls",
        "cuda.interchange",
        "reference_engine",
    },
    "api": HOST | {"arrays", "patterns", "planner", "scores"},
    "plot": HOST | {"patterns", "planner", "api"},
    # A result of analysis can draw itself, so it knows plot; plot draws numbers and knows no analysis.
    "analysis": HOST | {"arrays", "patterns", "planner", "api", "plot"},
    # Linformer is attention over mixtures of keys, which is a call of ours.
    "approx": {"errors", "patterns", "api"},
    # Results of calls are put together without looking at a pattern or an engine.
    "merging": HOST | {"arrays"},
    # Weights are checked like a measure of analysis, and computed by a kernel of the CPU engine.
    "weights": HOST | {"arrays", "patterns", "analysis", "cpu"},
    "__init__": HOST | {"arrays", "orders", "patterns", "planner", "api", "merging", "scores", "weights"},
    "testing": HOST | {"arrays", "patterns", "planner", "api", "reference", "reference_engine"},
}
ENGINES = {"cpu", "cuda", "cuda.warp", "cuda.tile", "reference", "reference_normalisers"}
#: Imported where they are used, never at the top of a file: by name, for whichever part.
LAZY = {"matplotlib", "hypothesis", "pytest", "torch"}
#: Decorators that hand a function to Numba, which infers the types that an annotation would give.
JIT_DECORATORS = {"kernel", "inlined", "njit", "jit", "intrinsic", "overload", "vectorize"}

FILES = sorted(PACKAGE.rglob("*.py"))
PROJECT_FILES = sorted(
    path
    for folder in ("numba_sparse_attn", "tests", "benchmarks", "reports", "examples")
    for path in (ROOT / folder).rglob("*.py")
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


by_path = pytest.mark.parametrize("path", FILES, ids=relative)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def part_of(module: str) -> str:
    """``numba_sparse_attn.cuda.ptx.mma`` -> ``cuda.ptx``; ``numba_sparse_attn.cpu.rows`` -> ``cpu``."""
    pieces = module.split(".")[1:]
    if not pieces:
        return "__init__"
    room = ".".join(pieces[:2])
    return room if room in ALLOWED else pieces[0]


def module_of(path: Path) -> str:
    pieces = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(pieces[:-1] if pieces[-1] == "__init__" else pieces)


def is_module(name: str) -> bool:
    base = ROOT.joinpath(*name.split("."))
    return base.with_suffix(".py").exists() or (base / "__init__.py").exists()


def imported_modules(path: Path, *, top_level_only: bool) -> Iterator[str]:
    """Absolute names of everything that a file imports; type-checking imports are none."""
    tree = tree_of(path)
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    lazy = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if node in typing_only or (top_level_only and node in lazy):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield inner if is_module(inner) else source


@by_path
def test_imports_go_down_only(path: Path) -> None:
    here = part_of(module_of(path))
    assert here in ALLOWED, f"{here} is a new part: say in ALLOWED what it may import"
    for name in imported_modules(path, top_level_only=False):
        if name.split(".")[0] != "numba_sparse_attn":
            continue
        there = part_of(name)
        assert there == here or there in ALLOWED[here], f"{relative(path)} must not import {name}"


@by_path
def test_engines_and_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    here = part_of(module_of(path))
    for name in imported_modules(path, top_level_only=True):
        if name.split(".")[0] == "numba_sparse_attn":
            there = part_of(name)
            # The shipped test helpers compare with the oracle and are themselves never imported at start.
            engine_elsewhere = there in ENGINES and there.split(".")[0] != here.split(".")[0]
            assert not engine_elsewhere or here == "testing", f"{relative(path)} imports {name} at its top"
        elif here != "testing":
            assert name.split(".")[0] not in LAZY, f"{relative(path)} imports {name} at its top"
            assert not name.startswith("numba.cuda") or here.startswith("cuda"), relative(path)


def test_import_brings_neither_cuda_nor_matplotlib_nor_an_engine() -> None:
    script = (
        "import sys, numba_sparse_attn\n"
        "unwanted = ('matplotlib', 'hypothesis', 'pytest', 'torch', 'cupy', 'numba.cuda', 'numba_cuda',\n"
        "            'cuda', 'numba_sparse_attn.cpu', 'numba_sparse_attn.cuda',\n"
        "            'numba_sparse_attn.reference', 'numba_sparse_attn.testing', 'numba_sparse_attn.plot')\n"
        "print(sorted(n for n in sys.modules if any(n == u or n.startswith(u + '.') for u in unwanted)))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    # Numba itself imports numba.cuda's stubs on some versions; what counts is what importing Numba does not.
    plain = (
        "import sys, numba; print(sorted(n for n in sys.modules if n.split('.')[:2] == ['numba', 'cuda']))"
    )
    base = subprocess.run([sys.executable, "-c", plain], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(ast.literal_eval(run.stdout)) <= set(ast.literal_eval(base.stdout))


@pytest.mark.parametrize("path", PROJECT_FILES, ids=relative)
def test_no_file_is_longer_than_the_alarm(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{relative(path)} has {lines} lines; split it by subject"


@pytest.mark.parametrize("path", PROJECT_FILES, ids=relative)
def test_no_drawer_for_odds_and_ends(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "misc", "common"}


@pytest.mark.parametrize("folder", ["patterns", "formats"])
def test_top_level_folders_hold_no_code(folder: str) -> None:
    assert not list((ROOT / folder).rglob("*.py"))


@by_path
def test_environment_is_read_in_config_only(path: Path) -> None:
    if path.name == "config.py":
        return
    for node in ast.walk(tree_of(path)):
        text = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        assert text not in {"os.environ", "os.getenv", "environ", "getenv"}, f"{relative(path)} reads {text}"


@by_path
def test_functions_outside_jitted_code_are_annotated(path: Path) -> None:
    jitted: set[ast.AST] = set()
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.FunctionDef) or node in jitted:
            continue
        decorators = {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}
        inside = {child for child in ast.walk(node) if child is not node}
        if decorators & JIT_DECORATORS:
            jitted |= inside
            continue
        # A factory: what it defines inside is compiled by its caller.
        if node.name.startswith(("make_", "_make_")):
            jitted |= inside
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}]
        where = f"{relative(path)}:{node.lineno} {node.name}"
        assert not bare, f"{where}: no type hints for {bare}"
        assert node.returns is not None, f"{where}: no return type"


@pytest.mark.parametrize(
    "engine", [name for name in ("cpu", "cuda.warp", "cuda.tile") if is_module(f"numba_sparse_attn.{name}")]
)
def test_every_engine_has_the_same_three_names(engine: str) -> None:
    module = importlib.import_module(f"numba_sparse_attn.{engine}")
    for name in ("forward", "backward", "why_not"):
        assert inspect.isfunction(getattr(module, name)), f"{engine} has no function {name}"


def public_functions() -> dict[str, object]:
    """Functions that a user is shown: those in the ``__all__`` of the package and of its namespaces."""
    found = {}
    for module_name in (
        "",
        ".patterns",
        ".formats",
        ".dynamic",
        ".normalisers",
        ".orders",
        ".scores",
        ".testing",
        ".reference",
        ".plot",
    ):
        module = importlib.import_module("numba_sparse_attn" + module_name)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing):
                found[f"{thing.__module__}.{thing.__qualname__}"] = thing
    return found


def test_every_public_function_has_an_example() -> None:
    functions = public_functions()
    assert functions
    bare = [name for name, function in functions.items() if ">>> " not in (inspect.getdoc(function) or "")]
    assert not bare, f"no >>> example: {bare}"


def test_every_public_class_and_module_has_a_docstring() -> None:
    bare = [relative(path) for path in FILES if not ast.get_docstring(tree_of(path))]
    bare += [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in FILES
        if not path.name.startswith("_")
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not bare, f"no docstring: {bare}"


def test_all_names_exist_and_are_sorted() -> None:
    for path in FILES:
        for node in tree_of(path).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = ast.literal_eval(node.value)
                assert len(names) == len(set(names)), relative(path)
    for name in nsa.__all__:
        assert hasattr(nsa, name), name


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_pages_name_files_that_exist(page: str) -> None:
    """Back-quoted paths and link targets; ``<name>`` in one stands for any file."""
    text = (ROOT / page).read_text("utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    # The generated block names benchmark cases, which look like paths.
    text = re.sub(r"<!-- begin: performance -->.*?<!-- end: performance -->", "", text, flags=re.DOTALL)
    quoted = re.findall(r"`((?:[\w.<>*-]+/)+[\w.<>*-]*)`", text)
    linked = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in target]
    assert quoted or linked
    for name in {*quoted, *linked}:
        pattern = re.sub(r"<\w+>", "*", name).rstrip("/")
        assert list(ROOT.glob(pattern)), f"{page} names {name}, which does not exist"


def test_contributing_names_functions_that_exist() -> None:
    """Back-quoted ``module.py::name`` in the recipes."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    references = re.findall(r"`([\w./]+\.py)::(\w+)`", text)
    for file, name in references:
        names = {
            target.id if isinstance(target, ast.Name) else getattr(target, "name", "")
            for node in tree_of(ROOT / file).body
            for target in (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else [node]
            )
        }
        assert name in names, f"{file} has no {name}"

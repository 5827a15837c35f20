"""The walls: imports run one way, each layer knows its own libraries, and no file is trusted with code."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("kernels", "models", "pipelines", "jobs")
LIBRARIES = {
    "kernels": {"torch", "triton", "numpy"},
    "models": {"einops", "safetensors", "diffusers", "ftfy", "huggingface_hub", "peft", "transformers"},
    "pipelines": set("ray pyarrow decord av fsspec scipy matplotlib jinja2 PIL rich cv2 scenedetect".split()),
    "jobs": set(
        "mlflow typer pydantic yaml optuna psutil requests sqlalchemy fastapi starlette uvicorn".split()
    ),
}
ONLY_IN = {
    "mlflow": {"jobs/tracking.py"},
    "fastapi": {"jobs/serve/app.py", "jobs/serve/desk.py"},
    "starlette": {"jobs/serve/app.py", "jobs/serve/desk.py", "jobs/serve/guard.py"},
    "uvicorn": {"jobs/commands/serve.py"},
    "diffusers": {"models/wan.py", "models/autoencoders/wan.py"},
    "ftfy": {"models/text/umt5.py"},
    "huggingface_hub": {"models/wan.py", "jobs/commands/export.py"},
    "jinja2": {"pipelines/media/html.py"},
    "peft": {"models/lora.py"},
    "transformers": {"models/text/umt5.py"},
    "cv2": {"pipelines/data/curate/shots.py"},
    "scenedetect": {"pipelines/data/curate/shots.py"},
}
LAZY = {"diffusers", "ftfy", "huggingface_hub", "peft", "transformers", "cv2", "scenedetect"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
MAY_LOAD = {"pipelines/evaluation/features/i3d_file.py": ["pickle"]}
"""The one exception: a file known by its sha256, read by an unpickler of arrays only, behind a fence."""
LOADS_CODE = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}

FILES = sorted(path.relative_to(ROOT).as_posix() for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Top-level names of what is imported, and whether it is at the top of the file."""
    for node in ast.walk(tree):
        at_top = getattr(node, "col_offset", 1) == 0
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield (node.module or "").split(".")[0], at_top


def allowed(layer: str) -> set[str]:
    """First-party and third-party names that a layer may import."""
    below = LAYERS[: LAYERS.index(layer) + 1]
    return set(below).union(*(LIBRARIES[name] for name in below)) | set(sys.stdlib_module_names)


def violations(name: str, tree: ast.AST) -> list[str]:
    layer = name.split("/")[0]
    found = []
    for module, at_top in imported(tree):
        if module not in allowed(layer):
            found.append(f"{name} imports {module}")
        if module in ONLY_IN and name not in ONLY_IN[module]:
            found.append(f"{name} imports {module}, which belongs in {sorted(ONLY_IN[module])}")
        if module in LAZY and at_top:
            found.append(f"{name} imports {module} before it is needed")
    return found


def loads_code(tree: ast.AST) -> list[str]:
    """Names by which a file could run what another file holds."""
    found = [module for module, _ in imported(tree) if module in LOADS_CODE]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            dotted = f"{node.value.id}.{node.attr}"
            found += [dotted] if dotted in {"torch.load", "torch.save", "np.load", "numpy.load"} else []
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"eval", "exec"}
        ):
            found.append(node.func.id)
        if isinstance(node, ast.keyword) and node.arg in {"allow_pickle", "trust_remote_code"}:
            found.append(node.arg)
    return found


@pytest.mark.parametrize("name", FILES)
def test_imports_run_one_way(name):
    assert violations(name, tree_of(name)) == []


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_trusted_with_code(name):
    assert loads_code(tree_of(name)) == MAY_LOAD.get(name, [])


def test_training_and_evaluation_do_not_know_each_other():
    rooms = ("pipelines/training", "pipelines/evaluation")
    for room, other in zip(rooms, reversed(rooms), strict=True):
        names = [name for name in FILES if name.startswith(room)]
        assert names
        arrow = other.replace("/", ".")
        assert [name for name in names if arrow in (ROOT / name).read_text(encoding="utf-8")] == []


def test_only_known_packages_lie_at_the_root():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {*LAYERS, "tests"}


@pytest.mark.parametrize(
    ("name", "source", "word"),
    [
        ("kernels/a.py", "import models.ddt", "models"),
        ("kernels/a.py", "import einops", "einops"),
        ("models/a.py", "from pipelines.data import dataset", "pipelines"),
        ("models/a.py", "def f():\n    import ray", "ray"),
        ("pipelines/a.py", "from mlflow import log_metric", "mlflow"),
        ("jobs/cli.py", "import mlflow", "mlflow"),
        ("models/wan.py", "import diffusers", "before it is needed"),
        ("jobs/a.py", "import kernels_extra", "kernels_extra"),
    ],
)
def test_a_breach_is_seen(name, source, word):
    assert word in " ".join(violations(name, ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(p)",
        "eval(x)",
        "f(allow_pickle=False)",
    ],
)
def test_loading_code_is_seen(source):
    assert loads_code(ast.parse(source))


def test_lazy_imports_are_allowed_where_they_belong():
    assert violations("models/wan.py", ast.parse("def f():\n    import diffusers")) == []


def measured() -> list[tuple[str, ast.Module, int]]:
    return [
        (name, tree_of(name), len((ROOT / name).read_text(encoding="utf-8").splitlines())) for name in FILES
    ]


def function_lengths(tree: ast.Module) -> list[tuple[str, int]]:
    """Lines of each function's body without its docstring."""
    lengths = []
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            lengths.append((node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1))
    return lengths


def test_files_stay_small():
    sizes = sorted((lines, name) for name, _, lines in measured())
    assert [name for lines, name in sizes if lines > 500] == []


def test_functions_are_no_longer_than_a_thought():
    lengths = [
        (count, f"{name}:{function}")
        for name, tree, _ in measured()
        for function, count in function_lengths(tree)
    ]
    assert [name for count, name in lengths if count > 80] == []


def jitted(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Triton's dialect annotates compile-time arguments alone."""
    return any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_every_function_is_annotated():
    faults = [
        f"{name}: {node.name} has no return type"
        for name, tree, _ in measured()
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS) and node.returns is None and not jitted(node)
    ]
    assert faults == []


def test_nothing_is_left_to_do():
    words = ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    faults = [
        f"{name}: {word}"
        for name in FILES
        for word in words
        if word in (ROOT / name).read_text(encoding="utf-8")
    ]
    assert faults == []


def test_source_is_ascii():
    assert [name for name in FILES if not (ROOT / name).read_text(encoding="utf-8").isascii()] == []


def first_party(name: str) -> set[str]:
    """Files of the four layers that a file imports at its top."""
    found = set()
    for node in tree_of(name).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {module.replace(".", "/") + ".py" for module in modules}
    return found & set(FILES)


def test_no_folder_is_a_closet():
    counts: dict[str, int] = {}
    for name in FILES:
        if not name.endswith("__init__.py"):
            folder = name.rpartition("/")[0]
            counts[folder] = counts.get(folder, 0) + 1
    roomier = {"jobs/commands": 18}
    assert {folder: count for folder, count in counts.items() if count > roomier.get(folder, 15)} == {}


def test_imports_form_no_circle():
    graph = {name: first_party(name) for name in FILES}
    assert any(graph.values())
    assert set(TopologicalSorter(graph).static_order()) == set(FILES), "a circle raises CycleError"


def test_rooms_form_no_circle():
    """Not among files only: no folder imports from one that imports from it."""

    def room(name: str) -> str:
        return name.rpartition("/")[0]

    rooms: dict[str, set[str]] = {}
    for name in FILES:
        rooms.setdefault(room(name), set()).update(room(other) for other in first_party(name))
    pairs = {(a, b) for a, others in rooms.items() for b in others if a != b and a in rooms.get(b, set())}
    inside = {(a, b) for a, b in pairs if a.startswith(f"{b}/") or b.startswith(f"{a}/")}
    assert sorted(pairs - inside) == []

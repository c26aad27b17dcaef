"""The house has layers: no module imports one above it, and a paper's file works alone."""

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from adapter_samples import hand_adapter
from genhmr_samples import lively_model
from simplehand_samples import trained_model

import genhmr
import hmr_adapter
import simplehand

ROOT = Path(__file__).resolve().parents[1]
PAPERS = {"simplehand", "genhmr", "hmr_adapter"}
LAYERS = [{"files"}, {"bodymodels"}, {"metrics"}, "sets", {"data"}, PAPERS,
          "networks", "weights", {"demo"}, "tasks", {"train"}, {"tables"}, "benchmarks"]


def name_of(path):
    """sets/images.py is sets.images; a folder's __init__.py is the folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """The modules of the house that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else node.module


ROOMS = ["sets", "networks", "weights", "tasks", "benchmarks"]
FILES = {name_of(path): path for folder in (".", *ROOMS)
         for path in (ROOT / folder).glob("*.py")}


def layer(name):
    for number, names in enumerate(LAYERS):
        if name in names if isinstance(names, set) else name.startswith(names):
            return number
    raise AssertionError(f"{name} has no layer: add it to LAYERS")


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_import_runs_upward(name):
    """A module imports its own layer and those below it; paper files nothing of the house."""
    for other in set(imports(FILES[name])) & set(FILES):
        assert name not in PAPERS, f"{name} imports {other}"
        assert layer(other) <= layer(name), f"{name} imports {other}"


def test_imports_have_no_circle():
    """Following imports never leads back."""
    above = {name: set(imports(path)) & set(FILES) - {name} for name, path in FILES.items()}
    while above:
        free = {name for name, others in above.items() if not others}
        assert free, f"a circle among {sorted(above)}"
        above = {name: others - free for name, others in above.items() if name not in free}


def test_paper_files_work_alone(tmp_path):
    """In an empty folder they import nothing but torch and numpy, and build their presets."""
    for name in PAPERS:
        for other in {module.split(".")[0] for module in imports(FILES[name])}:
            assert other in {"torch", "numpy", *sys.stdlib_module_names}, f"{name}: {other}"
        shutil.copy(FILES[name], tmp_path)
    code = """
import sys; sys.path.insert(0, ".")
import torch, simplehand, genhmr, hmr_adapter
with torch.device("meta"):
    simplehand.SimpleHand(simplehand.PRESETS["paper"])
    genhmr.GenHMR(genhmr.PRESETS["paper"])
    hmr_adapter.HMRAdapter(hmr_adapter.PRESETS["paper"])
"""
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True,
                            text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("module", "build", "older"), [
    (simplehand, trained_model, {"views": 20.0}), (genhmr, lively_model, {"views": 20.0}),
    (hmr_adapter, hand_adapter, {})])
def test_paper_files_open_checkpoints_as_they_say(module, build, older, tmp_path):
    """The lines in the opening docstring give the model in a checkpoint as train.py writes it, and
    wrote it, with the settings of a run beside the config."""
    lines = re.findall(r"^    ((?:content|config|model).*)$", module.__doc__, re.MULTILINE)
    model, path = build(), tmp_path / "tiny.pt"
    torch.save({"model": model.state_dict(), "config": asdict(model.config) | older}, path)
    space = vars(module) | {"FILE": path, "encoder": None}
    exec("\n".join(lines), space)
    assert space["model"].config == model.config
    torch.testing.assert_close(space["model"].state_dict(), model.state_dict(), atol=0, rtol=0)

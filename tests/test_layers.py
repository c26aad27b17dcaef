"""The house has layers: no module imports one above it, and a paper's file works alone."""

import ast
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from adapter_samples import DECODER, ENCODER, TINY_HAND
from genhmr_samples import FOR_PICTURES

from hmr_adapter import HandAdapter

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


@pytest.mark.parametrize("name", ROOMS)
def test_folders_hold_no_logic_in_their_init(name):
    """__init__.py is empty or a docstring."""
    path = ROOT / name / "__init__.py"
    nodes = ast.parse(path.read_text()).body if path.exists() else []
    assert all(isinstance(node, ast.Expr) for node in nodes)


ALONE = {
    "simplehand": """
config = simplehand.Config(image_size=32, embed_dims=(16, 16, 32, 32), depths=(1, 1, 1, 1),
                           feature_width=32, token_width=16, dims=(16, 8, 8))
model = simplehand.SimpleHand(config).eval()
result = simplehand.predict(model.fuse(), numpy.zeros((40, 50, 3), numpy.uint8),
                            torch.rand(21, 778).softmax(1), side="left")
assert result["vertices"].shape == (778, 3)
""", "genhmr": f"""
from genhmr import Config, TokenizerConfig
model = genhmr.GenHMR({FOR_PICTURES!r}).eval()
class Sticks:  # a body of bones alone
    def __call__(self, betas, rotations):
        joints = rotations[..., 0].cumsum(1) / 24
        return types.SimpleNamespace(vertices=joints.repeat(1, 2, 1), joints=joints)
    def keypoints(self, output):
        return torch.cat((output.joints, output.joints[:, :21]), 1)
found = genhmr.predict(model, Sticks(), numpy.zeros((40, 50, 3), numpy.uint8),
                       keypoints=numpy.tile([20.0, 20.0, 1.0], (45, 1)))
assert found["vertices"].shape == (48, 3) and len(found["energies"]) == 11
""", "hmr_adapter": f"""
hmr = hmr_adapter
hand = hmr.HandConfig(expert=hmr.HandExpertConfig(**{ENCODER}, **{DECODER}))
body = hmr.BodyConfig(expert=hmr.BodyExpertConfig(
    **{ENCODER}, depth_bins=4, hand_cells=4, box_dim=8, joint_dim=8), **{DECODER})
model = hmr.HMRAdapter(hmr.Config(hand, body)).eval()
found = model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
assert found["body_pose"].shape == (2, 55, 3, 3) and found["body_pose"].isfinite().all()
content = torch.load("hand.pt", weights_only=True, map_location="cpu")
model = hmr.HandAdapter(hmr.HandConfig(**content["config"]))
model.load_state_dict(content["model"])
"""}


@pytest.mark.parametrize("name", ALONE)
def test_file_alone_imports_builds_and_runs(name, tmp_path):
    """Alone in a folder it needs only torch and numpy; HMR-Adapter's opens a checkpoint."""
    shutil.copy(ROOT / f"{name}.py", tmp_path)
    trained = HandAdapter(TINY_HAND)
    torch.save({"model": trained.state_dict(), "config": asdict(TINY_HAND)}, tmp_path / "hand.pt")
    code = f"""
import sys; sys.path.insert(0, ".")
import types, numpy, torch, {name}{ALONE[name]}
foreign = {{"bodymodels", "data", "metrics", "networks", "weights", "train", "matplotlib",
           "timm", "smplx", "torchvision", "transformers", "mediapipe"}}
assert not foreign & set(sys.modules), foreign & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True,
                            text=True)
    assert result.returncode == 0, result.stderr

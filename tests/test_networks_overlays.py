"""networks/overlays.py: meshes over pictures and from the side, and the files of the demo."""

import numpy as np
import pytest

import bodymodels
from networks import overlays
from networks.overlays import Mesh, overlay, write_results
from sets.images import read_image

MESHES = (".npz", ".obj", ".glb")


def a_result(shift: float = 0) -> Mesh:
    hand = bodymodels.load_model("hand_right")
    vertices = hand.template.numpy().reshape(778, 3) + np.float32([shift, 0, 0.6])
    K = np.float32([[60, 0, 24], [0, 60, 16], [0, 0, 1]])
    arrays = {"vertices": vertices, "joints": vertices[:21], "K": K, "side": np.array(1)}
    return arrays, hand.faces.numpy()


@pytest.mark.parametrize("root", [False, True])
def test_written_files_hold_the_prediction(tmp_path, root):
    """The .npz holds the arrays and faces, the meshes their vertices, y up, around the root."""
    image, (arrays, faces) = np.full((32, 48, 3), 200, np.uint8), a_result()
    origin = arrays["joints"][0]
    if root:
        origin = arrays["root"] = np.float32([1, 2, 3])
    written = write_results(tmp_path / "photo", image, [(arrays, faces)])
    assert sorted(written) == sorted(tmp_path.iterdir())
    assert {path.name for path in written} == {
        f"photo{ending}" for ending in ("_overlay.png", "_side.png", *MESHES)}
    with np.load(tmp_path / "photo.npz") as stored:
        assert set(stored) == {"faces", *arrays}
        assert all(np.array_equal(stored[name], value) for name, value in arrays.items())
    lines = [line.split()[1:4] for line in (tmp_path / "photo.obj").read_text().splitlines()
             if line.startswith("v ")]
    expected = (arrays["vertices"] - origin) * (1, -1, -1)
    assert np.allclose(np.array(lines, float), expected, atol=1e-6)


def test_several_results_share_one_overlay(tmp_path):
    """Each has its own numbered mesh files; a result that is nearer covers one behind it."""
    image, near, far = np.zeros((32, 48, 3), np.uint8), a_result(), a_result(0.03)
    far[0]["vertices"][:, 2] += 0.2
    written = write_results(tmp_path / "a", image, [near, far])
    assert {path.name for path in written} == {"a_overlay.png", "a_side.png"} | {
        f"a_{number}{ending}" for number in (1, 2) for ending in MESHES}
    assert read_image(tmp_path / "a_side.png").shape == (384, 768, 3)
    both = overlay(image, [near, far])
    assert np.array_equal(both, overlay(image, [far, near]))
    behind = np.uint8(np.rint(255 * overlay(image, [far])))
    assert np.abs(both - overlay(behind, [near])).max() < 0.01


def test_overlays_of_huge_pictures_are_scaled_down(monkeypatch):
    """The longer side has at most LARGEST pixels, and the mesh stays where it is in the picture."""
    monkeypatch.setattr(overlays, "LARGEST", 24)
    image = np.zeros((32, 48, 3), np.uint8)
    small = overlay(image, [a_result()])
    assert overlay(image.transpose(1, 0, 2), [a_result()]).shape == (24, 16, 3)
    monkeypatch.undo()
    whole = overlay(image, [a_result()]).reshape(16, 2, 24, 2, 3).mean((1, 3))
    assert small.shape == (16, 24, 3) and np.abs(small - whole).max() < 0.15


def test_the_side_view_is_the_left_of_the_picture():
    """Of two triangles in front of each other the nearer one is to the right, and y stays down."""
    def centre(depth: float, height: float) -> np.ndarray:
        triangle = np.array([[0.0, 0, 0], [0, 0.1, 0.1], [0, -0.1, 0.1]])
        vertices = np.concatenate((triangle + (0, height, depth), [[0, -1, -1], [0, 1, 1]]))
        faces = np.array([[0, 1, 2], [0, 2, 1]])
        drawn = overlays.from_the_side(vertices, faces, 64)
        return np.argwhere(drawn.min(2) < 0.98).mean(0)

    near, far, low = centre(-0.5, 0), centre(0.5, 0), centre(0, 0.5)
    assert near[1] > 36 and far[1] < 28 and low[0] > 36

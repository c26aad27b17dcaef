"""Rotations, cameras, mirror, joint sets, mesh files and rendering."""

import json
import math
import re
import struct
import threading
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck

import bodymodels as bm

PI = math.pi
HALF_TYPES = (torch.float16, torch.bfloat16)


def random(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


seeds = st.integers(0, 2**31)
coordinates = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-1, 1, width=32))
axes = st.tuples(coordinates, coordinates, coordinates).filter(lambda a: math.hypot(*a) > 1e-3)
angles = st.one_of(
    st.sampled_from([0.0, 1e-30, 1e-8, 1e-6, 1e-3, PI / 2, PI - 1e-4, PI - 1e-7, PI]),
    st.floats(0, PI))


@st.composite
def axis_angles(draw) -> torch.Tensor:
    """An axis-angle vector in float64, often at the angles where formulas break."""
    axis = torch.tensor(draw(axes), dtype=torch.float64)
    return axis / axis.norm() * draw(angles)


@st.composite
def rotations(draw) -> torch.Tensor:
    """A rotation matrix in float64, made by the matrix exponential, not by our code."""
    return exponential(draw(axis_angles()))


def exponential(axis_angle: torch.Tensor) -> torch.Tensor:
    x, y, z = axis_angle.tolist()
    return torch.linalg.matrix_exp(axis_angle.new_tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]]))


def is_rotation(matrix: torch.Tensor, tolerance: float) -> bool:
    product = matrix.mT @ matrix
    return (torch.allclose(product, torch.eye(3).to(product).expand_as(product), atol=tolerance)
            and torch.allclose(torch.linalg.det(matrix), matrix.new_ones(()), atol=tolerance))


# ------------------------------------------------------------------------------- rotations



def quaternion_to_matrix(quaternion: torch.Tensor) -> torch.Tensor:
    """Quaternions (w, x, y, z) as scipy reads them."""
    turned = Rotation.from_quat(quaternion[..., [1, 2, 3, 0]].double()).as_matrix()
    return torch.from_numpy(turned).to(quaternion)


FROM_VECTOR = {  # function -> length of the vector it takes
    bm.axis_angle_to_matrix: 3, bm.rotation_6d_to_matrix: 6,
}
FROM_MATRIX = (bm.matrix_to_axis_angle, bm.matrix_to_quaternion, bm.matrix_to_rotation_6d)
ROUND_TRIPS = [
    (bm.matrix_to_axis_angle, bm.axis_angle_to_matrix),
    (bm.matrix_to_quaternion, quaternion_to_matrix),
    (bm.matrix_to_rotation_6d, bm.rotation_6d_to_matrix),
]


@given(axis_angles())
def test_axis_angle_is_the_matrix_exponential(axis_angle):
    """Rodrigues' formula equals the exponential of the cross-product matrix."""
    matrix = bm.axis_angle_to_matrix(axis_angle)
    assert torch.allclose(matrix, exponential(axis_angle), atol=1e-13)
    single = bm.axis_angle_to_matrix(axis_angle.float()).double()
    assert torch.allclose(single, exponential(axis_angle), atol=1e-6)


@given(rotations())
@pytest.mark.parametrize("there, back", ROUND_TRIPS)
def test_round_trips(there, back, matrix):
    """Every representation gives the matrix back, at every angle, in both precisions."""
    assert torch.allclose(back(there(matrix)), matrix, atol=1e-12)
    assert torch.allclose(back(there(matrix.float())).double(), matrix, atol=2e-6)


@given(axis_angles())
def test_axis_angle_comes_back(axis_angle):
    """Below pi the axis-angle vector itself comes back; at pi its opposite may."""
    back = bm.matrix_to_axis_angle(bm.axis_angle_to_matrix(axis_angle))
    assert back.norm() <= PI + 1e-12
    close = torch.allclose(back, axis_angle, atol=1e-8, rtol=1e-8)
    assert close or (axis_angle.norm() > PI - 1e-7 and torch.allclose(-back, axis_angle, atol=1e-6))


@given(axes, st.floats(1e-7, 1e-2))
def test_small_rotations_are_accurate_in_single_precision(axis, angle):
    """A float32 axis-angle vector near the identity survives to one part in a million."""
    axis_angle = torch.tensor(axis) / math.hypot(*axis) * angle
    back = bm.matrix_to_axis_angle(bm.axis_angle_to_matrix(axis_angle))
    assert (back - axis_angle).norm() <= 1e-6 * angle


@given(rotations())
def test_quaternions_are_unit_and_canonical(matrix):
    """Quaternions have length 1 and w >= 0."""
    quaternion = bm.matrix_to_quaternion(matrix)
    assert quaternion[0] >= 0 and abs(quaternion.norm() - 1) < 1e-14


@given(seeds, st.sampled_from([1e-5, 1.0, 1e20]), st.sampled_from([0.0, 1e-7, 1e-4, 1.0]))
def test_6d_is_always_a_rotation(seed, scale, spread):
    """Any six numbers give a rotation, also when the columns are almost or exactly parallel."""
    first = random(seed, 8, 3, dtype=torch.float32)
    second = 3 * first + spread * random(seed + 1, 8, 3, dtype=torch.float32)
    assert is_rotation(bm.rotation_6d_to_matrix(scale * torch.cat([first, second], -1)), 1e-6)


@given(seeds)
def test_6d_first_column_keeps_its_direction(seed):
    """Gram-Schmidt keeps column 0's direction and column 1 in the plane of the two."""
    rotation_6d = random(seed, 6, 6)
    matrix = bm.rotation_6d_to_matrix(rotation_6d)
    first, second = rotation_6d[:, :3], rotation_6d[:, 3:]
    assert torch.allclose(matrix[..., 0], first / first.norm(dim=-1, keepdim=True))
    assert (matrix[..., 1] * second).sum(-1).min() > 0
    assert (matrix[..., 2] * second).sum(-1).abs().max() < 1e-12


@given(rotations())
def test_convention_6d_layout(matrix):
    """[column 0, column 1]; PyTorch3D has the first two rows, SPIN a (3, 2) row by row."""
    ours = torch.cat([matrix[:, 0], matrix[:, 1]])
    assert torch.equal(bm.matrix_to_rotation_6d(matrix), ours)


def test_convention_rotations_turn_by_the_right_hand():
    """A quarter turn about z takes x to y; quaternions are (w, x, y, z)."""
    quarter = bm.axis_angle_to_matrix(torch.tensor([0, 0, PI / 2]))
    assert torch.allclose(quarter @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6)
    half = math.sqrt(0.5)
    assert torch.allclose(bm.matrix_to_quaternion(quarter), torch.tensor([half, 0, 0, half]))


def test_convention_degenerate_input_falls_back():
    """No rotation becomes the identity; a lost 6D column the axis that the docstring names."""
    identity = torch.eye(3)
    assert torch.equal(bm.rotation_6d_to_matrix(torch.zeros(6)), identity)
    along_y = bm.rotation_6d_to_matrix(torch.tensor([0, 2.0, 0, 0, 0, 0]))
    assert torch.equal(along_y[:, :2], torch.tensor([[0.0, 1], [1, 0], [0, 0]]))


DEGENERATE = [
    (bm.axis_angle_to_matrix, [[0, 0, 0], [1e-8] * 3, [1e-30, 0, 0], [PI, 0, 0], [0, -PI, 0],
                               [-1e-8] * 3]),
    (bm.rotation_6d_to_matrix, [[0] * 6, [1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 2, 3], [1, 2, 3] * 2,
                                [1, 2, 3, -2, -4, -6], [1e-20] * 6, [1e20, 0, 0, 0, 1e20, 0],
                                [1, 0, 0, 1, 1e-7, 0]]),
    (bm.matrix_to_axis_angle, [[1, 0, 0, 0, 1, 0, 0, 0, 1], [1, 0, 0, 0, -1, 0, 0, 0, -1],
                               [-1, 0, 0, 0, 1, 0, 0, 0, -1], [-1, 0, 0, 0, -1, 0, 0, 0, 1],
                               [0, 1, 0, 1, 0, 0, 0, 0, -1], [0] * 9]),
]
DEGENERATE.append((bm.matrix_to_quaternion, DEGENERATE[-1][1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function, values", DEGENERATE)
def test_values_and_gradients_are_finite(function, values, dtype):
    """Angles 0 and pi, zero and parallel columns: no NaN, no infinity, also backwards."""
    x = torch.tensor(values, dtype=dtype)
    x = (x.unflatten(-1, (3, 3)) if x.shape[-1] == 9 else x).requires_grad_()
    y = function(x)
    weights = random(0, *y.shape).to(dtype)  # a plain sum could cancel
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    assert y.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("function", FROM_VECTOR)
def test_gradients_from_vectors(function):
    """Gradients equal finite differences; for axis-angle also at 0 and close to pi."""
    x = random(3, 4, FROM_VECTOR[function])
    if function is bm.axis_angle_to_matrix:
        x = torch.cat([x, torch.zeros(1, 3), torch.tensor([[0, PI, 0], [1e-9, 0, 0]])])
    assert gradcheck(function, x.requires_grad_())


@pytest.mark.parametrize("function", FROM_MATRIX)
def test_gradients_from_matrices(function):
    """Gradients equal finite differences, also at the identity and near pi."""
    axis_angle = torch.cat([random(4, 4, 3), torch.zeros(1, 3), torch.tensor([[0, 0, PI - 1e-3]])])
    assert gradcheck(function, bm.axis_angle_to_matrix(axis_angle).requires_grad_())


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0), (2, 3), (2, 1, 3)])
def test_any_leading_shape(shape):
    """Leading dimensions are kept, also none and empty ones."""
    for function, length in FROM_VECTOR.items():
        x = random(5, *shape, length)
        flat = torch.stack([function(row) for row in x.reshape(-1, length)]) if x.numel() else None
        result = function(x)
        assert result.shape[:len(shape)] == shape
        assert flat is None or torch.allclose(result.reshape(flat.shape), flat)
    matrices = bm.axis_angle_to_matrix(random(6, *shape, 3))
    for function in FROM_MATRIX:
        assert function(matrices).shape[:-1] == shape


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_half_precision_is_computed_in_float32(dtype):
    """Half types come back as they went in, rounded only once."""
    for function, length in FROM_VECTOR.items():
        x = random(7, 9, length).to(dtype)
        assert torch.equal(function(x), function(x.float()).to(dtype))
    matrices = bm.axis_angle_to_matrix(random(8, 9, 3)).to(dtype)
    for function in FROM_MATRIX:
        assert torch.equal(function(matrices), function(matrices.float()).to(dtype))


def test_nan_stays_nan_and_alone():
    """A NaN rotation is not repaired into a plausible one, and its neighbours are untouched."""
    for function, length in FROM_VECTOR.items():
        x = random(9, 3, length)
        x[1, 0] = math.nan
        result = function(x)
        assert result[1].isnan().any() and result[[0, 2]].isfinite().all()


@pytest.mark.parametrize("function", [*FROM_VECTOR, *FROM_MATRIX])
def test_wrong_shapes_are_named(function):
    """A wrong shape or an integer tensor is an error that names the function and the shape."""
    with pytest.raises(ValueError, match=rf"{function.__name__} expects .* \(2, 5\)"):
        function(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="int64"):
        function(torch.zeros(3, 3, dtype=torch.int64))


# --------------------------------------------------------------------------------- cameras

K_EXAMPLE = torch.tensor([[500.0, 0, 110], [0, 480, 120], [0, 0, 1]], dtype=torch.float64)


def test_convention_camera_is_opencv():
    """x is right, y is down, z is forward; the optical axis meets the principal point."""
    pixels = bm.project(torch.tensor([[0, 0, 2.0], [1, 0, 2], [0, 1, 2]]), K_EXAMPLE.float())
    assert torch.allclose(pixels, torch.tensor([[110.0, 120], [360, 120], [110, 360]]))


# ---------------------------------------------------------------------------------- mirror


@given(seeds)
def test_mirrors_are_involutions(seed):
    """Mirroring twice changes nothing, for every kind of quantity."""
    points, names = random(seed, 4, 24, 3), bm.JOINT_SETS["smpl24"]
    matrices = bm.axis_angle_to_matrix(points)
    for mirror, x in [
        (bm.mirror_points, points), (bm.mirror_axis_angle, points), (bm.mirror_matrix, matrices),
        (bm.mirror_pose, points), (bm.mirror_pose, matrices),
        (lambda x: bm.mirror_pose(x, names), points),
        (lambda x: bm.mirror_pose(x, names), matrices),
    ]:
        assert torch.equal(mirror(mirror(x)), x) and not torch.equal(mirror(x), x)


@given(rotations())
def test_mirror_commutes_with_rotation(matrix):
    """Mirror a rotated point, or rotate the mirrored point by the mirrored rotation: the same."""
    point = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    mirrored = bm.mirror_matrix(matrix) @ bm.mirror_points(point)
    assert torch.allclose(mirrored, bm.mirror_points(matrix @ point))
    axis_angle = bm.matrix_to_axis_angle(matrix)
    turned = bm.axis_angle_to_matrix(bm.mirror_axis_angle(axis_angle))
    assert torch.allclose(turned, bm.mirror_matrix(matrix), atol=1e-9)


def test_convention_mirror_is_along_x():
    """Points: x -> -x. Axis-angle: (a, b, c) -> (a, -b, -c)."""
    ones = torch.ones(3)
    assert bm.mirror_points(ones).tolist() == [-1, 1, 1]
    assert bm.mirror_axis_angle(ones).tolist() == [1, -1, -1]


@given(seeds)
def test_mirrored_projection_is_the_flipped_image(seed):
    """The mirrored scene through a centred camera lands on the flipped pixels."""
    points = random(seed, 5, 3) + torch.tensor([0, 0, 8.0])
    K = torch.tensor([[300.0, 0, 64], [0, 300, 64], [0, 0, 1]], dtype=torch.float64)
    flipped = bm.project(points, K) * torch.tensor([-1, 1]) + torch.tensor([128, 0])
    assert torch.allclose(bm.project(bm.mirror_points(points), K), flipped)


def test_mirror_pose_checks_the_names():
    """A pose with another number of joints than names is refused."""
    with pytest.raises(ValueError, match="24 joint names"):
        bm.mirror_pose(torch.zeros(2, 23, 3), bm.JOINT_SETS["smpl24"])


# ------------------------------------------------------------------------------ joint sets


def test_joint_sets_are_well_formed():
    """No set names a joint twice, its number is its size, and left and right are both there."""
    for name, joints in bm.JOINT_SETS.items():
        assert len(set(joints)) == len(joints), name
        assert int(re.findall(r"\d\d", name)[-1]) == len(joints), name
        if not name.startswith(("left_", "right_")):
            swap = bm.mirror_indices(name)
            assert [swap[i] for i in swap] == list(range(len(joints))), name


# Index maps that the data sets' own tools and papers' code use: here they follow from the names.
PUBLISHED_MAPS = [
    ("mano21", "hand21", [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9,
                          20]),
    ("j24", "coco17", [19, 20, 21, 22, 23, 9, 8, 10, 7, 11, 6, 3, 2, 4, 1, 5, 0]),
    ("j24", "lsp14", [*range(13), 18]),
    ("j24", "j17", [*range(13), 18, 14, 16, 17]),
    ("j24", "h36m17_spin", [14, 3, 4, 5, 2, 1, 0, 16, 12, 17, 18, 9, 10, 11, 8, 7, 6]),
    ("hmr44", "lsp14", [*range(25, 38), 43]),
    ("hmr44", "j17", [*range(25, 38), 43, 39, 41, 42]),
    ("h36m17_spin", "j17", [6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10, 0, 7, 9]),
    ("h36m17_moon", "lsp14", [3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10]),
    ("smpl45", "openpose25", [24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, *range(25, 35)]),
    ("smpl24", "smpl14", [1, 2, 4, 5, 7, 8, 12, 15, 16, 17, 18, 19, 20, 21]),
    ("smplh52", "amass24", [*range(22), 22, 37]),
    # SMPL-X's hands with the appended tips, as EHF's evaluation lists them
    ("smplx76", "left_hand21", [20, 37, 38, 39, 66, 25, 26, 27, 67, 28, 29, 30, 68, 34, 35, 36, 69,
                                31, 32, 33, 70]),
    ("smplx76", "right_hand21", [21, 52, 53, 54, 71, 40, 41, 42, 72, 43, 44, 45, 73, 49, 50, 51, 74,
                                 46, 47, 48, 75]),
]


@pytest.mark.parametrize("source, target, indices", PUBLISHED_MAPS)
def test_published_index_maps_follow_from_the_names(source, target, indices):
    """joint_indices gives the map that the field's code hard-codes."""
    assert bm.joint_indices(source, target) == indices


def test_published_flip_permutations_follow_from_the_names():
    """mirror_indices gives HMR2's flip permutation, and leaves a hand as it is."""
    openpose = [0, 1, 5, 6, 7, 2, 3, 4, 8, 12, 13, 14, 9, 10, 11, 16, 15, 18, 17, 22, 23, 24, 19,
                20, 21]
    extra = [5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13, 14, 15, 16, 17, 18]
    assert bm.mirror_indices("openpose25") == openpose
    assert bm.mirror_indices("hmr44") == openpose + [25 + index for index in extra]
    assert bm.mirror_indices("hand21") == list(range(21))


def test_convention_hand_joint_orders():
    """hand21: thumb to pinky, base to tip. MANO: pinky before ring. InterHand: tip to base."""
    hand, mano, inter = (bm.JOINT_SETS[name] for name in ("hand21", "mano16", "interhand21"))
    assert hand[:6] == ("wrist", "thumb1", "thumb2", "thumb3", "thumb_tip", "index1")
    assert hand[9] == "middle1" and hand[20] == "pinky_tip"
    assert mano[7:13] == ("pinky1", "pinky2", "pinky3", "ring1", "ring2", "ring3")
    assert inter[0] == "thumb_tip" and inter[3] == "thumb1" and inter[20] == "wrist"
    assert bm.JOINT_SETS["interhand42"][41] == "left_wrist"


def test_convention_left_is_plus_x():
    """The bodies face +z: in the rest pose every left joint has a larger x than its right one."""
    for source, names in [("body", "smpl24"), ("wholebody", "smplx55")]:
        model = bm.load_model(source)
        x = (model.J_regressor @ model.v_template)[:, 0]
        for joint, other in enumerate(bm.mirror_indices(names)):
            if bm.JOINT_SETS[names][joint].startswith("left_"):
                assert x[joint] > x[other] + 0.01


def test_fingers_of_the_free_hand_carry_their_names():
    """Each tip vertex is nearest to the last joint of the finger of the same name."""
    model = bm.load_model("hand_right")
    keypoints = model.keypoint_regressor @ model.v_template
    names = bm.JOINT_SETS["hand21"]
    for finger in ("thumb", "index", "middle", "ring", "pinky"):
        tip = names.index(f"{finger}_tip")
        joints = [i for i in range(21) if not names[i].endswith("tip")]
        distances = (keypoints[joints] - keypoints[tip]).norm(dim=-1)
        assert names[joints[distances.argmin()]] == f"{finger}3"


@given(seeds)
def test_joint_indices_select_by_name(seed):
    """Joints of the target are the source's joints of the same name; both ways is the identity."""
    generator = np.random.default_rng(seed)
    source = list(generator.permutation(bm.JOINT_SETS["smplx55"]))
    target = list(generator.permutation(source)[:20])
    indices = bm.joint_indices(source, target)
    assert [source[index] for index in indices] == target
    there = bm.joint_indices(source, "smplx55")
    assert [there[index] for index in bm.joint_indices("smplx55", source)] == list(range(55))


def test_joint_indices_name_what_is_wrong():
    """Missing joints are listed, an unknown set lists the known ones."""
    with pytest.raises(ValueError, match="lack thumb_tip, index_tip, middle_tip, ring_tip"):
        bm.joint_indices("mano16", "hand21")
    with pytest.raises(ValueError, match="unknown joint set 'smpl25'.*smpl24"):
        bm.joint_indices("smpl25", "smpl24")


@given(seeds, st.sampled_from(sorted(bm.TIP_VERTEX_IDS)))
def test_keypoint_regressor_is_joints_and_tips(seed, tips):
    """The matrix does what regressing, appending tip vertices and reordering do."""
    J_regressor, vertices = random(seed, 16, 778), random(seed + 1, 2, 778, 3)
    regressor = bm.keypoint_regressor(J_regressor, bm.TIP_VERTEX_IDS[tips])
    separate = torch.cat([J_regressor @ vertices, vertices[:, list(bm.TIP_VERTEX_IDS[tips])]], 1)
    expected = separate[:, bm.joint_indices("mano21", "hand21")]
    assert regressor.shape == (21, 778) and torch.allclose(regressor @ vertices, expected)


def test_keypoint_regressor_checks_its_arguments():
    """A regressor of a body is refused."""
    with pytest.raises(ValueError, match="16 rows"):
        bm.keypoint_regressor(torch.zeros(24, 6890), bm.TIP_VERTEX_IDS["smplx"])


# ------------------------------------------------------------------------------ mesh files


def random_mesh(seed: int, colored: bool = True):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(3, 40))
    vertices = generator.normal(size=(count, 3)).astype(np.float32)
    faces = generator.integers(0, count, (int(generator.integers(1, 60)), 3))
    return vertices, faces, generator.random((count, 3), np.float32) if colored else None


def read_obj(data: bytes):
    lines = [line.split() for line in data.decode().splitlines()]
    vertices = np.array([line[1:] for line in lines if line[0] == "v"], np.float32)
    faces = np.array([line[1:] for line in lines if line[0] == "f"], int) - 1
    return vertices[:, :3], faces, vertices[:, 3:] if vertices.shape[1] == 6 else None


def read_ply(data: bytes):
    header, body = data.split(b"end_header\n", 1)
    lines = [line.split() for line in header.decode().splitlines()]
    assert lines[:2] == [["ply"], ["format", "binary_little_endian", "1.0"]]
    counts = {line[1]: int(line[2]) for line in lines if line[0] == "element"}
    types = {"float": "<f4", "uchar": "u1"}
    fields = [(line[2], types[line[1]]) for line in lines if line[0] == "property"
              and line[1] != "list"]
    vertex = np.frombuffer(body, fields, counts["vertex"])
    face = np.frombuffer(body, [("n", "u1"), ("ids", "<i4", 3)], offset=vertex.nbytes)
    assert len(face) == counts["face"] and (face["n"] == 3).all()
    colors = None
    if "red" in vertex.dtype.names:
        colors = np.stack([vertex[name] for name in ("red", "green", "blue")], 1) / 255
    return np.stack([vertex[name] for name in "xyz"], 1), face["ids"], colors


def glb_chunks(data: bytes) -> tuple[dict, bytes]:
    magic, version, length, text_length, kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON")
    binary_length, kind = struct.unpack_from("<I4s", data, 20 + text_length)
    assert kind == b"BIN\0" and length == 28 + text_length + binary_length
    assert text_length % 4 == binary_length % 4 == 0
    return json.loads(data[20:20 + text_length]), data[28 + text_length:]


def glb_array(description: dict, binary: bytes, index: int) -> np.ndarray:
    accessor = description["accessors"][index]
    view = description["bufferViews"][accessor["bufferView"]]
    dtype = {5126: "<f4", 5125: "<u4"}[accessor["componentType"]]
    width = {"VEC3": 3, "SCALAR": 1}[accessor["type"]]
    assert view["byteOffset"] % 4 == 0 and view["byteLength"] == accessor["count"] * width * 4
    array = np.frombuffer(binary, dtype, accessor["count"] * width, view["byteOffset"])
    return array.reshape(-1, width)


def read_glb(data: bytes):
    description, binary = glb_chunks(data)
    assert description["buffers"] == [{"byteLength": len(binary)}]
    (primitive,) = description["meshes"][0]["primitives"]
    arrays = {name: glb_array(description, binary, index)
              for name, index in primitive["attributes"].items()}
    position = description["accessors"][primitive["attributes"]["POSITION"]]
    assert position["min"] == arrays["POSITION"].min(0).tolist()
    assert position["max"] == arrays["POSITION"].max(0).tolist()
    assert np.allclose(arrays["NORMAL"], bm.vertex_normals(arrays["POSITION"], faces := glb_array(
        description, binary, primitive["indices"]).reshape(-1, 3)))
    targets = [view["target"] for view in description["bufferViews"]]  # vertices, then indices
    assert targets == [34962] * len(arrays) + [34963]
    colors = arrays["COLOR_0"] ** (1 / 2.2) if "COLOR_0" in arrays else None
    return arrays["POSITION"], faces, colors


READERS = {".obj": (read_obj, 1e-7), ".ply": (read_ply, 0.5 / 255 + 1e-6), ".glb": (read_glb, 1e-5)}


@given(seed=seeds, colored=st.booleans())
@pytest.mark.parametrize("suffix", READERS)
def test_meshes_read_back(suffix, seed, colored, tmp_path_factory):
    """Every format gives back the float32 vertices bit for bit, the faces and the colours."""
    vertices, faces, colors = random_mesh(seed, colored)
    path = tmp_path_factory.mktemp("mesh") / f"mesh{suffix}"
    bm.save_mesh(path, vertices, faces, colors)
    read, tolerance = READERS[suffix]
    got_vertices, got_faces, got_colors = read(path.read_bytes())
    assert np.array_equal(got_vertices, vertices) and np.array_equal(got_faces, faces)
    assert (got_colors is None) == (colors is None)
    assert colors is None or np.abs(got_colors - colors).max() <= tolerance


def test_meshes_from_tensors_and_one_color(tmp_path):
    """Tensors that carry gradients, double precision and a single colour are taken as well."""
    model = bm.load_model("hand_right")
    vertices = model.v_template.double().requires_grad_()
    bm.save_mesh(tmp_path / "hand.PLY", vertices, model.faces, colors=(1, 0.5, 0))
    got, faces, colors = read_ply((tmp_path / "hand.PLY").read_bytes())
    assert np.array_equal(got, model.v_template.numpy())
    assert np.array_equal(faces, model.faces.numpy())
    assert np.allclose(colors, [1, 128 / 255, 0])


BAD_MESHES = [
    ("m.stl", {}, ValueError, r"\.obj, \.ply or \.glb"),
    ("m.obj", {"vertices": np.full((3, 3), np.nan)}, ValueError, "finite"),
    ("m.obj", {"vertices": np.full((3, 3), 1e39)}, ValueError, "finite"),
    ("m.obj", {"vertices": np.zeros((3, 2))}, ValueError, r"\(V, 3\), got .*\(3, 2\)"),
    ("m.ply", {"faces": np.zeros((1, 4), int)}, ValueError, r"\(F, 3\)"),
    ("m.ply", {"faces": np.zeros((1, 3))}, ValueError, "integers"),
    ("m.ply", {"faces": np.array([[0, 1, 3]])}, ValueError, "vertices 0 to 3, but there are 3"),
    ("m.ply", {"faces": np.array([[0, -1, 2]])}, ValueError, "vertices -1 to 2"),
    ("m.glb", {"faces": np.zeros((0, 3), int)}, ValueError, "no faces"),
    ("m.glb", {"colors": np.zeros((4, 3))}, ValueError, r"\(3, 3\)"),
    ("m.glb", {"colors": (255, 0, 0)}, ValueError, "0..1"),
    ("none/m.glb", {}, FileNotFoundError, "create the folder"),
]


@pytest.mark.parametrize("name, changes, error, message", BAD_MESHES)
def test_bad_meshes_are_refused(name, changes, error, message, tmp_path):
    """One clear error, and nothing is left on disk."""
    mesh = {"vertices": np.eye(3), "faces": np.array([[0, 1, 2]])} | changes
    with pytest.raises(error, match=message):
        bm.save_mesh(tmp_path / name, **mesh)
    assert not list(tmp_path.iterdir())


def test_a_reader_never_sees_half_a_file(tmp_path):
    """While one thread rewrites a file, another reads only complete versions of it."""
    path, versions = tmp_path / "data", [bytes([value]) * (1 << 18) for value in range(2)]
    bm.write_atomically(path, versions[0])
    done = threading.Event()

    def write() -> None:
        for turn in range(60):
            bm.write_atomically(path, versions[turn % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert path.read_bytes() in versions
    writer.join()
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_a_failed_write_leaves_nothing(tmp_path):
    """When the file cannot be put in place, the temporary one is removed."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        bm.write_atomically(tmp_path / "folder", b"data")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


# ------------------------------------------------------------------------------- rendering


def exact_fragments(corners: list[list[Fraction]], column: int, row: int) -> Fraction | None:
    """Depth of one triangle (3, 3) at a pixel's centre, edges included, in exact arithmetic."""
    (x0, y0, z0), (x1, y1, z1), (x2, y2, z2) = corners
    x, y = Fraction(2 * column + 1, 2), Fraction(2 * row + 1, 2)
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    if area == 0 or min(z0, z1, z2) <= 0:
        return None
    second = ((x - x0) * (y2 - y0) - (x2 - x0) * (y - y0)) / area
    third = ((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) / area
    weights = (1 - second - third, second, third)
    if min(weights) < 0:
        return None
    return 1 / sum(weight / z for weight, z in zip(weights, (z0, z1, z2), strict=True))


def assert_exact(vertices: np.ndarray, faces: np.ndarray, size: tuple[int, int]) -> None:
    """The picture equals the slow loop's: covered pixels, depth, and a nearest face."""
    face_ids, barycentric, depth = bm.rasterize(vertices, faces, size)
    exact = [[Fraction(float(c)) for c in vertex] for vertex in vertices]
    for row in range(size[0]):
        for column in range(size[1]):
            depths = [exact_fragments([exact[corner] for corner in face], column, row)
                      for face in faces]
            hits = {face: float(d) for face, d in enumerate(depths) if d is not None}
            face = face_ids[row, column]
            if not hits:
                assert face == -1 and np.isinf(depth[row, column])
                continue
            assert hits[face] == pytest.approx(min(hits.values()), rel=1e-6)
            assert depth[row, column] == pytest.approx(hits[face], rel=1e-6)
            point = barycentric[row, column] @ vertices[faces[face]]  # at the centre's depth
            assert point[2] == pytest.approx(hits[face], rel=1e-5)


@given(seeds, st.booleans())
def test_rasterize_equals_the_exact_loop(seed, on_grid):
    """Random triangles, also with corners and edges exactly on pixel centres, shared edges, out of
    the picture, behind the camera, without area: every pixel is the exact loop's."""
    generator = np.random.default_rng(seed)
    vertices = generator.uniform(-3, 13, (9, 3)).astype(np.float32)
    if on_grid:
        vertices = (vertices * 2).round() / 2
    vertices[:, 2] = generator.uniform(-0.2, 4, 9)
    faces = generator.integers(0, 9, (7, 3))
    assert_exact(vertices.astype(np.float32), faces, (9, 11))


@given(seeds)
def test_slivers_stay_between_their_corners(seed):
    """Triangles a rounding error wide with one corner far outside, along lines through pixel
    centres: no weight is negative, nothing drawn is nearer or farther than the corners are."""
    generator = np.random.default_rng(seed)
    x = (generator.uniform(0, 40, (60, 3)) * 8).round() / 8
    x[:, 0] = generator.uniform(-1e6, 1e6, 60).round()
    rise, run = generator.integers(1, 8, (2, 60, 1))
    y = np.float32((x - 0.5) * rise / run + 0.5)
    y += np.spacing(y) * generator.integers(-1, 2, (60, 3))
    vertices = np.stack([x, y, generator.uniform(1, 3, (60, 3))], 2)
    faces = np.arange(180).reshape(60, 3)
    face_ids, barycentric, depth = bm.rasterize(vertices.reshape(-1, 3), faces, (40, 40))
    seen = face_ids >= 0
    z = vertices[face_ids[seen], :, 2]
    assert seen.any() and barycentric.min() >= 0
    assert np.allclose(barycentric[seen].sum(1), 1, atol=1e-6)
    assert (depth[seen] >= z.min(1) * (1 - 1e-6)).all()
    assert (depth[seen] <= z.max(1) * (1 + 1e-6)).all()


@given(seeds, st.sampled_from([0.0, 0.25, 1e-4, 0.49]))
def test_shared_edges_leave_no_holes(seed, jitter):
    """A triangulated sheet larger than the picture covers it, wherever its vertices are."""
    generator = np.random.default_rng(seed)
    rows, columns = (axis.ravel() for axis in np.mgrid[:13, :13])
    places = np.stack([columns, rows], 1) + generator.uniform(-jitter, jitter, (169, 2))
    turn = generator.uniform(-0.3, 0.3) * (jitter > 0)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    vertices = np.concatenate(
        [(places - 6) @ rotation * 6 + 20, generator.uniform(1, 2, (169, 1))], 1)
    corner = (np.arange(12)[:, None] * 13 + np.arange(12)).ravel()
    faces = np.concatenate([np.stack([corner, corner + 1, corner + 13], 1),
                            np.stack([corner + 14, corner + 13, corner + 1], 1)])
    face_ids, barycentric, depth = bm.rasterize(vertices, faces, (40, 40))
    assert (face_ids >= 0).all() and np.allclose(barycentric.sum(-1), 1, atol=1e-6)
    assert (barycentric >= 0).all() and depth.min() >= 1 and depth.max() <= 2


@given(seeds)
def test_barycentric_weights_find_the_pixel(seed):
    """The point that the weights give in space projects onto the pixel's centre."""
    generator = np.random.default_rng(seed)
    points = generator.uniform([-1, -1, 1], [1, 1, 4], (12, 3))
    K = np.array([[30.0, 0, 20], [0, 30, 20], [0, 0, 1]])
    faces = generator.permutation(12).reshape(4, 3)
    pixels = np.concatenate([bm.project(points, K), points[:, 2:]], 1)
    face_ids, barycentric, depth = bm.rasterize(pixels, faces, (40, 40))
    row, column = np.nonzero(face_ids >= 0)
    found = (barycentric[row, column][:, None] @ points[faces[face_ids[row, column]]])[:, 0]
    assert np.allclose(found[:, 2], depth[row, column], rtol=1e-4)
    centers = np.stack([column, row], 1) + 0.5
    assert np.allclose(bm.project(found, K), centers, atol=2e-3)


@given(seeds)
def test_the_mirrored_mesh_is_the_flipped_picture(seed):
    """x -> W - x flips coverage and depth."""
    generator = np.random.default_rng(seed)
    vertices = generator.uniform([0, 0, 1], [32, 24, 3], (30, 3))
    vertices[:, 0] = (vertices[:, 0] * 16).round() / 16  # so that W - x is exact
    faces = np.arange(30).reshape(10, 3)
    depth = bm.rasterize(vertices, faces, (24, 32))[2]
    mirrored = bm.rasterize(vertices * [-1, 1, 1] + [32, 0, 0], faces, (24, 32))[2]
    assert np.isfinite(depth).any() and np.allclose(depth, mirrored[:, ::-1], rtol=1e-5)


def test_convention_pixel_centres():
    """The centre of column 3, row 5 is at (3.5, 5.5): a tiny triangle there shows in it alone."""
    vertices = np.array([[3.5, 5.4, 1], [3.6, 5.6, 1], [3.4, 5.6, 1]])
    face_ids, _, _ = bm.rasterize(vertices, np.array([[0, 1, 2]]), (10, 10))
    assert np.argwhere(face_ids == 0).tolist() == [[5, 3]]


def test_near_hides_far_and_ties_go_to_the_lower_face():
    """Of two triangles the nearer is seen, whatever their order; of equal ones the first."""
    triangle = np.array([[-10, -10, 1], [30, -10, 1], [-10, 30, 1]], np.float32)
    near_last = np.concatenate([triangle * [1, 1, 1.0001], triangle])
    faces = np.arange(6).reshape(2, 3)
    assert (bm.rasterize(near_last, faces, (8, 8))[0] == 1).all()
    assert (bm.rasterize(near_last, faces[::-1], (8, 8))[0] == 0).all()
    assert (bm.rasterize(triangle, np.array([[0, 1, 2]] * 3), (8, 8))[0] == 0).all()


PLANE = np.array([[-3, -3, 0], [3, -3, 0], [-3, 3, 0], [3, 3, 0.0]])  # two triangles, facing us
PLANE_FACES = np.array([[0, 2, 1], [1, 2, 3]])
K_SMALL = np.array([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(4, 6))
def test_depth_of_a_plane(slope_x, slope_y, distance):
    """A tilted plane z = d + a x + b y has depth d / (1 - a u - b v) along the ray (u, v, 1)."""
    vertices = PLANE + [0, 0, distance]
    vertices[:, 2] += PLANE[:, :2] @ [slope_x, slope_y]
    picture = bm.render(vertices, PLANE_FACES, K_SMALL, (12, 16))
    v, u = np.mgrid[:12, :16] + 0.5
    u, v = (u - 8) / 20, (v - 6) / 20
    expected = distance / (1 - slope_x * u - slope_y * v)
    inside = picture.mask > 0
    assert inside[:, 2:14].all()
    assert np.allclose(picture.depth[inside], expected[inside], rtol=2e-6)


def test_lighting_of_a_plane():
    """Brightness is ambient + Lambert's cosine + the headlight, the same on both sides."""
    vertices, light = PLANE + [0, 0, 2], np.array([0, -1.0, -1.0])
    arguments = {"colors": (0.8, 0.5, 0.2), "light": light, "ambient": 0.2, "headlight": 0.0}
    expected = np.array([0.8, 0.5, 0.2]) * math.sqrt(0.2 + 0.8 * math.sqrt(0.5))
    for faces in (PLANE_FACES, PLANE_FACES[:, ::-1]):
        picture = bm.render(vertices, faces, K_SMALL, (12, 16), **arguments)
        assert np.allclose(picture.image, expected, atol=1e-6)
    dark = bm.render(vertices, PLANE_FACES, K_SMALL, (12, 16), **arguments | {"light": -light})
    assert np.allclose(dark.image, np.array([0.8, 0.5, 0.2]) * math.sqrt(0.2), atol=1e-6)
    glaring = bm.render(vertices, PLANE_FACES, K_SMALL, (12, 16), **arguments | {"ambient": 9.0})
    assert glaring.image.max() == 1


def test_colors_are_interpolated_in_perspective():
    """On a plane that recedes, a colour linear in space is that of the point on the ray."""
    vertices = PLANE + [0, 0, 5]
    vertices[:, 2] += PLANE[:, 0]  # from 2 to 8
    ramp = np.repeat((PLANE[:, :1] + 3) / 6, 3, 1)
    picture = bm.render(vertices, PLANE_FACES, K_SMALL, (12, 16), colors=ramp, ambient=1.0,
                        headlight=0.0)
    x = picture.depth * (np.arange(16) + 0.5 - 8) / 20
    inside = picture.mask > 0
    assert inside.sum() > 50
    assert np.allclose(picture.image[..., 0][inside], ((x + 3) / 6)[inside], atol=1e-5)


def hand_in_view(size: int = 64):
    model = bm.load_model("hand_right")
    vertices = model.v_template.numpy()
    middle = (vertices.min(0) + vertices.max(0)) / 2
    turned = (vertices - middle)[:, [0, 2, 1]] * [1, 1, -1] + [0, 0, 0.5]
    K = np.array([[1.9 * size, 0, size / 2], [0, 1.9 * size, size / 2], [0, 0, 1]])
    return turned, model.faces.numpy(), K


def test_supersampling_averages_the_fine_picture():
    """A supersampled picture is the mean of one with that many more pixels."""
    vertices, faces, K = hand_in_view()
    fine = bm.render(vertices, faces, K * [[3], [3], [1]], (192, 192))
    picture = bm.render(vertices, faces, K, (64, 64), supersample=3)
    assert np.allclose(picture.image, fine.image.reshape(64, 3, 64, 3, 3).mean((1, 3)), atol=1e-5)
    assert np.allclose(picture.mask, fine.mask.reshape(64, 3, 64, 3).mean((1, 3)), atol=1e-6)
    assert np.array_equal(picture.depth, fine.depth.reshape(64, 3, 64, 3).min((1, 3)))
    assert np.array_equal(picture.face_ids >= 0, picture.mask > 0)
    assert 0.1 < picture.mask.mean() < 0.9


@pytest.mark.parametrize("supersample", [1, 2])
def test_bands_and_pieces_give_the_same_picture(supersample, monkeypatch):
    """Drawn in many bands and pieces, a picture is what it is drawn at once."""
    vertices, faces, K = hand_in_view()
    background = np.random.default_rng(0).random((64, 64, 3), np.float32)
    arguments = vertices, faces, K, (64, 64)
    whole = bm.render(*arguments, background=background, supersample=supersample)
    monkeypatch.setattr(bm, "_BAND_PIXELS", 500)
    monkeypatch.setattr(bm, "_PIECE", 300)
    parts = bm.render(*arguments, background=background, supersample=supersample)
    assert np.allclose(parts.image, whole.image, atol=1e-6)
    assert np.array_equal(parts.mask, whole.mask)
    assert np.allclose(parts.depth, whole.depth, rtol=1e-6)
    assert (parts.face_ids == whole.face_ids).mean() > 0.999  # ties may round differently


def test_opacity_mixes_mesh_and_background():
    """Opacity 0 is the background, 1 hides it, and between the mixture is linear."""
    background = np.random.default_rng(0).random((64, 64, 3), np.float32)
    none, half, full = (bm.render(*hand_in_view(), (64, 64), background=background,
                                  opacity=opacity).image for opacity in (0.0, 0.5, 1.0))
    assert np.array_equal(none, background)
    assert np.allclose(half, (none + full) / 2, atol=1e-6) and not np.allclose(none, full)


def test_the_memory_of_a_picture_is_bounded():
    """A hundred layers that fill the picture take no more memory than a few."""
    corners = np.array([[-900, -900, 1], [2000, -900, 1], [-900, 2000, 1]], np.float32)
    layers = np.concatenate([corners * [1, 1, 1 + 0.01 * layer] for layer in range(100)])
    tracemalloc.start()
    face_ids = bm.rasterize(layers, np.arange(300).reshape(100, 3), (400, 400))[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (face_ids == 0).all() and peak < 200 * 2**20  # 16 million fragments of 48 bytes


def test_bytes_are_a_background():
    """A uint8 image is the background that it is when divided by 255."""
    vertices, faces, K = hand_in_view()
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    results = [bm.render(vertices, faces, K, (64, 64), background=image).image
               for image in (picture, picture / np.float32(255))]
    assert np.array_equal(*results)


def test_background_shows_where_the_mesh_is_not():
    """White by default, a colour, or a picture, untouched outside the mask."""
    vertices, faces, K = hand_in_view()
    picture = np.random.default_rng(0).random((64, 64, 3), np.float32)
    for background, expected in [(None, 1), ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3)), (picture, picture)]:
        result = bm.render(vertices, faces, K, (64, 64), background=background)
        outside = result.mask == 0
        expected = np.broadcast_to(np.float32(expected), (64, 64, 3))
        assert np.array_equal(result.image[outside], expected[outside])
        assert result.image.dtype == np.float32 and result.image.max() <= 1
    with pytest.raises(ValueError, match="background must be"):
        bm.render(vertices, faces, K, (64, 64), background=picture[:32])


def test_tensors_and_arrays_give_the_same_picture():
    """Torch in or numpy in: the same numpy picture, bit for bit, every time."""
    vertices, faces, K = hand_in_view()
    first = bm.render(vertices, faces, K, (64, 64))
    tensors = [torch.from_numpy(array) for array in (vertices, faces, K)]
    second = bm.render(tensors[0].requires_grad_(), *tensors[1:], (64, 64))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_projected_mesh_lies_on_the_mask():
    """Every vertex of the hand falls on a covered pixel, or on a neighbour of one."""
    vertices, faces, K = hand_in_view()
    mask = bm.render(vertices, faces, K, (64, 64)).mask > 0
    grown = np.zeros_like(mask)
    for row, column in np.argwhere(mask):
        grown[max(row - 1, 0):row + 2, max(column - 1, 0):column + 2] = True
    column, row = np.floor(bm.project(vertices, K)).astype(int).T
    assert grown[row, column].all()


@pytest.mark.parametrize("size", [(0, 0), (5, 0), (4, 6)])
def test_nothing_to_see(size):
    """No faces, a mesh behind the camera or beside the picture: an empty picture, no error."""
    vertices = PLANE + [0, 0, 2]
    for points, faces in [
        (vertices, np.zeros((0, 3), int)), (vertices * [1, 1, -1], PLANE_FACES),
        (vertices * [1, 1, 0], PLANE_FACES), (vertices + [1e6, 0, 0], PLANE_FACES),
        (np.zeros((0, 3)), np.zeros((0, 3), int)),
    ]:
        picture = bm.render(points, faces, K_SMALL, size)
        assert picture.image.shape == (*size, 3) and (picture.image == 1).all()
        assert (picture.face_ids == -1).all() and np.isinf(picture.depth).all()
        assert not picture.mask.any()


def test_faces_through_the_camera_plane_are_dropped():
    """A triangle that reaches behind the camera is not drawn; its neighbour is."""
    vertices = PLANE + [0, 0, 2]
    vertices[3, 2] = -1
    face_ids = bm.render(vertices, PLANE_FACES, K_SMALL, (12, 16)).face_ids
    assert set(np.unique(face_ids)) == {-1, 0}


def test_rasterize_refuses_what_is_not_a_mesh():
    """Coordinates beyond float32, faces without vertices: one clear error."""
    for vertices, message in [(PLANE * 1e39, "finite"), (PLANE[:3], "vertices 0 to 3")]:
        with pytest.raises(ValueError, match=message):
            bm.rasterize(vertices, PLANE_FACES, (4, 4))


def test_normals_point_outwards():
    """An octahedron's normals are its corners; a vertex without a face has the zero normal."""
    corners = np.concatenate([np.eye(3), -np.eye(3), np.ones((1, 3))])
    faces = []
    for x in (0, 3):
        for y in (1, 4):
            for z in (2, 5):
                face = [x, y, z]
                outside = np.linalg.det(corners[face]) > 0
                faces.append(face if outside else face[::-1])
    normals = bm.vertex_normals(corners, np.array(faces))
    assert np.allclose(normals[:6], corners[:6]) and not normals[6].any()


@given(rotations())
def test_normals_turn_with_the_mesh(matrix):
    """Normals of the rotated hand are the rotated normals, all of length 1."""
    model = bm.load_model("hand_right", dtype=torch.float64)
    vertices, rotation = model.v_template.numpy(), matrix.numpy()
    normals = bm.vertex_normals(vertices, model.faces)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1)
    turned = bm.vertex_normals(vertices @ rotation.T, model.faces)
    assert np.allclose(turned, normals @ rotation.T, atol=1e-9)


def test_free_models_are_oriented_outwards():
    """The enclosed volume of the free body is positive: faces are counter-clockwise outside."""
    model = bm.load_model("body", dtype=torch.float64)
    volume = torch.linalg.det(model.v_template[model.faces]).sum() / 6
    assert 0.04 < volume < 0.12  # cubic metres

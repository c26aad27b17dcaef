"""Rotations, cameras, mirror, joint sets, mesh files and rendering."""

import json
import math
import re
import struct
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from set_samples import seeds
from torch.autograd import gradcheck

import bodymodels as bm
import genhmr

PI = math.pi


def random(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


PLANE = np.array([[-3, -3, 0], [3, -3, 0], [-3, 3, 0], [3, 3, 0.0]])  # two triangles, facing us
PLANE_FACES = np.array([[0, 2, 1], [1, 2, 3]])
K_SMALL = np.array([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
coordinates = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-1, 1, width=32))
axes = st.tuples(coordinates, coordinates, coordinates).filter(lambda a: math.hypot(*a) > 1e-3)
angles = st.one_of(
    st.sampled_from([0.0, 1e-30, 1e-8, 1e-6, 1e-3, PI / 2, PI - 1e-4, PI - 1e-7, PI]),
    st.floats(0, PI))


axis_angles = st.builds(  # in float64, often at the angles where formulas break
    lambda axis, angle: torch.tensor(axis, dtype=torch.float64) / math.hypot(*axis) * angle,
    axes, angles)


def exponential(axis_angle: torch.Tensor) -> torch.Tensor:
    """The rotation matrix, by the matrix exponential, not by our code."""
    x, y, z = axis_angle.tolist()
    return torch.linalg.matrix_exp(axis_angle.new_tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]]))


# ------------------------------------------------------------------------------- rotations


def quaternion_to_matrix(quaternion: torch.Tensor) -> torch.Tensor:
    """Quaternions (w, x, y, z) as scipy reads them."""
    turned = Rotation.from_quat(quaternion[..., [1, 2, 3, 0]].double()).as_matrix()
    return torch.from_numpy(turned).to(quaternion)


FROM_MATRIX = {  # and the way back
    bm.matrix_to_axis_angle: bm.axis_angle_to_matrix,
    bm.matrix_to_quaternion: quaternion_to_matrix,
}
CONVERSIONS = [bm.axis_angle_to_matrix, *FROM_MATRIX]


def vectors_or_matrices(function, x: torch.Tensor) -> torch.Tensor:
    """What a function of CONVERSIONS takes, of axis-angle vectors."""
    return bm.axis_angle_to_matrix(x) if function in FROM_MATRIX else x


@given(axis_angles)
@pytest.mark.parametrize("there, back", FROM_MATRIX.items())
def test_round_trips(there, back, axis_angle):
    """Every representation gives the matrix exponential back, at any angle, in both precisions."""
    matrix = exponential(axis_angle)
    assert torch.allclose(bm.axis_angle_to_matrix(axis_angle), matrix, atol=1e-13)
    single = bm.axis_angle_to_matrix(axis_angle.float()).double()
    assert torch.allclose(single, matrix, atol=1e-6)
    assert torch.allclose(back(there(matrix)), matrix, atol=1e-12)
    assert torch.allclose(back(there(matrix.float())).double(), matrix, atol=2e-6)


@given(axis_angles, axes, st.floats(1e-7, 1e-2))
def test_convention_vectors_and_their_ranges(axis_angle, axis, small):
    """Axis-angle vectors come back, at pi perhaps as their opposite, and near the identity to one
    part in a million of float32; quaternions are (w, x, y, z) of length 1 and w >= 0."""
    matrix = bm.axis_angle_to_matrix(axis_angle)
    back, quaternion = bm.matrix_to_axis_angle(matrix), bm.matrix_to_quaternion(matrix)
    assert back.norm() <= PI + 1e-12
    close = torch.allclose(back, axis_angle, atol=1e-8, rtol=1e-8)
    assert close or (axis_angle.norm() > PI - 1e-7 and torch.allclose(-back, axis_angle, atol=1e-6))
    assert quaternion[0] >= 0 and abs(quaternion.norm() - 1) < 1e-14
    single = torch.tensor(axis) / math.hypot(*axis) * small
    back = bm.matrix_to_axis_angle(bm.axis_angle_to_matrix(single))
    assert (back - single).norm() <= 1e-6 * small


@given(seeds, st.sampled_from([1e-5, 1.0, 1e20]), st.sampled_from([0.0, 1e-7, 1e-4, 1.0]))
def test_6d_is_always_a_rotation(seed, scale, spread):
    """GenHMR's: any six numbers give a rotation; Gram-Schmidt keeps column 0 and the plane of the
    two."""
    first = random(seed, 8, 3, dtype=torch.float32)
    second = 3 * first + spread * random(seed + 1, 8, 3, dtype=torch.float32)
    matrix = genhmr.rotation_6d_to_matrix(scale * torch.cat([first, second], -1))
    assert torch.allclose(matrix.mT @ matrix, torch.eye(3).expand(8, 3, 3), atol=1e-6)
    assert torch.allclose(torch.linalg.det(matrix), torch.ones(8), atol=1e-6)
    first, second = random(seed, 2, 6, 3)
    matrix = genhmr.rotation_6d_to_matrix(torch.cat([first, second], -1))
    assert torch.allclose(matrix[..., 0], first / first.norm(dim=-1, keepdim=True))
    assert (matrix[..., 1] * second).sum(-1).min() > 0
    assert (matrix[..., 2] * second).sum(-1).abs().max() < 1e-12


EYES = [torch.eye(3), *torch.diag_embed(torch.tensor([  # half turns, and what is no rotation
    [1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [0, 0, 0]])), torch.tensor(
        [[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])]
DEGENERATE = {
    bm.axis_angle_to_matrix: [[0, 0, 0], [1e-8] * 3, [1e-30, 0, 0], [PI, 0, 0], [0, -PI, 0],
                              [-1e-8] * 3],
    genhmr.rotation_6d_to_matrix: [
        [0] * 6, [1, 0, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0], [0, 0, 0, 1, 2, 3], [1, 2, 3] * 2,
        [1, 2, 3, -2, -4, -6], [1e-20] * 6, [1e20, 0, 0, 0, 1e20, 0], [1, 0, 0, 1, 1e-7, 0],
        [1e-20, 0, 0, 0, 1e20, 0]],
    bm.matrix_to_axis_angle: torch.stack(EYES).tolist(),
    bm.matrix_to_quaternion: torch.stack(EYES).tolist(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function, values", DEGENERATE.items())
def test_values_and_gradients_are_finite(function, values, dtype):
    """Angles 0 and pi, zero and parallel columns: no NaN, no infinity, also backwards."""
    x = torch.tensor(values, dtype=dtype, requires_grad=True)
    y = function(x)
    weights = random(0, *y.shape).to(dtype)  # a plain sum could cancel
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    assert y.isfinite().all() and gradient.isfinite().all()
    if function is genhmr.rotation_6d_to_matrix:  # the axes of the fallback
        assert torch.equal(y[0], torch.eye(3).to(dtype))
        assert y[2, :, :2].tolist() == [[0, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize("function", CONVERSIONS)
def test_gradients_are_finite_differences(function):
    """Also at 0 and close to pi."""
    x = torch.cat([random(3, 4, 3), torch.tensor([[0, 0, 0], [0, PI - 1e-3, 0], [1e-9, 0, 0]])])
    assert gradcheck(function, vectors_or_matrices(function, x).requires_grad_())


@pytest.mark.parametrize("function", CONVERSIONS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0), (2, 3), (2, 1, 3)])
def test_any_leading_shape_and_float_type(shape, function):
    """Leading dimensions stay; half types become float32; a NaN stays alone; others are errors."""
    x = vectors_or_matrices(function, random(5, *shape, 3))
    result, rows = function(x), x.flatten(0, len(shape) - 1) if shape else x[None]
    assert result.shape[:len(shape)] == shape
    for one, row in zip(result.reshape(-1, *result.shape[len(shape):]), rows, strict=True):
        assert torch.allclose(one, function(row))
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(function(x.to(dtype)), function(x.to(dtype).float()))
    if shape == (2, 3) and function is bm.axis_angle_to_matrix:
        x[0, 1, 0] = math.nan
        bad = function(x).isnan().flatten(2).any(-1)
        assert bad.tolist() == [[False, True, False], [False] * 3]
    for wrong in (torch.zeros(2, 5), torch.zeros(3, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=f"ending in .*, got {wrong.dtype} of shape"):
            function(wrong)


# ---------------------------------------------------------------------------------- mirror


@given(axis_angles)
def test_mirror_commutes_with_rotation(axis_angle):
    """Mirroring commutes with rotation and is an involution; poses change sides by name."""
    point = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64)
    matrix = exponential(axis_angle)
    mirrored = bm.mirror_matrix(matrix) @ bm.mirror_points(point)
    assert torch.allclose(mirrored, bm.mirror_points(matrix @ point))
    turned = bm.axis_angle_to_matrix(bm.mirror_axis_angle(axis_angle))
    assert torch.allclose(turned, bm.mirror_matrix(matrix), atol=1e-9)
    names = bm.JOINT_SETS["smpl24"]
    angles = random(0, 2, 24, 3) + axis_angle
    for pose, mirror in ((angles, bm.mirror_axis_angle),
                         (bm.axis_angle_to_matrix(angles), bm.mirror_matrix)):
        assert torch.equal(mirror(mirror(pose)), pose)
        assert torch.equal(bm.mirror_pose(pose), mirror(pose))
        assert torch.equal(bm.mirror_pose(pose, names), mirror(pose)[:, bm.mirror_indices(names)])


@given(seeds)
def test_convention_cameras_and_mirrors(seed):
    """x is right, y is down, z is forward, the optical axis meets the principal point; a mirrored
    scene (x -> -x) through a centred camera lands on the flipped pixels."""
    points = random(seed, 5, 3) + torch.tensor([0, 0, 8.0])
    K = torch.tensor([[300.0, 0, 64], [0, 200, 40], [0, 0, 1]], dtype=torch.float64)
    pixels = bm.project(points, K)
    expected = points[:, :2] / points[:, 2:] * torch.tensor([300, 200]) + torch.tensor([64, 40])
    assert torch.allclose(pixels, expected)
    flipped = pixels * torch.tensor([-1, 1]) + torch.tensor([128, 0])
    assert torch.allclose(bm.project(bm.mirror_points(points), K), flipped)


# ------------------------------------------------------------------------------ joint sets


def test_joint_sets_are_well_formed():
    """Names are unique, sizes right, both sides there; HMR2's flip follows from the names."""
    for name, joints in bm.JOINT_SETS.items():
        assert len(set(joints)) == len(joints), name
        assert int(re.findall(r"\d\d", name)[-1]) == len(joints), name
        if not name.startswith(("left_", "right_")):
            swap = bm.mirror_indices(name)
            assert [swap[i] for i in swap] == list(range(len(joints))), name
    openpose = [0, 1, 5, 6, 7, 2, 3, 4, 8, 12, 13, 14, 9, 10, 11, 16, 15, 18, 17, 22, 23, 24, 19,
                20, 21]
    extra = [5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13, 14, 15, 16, 17, 18]
    assert bm.mirror_indices("openpose25") == openpose
    assert bm.mirror_indices("hmr44") == openpose + [25 + index for index in extra]
    assert bm.mirror_indices("hand21") == list(range(21))


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


@pytest.mark.parametrize("ask, message", [
    (lambda: bm.joint_indices("mano16", "hand21"), "lack thumb_tip, index_tip, middle_tip, ring_t"),
    (lambda: bm.joint_indices("smpl25", "smpl24"), "unknown joint set 'smpl25'.*smpl24"),
    (lambda: bm.mirror_pose(torch.zeros(2, 23, 3), bm.JOINT_SETS["smpl24"]), "24 joint names"),
    (lambda: bm.keypoint_regressor(torch.zeros(24, 6890), bm.TIP_VERTEX_IDS["smplx"]), "16 rows"),
    (lambda: bm.rasterize(PLANE * 1e39, PLANE_FACES, (4, 4)), "finite"),
    (lambda: bm.rasterize(PLANE[:3], PLANE_FACES, (4, 4)), "vertices 0 to 3"),
    (lambda: bm.render(PLANE, PLANE_FACES, K_SMALL, (4, 4), background=np.ones((2, 4, 3))),
     "background must be"),
])
def test_bad_arguments_are_named(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


# ------------------------------------------------------------------------------ mesh files


def random_mesh(seed: int):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(3, 40))
    vertices = generator.normal(size=(count, 3)).astype(np.float32)
    return vertices, generator.integers(0, count, (int(generator.integers(1, 60)), 3))


def read_obj(data: bytes):
    lines = [line.split() for line in data.decode().splitlines()]
    vertices = np.array([line[1:] for line in lines if line[0] == "v"], np.float32)
    faces = np.array([line[1:] for line in lines if line[0] == "f"], int) - 1
    return vertices, faces


def read_glb(data: bytes):
    magic, version, length, size, kind = struct.unpack_from("<4sIII4s", data)
    binary_size, binary_kind = struct.unpack_from("<I4s", data, 20 + size)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    assert (kind, binary_kind, size % 4, binary_size % 4) == (b"JSON", b"BIN\0", 0, 0)
    content, binary = json.loads(data[20:20 + size]), data[28 + size:]
    assert content["buffers"] == [{"byteLength": binary_size}] and binary_size == len(binary)
    vertices, normals, faces = (
        np.frombuffer(binary, dtype, view["byteLength"] // 4, view["byteOffset"]).reshape(-1, 3)
        for dtype, view in zip(("<f4", "<f4", "<u4"), content["bufferViews"], strict=True))
    assert [each["count"] for each in content["accessors"]] == [
        len(vertices), len(vertices), faces.size]
    (primitive,) = content["meshes"][0]["primitives"]
    assert primitive["attributes"] == {"POSITION": 0, "NORMAL": 1} and primitive["indices"] == 2
    assert np.allclose(normals, bm.vertex_normals(vertices, faces))
    return vertices, faces


@given(seed=seeds)
@pytest.mark.parametrize("suffix,reader", [(".obj", read_obj), (".glb", read_glb)])
def test_meshes_read_back(suffix, reader, seed, tmp_path_factory):
    """Each format gives back the float32 vertices bit for bit, and the faces. Tensors that carry
    gradients and double precision are taken as well."""
    vertices, faces = random_mesh(seed)
    path = tmp_path_factory.mktemp("mesh") / f"mesh{suffix.upper() if seed % 2 else suffix}"
    if seed % 3:
        bm.save_mesh(path, vertices, faces)
    else:
        tensor = torch.from_numpy(vertices).double().requires_grad_()
        bm.save_mesh(path, tensor, torch.from_numpy(faces))
    got_vertices, got_faces = reader(path.read_bytes())
    assert np.array_equal(got_vertices, vertices) and np.array_equal(got_faces, faces)


@pytest.mark.parametrize("name, changes, message", [
    ("m.stl", {}, r"\.obj or \.glb"),
    ("m.obj", {"vertices": np.full((3, 3), 1e39)}, "finite"),
    ("m.obj", {"vertices": np.zeros((3, 2))}, r"\(V, 3\), got .*\(3, 2\)"),
    ("m.obj", {"faces": np.zeros((1, 3))}, "integers"),
    ("m.obj", {"faces": np.array([[0, 1, 3]])}, "vertices 0 to 3, but there are 3"),
    ("m.glb", {"faces": np.zeros((0, 3), int)}, "no faces"),
])
def test_bad_meshes_are_refused(name, changes, message, tmp_path):
    """One clear error, and nothing is left on disk."""
    mesh = {"vertices": np.eye(3), "faces": np.array([[0, 1, 2]])} | changes
    with pytest.raises(ValueError, match=message):
        bm.save_mesh(tmp_path / name, **mesh)
    assert not list(tmp_path.iterdir())


def test_a_reader_never_sees_half_a_file(tmp_path):
    """A reader sees complete versions alone; a failed write leaves no temporary file."""
    path, versions = tmp_path / "data", [bytes([value]) * (1 << 18) for value in range(2)]
    bm.write_atomically(path, versions[0])
    writer = threading.Thread(target=lambda: [
        bm.write_atomically(path, versions[turn % 2]) for turn in range(60)])
    writer.start()
    while writer.is_alive():
        assert path.read_bytes() in versions
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        bm.write_atomically(tmp_path / "folder", b"data")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "folder"]


# ------------------------------------------------------------------------------- rendering


def exact_fragments(corners: list[list[Fraction]], column: int, row: int) -> list[float] | None:
    """Depth of a triangle at a pixel's centre, edges included, and its corners' weights; exact."""
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
    inverse = [weight / z for weight, z in zip(weights, (z0, z1, z2), strict=True)]
    return [float(1 / sum(inverse)), *(float(share / sum(inverse)) for share in inverse)]


def assert_exact(vertices: np.ndarray, faces: np.ndarray, size: tuple[int, int]) -> None:
    """The picture equals the slow loop's: covered pixels, depth, weights, and a nearest face."""
    face_ids, barycentric, depth = bm.rasterize(vertices, faces, size)
    exact = [[Fraction(float(c)) for c in vertex] for vertex in vertices]
    for row, column in np.ndindex(size):
        fragments = [exact_fragments([exact[corner] for corner in face], column, row)
                     for face in faces]
        hits = {face: values for face, values in enumerate(fragments) if values is not None}
        face = face_ids[row, column]
        if not hits:
            assert face == -1 and np.isinf(depth[row, column])
            continue
        assert hits[face][0] == pytest.approx(min(hits.values())[0], rel=1e-6)
        assert depth[row, column] == pytest.approx(hits[face][0], rel=1e-6)
        assert barycentric[row, column].tolist() == pytest.approx(hits[face][1:], abs=2e-5)


@given(seeds, st.booleans())
def test_rasterize_equals_the_exact_loop(seed, on_grid):
    """Random triangles, also on pixel centres, behind the camera or flat: every pixel is exact."""
    generator = np.random.default_rng(seed)
    vertices = generator.uniform(-3, 13, (9, 3)).astype(np.float32)
    if on_grid:
        vertices = (vertices * 2).round() / 2
    vertices[:, 2] = generator.uniform(-0.2, 4, 9)
    faces = generator.integers(0, 9, (7, 3))
    assert_exact(vertices.astype(np.float32), faces, (9, 11))
    twice = bm.rasterize(vertices, np.concatenate([faces, faces]), (9, 11))
    assert twice[0].max() < 7  # of equal triangles the first is drawn


@given(seeds)
def test_slivers_stay_between_their_corners(seed):
    """In triangles a rounding error wide no weight is negative, no depth beyond the corners'."""
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


def test_lighting_of_a_plane():
    """Brightness is ambient + Lambert's cosine + the headlight, the same on both sides."""
    cosine = 0.8 / math.sqrt(0.5**2 + 0.8**2 + 0.8**2)
    expected = np.array([0.8, 0.5, 0.2]) * math.sqrt(0.18 + 0.62 * cosine + 0.2)
    for faces in (PLANE_FACES, PLANE_FACES[:, ::-1]):
        picture = bm.render(PLANE + [0, 0, 2], faces, K_SMALL, (12, 16), colors=(0.8, 0.5, 0.2))
        assert np.allclose(picture.image[5:7, 7:9], expected, atol=1e-3)


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
    assert 0.1 < picture.mask.mean() < 0.9


@pytest.mark.parametrize("supersample", [1, 2])
def test_bands_give_the_same_picture(supersample, monkeypatch):
    """Drawn in many bands, a picture is what it is drawn at once."""
    vertices, faces, K = hand_in_view()
    background = np.random.default_rng(0).random((64, 64, 3), np.float32)
    arguments = vertices, faces, K, (64, 64)
    whole = bm.render(*arguments, background=background, supersample=supersample)
    monkeypatch.setattr(bm, "_BAND_SAMPLES", 500)
    parts = bm.render(*arguments, background=background, supersample=supersample)
    assert np.allclose(parts.image, whole.image, atol=1e-6)
    assert np.array_equal(parts.mask, whole.mask)


def test_the_background_shows_where_the_mesh_is_not():
    """A colour, floats or bytes, untouched outside the mask; tensors give the same picture. Opacity
    mixes mesh and background."""
    vertices, faces, K = hand_in_view()
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    share = picture / np.float32(255)
    tensors = [torch.from_numpy(array) for array in (vertices, faces, K)]
    for background, expected in [(None, 1), ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3)), (share, share),
                                 (picture, share)]:
        result = bm.render(vertices, faces, K, (64, 64), background=background)
        again = bm.render(*tensors, (64, 64), background=background)
        assert all(np.array_equal(a, b) for a, b in zip(result, again, strict=True))
        outside = result.mask == 0
        expected = np.broadcast_to(np.float32(expected), (64, 64, 3))
        assert np.array_equal(result.image[outside], expected[outside])
    half = bm.render(vertices, faces, K, (64, 64), background=picture, opacity=0.5).image
    assert np.allclose(half, (share + result.image) / 2, atol=1e-6)
    assert not np.allclose(half, share)


@pytest.mark.parametrize("size", [(0, 0), (5, 0), (4, 6)])
def test_nothing_to_see(size):
    """No faces, a mesh behind the camera or beside the picture: an empty picture, no error."""
    vertices, none = PLANE + [0, 0, 2], np.zeros((0, 3), int)
    for points, faces in [(vertices, none), (vertices * [1, 1, -1], PLANE_FACES),
                          (vertices + [1e6, 0, 0], PLANE_FACES), (np.zeros((0, 3)), none)]:
        picture = bm.render(points, faces, K_SMALL, size)
        assert picture.image.shape == (*size, 3) and (picture.image == 1).all()
        assert not picture.mask.any()


@given(seeds)
def test_normals_are_the_summed_cross_products(seed):
    """Each vertex has the sum of its faces' cross products, of length 1, or 0 without a face."""
    vertices, faces = random_mesh(seed)
    expected = np.zeros(vertices.shape)
    for a, b, c in faces:
        expected[[a, b, c]] += np.cross(vertices[b] - vertices[a], vertices[c] - vertices[a])
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    normals = bm.vertex_normals(vertices, faces)
    assert np.allclose(normals * lengths, expected, atol=1e-5)
    assert np.allclose(np.linalg.norm(normals, axis=1)[lengths[:, 0] > 1e-6], 1)
    assert not normals[~np.isin(np.arange(len(vertices)), faces)].any()


def test_free_models_are_oriented_outwards():
    """The enclosed volume of the free body is positive: faces are counter-clockwise outside."""
    model = bm.load_model("body", dtype=torch.float64)
    volume = torch.linalg.det(model.v_template[model.faces]).sum() / 6
    assert 0.04 < volume < 0.12  # cubic metres

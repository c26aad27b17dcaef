"""Body models: linear blend skinning against smplx and against what must hold of any of them."""

import functools
import pickle

import numpy as np
import pytest
import smplx
import torch
from hypothesis import given
from hypothesis import strategies as st
from set_samples import HAND, HAND_IDS, SMPL45, WHOLE, seeds
from smplx.lbs import lbs
from smplx.vertex_ids import vertex_ids

import bodymodels as bm

NAMES = bm.FREE_MODELS
names = st.sampled_from(NAMES)


@functools.cache
def model(name, **options):
    return bm.load_model(name, **options)


@functools.cache
def arrays(name):
    return bm.load_arrays(bm.ASSETS / f"{name}.npz")


def inputs(body, batch, seed=0, scale=0.5, dtype=torch.float32):
    """Random betas, axis-angle pose, expression and translation."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (body.num_betas,), (len(body.parents), 3), (body.num_expression,), (3,)
    betas, pose, expression, transl = (
        torch.randn(batch, *size, generator=generator, dtype=torch.float64).to(dtype)
        for size in sizes)
    return betas, scale * pose, expression, transl


def apart(a, b):
    """The largest distance between corresponding points, in metres."""
    return (a - b).norm(dim=-1).max().item()


# ------------------------------------------------------------------------------ smplx as oracle


@pytest.mark.parametrize("family, side", [
    ("mano", "right"), ("mano", "left"), ("smplx", "right"), ("smpl", "right")])
def test_models_agree_with_smplx_create(official_models, family, side):
    """Hands of either side and whole bodies, with the mean hand added to their fingers, and SMPL
    from a pickle are smplx's."""
    hands = {} if family == "smpl" else {"ext": "npz", "use_pca": False, "flat_hand_mean": False}
    theirs = smplx.create(official_models, family, is_rhand=side == "right", batch_size=2, **hands)
    ours = bm.load_model(official_models, family=family, side=side)
    betas, pose, expression, transl = inputs(ours, 2)
    given = {"betas": betas, "transl": transl, "global_orient": pose[:, 0]}
    if family == "mano":
        given["hand_pose"] = pose[:, 1:].flatten(1)
    if family == "smpl":
        given["body_pose"] = pose[:, 1:].flatten(1)
    if family == "smplx":
        parts = {"body_pose": slice(1, 22), "jaw_pose": 22, "leye_pose": 23, "reye_pose": 24,
                 "left_hand_pose": slice(25, 40), "right_hand_pose": slice(40, 55)}
        given |= {name: pose[:, part].flatten(1) for name, part in parts.items()}
        given["expression"] = expression
    file, pose = arrays(f"hand_{side}" if family == "mano" else "wholebody"), pose.clone()
    for first, end in {"mano": [(1, "")], "smplx": [(25, "l"), (40, "r")]}.get(family, []):
        pose[:, first:first + 15] += torch.from_numpy(file[f"hands_mean{end}"]).view(15, 3)
    expected, output = theirs(**given), ours(betas, pose, expression, transl)
    points = output.joints if family == "mano" else ours.keypoints(output)
    assert apart(output.vertices, expected.vertices) < 1e-5
    assert apart(points, expected.joints[:, :points.shape[1]]) < 1e-5


@pytest.mark.slow
def test_large_official_shape_spaces(tmp_path):
    """Of 300 shape and 100 expression components the first ten of each are used, as in smplx."""
    generator = np.random.default_rng(0)
    content = dict(arrays("wholebody"))
    content["shapedirs"] = 0.01 * generator.standard_normal((10475, 3, 400)).astype(np.float32)
    np.savez(tmp_path / "SMPLX_NEUTRAL.npz", **content)
    theirs = smplx.SMPLX(tmp_path, ext="npz", use_pca=False, flat_hand_mean=True)
    ours = bm.load_model(tmp_path)
    betas, pose, expression, _ = inputs(ours, 1, scale=0)
    expected = theirs(betas=betas, expression=expression)
    assert (ours.num_betas, ours.num_expression) == (10, 10)
    assert apart(ours(betas, pose, expression).vertices, expected.vertices) < 1e-5
    more = bm.load_model(tmp_path, num_betas=300)
    assert (more.num_betas, more.num_expression) == (300, 10)
    with pytest.raises(ValueError, match="num_betas=301, but the model has 0 to 300"):
        bm.load_model(tmp_path, num_betas=301)


def random_model(vertices, parents, seed, components=3):
    """A model file of any size, with any skeleton."""
    generator, joints = np.random.default_rng(seed), len(parents)
    weights = generator.random((vertices, joints))
    regressor = generator.random((joints, vertices))
    return {
        "v_template": generator.standard_normal((vertices, 3)),
        "shapedirs": generator.standard_normal((vertices, 3, components)),
        "posedirs": generator.standard_normal((vertices, 3, 9 * (joints - 1))),
        "J_regressor": regressor / regressor.sum(1, keepdims=True),
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.stack([np.array([2 ** 32 - 1, *parents[1:]]), np.arange(joints)]),
        "f": generator.integers(0, vertices, (4, 3)),
    }


@st.composite
def skeletons(draw):
    """The parent of each joint: any tree, from a chain to a star."""
    count = draw(st.integers(1, 12))
    return [-1, *(draw(st.integers(0, joint - 1)) for joint in range(1, count))]


@given(skeletons(), st.integers(1, 9), seeds)
def test_any_skeleton(parents, vertices, seed):
    """Skinning agrees with smplx.lbs for every tree of joints and every number of vertices."""
    source = random_model(vertices, parents, seed)
    body = bm.BodyModel(source, name="random", dtype=torch.float64)
    assert body.parents == tuple(parents)
    betas, pose, _, _ = inputs(body, 3, seed, 2.0, torch.float64)  # turns of any size
    tensors = {name: torch.from_numpy(array.astype(np.float64)) for name, array in source.items()}
    expected = lbs(betas, pose.flatten(1), tensors["v_template"], tensors["shapedirs"],
                   tensors["posedirs"].flatten(0, 1).T, tensors["J_regressor"],
                   torch.tensor(parents), tensors["weights"])
    output = body(betas, pose)
    assert apart(output.vertices, expected[0]) < 1e-6 and apart(output.joints, expected[1]) < 1e-6


# -------------------------------------------------------------------------------- what must hold


@given(names, seeds, st.integers(0, 6), st.booleans())
def test_a_batch_is_its_samples(name, seed, batch, in_parts):
    """A batch, at once or in parts, equals its samples; one shape or one pose serves all."""
    body = model(name)
    betas, pose, expression, transl = inputs(body, batch, seed)
    with pytest.MonkeyPatch.context() as patch:
        if in_parts:
            patch.setattr(bm, "_CACHED_BYTES", 3 * 12 * 778 * 4)
        together = body(betas, pose, expression, transl)
    assert together.vertices.shape == (batch, len(body.v_template), 3)
    for index in range(batch):
        alone = body(*(x[index:index + 1] for x in (betas, pose, expression, transl)))
        for x, y in zip(together, alone, strict=True):
            assert torch.allclose(x[index:index + 1], y, atol=2e-6)
    if batch:
        shared = body(betas[:1], pose, expression[:1]).vertices
        assert apart(shared, body(betas[:1].expand(batch, -1), pose, expression[:1].expand(
            batch, -1)).vertices) < 2e-6
        assert body(betas, pose[:1], expression).vertices.shape == together.vertices.shape


@given(names, seeds)
def test_transforms_are_rigid_and_compose(name, seed):
    """A joint's transform is its parent's times its rotation, given as axis-angle or matrix."""
    body = model(name, dtype=torch.float64)
    betas, pose, expression, transl = inputs(body, 2, seed, dtype=torch.float64)
    local = bm.axis_angle_to_matrix(pose)
    output = body(betas, pose, expression, transl)
    by_matrix = body(betas, local, expression, transl)
    assert all(torch.equal(x, y) for x, y in zip(output, by_matrix, strict=True))
    world = output.transforms[..., :3, :3]
    assert torch.allclose(world[:, 0], local[:, 0], atol=1e-12)
    parents = list(body.parents[1:])
    assert torch.allclose(world[:, 1:], world[:, parents] @ local[:, 1:], atol=1e-12)
    assert torch.equal(output.joints, output.transforms[..., :3, 3])
    last_rows = output.transforms[..., 3, :]
    assert torch.equal(last_rows, last_rows.new_tensor([0, 0, 0, 1]).expand_as(last_rows))


@given(seeds)
def test_left_hand_is_the_mirror_of_the_right(seed):
    """A mirrored pose on the left hand gives the mirrored mesh of the right, for any shape."""
    right, left = model("hand_right"), model("hand_left")
    betas, pose, _, transl = inputs(right, 2, seed)
    a = right(betas, pose, transl=transl)
    for mirrored in (bm.mirror_pose(pose), bm.mirror_pose(bm.axis_angle_to_matrix(pose))):
        b = left(betas, mirrored, transl=bm.mirror_points(transl))
        assert apart(bm.mirror_points(a.vertices), b.vertices) < 1e-5
        assert apart(bm.mirror_points(a.joints), b.joints) < 1e-5


@given(st.sampled_from(["body", "wholebody"]), seeds)
def test_mirrored_pose_of_a_body(name, seed):
    """Bodies are symmetric: mirroring the pose mirrors the skeleton, left for right.

    Without the joints' names the sides do not change places, and the skeleton is another.
    """
    body = model(name)
    _, pose, _, _ = inputs(body, 2, seed)
    shape = torch.zeros(2, body.num_betas)
    mirrored = bm.mirror_points(body(shape, pose).joints)[:, bm.mirror_indices(body.joint_names)]
    assert apart(body(shape, bm.mirror_pose(pose, body.joint_names)).joints, mirrored) < 2e-3
    assert apart(body(shape, bm.mirror_pose(pose)).joints, mirrored) > 0.05


# ----------------------------------------------------------------------- gradients and precision


@pytest.mark.parametrize("cached_bytes", [bm._CACHED_BYTES, 1], ids=["at once", "in parts"])
def test_gradcheck(cached_bytes, monkeypatch):
    """The hand-written backward pass is the derivative, by every input, in parts or at once."""
    monkeypatch.setattr(bm, "_CACHED_BYTES", cached_bytes)
    body = bm.BodyModel(random_model(5, [-1, 0, 1, 1, 0], seed=1), dtype=torch.float64)
    betas, pose, _, transl = (x.requires_grad_() for x in inputs(body, 3, dtype=torch.float64))

    def posed(betas, pose, transl):
        return tuple(body(betas, pose, None, transl))

    assert torch.autograd.gradcheck(posed, (betas, pose, transl))
    matrices = bm.axis_angle_to_matrix(pose.detach()).requires_grad_()
    assert torch.autograd.gradcheck(posed, (betas, matrices, transl))


def test_gradients_do_not_depend_on_the_memory_layout():
    """A gradient that arrives strided, expanded or contiguous is the same gradient."""
    body = model("hand_right")
    betas, pose, _, _ = inputs(body, 2)
    pose.requires_grad_()
    weights = torch.randn(2, 3, 778).mT
    for gradient in (weights, torch.ones(()).expand(2, 778, 3)):
        results = [torch.autograd.grad(body(betas, pose).vertices, pose, layout)[0]
                   for layout in (gradient, gradient.contiguous())]
        assert torch.allclose(*results, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_input_of_any_float_type(dtype):
    """Input is converted to the model's type; nothing is computed in half, under autocast too."""
    body = model("hand_right")
    betas, pose, _, transl = (x.to(dtype) for x in inputs(body, 2))
    expected = body(betas.float(), pose.float(), None, transl.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        mixed = body(betas, pose, None, transl)
    for output in (body(betas, pose, None, transl), mixed):
        assert output.vertices.dtype == torch.float32
        assert all(torch.equal(x, y) for x, y in zip(output, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_agrees_with_cpu(name):
    """The same numbers and gradients on a GPU."""
    results = []
    for device in ("cpu", "cuda"):
        body = bm.load_model(name, dtype=torch.float64).to(device)
        leaves = [x.to(device).requires_grad_() for x in inputs(body, 3, dtype=torch.float64)]
        output = body(*leaves)
        output.vertices.square().sum().backward()
        results.append([x.detach().cpu() for x in (*output, *(leaf.grad for leaf in leaves))])
    assert all(torch.allclose(x, y, atol=1e-9) for x, y in zip(*results, strict=True))


def test_checkpoints_hold_no_body_model():
    """It leaves nothing in a checkpoint, and moves like a module."""
    body = bm.load_model("hand_right")
    assert body.state_dict() == {} and list(body.parameters()) == []
    assert body.double().offsets.dtype == torch.float64 and body.faces.dtype == torch.int64


# ------------------------------------------------------------------------------------ attributes


def test_convention_joint_names_name_the_joints():
    """Left is +x, up is +y, and the names say which joint is where."""
    for name in ("body", "wholebody"):
        body = model(name)
        joints = body.rest_joints(torch.zeros(1, 10))[0]
        for joint, other in enumerate(bm.mirror_indices(body.joint_names)):
            if body.joint_names[joint].startswith("left_"):
                assert joints[joint, 0] > joints[other, 0] + 0.01
        place = dict(zip(body.joint_names, joints.tolist(), strict=True))
        assert place["head"][1] > place["neck"][1] > place["pelvis"][1] > place["left_ankle"][1]
    assert place["left_index3"][0] > place["left_index1"][0] > place["left_wrist"][0]
    assert place["left_thumb1"][2] > place["left_pinky1"][2]  # palms down, thumbs forward


def test_convention_keypoints_of_a_hand():
    """hand21: wrist, then fingers base to tip; tips are vertices near their own finger."""
    body = model("hand_right")
    betas, pose, _, _ = inputs(body, 2)
    output = body(betas, pose)
    keypoints = body.keypoint_regressor @ output.vertices
    assert keypoints.shape == (2, 21, 3)
    assert torch.equal(keypoints[:, 4::4], output.vertices[:, list(body.tip_vertex_ids)])
    rest = body.keypoint_regressor @ body.v_template
    fingers = rest[1:].view(5, 4, 3)
    assert ((fingers - rest[0]).norm(dim=2).diff(dim=1) > 0).all()  # away from the wrist
    nearest = torch.cdist(fingers[:, 3], fingers[:, :3].flatten(0, 1)).argmin(1)
    assert nearest.tolist() == [2, 5, 8, 11, 14]
    assert apart(rest[bm.joint_indices("hand21", "mano16")], body.rest_joints(0 * betas)[0]) < 1e-6


@pytest.mark.parametrize("ours, theirs", [("smpl", "smplh"), ("smplx", "smplx")])
def test_landmarks_are_the_vertices_of_smplx(ours, theirs):
    """Each vertex is the one that the smplx package has under the same name."""
    for name, vertex in zip(SMPL45[24:], bm.SURFACE_VERTEX_IDS[ours], strict=True):
        side, _, part = name.removesuffix("_tip").partition("_")
        foot = side[0].upper() + part.title().replace("_", "")  # LBigToe, but lear, lthumb
        key = next(key for key in (name, foot, side[0] + part) if key in vertex_ids[theirs])
        assert vertex_ids[theirs][key] == vertex, name


@given(st.lists(st.integers(0, 6889), min_size=1, max_size=20), seeds)
def test_body_of_a_few_vertices(ids, seed):
    """It has the same joints, bit for bit, and of the same mesh the vertices asked for."""
    body = model("body")
    betas, pose, _, _ = inputs(body, 2, seed)
    light, full = body.at_vertices(ids)(betas, pose), body(betas, pose)
    assert torch.equal(light.joints, full.joints)
    assert torch.equal(light.transforms, full.transforms)
    torch.testing.assert_close(light.vertices, full.vertices[:, ids], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="body has no landmarks"):
        body.at_vertices([332]).keypoints(None)
    for bad in [0, 6890], []:
        with pytest.raises(ValueError, match="expected vertices of body, 0 to 6889"):
            body.at_vertices(bad)


@pytest.mark.parametrize("name", ["body", "wholebody"])
def test_body_for_keypoints(name):
    """It gives the same keypoints with the same gradients, from 21 vertices."""
    body, gradients = model(name), []
    light = body.for_keypoints()
    assert light.v_template.shape == (21, 3) and light.faces.shape == (0, 3)
    assert body.J_regressor is not None and light.J_regressor is None
    betas, pose, _, _ = inputs(body, 3)
    for each in (body, light, light.at_vertices(range(20, -1, -1))):
        shape, angles = betas.clone().requires_grad_(), pose.clone().requires_grad_()
        keypoints = each.keypoints(each(shape, angles))
        (keypoints * torch.arange(3)).square().sum().backward()
        gradients.append((keypoints.detach(), shape.grad, angles.grad))
    for ours, *others in zip(*gradients, strict=True):
        for theirs in others:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_tips(tmp_path):
    """Tips are the file's own, else FreiHAND's, or those asked for, if the mesh has them."""
    assert model("hand_right").tip_vertex_ids == bm.TIP_VERTEX_IDS["smplx"]
    content = {key: value for key, value in arrays("hand_right").items() if key != "tip_vertex_ids"}
    np.savez(tmp_path / "MANO_RIGHT.npz", **content)
    assert bm.load_model(tmp_path).tip_vertex_ids == bm.TIP_VERTEX_IDS["freihand"]
    assert bm.load_model("hand_right", tips="moon").tip_vertex_ids == bm.TIP_VERTEX_IDS["moon"]
    assert bm.load_model("hand_right", tips=(1, 2, 3, 4, 5)).keypoint_regressor[8, 2] == 1
    with pytest.raises(ValueError, match="tips='fingers': expected one of freihand, smplx"):
        bm.load_model("hand_right", tips="fingers")
    np.savez(tmp_path / "small.npz", **random_model(30, [-1, *range(15)], seed=0))
    with pytest.raises(ValueError, match="do not fit a mesh of 30 vertices: .* tips="):
        bm.load_model(tmp_path / "small.npz")
    hand = bm.load_model(tmp_path / "small.npz", tips=(1, 2, 3, 4, 29))
    assert hand.keypoint_regressor.shape == (21, 30)


# ---------------------------------------------------------------------------------------- loading


def test_folder(official_models, tmp_path):
    """A folder in the official layout gives the model that was asked for, or says what to ask."""
    folder = official_models
    assert bm.load_model(folder, family="mano", side="left").side == "left"
    assert bm.load_model(folder / "mano").side == "right"
    assert bm.load_model(folder / "smplx").name == "SMPLX_NEUTRAL"
    with pytest.raises(ValueError, match="holds mano, smpl, smplx: choose one with family="):
        bm.load_model(folder)
    with pytest.raises(FileNotFoundError, match="expected SMPL_FEMALE, basic.*_f_lbs_"):
        bm.load_model(folder, family="smpl", gender="female")
    with pytest.raises(ValueError, match="family='flame': expected one of mano, smpl"):
        bm.load_model(folder, family="flame")
    with pytest.raises(FileNotFoundError, match="MANO_RIGHT"):
        bm.load_model(tmp_path)
    for name, gender in (("basicModel_f_lbs_10_207_0_v1.0.0", "female"),
                         ("basicmodel_m_lbs_10_207_0_v1.0.0", "male"),
                         ("basicModel_neutral_lbs_10_207_0_v1.0.0", "neutral")):
        (tmp_path / f"{name}.pkl").symlink_to(folder / "smpl" / "SMPL_NEUTRAL.pkl")
        assert bm.load_model(tmp_path, gender=gender).name == name


def test_convention_left_shapedirs(tmp_path):
    """MANO_LEFT's shape components forgot to mirror x; fix_left_shapedirs mirrors them."""
    content = {key: value for key, value in arrays("hand_left").items() if key != "side"}
    content["shapedirs"] = content["shapedirs"] * np.array([-1, 1, 1], np.float32)[:, None]
    np.savez(tmp_path / "MANO_LEFT.npz", **content)
    unfixed = bm.load_model(tmp_path, side="left")
    fixed = bm.load_model(tmp_path, side="left", fix_left_shapedirs=True)
    assert torch.equal(fixed.offsets, model("hand_left").offsets)
    assert not torch.equal(unfixed.offsets, fixed.offsets) and unfixed.side == "left"
    for source in ("hand_right", "hand_left"):
        with pytest.raises(ValueError, match="official MANO_LEFT"):
            bm.load_model(source, fix_left_shapedirs=True)


@pytest.mark.parametrize("given, message", [
    ({"betas": torch.zeros(2, 9)}, r"betas has shape \(2, 9\), but wholebody expects \(B, 10\)"),
    ({"expression": torch.zeros(2, 11)}, r"expression has shape \(2, 11\).*expects \(B, 10\)"),
    ({"pose": torch.zeros(2, 165)}, r"pose has shape \(2, 165\).*\(B, 55, 3\) or \(B, 55, 3, 3\)"),
    ({"pose": torch.zeros(55, 3)}, r"pose has shape \(55, 3\)"),
    ({"betas": torch.zeros(3, 10), "expression": torch.zeros(3, 10)}, "3 shapes for 2 poses"),
])
def test_wrong_shapes(given, message):
    """A wrong shape is named with the right one."""
    given = {"betas": torch.zeros(2, 10), "pose": torch.zeros(2, 55, 3)} | given
    with pytest.raises(ValueError, match=message):
        model("wholebody")(**given)


@pytest.mark.parametrize("change, message", [
    ({"posedirs": None}, "random.npz lacks posedirs"),
    ({"v_template": None, "f": None}, "lacks v_template, f"),
    ({"weights": np.zeros((9, 4))}, r"weights has shape \(9, 4\), expected \(9, 3\)"),
    ({"v_template": np.zeros(27)}, r"v_template has shape"),
    ({"kintree_table": np.array([[-1, 2, 0], [0, 1, 2]])}, "kintree_table does not name"),
    ({"f": np.array([[0, 1, 9]])}, "f names vertices beyond the 9"),
    ({"v_template": np.array([["a"] * 3] * 9)}, "v_template holds <U1, expected numbers"),
])
def test_broken_model_files(tmp_path, change, message):
    """A file that is no body model is refused with the array that is wrong."""
    content = random_model(9, [-1, 0, 0], seed=0) | change
    np.savez(tmp_path / "random.npz", **{k: v for k, v in content.items() if v is not None})
    with pytest.raises(ValueError, match=message):
        bm.load_model(tmp_path / "random.npz")


def test_unknown_sources_and_options():
    with pytest.raises(FileNotFoundError, match="hand_middle.*free models hand_right, hand_left"):
        bm.load_model("hand_middle")
    with pytest.raises(TypeError, match="num_beta"):
        bm.load_model("hand_right", num_beta=10)


# ------------------------------------------------------------------------ hands of whole bodies


def test_hands_inside_the_body():
    """The vertices of each hand are its own, with MANO's topology, on the right side."""
    right, left = (WHOLE.v_template[HAND_IDS[side]] for side in ("right", "left"))
    assert right.shape == left.shape == (778, 3)
    assert (left[:, 0] > 0.6).all() and (right[:, 0] < -0.6).all()
    assert len(set(HAND_IDS["left"].tolist()) | set(HAND_IDS["right"].tolist())) == 2 * 778
    torch.testing.assert_close(bm.mirror_points(left), right, atol=1e-3, rtol=0)
    edges = (HAND.v_template[HAND.faces[:, 0]] - HAND.v_template[HAND.faces[:, 1]]).norm(dim=1)
    inside = (right[HAND.faces[:, 0]] - right[HAND.faces[:, 1]]).norm(dim=1)
    assert (edges - inside).abs().mean() < 1e-3


def test_hand_vertices_of_official_files(tmp_path):
    """MANO_SMPLX_vertex_ids.pkl is read as it is; other files are explained."""
    path = tmp_path / "MANO_SMPLX_vertex_ids.pkl"
    path.write_bytes(pickle.dumps({"left_hand": np.arange(3), "right_hand": np.arange(4, 7)}))
    ids = bm.hand_vertex_ids(path)
    assert ids["left"].tolist() == [0, 1, 2] and ids["right"].tolist() == [4, 5, 6]
    with pytest.raises(ValueError, match="hand_right has no hands"):
        bm.hand_vertex_ids("hand_right")

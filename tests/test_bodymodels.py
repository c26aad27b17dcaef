"""Body models: agreement with the smplx package, and the properties that skinning must have."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bodymodels
from bodymodels import FREE_MODELS, axis_angle_to_matrix, load_arrays, load_model

smplx_lbs = pytest.importorskip("smplx.lbs")
SEEDS = st.integers(0, 10_000)
MODELS = {name: load_model(name, dtype=torch.float64) for name in FREE_MODELS}


def sample(model, seed, batch=2, scale=0.5):
    """Random betas, axis-angle pose and expression."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (draw(batch, model.num_betas), scale * draw(batch, len(model.parents), 3),
            draw(batch, model.num_expression))


def oracle(name, betas, pose, expression):
    """Vertices and joints by smplx.lbs from the arrays of the file."""
    arrays = load_arrays(bodymodels.ASSETS / f"{name}.npz")

    def tensor(key):
        return torch.from_numpy(np.asarray(arrays[key]).astype(np.float64))

    parents = torch.from_numpy(arrays["kintree_table"][0].astype(np.int64))
    parents[0] = -1
    posedirs = tensor("posedirs").reshape(-1, arrays["posedirs"].shape[2]).T
    return smplx_lbs.lbs(torch.cat([betas, expression], 1), pose.flatten(1), tensor("v_template"),
                         tensor("shapedirs"), posedirs, tensor("J_regressor"), parents,
                         tensor("weights"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FREE_MODELS)
def test_agrees_with_smplx(name, dtype):
    """Vertices and joints within 1e-5 m of smplx.lbs for random betas, pose and expression."""
    betas, pose, expression = sample(MODELS[name], seed=1, batch=4)
    vertices, joints = oracle(name, betas, pose, expression)
    ours = load_model(name, dtype=dtype)(betas.to(dtype), pose.to(dtype), expression.to(dtype))
    assert (ours.vertices.double() - vertices).abs().max() < 1e-5
    assert (ours.joints.double() - joints).abs().max() < 1e-5


@pytest.mark.parametrize("name", FREE_MODELS)
def test_gradients_agree_with_smplx(name):
    """The hand-written backward pass gives smplx's gradients of a random function."""
    betas, pose, expression = (x.requires_grad_() for x in sample(MODELS[name], seed=2))
    weights = torch.randn(2, len(MODELS[name].v_template), 3, dtype=torch.float64)
    inputs = [betas, pose] + ([expression] if MODELS[name].num_expression else [])
    ours = torch.autograd.grad(
        (MODELS[name](betas, pose, expression).vertices * weights).sum(), inputs)
    theirs = torch.autograd.grad((oracle(name, betas, pose, expression)[0] * weights).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-6 * b.abs().max()


@pytest.mark.parametrize("name", FREE_MODELS)
def test_rest_pose_is_the_template(name):
    """Zero betas and zero pose give the template and the joints regressed from it."""
    model = MODELS[name]
    output = model(torch.zeros(1, 10).double(), torch.zeros(1, len(model.parents), 3).double())
    assert torch.allclose(output.vertices[0], model.v_template, atol=1e-9)
    assert torch.allclose(output.joints[0], model.J_regressor @ model.v_template, atol=1e-9)


@given(seed=SEEDS)
def test_a_global_rotation_turns_the_mesh_about_its_rest_root(seed):
    """v(R R_0) = R (v(R_0) - j_0) + j_0, and a translation is added to everything."""
    model = MODELS["hand_right"]
    betas, pose, _ = sample(model, seed)
    rotation = axis_angle_to_matrix(sample(model, seed + 1)[1][:, 0])
    transl = betas[:, :3]
    matrices = axis_angle_to_matrix(pose)
    turned = torch.cat([rotation[:, None] @ matrices[:, :1], matrices[:, 1:]], 1)
    plain, moved = model(betas, matrices), model(betas, turned, transl=transl)
    root = model.rest_joints(betas)[:, :1]
    for before, after in ((plain.vertices, moved.vertices), (plain.joints, moved.joints)):
        expected = (before - root) @ rotation.transpose(1, 2) + root + transl[:, None]
        assert (after - expected).abs().max() < 1e-7  # float32 weights sum to 1 within 1e-8


@given(seed=SEEDS, batch=st.integers(1, 5))
def test_a_batch_is_a_loop(seed, batch):
    """Every sample of a batch is posed as if it were alone; axis-angle equals matrices."""
    model = MODELS["hand_left"]
    betas, pose, _ = sample(model, seed, batch)
    together = model(betas, axis_angle_to_matrix(pose))
    for index in range(batch):
        alone = model(betas[index:index + 1], pose[index:index + 1])
        for a, b in zip(together, alone, strict=True):
            assert torch.allclose(a[index], b[0], atol=1e-9)


def test_gradcheck():
    """Analytic derivatives with respect to betas, rotation matrices and translation."""
    model = MODELS["hand_right"]
    betas, pose, _ = sample(model, seed=3, batch=1)
    inputs = [x.requires_grad_() for x in (betas, axis_angle_to_matrix(pose), betas[:, :3].clone())]

    def posed(betas, pose, transl):
        output = model(betas, pose, transl=transl)
        return output.vertices[:, ::97], output.joints

    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(posed, inputs)


def test_left_hand_is_the_mirrored_right_hand():
    """Equal betas and mirrored pose give the mirrored mesh, vertex by vertex."""
    betas, pose, _ = sample(MODELS["hand_right"], seed=4)
    right = MODELS["hand_right"](betas, pose).vertices
    left = MODELS["hand_left"](betas, bodymodels.mirror_pose(pose)).vertices
    assert (bodymodels.mirror_points(right) - left).abs().max() < 1e-5


def test_mean_relative_and_pca_poses_are_absolute_poses_plus_the_mean():
    """Both finger parametrisations end in the mesh of the absolute pose they stand for."""
    arrays = load_arrays(bodymodels.ASSETS / "hand_right.npz")
    mean, components = (torch.from_numpy(arrays[f"hands_{part}"]).double()
                        for part in ("mean", "components"))
    betas, pose, _ = sample(MODELS["hand_right"], seed=5)
    relative = load_model("hand_right", hand_pose="mean_relative", dtype=torch.float64)
    absolute = pose.clone()
    absolute[:, 1:] += mean.view(15, 3)
    expected = MODELS["hand_right"](betas, absolute).vertices
    assert torch.allclose(relative(betas, pose).vertices, expected, atol=1e-9)
    coefficients = pose[:, 1:3].flatten(1)  # six of them
    pca = load_model("hand_right", hand_pose="pca", num_pca_comps=6, dtype=torch.float64)
    absolute = torch.cat([pose[:, :1], (mean + coefficients @ components[:6]).view(-1, 15, 3)], 1)
    expected = MODELS["hand_right"](betas, absolute).vertices
    given_pose = torch.cat([pose[:, 0], coefficients], 1)
    assert torch.allclose(pca(betas, given_pose).vertices, expected, atol=1e-9)


def test_convention_keypoints_come_from_posed_vertices():
    """hand21 = joint regressor on the posed vertices plus five tips; the wrist comes first."""
    model = MODELS["hand_right"]
    vertices = model(*sample(model, seed=6)[:2]).vertices
    keypoints = model.keypoint_regressor @ vertices
    regressed = model.J_regressor @ vertices
    assert torch.allclose(keypoints[:, 0], regressed[:, 0], atol=1e-9)
    assert torch.allclose(keypoints[:, [4, 8, 12, 16, 20]], vertices[:, list(model.tip_vertex_ids)])


@pytest.mark.parametrize(("change", "message"), [
    ({"betas": torch.zeros(1, 9)}, "betas has shape"),
    ({"pose": torch.zeros(1, 15, 3)}, "pose has shape"),
    ({"betas": torch.zeros(2, 10), "pose": torch.zeros(3, 16, 3)}, "3"),
])
def test_wrong_shapes_are_one_clear_message(change, message):
    inputs = {"betas": torch.zeros(1, 10), "pose": torch.zeros(1, 16, 3)} | change
    with pytest.raises(ValueError, match=message):
        load_model("hand_right")(**inputs)


def test_absent_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither|not a file or folder"):
        load_model(tmp_path / "MANO_RIGHT.pkl")
    with pytest.raises(FileNotFoundError, match="no body model"):
        load_model(tmp_path)
    np.savez(tmp_path / "MANO_RIGHT.npz", v_template=np.zeros((778, 3)))
    with pytest.raises(ValueError, match="lacks"):
        load_model(tmp_path / "MANO_RIGHT.npz")
    with pytest.raises(ValueError, match="hand_pose"):
        load_model("hand_right", hand_pose="flat")


def test_a_folder_is_searched_by_family_side_and_gender(tmp_path):
    """MANO, SMPL and SMPL-X under their official names, in the smplx package's sub-folders."""
    for folder, name, source in (("mano", "MANO_RIGHT", "hand_right"),
                                 ("mano", "MANO_LEFT", "hand_left"),
                                 ("smpl", "SMPL_NEUTRAL", "body")):
        (tmp_path / folder).mkdir(exist_ok=True)
        target = tmp_path / folder / f"{name}.npz"
        target.write_bytes((bodymodels.ASSETS / f"{source}.npz").read_bytes())
    assert load_model(tmp_path, family="mano", side="left").side == "left"
    assert len(load_model(tmp_path, family="smpl").v_template) == 6890
    with pytest.raises(ValueError, match="family"):
        load_model(tmp_path)

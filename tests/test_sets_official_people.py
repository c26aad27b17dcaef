"""Official bodies and hands in the layout of RenderedPeople."""

import json

import numpy as np
import pytest
import torch
from official_folders import (
    RNG,
    bedlam,
    ehf,
    hmr2,
    interhand,
    threedpw_moon,
    write,
    write_freihand,
)
from people_samples import CONTRACT as PEOPLE

import bodymodels
from files import load_arrays
from hmr_adapter import crop_hands
from sets.body_sets import RICH
from sets.crops import body_box
from sets.hand_sets import FreiHAND, InterHand
from sets.official import HandPairs, OfficialPeople, official_body
from tasks.hmr_adapter import sharpest

pytestmark = [pytest.mark.usefixtures("few_vertices"),
              pytest.mark.filterwarnings("ignore:.*d is damaged and left out")]  # of write_hmr2

KNOWN = {  # what official people and hands have beside
    **{f"{name}_valid": ((), torch.float32) for name in ("body_pose", "betas", "expression")},
    "keypoints_3d_valid": ((76,), torch.float32), "rotations_valid": ((55,), torch.float32),
    "hand_betas": ((2, 10), torch.float32), "hand_betas_valid": ((2,), torch.float32)}


@pytest.mark.parametrize("recipe", [None, "official_hmr"])
def test_official_people_keep_the_contract_of_rendered_ones(folders, models, recipe):
    """Keys, shapes and types are those of RenderedPeople; meshes and joints fit each crop."""
    pictures = RICH(folders("rich"), "train", 48, models=models, picture_size=(32, 24),
                         progress=False)
    sample = OfficialPeople(pictures, 32, augmentation=recipe)[2]
    assert {name: (tuple(value.shape), value.dtype)
            for name, value in sample.items()} == PEOPLE | KNOWN
    for points, K, expected in (("hand_joints", "hand_K", "hand_keypoints_2d"),
                                ("keypoints_3d", "K", "keypoints_2d")):
        torch.testing.assert_close(bodymodels.project(sample[points], sample[K]), sample[expected],
                                   atol=1e-2, rtol=1e-4)
    if recipe is None:  # a hand's box is half as large as its crop, in the middle
        for keypoints in sample["hand_keypoints_2d"].numpy():
            center, side = body_box(keypoints)
            np.testing.assert_allclose([*center, side], 16, atol=1e-2)
    assert (sample["hand_vertices"].mean(1) - sample["hand_joints"].mean(1)).norm(dim=1).max() < 0.1
    arms = bodymodels.chain_rotation(sample["arm_pose"])
    torch.testing.assert_close(arms, sample["hand_pose"][:, 0], atol=1e-4, rtol=0)
    for kind, source in ((OfficialPeople, bedlam(folders("bedlam"))),
                         (HandPairs, interhand(folders("interhand")))):
        with pytest.raises(ValueError, match="open it with a folder of models"):
            kind(source, 32)
    with pytest.raises(ValueError, match="no body before a known camera"):
        OfficialPeople(hmr2(folders("hmr2-tars"), models=models))


def test_hands_are_cut_out_of_the_picture_not_of_the_crop(folders, models):
    """At true boxes the sharper picture gives the crops of the data set; the image does not."""
    pictures = RICH(folders("rich"), "train", 16, models=models, picture_size=(32, 24),
                    progress=False)
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    pictures.picture = lambda record: noise
    plain, sample = (OfficialPeople(pictures, 32, detail=detail)[2] for detail in (1, 4))
    assert sample["picture"].shape == (3, 64, 64) and sample["picture"].dtype == torch.uint8
    assert "picture" not in plain and torch.equal(plain["image"], sample["image"])
    batch = {name: value[None] for name, value in sample.items()}
    errors = []
    for given in (batch, {name: batch[name] for name in batch if name != "picture"}):
        crops = crop_hands(*sharpest(given, batch["hand_boxes"]), 32)
        errors.append((crops - batch["hand_images"]).abs().mean())
    assert errors[0] < errors[1] / 3, errors
    with pytest.raises(ValueError, match="detail=4 is for evaluation: leave the augmentation out"):
        OfficialPeople(pictures, 32, detail=4, augmentation="official_hmr")


@pytest.mark.parametrize("recipe", [None, "official_hamer"])
def test_official_hands_make_people_without_bodies(folders, models, recipe):
    """The right MANO in a sample's pose and shape gives the sample's mesh, also for left and
    augmented hands."""
    hands = InterHand(folders("interhand"), "train", 32, models=models, augmentation=recipe,
                           progress=False)
    pairs = HandPairs(hands, 48)
    assert pairs.kept.tolist() == [0, 1, 2] and len(pairs) == 2  # the last pair's second is first
    sample = pairs[0]
    assert {name: (tuple(value.shape), value.dtype)
            for name, value in pairs[1].items()} == PEOPLE | KNOWN
    assert not sample["image"].any() and hands.records()["side"].tolist()[:3] == [1, 1, 0]
    assert not sample["body_pose_valid"] and sample["hand_betas_valid"].tolist() == [1, 1]
    right = bodymodels.load_model(models, family="mano", tips="smplx")
    for number in range(2):
        sample = pairs[number]
        posed = right(sample["hand_betas"], sample["hand_pose"])
        found = sample["hand_vertices"] - sample["hand_vertices"].mean(1, keepdim=True)
        expected = posed.vertices - posed.vertices.mean(1, keepdim=True)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(bodymodels.project(sample["hand_joints"], sample["hand_K"]),
                                   sample["hand_keypoints_2d"], atol=1e-2, rtol=1e-4)


def test_freihands_poses_are_absolute_with_the_mean_hand(tmp_path, models):
    """mano is nested, mean-relative, and follows the picture's id through all backgrounds."""
    write_freihand(tmp_path)
    path = tmp_path / "training_mano.json"
    mano = RNG.normal(0, 0.3, (len(json.loads(path.read_text())), 1, 61))
    write(path, mano.tolist())
    dataset = FreiHAND(tmp_path, size=32, models=models, progress=False)
    pose, betas, known = dataset.hand_pose(dataset.db_size + 1)
    mean = load_arrays(models / "MANO_RIGHT.npz")["hands_mean"].ravel()
    np.testing.assert_allclose(pose.ravel()[3:], mano[1, 0, 3:48] + mean, atol=1e-6)
    np.testing.assert_allclose([*pose[0], *betas], [*mano[1, 0, :3], *mano[1, 0, 48:58]], atol=1e-6)
    assert known == 1 and len(HandPairs(dataset, 32)) == (len(dataset) + 1) // 2


def test_ehf_and_smpls_people_flag_what_they_do_not_know(folders, fresh, models):
    """EHF has hands but no pose; 3DPW's SMPL bodies have a pose but no hands."""
    root = fresh("ehf")
    body = official_body(models, None, False, family="smplx", gender="neutral", side="right")
    mesh = (body.v_template.numpy() + (0, 0.1, 0)).astype(np.float32)
    bodymodels.save_mesh(root / "100_align.ply", mesh, [[0, 1, 2]])
    people = OfficialPeople(ehf(root, models=models), 32)
    sample, record = people[1], people.records(1)
    assert sample["hand_images"].shape == (2, 3, 32, 32) and not sample["body_pose_valid"]
    assert not sample["rotations_valid"].any() and sample["keypoints_3d_valid"].all()
    true = torch.from_numpy(people.pictures.vertices(record))
    joints = body.J_regressor @ true
    torch.testing.assert_close(sample["keypoints_3d"][:55], joints.float(), atol=1e-4, rtol=0)
    people = OfficialPeople(threedpw_moon(folders("3dpw-moon"), models=models), 32)
    sample = people[0]
    assert not sample["hand_valid"].any() and sample["body_pose_valid"] == 1
    assert not sample["keypoints_valid"][25:55].any() and sample["betas_valid"] == 0
    assert not sample["keypoints_3d_valid"][25:55].any() and sample["keypoints_3d_valid"][0] == 1
    assert sample["rotations_valid"].tolist() == [1] * 22 + [0] * 33  # SMPL has no fingers
    assert {name: tuple(value.shape) for name, value in sample.items()}.keys() == (
        PEOPLE | KNOWN).keys()

"""Tar shards of HMR2.0 and HaMeR: filters, masks, damage, joint sets."""

import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from hostile import Call
from official_folders import hamer, hmr2, jpeg, tar_hand, tar_person, write_shard

import bodymodels
from files import safe_unpickle
from sets.official import relabelled

pytestmark = [pytest.mark.usefixtures("few_vertices"),
              pytest.mark.filterwarnings("ignore:.*d is damaged and left out")]  # of write_hmr2


def test_wart_tar_filters_of_hmr2(folders):
    """HMR2.0's filters drop weak keypoints, people with few, bad fits and extreme shapes."""
    root = folders("hmr2-tars")
    records = hmr2(root).records()
    assert records["person"].tolist() == [0, 2, 0]
    assert records["has_pose"].tolist() == [1, 0, 0] and records["has_betas"].tolist() == [1, 1, 1]
    assert not records["betas"][1:].any() and records["keypoints_2d"][2, 3].tolist() == [0, 0, 0]


def test_wart_tar_filters_of_hamer(tmp_path):
    """They are the same: of a hand with an extreme or unknown shape only the keypoints count."""
    few, weak = np.zeros((21, 3)), np.ones((21, 3))
    few[:4], weak[2] = 1, (8, 9, 0.2)
    lost = {"fitting_loss": np.array({"reprojection_loss": 32_000.0})}
    hands = [tar_hand(keypoints_2d=weak), tar_hand(keypoints_2d=few), tar_hand(extra_info=lost),
             tar_hand(betas=np.full(10, 3.5)), tar_hand(has_betas=0.0, right=0.0)]
    write_shard(tmp_path / "000000.tar", {"a.jpg": jpeg(), "a.data.pyd": pickle.dumps(hands)})
    records = hamer(tmp_path).records()
    assert records["person"].tolist() == [0, 3, 4] and records["side"].tolist() == [1, 1, 0]
    assert records["has_pose"].tolist() == [1, 0, 0] and records["has_betas"].all()
    assert not records["betas"].any() and records["keypoints_2d"][0, 2].tolist() == [0, 0, 0]
    np.testing.assert_allclose(records["box"], 20, rtol=1e-6)


def test_wart_tar_scale_is_width_and_height_over_200(folders):
    """Stored boxes are tight: 200 * scale is what the crop shows, 1.2 times the box."""
    record = hmr2(folders("hmr2-tars")).records()[0]
    np.testing.assert_allclose(1.2 * record["box"], (20, 40), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*b. is damaged and left out")
def test_shards_are_read_in_their_order(tmp_path):
    """A damaged shard is named."""
    for number in range(3):
        people = pickle.dumps([tar_person(center=np.array([number, key])) for key in range(2)])
        write_shard(tmp_path / f"{number:06d}.tar", {
            f"aic-train/k{number}.jpg": jpeg(), f"aic-train/k{number}.data.pyd": people,
            f"b{number}.jpg": jpeg(), f"b{number}.data.pyd": b"no pickle"})
    with pytest.warns(UserWarning, match="000001.tar: b1 is damaged and left out"):
        records = hmr2(tmp_path).records()
    assert records["center"].tolist() == [[n, key] for n in range(3) for key in range(2)]
    path = tmp_path / "000001.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match="000001.tar is not as HMRShards is shipped"):
        hmr2(tmp_path)


def test_tar_pictures_are_read_where_they_lie(folders):
    """Nothing is unpacked: a record holds the place of its picture in the shard."""
    dataset = hmr2(folders("hmr2-tars"))
    shades = [dataset.picture(record)[0, 0, 0] for record in dataset.records()]
    assert abs(int(shades[0]) - 90) < 3 and abs(int(shades[2]) - 200) < 3
    assert dataset.records()["image"][0] == b"000000.tar"


def test_wart_tar_cut_between_members(tmp_path):
    """A shard that ends early is an error, although tarfile accepts it."""
    write_shard(tmp_path / "000000.tar", {
        "a.jpg": jpeg(), "a.data.pyd": pickle.dumps([tar_person()]), "b.jpg": jpeg()})
    with tarfile.open(tmp_path / "000000.tar") as archive:
        end = archive.getmembers()[2].offset
    path = tmp_path / "000000.tar"
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match=f"damaged or cut off at byte {end}"):
        hmr2(tmp_path)


def test_wart_pickles_in_shards_are_not_executed(tmp_path):
    malice = Call(os.mkdir, str(tmp_path / "executed"))
    write_shard(tmp_path / "000000.tar", {
        "a.jpg": jpeg(), "a.data.pyd": pickle.dumps([malice]),
        "b.jpg": jpeg(), "b.data.pyd": pickle.dumps([tar_person()])})
    with pytest.warns(UserWarning, match="a is damaged and left out.*mkdir"):
        assert len(hmr2(tmp_path)) == 1
    assert not (tmp_path / "executed").exists()


def test_wart_hips_of_openpose_are_smpls_and_those_of_lsp_are_not():
    """"hmr44" has two right hips: for SMPL the first counts, for LSP the second."""
    points = np.arange(44.0)[:, None] * [1, 1] + [0, 1]
    names = bodymodels.JOINT_SETS
    smpl = relabelled(points, "hmr44", "smpl45")
    assert smpl[names["smpl45"].index("right_hip"), 0] == 9
    lsp = relabelled(points, "hmr44", "lsp14")
    assert lsp[names["lsp14"].index("right_hip"), 0] == 27
    order = [24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, *range(25, 35)]  # smplx's 45
    np.testing.assert_array_equal(smpl[order, 0], range(25))


def test_wart_hamer_poses_are_absolute_and_left_hands_come_out_right(folders):
    dataset = hamer(folders("hamer-tars"))
    record, sample = dataset.records()[1], dataset[1]
    assert record["side"] == 0 and torch.linalg.det(sample["camera_rotation"]) < 0
    with tarfile.open(folders("hamer-tars") / "000000.tar") as archive:
        hands = safe_unpickle(archive.extractfile("k.data.pyd").read())
    np.testing.assert_allclose(record["pose"].ravel(), hands[1]["hand_pose"], rtol=1e-5)
    plain = dataset[0]  # the same picture and keypoints, not mirrored
    torch.testing.assert_close(sample["keypoints_2d"][:, 0], 32 - plain["keypoints_2d"][:, 0],
                               atol=1e-3, rtol=0)


def test_wart_hamer_meshes_stand_where_their_wrist_is(folders, models):
    """Shards have no translation: mesh and joints share the wrist, also after mirroring."""
    dataset = hamer(folders("hamer-tars"), models=models)
    for index, side in enumerate(("right", "left")):
        sample = dataset[index]
        assert sample["mesh_valid"] == 1
        hand = bodymodels.load_model(models, family="mano", side=side,
                                     fix_left_shapedirs=side == "left")
        pose = torch.tensor(dataset.records()["pose"][index][None].copy())
        posed = hand(torch.zeros(1, 10), pose)
        expected = posed.vertices[0] - posed.joints[0, 0]
        found = (sample["vertices"] - sample["joints"][0]) @ sample["camera_rotation"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

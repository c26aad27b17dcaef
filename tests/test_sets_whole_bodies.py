"""BEDLAM, RICH, ARCTIC and EHF: frames of reference, options, missing models."""

import numpy as np
import pytest
import torch
from official_folders import RNG, arctic, bedlam, ehf, rich, rodrigues, write
from PIL import Image

import bodymodels
from files import load_arrays, load_vertices
from sets.body_sets import BEDLAM, RICH, SMPLX_PARTS
from sets.official import intrinsics, official_body, record_dtype, to_pixels, to_records

pytestmark = pytest.mark.usefixtures("few_vertices")


def test_wart_bedlam_translation_shape_and_close_ups(folders):
    """trans_cam + cam_ext's, no second rotation, 11 betas of the neutral model, turned pictures."""
    dataset = bedlam(folders("bedlam"))
    records = dataset.records()
    assert len(records) == 3 and records["person"].tolist() == [0, 1, 0]
    np.testing.assert_allclose(records["transl"][0], (2.1, 2.2, 2.3), rtol=1e-6)
    arrays = load_arrays(dataset.sources["all_npz_12_training/*.npz"][0])
    np.testing.assert_allclose(records["pose"][0].ravel(), arrays["pose_cam"][0], rtol=1e-5)
    assert records["betas"].shape == (3, 11) and not records["gender"].any()
    assert [dataset.picture(record).shape[:2] for record in records[1:]] == [(36, 64), (64, 36)]
    np.testing.assert_allclose(1.2 * records["box"][0], (30, 30), rtol=1e-6)


def test_wart_bedlam_turns_close_ups_clockwise(tmp_path):
    """The left of the stored picture becomes its top."""
    image = np.zeros((36, 64, 3), np.uint8)
    image[:, :8] = 255
    Image.fromarray(image).save(tmp_path / "x.png")
    record = to_records({"image": "x.png", "turns": 1}, record_dtype(1, 1, 1))[0]
    reader = object.__new__(BEDLAM)
    reader.root = tmp_path
    turned = BEDLAM.picture(reader, record)
    assert turned.shape == (64, 36, 3) and turned[:8].all() and not turned[8:].any()


def test_wart_rich_pictures_of_another_size_are_refused(folders, models, tmp_path):
    """The calibration belongs to the large pictures, not to those of the reduced release."""
    dataset = RICH(folders("rich"), "train", 32, models=models, progress=False)
    with pytest.raises(ValueError, match="32 x 24 pixels, but the annotation is for 4112 x 3008"):
        dataset[0]


def test_wart_rich_two_people_cameras_and_twelve_coefficients(folders, models):
    """Each person once before each camera, with the own gender; the mesh is the multi-camera
    frame's, moved, with fingers from 12 components a hand and their mean."""
    root = folders("rich")
    dataset = rich(root, models=models)
    records = dataset.records()
    assert list(zip(records["person"], records["gender"], strict=True)) == [
        (1, 1), (1, 1), (2, 2), (2, 2)]
    assert records["image"][3] == b"images/train/BBQ_001_002_juggle/cam_03/00042_03.bmp"
    body = load_arrays(root / "bodies/train/BBQ_001_002_juggle/00042/002.pkl")
    vector = torch.from_numpy(np.concatenate([body[name] for name in SMPLX_PARTS], 1))
    model = official_body(models, None, False, family="smplx", gender="female",
                               hand_pose="pca", num_pca_comps=12)  # its own way to fingers
    world = model(torch.from_numpy(body["betas"]), vector,
                  transl=torch.from_numpy(body["transl"])).vertices[0].numpy()
    expected = world @ rodrigues([0, 0.3, 0]).T + (0.1, 0.2, 1.5)
    np.testing.assert_allclose(dataset.posed(records[3])[0].vertices[0].numpy(), expected,
                               atol=1e-4)
    found = records[3]["keypoints_3d"][:, :3]
    np.testing.assert_allclose(to_pixels(found, intrinsics((30, 30), (16, 12))),
                               records[3]["keypoints_2d"][:, :2], atol=1e-3)


def test_bodies_without_keypoints_need_models(folders, tmp_path):
    for reader, name in ((rich, "rich"), (arctic, "arctic")):
        with pytest.raises(FileNotFoundError, match="give the folder of SMPL-X's models"):
            reader(folders(name), cache=tmp_path)


def test_wart_arctic_offsets_views_and_templates(folders, models):
    """Ten picture numbers off either end, then every tenth; frame = number - offset; view v has
    camera v - 1; the subject's template replaces betas; a NaN fit is left out."""
    root = folders("arctic")
    dataset = arctic(root, models=models)
    assert dataset.records()["image"][2] == b"images/s05/box_grab_01/3/00010.jpg"
    assert len(dataset) == 8 and dataset.records()["world_to_camera"][2, 2, 3] == 5
    every = arctic(root, models=models, interval=1).records()
    assert every["frame"][:4].tolist() == [6, 7, 9, 10] and len(every) == 8 * 4
    assert not every["has_betas"].any() and (every["gender"] == 2).all()
    vertices = dataset.posed(dataset.records()[0])[0].vertices[0].numpy()
    pose = torch.tensor(dataset.records()["pose"][:1].copy())
    own = dataset.body("female", num_betas=10)(torch.zeros(1, 10), pose).vertices[0]
    assert np.ptp(vertices[:, 1]) > 1.02 * np.ptp(own[:, 1].numpy())


def test_wart_ehf_meshes_are_the_scanners_and_numbers_have_no_constant_width(folders):
    """Frames are sorted by number; the scanner's rotation of 171 degrees puts y down."""
    dataset = ehf(folders("ehf"))
    assert dataset.records()["frame"].tolist() == [1, 100]
    assert np.rad2deg(np.linalg.norm(dataset.ROTATION)) == pytest.approx(171.2, abs=0.05)
    found = dataset.vertices(dataset.records()[1])
    np.testing.assert_allclose(found[0], dataset.TRANSLATION, atol=1e-6)
    assert found[2, 1] < found[0, 1] - 0.19  # the scanner's y is up, the camera's down


def test_vertices_of_mesh_files(tmp_path):
    """What save_mesh writes comes back; what is no such mesh is refused."""
    mesh = RNG.normal(0, 1, (5, 3)).astype(np.float32)
    for name in ("x.obj", "x.ply"):
        bodymodels.save_mesh(tmp_path / name, mesh, [[0, 1, 2]], colors=(1, 0, 0))
        np.testing.assert_allclose(load_vertices(tmp_path / name), mesh, atol=1e-6)
    whole = (tmp_path / "x.ply").read_bytes()
    for content, message in ((whole[:-40], "ends before its 5 vertices"),
                             (whole.replace(b"little", b"big"), "a binary little-endian PLY"),
                             (whole.replace(b"float x", b"uchar x"), "a binary little-endian"),
                             (b"ply\n", "a binary little-endian PLY")):
        (tmp_path / "y.ply").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_vertices(tmp_path / "y.ply")
    (tmp_path / "y.obj").write_text("v 1 2\n")
    with pytest.raises(ValueError, match="no vertices of three numbers"):
        load_vertices(tmp_path / "y.obj")


def test_wart_agoras_files_beside_bedlams_are_left_out(fresh):
    """agora-*.npz have other keys; percent takes the first rows of each file."""
    root = fresh("bedlam")
    np.savez(root / "all_npz_12_training/agora-bfh.npz", imgname=np.array(["a.png"]))
    assert len(bedlam(root)) == 3
    assert bedlam(root, percent=40).records()["person"].tolist() == [0]


def test_ehf_takes_the_boxes_of_smplerx_if_asked_for(fresh):
    """A box of the file by the picture's name; pictures without one keep that of the keypoints."""
    root = fresh("ehf")
    write(root / "EHF.json", {"images": [{"id": 5, "file_name": "100_img.jpg"}],
                              "annotations": [{"image_id": 5, "body_bbox": [10, 20, 30, 40]}]})
    records = ehf(root, boxes="EHF.json").records()
    assert records["center"][1].tolist() == [25, 40] and records["box"][1].tolist() == [30, 40]
    np.testing.assert_array_equal(records["box"][0], ehf(root).records()["box"][0])

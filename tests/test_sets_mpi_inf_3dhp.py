"""MPI-INF-3DHP: frames, joints, cameras, test files."""

import numpy as np
import pytest
import scipy.io
from official_folders import RNG, mpi_inf, write_picture

pytestmark = pytest.mark.usefixtures("few_vertices")


def test_wart_mpi_inf_counts_frames_from_one_and_joints_of_28(folders):
    """Every tenth frame, named one later; the fifth of 28 joints is the root."""
    root = folders("mpi-inf-3dhp")
    records = mpi_inf(root).records()
    assert len(records) == 9  # of 11 + 7 * 10: frame 10 has a joint outside seven pictures
    assert records["image"][1] == b"S1/Seq1/imageFrames/video_0/frame_000011.jpg"
    content = scipy.io.loadmat(root / "S1/Seq1/annot.mat")
    solid = content["annot3"][0, 0].reshape(11, 28, 3) / 1000
    np.testing.assert_allclose(records["keypoints_3d"][0, 0, :3], solid[0, 4], rtol=1e-6)
    np.testing.assert_allclose(records["keypoints_3d"][0, 1, :3], solid[0, 18], rtol=1e-6)
    assert records["K"][2, 0, 0] == 1501 and len(mpi_inf(root, stride=1)) == 11 + 7 * 10


def test_wart_mpi_inf_test_files_are_hdf5_and_universal(tmp_path):
    """annot_data.mat is of version 7.3; by default the height-normalised joints are taken."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path / "mpi_inf_3dhp_test_set/TS1"
    solid = RNG.normal(0, 300, (3, 1, 17, 3)) + (0, 0, 3000)
    for frame in range(1, 4):
        write_picture(folder / f"imageSequence/img_{frame:06d}.jpg", (64, 64))
    with h5py.File(folder / "annot_data.mat", "w") as file:
        file["annot2"], file["annot3"] = RNG.uniform(5, 60, (3, 1, 17, 2)), solid
        file["univ_annot3"], file["valid_frame"] = 0.9 * solid, np.array([[1.0], [0], [1]])
    records = mpi_inf(tmp_path, "test").records()
    assert records["frame"].tolist() == [0, 2]
    assert records["image"][1].endswith(b"TS1/imageSequence/img_000003.jpg")
    np.testing.assert_allclose(records["keypoints_3d"][0, 0, :3], 0.9e-3 * solid[0, 0, 14],
                               rtol=1e-6)
    real = mpi_inf(tmp_path, "test", universal=False).records()
    np.testing.assert_allclose(real["keypoints_3d"][0, 0, :3], 1e-3 * solid[0, 0, 14], rtol=1e-6)


def test_wart_mpi_inf_counts_frames_with_all_joints_over_all_videos(folders):
    """Every stride-th of the frames that are kept, as SPIN counts them: not of each video anew."""
    every = mpi_inf(folders("mpi-inf-3dhp"), stride=1).records()["image"]
    np.testing.assert_array_equal(mpi_inf(folders("mpi-inf-3dhp"), stride=7).records()["image"],
                                  every[::7])

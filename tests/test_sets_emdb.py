"""EMDB: which sequences and frames count, and a real frame's camera."""

import numpy as np
import pytest
from official_folders import CAMERA_EMDB, K_EMDB, REST_ROOT, ROOT_EMDB, TRANSL_EMDB, emdb, rodrigues

from sets.official import moved_translation, to_pixels

pytestmark = pytest.mark.usefixtures("few_vertices")


def test_wart_emdb_flags_choose_sequences_and_the_mask_frames(folders):
    """good_frames_mask decides; invalid_idxs is empty although one frame is bad."""
    records = emdb(folders("emdb")).records()
    assert records["frame"].tolist() == [0, 1, 3]
    assert set(records["sequence"]) == {b"P0_01_mvs_b"}
    assert set(emdb(folders("emdb"), "emdb2").records()["sequence"]) == {b"P9_80_outdoor_walk"}
    np.testing.assert_allclose(records["box"][0], (947.892, 1017.963), atol=1e-3)


def test_golden_emdb_extrinsics_lead_to_the_camera(folders):
    """A real frame's root projects beside the official keypoint; with the inverse it does not."""
    record = emdb(folders("emdb")).records()[0]
    motion = record["world_to_camera"].astype(np.float64)
    root = moved_translation(record["transl"], motion, REST_ROOT) + REST_ROOT
    found = to_pixels(root[None], K_EMDB)[0]
    np.testing.assert_allclose(found, (955.88, 1046.72), atol=0.05)
    assert np.abs(found - record["keypoints_2d"][0, :2]).max() < 2.5
    R, t = motion[:, :3].T, -motion[:, :3].T @ motion[:, 3]
    wrong = to_pixels((R @ (TRANSL_EMDB + REST_ROOT) + t)[None], K_EMDB)[0]
    np.testing.assert_allclose(wrong, (1383, 733), atol=1)
    np.testing.assert_allclose(rodrigues(record["pose"][0]),
                               CAMERA_EMDB[:3, :3] @ rodrigues(ROOT_EMDB), atol=1e-5)

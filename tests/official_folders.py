"""Tiny folders of every data set in its official format: the data are not ours to ship."""

import io
import json
import pickle
import tarfile
from functools import partial

import numpy as np
import torch
from PIL import Image
from set_samples import hands

import bodymodels
import data
from files import load_arrays
from sets import readers
from sets.official import intrinsics
from sets.readers import DexYCB

UNIQUE = 2
# Sizes by which readers know the official files: ours are smaller
DexYCB.SEQUENCES, readers.BEDLAM.PICTURE_SIZE, readers.RICH.PICTURE_SIZE = 5, (64, 36), (32, 24)


def write_freihand(root):
    """A tiny folder in the official format: two ids, four backgrounds, one evaluation picture."""
    samples = [hands(size=64, length=3)[index] for index in range(3)]
    for split in ("training", "evaluation"):
        (root / split / "rgb").mkdir(parents=True)

    def picture(split, number, sample, shade):
        image = sample["image"].permute(1, 2, 0).numpy() // 2 + shade
        Image.fromarray(image).save(root / split / "rgb" / f"{number:08d}.jpg", quality=95)

    for version in range(4):
        for index in range(UNIQUE):
            picture("training", version * UNIQUE + index, samples[index], 30 * version)
    picture("evaluation", 0, samples[2], 0)
    for split, chosen in (("training", samples[:UNIQUE]), ("evaluation", samples[2:])):
        lists = {"K": [s["K"].tolist() for s in chosen],
                 "scale": [float((s["joints"][9] - s["joints"][10]).norm()) for s in chosen],
                 "xyz": [s["joints"].tolist() for s in chosen],
                 "verts": [s["vertices"].tolist() for s in chosen],
                 "mano": [[[0.0] * 61] for _ in chosen]}
        for name, items in lists.items():
            (root / f"{split}_{name}.json").write_text(json.dumps(items))
    return samples


def recording(seed, frames=40, width=156):
    return np.random.default_rng(seed).normal(0, 0.3, (frames, width))


def write_amass(root):
    """Two data sets of both downloads under old and new names; returns the poses by file."""
    poses = {}
    for seed, (name, width, extra) in enumerate([
            ("CMU/01/a_poses.npz", 156, {"mocap_framerate": 120.0, "gender": "female"}),
            ("CMU/02/b_poses.npz", 156, {"mocap_framerate": 120.00004577, "gender": b"male"}),
            ("MPI_Limits/03/c_stageii.npz", 165, {"mocap_frame_rate": 60.0, "gender": "neutral",
                                                  "markers_latent_vids": np.array({"a": 1})}),
            ("CMU/01/a_stageii.npz", 165, {"mocap_frame_rate": 120.0}),
            ("SSM_synced/04/d_poses.npz", 156, {"mocap_framerate": 60.0})]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        poses[name] = recording(seed, 40 + seed, width)
        np.savez(path, poses=poses[name], betas=np.arange(16.0) / 10 + seed,
                 trans=np.zeros((40 + seed, 3)), **extra)
    np.savez(root / "CMU/01/shape.npz", betas=np.zeros(16))
    np.savez(root / "MPI_Limits/03/neutral_stagei.npz", betas=np.zeros(16))
    return poses


def write_moyo(root, smpl):
    """Both layouts below a release's folder, 30 frames each; returns the SMPL poses by split."""
    folder, poses = root / "20220923_20220926_with_hands", {}
    for seed, split in enumerate(("train", "val")):
        fullpose = recording(seed, 30, 165)
        write(folder / f"mosh/{split}/yoga_stageii.pkl", pickle.dumps({
            "fullpose": fullpose, "trans": np.zeros((30, 3)), "betas": np.zeros(300),
            "v_template_fname": "/somebody/mesh.ply"}))
        poses[split] = fullpose[:, :66].reshape(30, 22, 3)
        if smpl:
            frames = recording(seed + 10, 30, 72)
            write(folder / f"mosh_smpl/{split}/yoga.pkl", pickle.dumps({
                "global_orient": frames[:, :3], "body_pose": frames[:, 3:],
                "transl": np.zeros((30, 3)), "betas": np.ones((30, 10))}))
            poses[split] = frames.reshape(30, 24, 3)
    return folder, poses


RNG = np.random.default_rng(0)


def write(path, content=""):
    """Write text, bytes, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_picture(path, size=(64, 48), color=90, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color, 60, 60)).save(path, **options)


def rodrigues(vector):
    return bodymodels.axis_angle_to_matrix(torch.tensor(vector, dtype=torch.float64)).numpy()


def hand_joints(scale=0.05):
    """Some (21, 3) in front of a camera."""
    return RNG.normal(0, scale, (21, 3)) + (0.02, 0.01, 0.8)


def write_models(folder):
    """Body models with official names and arrays; the meshes are our free ones.

    MANO_LEFT has the official file's mistake: x of its shape components is not mirrored.
    """
    for side in ("right", "left"):
        arrays = load_arrays(bodymodels.ASSETS / f"hand_{side}.npz")
        arrays = {name: value for name, value in arrays.items()
                  if name not in ("side", "tip_vertex_ids", "license")}
        if side == "left":
            arrays["shapedirs"] = arrays["shapedirs"] * np.array([-1, 1, 1])[:, None]
        np.savez(folder / f"MANO_{side.upper()}.npz", **arrays)
    for gender in ("NEUTRAL", "MALE", "FEMALE"):
        (folder / f"SMPL_{gender}.npz").symlink_to(bodymodels.ASSETS / "body.npz")
        (folder / f"SMPLX_{gender}.npz").symlink_to(folder / "smplx.npz")
    write_few_vertices(folder)
    names = {"spine": "spine2", "jaw": "head"}
    rows = bodymodels.joint_indices("smpl24", [
        names.get(name, name) for name in bodymodels.JOINT_SETS["h36m17_spin"]])
    regressor = load_arrays(bodymodels.ASSETS / "body.npz")["J_regressor"][rows]
    np.save(folder / "J_regressor_h36m.npy", regressor)


LANDMARKS = bodymodels.SURFACE_VERTEX_IDS["smplx"]


def write_few_vertices(folder):
    """The free whole body with its landmarks and hands alone, 1,577 vertices in that order."""
    arrays = load_arrays(bodymodels.ASSETS / "wholebody.npz")
    hands = bodymodels.hand_vertex_ids()
    joints = arrays["J_regressor"] @ arrays["v_template"]
    kept = np.concatenate([LANDMARKS, hands["left"], hands["right"]])
    for name in ("v_template", "shapedirs", "posedirs", "weights"):
        arrays[name] = arrays[name][kept]
    ones = [np.ones((len(points), 1)) for points in (joints, kept)]
    arrays["J_regressor"] = np.hstack([joints, ones[0]]) @ np.linalg.pinv(
        np.hstack([arrays["v_template"], ones[1]]))
    np.savez(folder / "smplx.npz", **arrays | {"f": np.array([[0, 1, 2]])})
    (folder / "MANO_SMPLX_vertex_ids.pkl").write_bytes(pickle.dumps({
        "left_hand": 21 + np.arange(778), "right_hand": 799 + np.arange(778)}))


def write_dexycb(root):
    """Two subjects with five sequences (numbers 2 and 4 show left hands), two cameras, two frames.

    The second frame of the first camera of every sequence shows no hand.
    """
    serials = DexYCB.CAMERAS[:2]
    for subject in ("20200709-subject-01", "20200820-subject-03"):
        calibration = f"20200709_140042_{subject[9:]}_right"
        write(root / f"calibration/mano_{calibration}/mano.yml",
              "betas:\n" + "".join(f"- {0.1 * index}\n" for index in range(10)))
        for sequence in range(5):
            folder = root / subject / f"2020070{sequence}_140000"
            side = "left" if sequence in (2, 4) else "right"
            write(folder / "meta.yml", f"serials:\n- '{serials[0]}'\n- '{serials[1]}'\n"
                  f"num_frames: 2\nmano_sides:\n- {side}\nmano_calib:\n- {calibration}\n")
            for camera, serial in enumerate(serials):
                for frame in range(2):
                    write_picture(folder / serial / f"color_{frame:06d}.jpg", (640, 480))
                    joints = hand_joints()[None].astype(np.float32)
                    pose = RNG.normal(0, 0.3, (1, 51)).astype(np.float32)
                    pixels = bodymodels.project(joints, DEXYCB_K).astype(np.float32)
                    pose[:, 48:] = 0.02, 0.01, 0.8
                    if (camera, frame) == (0, 1):
                        pose[:], joints[:], pixels[:] = 0, -1, -1
                    np.savez(folder / serial / f"labels_{frame:06d}.npz", pose_m=pose,
                             joint_3d=joints, joint_2d=pixels, seg=np.zeros((480, 640), np.uint8))
    for serial in serials:
        write(root / f"calibration/intrinsics/{serial}_640x480.yml",
              "color:\n  fx: 610.0\n  fy: 611.0\n  ppx: 318.0\n  ppy: 241.0\n")


DEXYCB_K = np.array([[610.0, 0, 318], [0, 611, 241], [0, 0, 1]])


INTERHAND_R, CAMPOS = rodrigues([0.2, 1.1, -0.3]), np.array([100.0, -400, 900])  # mm


def write_interhand(root):
    """Capture 0, camera 400053: a right hand, both hands, and a pair without a fit."""
    order = bodymodels.joint_indices("hand21", "interhand21")
    images, annotations, joints, fits = [], [], {}, {}
    for number, kind in enumerate(("right", "interacting", "interacting")):
        frame = 17000 + 18 * number
        name = f"Capture0/ROM01/cam400053/image{frame}.jpg"
        images.append({"id": number, "file_name": name, "width": 60, "height": 80, "capture": 0,
                       "subject": 0, "seq_name": "ROM01", "camera": "400053", "frame_idx": frame})
        valid = [[1]] * 21 + [[int(kind == "interacting")]] * 21
        annotations.append({"id": number, "image_id": number, "bbox": [1, 2, 30, 40],
                            "joint_valid": valid, "hand_type": kind, "hand_type_valid": True})
        camera = np.concatenate([hand_joints()[order], hand_joints()[order]])
        world = camera @ INTERHAND_R * 1000 + CAMPOS  # X_camera = R (X - position)
        joints[str(frame)] = {"world_coord": world.tolist(), "joint_valid": valid,
                              "hand_type": kind, "hand_type_valid": True}
        hand = {"pose": RNG.normal(0, 0.3, 48).tolist(), "shape": [0.5] * 10,
                "trans": [0.1, -0.2, 0.3]}
        if number < 2:
            fits[str(frame)] = {"right": hand, "left": hand if number else None}
        write_picture(root / "images/train" / name, (60, 80))
    base = root / "annotations/train/InterHand2.6M_train_"
    cameras = {"0": {"campos": {"400053": CAMPOS.tolist()},
                     "camrot": {"400053": INTERHAND_R.tolist()},
                     "focal": {"400053": [120.0, 121]}, "princpt": {"400053": [30.0, 40]}}}
    for name, content in (("data", {"images": images, "annotations": annotations}),
                          ("camera", cameras), ("joint_3d", {"0": joints}),
                          ("MANO_NeuralAnnot", {"0": fits})):
        write(base.with_name(base.name + name + ".json"), content)


# A real frame: courtyard_arguing_00, frame 0, person 0.
K_3DPW = np.array([[1961.8528610354, 0, 540], [0, 1969.2307692308, 960], [0, 0, 1]])
CAMERA_3DPW = np.array([[0.9583380685, 0.0366945973, -0.2832695764, -0.4610863065],
                        [0.0877543815, -0.9815754126, 0.1697317820, -1.3847345526],
                        [-0.2718222120, -0.1875185746, -0.9439011968, 5.0435929779], [0, 0, 0, 1]])
TRANSL_3DPW = np.array([0.4148810071, -0.8961028617, 1.4217196010])
REST_ROOT = np.array([-0.0018, -0.2233, 0.0282])  # about SMPL's


def write_3dpw(root):
    """One test sequence: two people, three frames, of which one has no valid camera and one no 2D
    keypoints; and one training sequence. Pickled as by Python 2."""
    for split, name in (("test", "courtyard_arguing_00"), ("train", "outdoors_b")):
        detected = RNG.uniform(10, 40, (2, 3, 3, 18))
        detected[:, :, 2] = 0.9
        detected[:, :, :2, 17] = detected[:, :, 2, 17] = 0  # one joint was not found
        detected[1, 2] = 0
        joints = RNG.normal(0, 0.3, (2, 3, 24, 3)) + TRANSL_3DPW
        content = {
            "sequence": name, "betas": list(RNG.normal(0, 1, (2, 12))), "genders": ["f", "m"],
            "poses": list(RNG.normal(0, 0.3, (2, 3, 72))),
            "trans": [np.stack([TRANSL_3DPW] * 3), RNG.normal(0, 1, (3, 3))],
            "poses2d": list(detected), "jointPositions": list(joints.reshape(2, 3, 72)),
            "img_frame_ids": np.array([0, 2, 4], np.uint16), "cam_intrinsics": K_3DPW,
            "cam_poses": np.stack([CAMERA_3DPW] * 3), "texture_maps": [],
            "campose_valid": [np.array([1, 0, 1], np.uint8), np.array([1, 1, 1], np.uint8)]}
        write(root / f"sequenceFiles/{split}/{name}.pkl", pickle.dumps(content, protocol=2))
        for frame in range(3):
            write_picture(root / f"imageFiles/{name}/image_{frame:05d}.jpg", (54, 96))


def write_3dpw_moon(root):
    """Moon's packing, two people in one picture."""
    people = [{"id": 7 + number, "image_id": 3, "bbox": [5.0, 10, 20, 60],
               "smpl_param": {"pose": RNG.normal(0, 0.3, 72).tolist(), "shape": [0.1] * 10,
                              "trans": [0.1, 0.2, 4.0], "gender": "male"},
               "cam_param": {"focal": [60.0, 61], "princpt": [27.0, 48]}} for number in range(2)]
    picture = {"id": 3, "file_name": "image_00000.jpg", "sequence": "office", "width": 54,
               "height": 96}
    write(root / "3DPW_test.json", {"images": [picture], "annotations": people})
    write_picture(root / "imageFiles/office/image_00000.jpg", (54, 96))


# A real frame: P0_01_mvs_b, frame 0.
K_EMDB = np.array([[1436.4219970703125, 0, 723.2894287109375],
                   [0, 1436.4219970703125, 963.9358520507812], [0, 0, 1]])
CAMERA_EMDB = np.array([[-0.8044775487, 0.0119724517, 0.5938623864, 1.9185989272],
                        [-0.0701724767, -0.9947109990, -0.0750056810, -0.1648031171],
                        [0.5898234457, -0.1020131808, 0.8010628027, 3.0030819287], [0, 0, 0, 1]])
TRANSL_EMDB = np.array([1.1270416975, -0.1287951767, -0.9106571078], np.float32)
ROOT_EMDB = np.array([0.0301839253, -2.6950244169, 0.1059646635])
KEYPOINT_EMDB = (954.043, 1048.399)


def write_emdb(root):
    """Two sequences of four frames, one of them not good; only the first is in EMDB-1."""
    for name, first in (("P0/01_mvs_b", True), ("P9/80_outdoor_walk", False)):
        folder = root / name
        bodies = {"poses_root": np.stack([ROOT_EMDB] * 4), "trans": np.stack([TRANSL_EMDB] * 4),
                  "poses_body": RNG.normal(0, 0.2, (4, 69)),
                  "betas": RNG.normal(0, 1, 10).astype(np.float32)}
        content = {
            "gender": "male", "name": name.replace("/", "_"), "emdb1": first, "emdb2": not first,
            "n_frames": 4, "good_frames_mask": np.array([True, True, False, True]),
            "camera": {"intrinsics": K_EMDB, "extrinsics": np.stack([CAMERA_EMDB] * 4),
                       "width": 36, "height": 48},
            "smpl": bodies, "kp2d": np.full((4, 24, 2), KEYPOINT_EMDB),
            "bboxes": {"bboxes": np.tile([492.108, 581.097, 1440, 1599.060], (4, 1)),
                       "invalid_idxs": np.array([], np.int64)}}
        write(folder / f"{name.replace('/', '_')}_data.pkl", pickle.dumps(content))
        for frame in range(4):
            write_picture(folder / f"images/{frame:05d}.jpg", (36, 48))


def write_h36m(root):
    """SPIN's file: three rows, of which one is from the frontal camera."""
    names = [f"images/S9_Directions_1.{camera}_000001.jpg"
             for camera in ("54138969", "60457274", "58860488")]
    solid = np.concatenate([RNG.normal(0, 0.4, (3, 24, 3)), np.ones((3, 24, 1))], 2)
    solid[:, 14, :3] = 0
    (root / "dataset_extras").mkdir()
    np.savez(root / "dataset_extras/h36m_valid_protocol2.npz", imgname=np.array(names), S=solid,
             center=np.full((3, 2), 25.0), scale=np.full(3, 0.2),
             part=np.concatenate([RNG.uniform(5, 45, (3, 24, 2)), np.ones((3, 24, 1))], 2))
    for name in names:
        write_picture(root / name, (50, 50))


def write_hmr2_evaluation(root, name="3dpw_test"):
    """HMR2.0's evaluation file: two people, with one number as scale or with two."""
    names = [f"pictures/{number}.jpg" for number in range(2)]
    solid = np.concatenate([RNG.normal(0, 0.4, (2, 19, 3)), np.ones((2, 19, 1))], 2)
    (root / "hmr2_evaluation_data").mkdir()
    np.savez(root / f"hmr2_evaluation_data/{name}.npz", imgname=np.array(names).astype("S"),
             center=np.full((2, 2), 25.0), scale=np.array([[30.0, 48], [24, 24]]),
             extra_keypoints_3d=solid)
    for name in names:
        write_picture(root / name, (50, 50))


def write_h36m_moon(root):
    """Each subject: cameras 1 and 4, frames 0 and 3; the second frame has no fit."""
    for subject in readers.Human36MSMPLX.SUBJECTS:
        base = f"annotations/Human36M_subject{subject}_"
        folder = f"s_{subject:02d}_act_02_subact_01_ca_0"
        pictures = [{"id": number, "width": 40,
                     "file_name": f"{folder}{camera}/{folder}{camera}_{frame:06d}.jpg",
                     "height": 42, "subject": subject, "action_idx": 2,
                     "subaction_idx": 1, "cam_idx": camera, "frame_idx": frame}
                    for number, (camera, frame) in enumerate(
                        ((1, 0), (4, 0), (1, 3), (4, 5)))]
        people = [{"id": number, "image_id": number, "bbox": [4.0, 5, 20, 30]}
                  for number in range(4)]
        camera = {"R": H36M_R.tolist(), "t": H36M_T.tolist(), "f": [1145.0, 1144],
                  "c": [512.0, 515]}
        world = {str(frame): (RNG.normal(0, 300, (17, 3)) + (0, 0, 900)).tolist()
                 for frame in (0, 3, 5)}
        write(root / f"{base}data.json", {"images": pictures, "annotations": people})
        write(root / f"{base}camera.json", {"1": camera, "4": camera})
        write(root / f"{base}joint_3d.json", {"2": {"1": world}})
        write(root / f"{base}SMPLX_NeuralAnnot.json", {"2": {"1": {"0": smplx_fit()}}})
        for picture in pictures:
            write_picture(root / "images" / picture["file_name"], (40, 42))


def smplx_fit():
    """A body by the names of NeuralAnnot."""
    sizes = {"root_pose": 3, "body_pose": 63, "shape": 10, "expr": 10, "jaw_pose": 3,
             "lhand_pose": 45, "rhand_pose": 45}
    return {name: RNG.normal(0, 0.2, size).tolist() for name, size in sizes.items()} | {
        "trans": [0.1, 0.2, 0.9]}


H36M_R, H36M_T = rodrigues([1.4, 0.2, 0.1]), np.array([100.0, 900, 5200])  # mm


def tar_person(**changes):
    """A person of HMR2.0's training sets."""
    return {"keypoints_2d": np.concatenate([RNG.uniform(5, 40, (44, 2)), np.ones((44, 1))], 1),
            "keypoints_3d": np.concatenate([RNG.normal(0, 0.4, (44, 3)), np.ones((44, 1))], 1),
            "center": np.array([30.0, 25]), "scale": np.array([0.1, 0.2]),
            "body_pose": RNG.normal(0, 0.2, 72), "betas": np.full(10, 0.3),
            "has_body_pose": np.array(1.0), "has_betas": np.array(1.0),
            "extra_info": {"fitting_loss": np.array({}), "detection_npz_idx": 0}} | changes


def write_shard(path, items):
    """A tar file of {name: bytes}, without folders, as webdataset writes it."""
    with tarfile.open(path, "w") as archive:
        for name, content in items.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def jpeg(size=(64, 48), color=90):
    buffer = io.BytesIO()
    Image.new("RGB", size, (color, 60, 60)).save(buffer, "jpeg")
    return buffer.getvalue()


def write_hmr2(root):
    """A picture of three people, of whom two pass the filters; one with masks, which are not read,
    and one person whose pose is not known; and one key that is damaged."""
    few = np.concatenate([np.ones((44, 2)), np.full((44, 1), 0.2)], 1)
    few[:4, 2] = 1
    lost = np.array({"reprojection_loss": np.array(32_000.0)})
    flat = tar_person(has_body_pose=np.array(0.0), extra_info={"detection_npz_idx": 1})
    flat["keypoints_2d"][3, 2] = 0.1
    people = [tar_person(), tar_person(keypoints_2d=few), tar_person(betas=np.full(10, 3.5)),
              tar_person(extra_info={"fitting_loss": lost})]
    write_shard(root / "000000.tar", {
        "aic-train/a.jpg": jpeg(), "aic-train/a.data.pyd": pickle.dumps(people)} | {
        "c.jpg": jpeg(color=200), "c.data.pyd": pickle.dumps([flat]),
        "c.detection.npz": b"masks", "d.jpg": jpeg(), "d.data.pyd": b"no pickle"})


def tar_hand(**changes):
    """A hand of HaMeR's training sets."""
    return {"keypoints_2d": np.concatenate([RNG.uniform(20, 40, (21, 2)), np.ones((21, 1))], 1),
            "keypoints_3d": np.pad(hand_joints(), ((0, 0), (0, 1)), constant_values=1.0),
            "center": np.array([30.0, 24]), "scale": np.array([0.1, 0.1]),
            "hand_pose": RNG.normal(0, 0.3, 48), "betas": np.zeros(10),
            "has_hand_pose": np.array(1.0), "has_betas": np.array(1.0), "right": np.array(1.0)
            } | changes


def write_hamer(root):
    """A right and a left hand in one picture."""
    right = tar_hand()
    hands = [right, tar_hand(keypoints_2d=right["keypoints_2d"], right=np.array(0.0))]
    write_shard(root / "000000.tar", {"k.jpg": jpeg(), "k.data.pyd": pickle.dumps(hands)})


def write_bedlam(root):
    """Two people of one picture, one of them nearly outside, and a close-up on its side."""
    folder = root / "all_npz_12_training"
    folder.mkdir()
    for scene, count in (("20221010_3_1000_batch01hand_6fps", 3),
                         ("20221011_1_250_batch01hand_closeup_suburb_a_6fps", 1)):
        width, height = (36, 64) if "closeup" in scene else (64, 36)
        points = RNG.uniform(1, 35, (count, 127, 2))
        points[2:, 5:] += 100
        extrinsics = np.tile(np.eye(4), (count, 1, 1))
        extrinsics[:, :3, 3], extrinsics[:, :3, :3] = (0.1, 0.2, 0.3), rodrigues([0.1, 0, 0])
        np.savez(folder / f"{scene}.npz", center=np.full((count, 2), 18.0),
                 imgname=np.array(["seq_000000/seq_000000_0000.png"] * count),
                 scale=np.full(count, 0.15), pose_cam=RNG.normal(0, 0.2, (count, 165)),
                 shape=RNG.normal(0, 1, (count, 11)), trans_cam=np.full((count, 3), 2.0),
                 gtkps=points, cam_ext=extrinsics, gender=np.array(["male"] * count),
                 cam_int=np.tile(intrinsics((50, 50), (width / 2, height / 2)),
                                 (count, 1, 1)))
        path = root / f"{scene}/png/seq_000000/seq_000000_0000.png"
        write_picture(path, (64, 36))
        if "closeup" in scene:
            Image.linear_gradient("L").resize((64, 36)).convert("RGB").save(path)


def write_rich(root):
    """One sequence of two people, one frame, two cameras."""
    sequence = "BBQ_001_002_juggle"
    write(root / "resource/gender.json", {"1": "male", "2": "female"})
    write(root / "resource/imgext.json", {"BBQ": "bmp", "Pavallion": "png"})
    header = "sequence_name\tcapture_name\tscan_name\tid\tmoving_cam\tgender\tview_id"
    write(root / "resource/meta/train.txt",
          f"{header}\n{sequence}\tBBQ\tscan\t001\tno\tmale\t0,3\n"
          f"{sequence}\tBBQ\tscan\t002\tno\tfemale\t0,3\n")  # a row for each person
    for person in ("001", "002"):
        body = {"body_pose": RNG.normal(0, 0.2, (1, 63)), "global_orient": np.full((1, 3), 0.3),
                "betas": RNG.normal(0, 1, (1, 10)), "transl": np.array([[0.1, 0.2, 4.0]]),
                "left_hand_pose": RNG.normal(0, 1, (1, 12)), "expression": np.zeros((1, 10)),
                "right_hand_pose": RNG.normal(0, 1, (1, 12)), "jaw_pose": np.zeros((1, 3)),
                "leye_pose": np.zeros((1, 3)), "reye_pose": np.zeros((1, 3))}
        write(root / f"bodies/train/{sequence}/00042/{person}.pkl", pickle.dumps(
            {key: value.astype(np.float32) for key, value in body.items()}))
    for view in (0, 3):
        motion = np.concatenate([rodrigues([0, 0.1 * view, 0]), [[0.1], [0.2], [0.5 * view]]], 1)
        nodes = {"CameraMatrix": motion, "Intrinsics": intrinsics((30, 30), (16, 12)),
                 "Distortion": np.zeros(5)}
        text = "".join(f"<{name}><data>{' '.join(map(str, value.ravel()))}</data></{name}>"
                       for name, value in nodes.items())
        write(root / f"scan_calibration/BBQ/calibration/{view:03d}.xml",
              f"<opencv_storage>{text}</opencv_storage>")
        write_picture(root / f"images/train/{sequence}/cam_{view:02d}/00042_{view:02d}.bmp",
                      (32, 24))


def write_arctic(root):
    """One sequence of 25 frames, of which 5 are left; one of those has no fit."""
    views = [[64, 48]] + [[40, 48]] * 8
    motion = np.tile(np.eye(4), (8, 1, 1))
    motion[:, 2, 3] = 3 + np.arange(8)
    write(root / "meta/misc.json", {"s05": {
        "gender": "female", "world2cam": motion.tolist(), "image_size": views, "ioi_offset": 4,
        "intris_mat": [intrinsics((30, 30), (20, 24)).tolist()] * 8}})
    write(root / "splits_json/protocol_p1.json", {"train": [], "val": ["s05/box_grab_01"]})
    write_few_vertices(root)
    template = load_arrays(root / "smplx.npz")["v_template"] * 1.05
    (root / "smplx.npz").unlink()
    write(root / "meta/subject_vtemplates/s05.obj",
          "".join("v {:.6f} {:.6f} {:.6f}\n".format(*row) for row in template) + "f 1 2 3\n")
    body = {"transl": np.zeros((25, 3)), "global_orient": np.tile([np.pi, 0, 0], (25, 1)),
            "body_pose": RNG.normal(0, 0.2, (25, 63))}
    body |= {name: np.zeros((25, 3)) for name in ("jaw_pose", "leye_pose", "reye_pose")}
    body |= {f"{side}_hand_pose": RNG.normal(0, 0.2, (25, 45)) for side in ("left", "right")}
    body["body_pose"][8] = np.nan
    path = root / "raw_seqs/s05/box_grab_01.smplx.npy"
    path.parent.mkdir(parents=True)
    np.save(path, np.array(body, object), allow_pickle=True)
    for view in range(1, 9):
        for frame in range(10, 15):
            write_picture(root / f"images/s05/box_grab_01/{view}/{frame:05d}.jpg", (40, 48))


def write_ply(path, vertices):
    """A mesh as EHF ships it, here without faces."""
    header = (f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n"
              "property float x\nproperty float y\nproperty float z\nend_header\n")
    path.write_bytes(header.encode() + np.asarray(vertices, "<f4").tobytes())


def write_ehf(root):
    """Frames 01 and 100, with the meshes of `write_few_vertices`, of which the third is high up."""
    mesh = np.zeros((21 + 2 * 778, 3), np.float32)
    mesh[2, 1] = 0.2
    for number in ("01", "100"):
        write_ply(root / f"{number}_align.ply", mesh)
        flat = np.concatenate([RNG.uniform(200, 900, (25, 2)), np.ones((25, 1))], 1)
        write(root / f"{number}_2Djnt.json", {"people": [{
            "pose_keypoints_2d": flat.ravel().tolist(), "hand_left_keypoints_2d": [0.0] * 63}]})
        write_picture(root / f"{number}_img.jpg", (1600, 1200), quality=10)


WRITERS = {
    "dexycb": write_dexycb, "interhand": write_interhand, "freihand": write_freihand,
    "3dpw": write_3dpw, "3dpw-moon": write_3dpw_moon, "3dpw-hmr2": write_hmr2_evaluation,
    "emdb": write_emdb, "h36m": write_h36m, "h36m-smplx": write_h36m_moon,
    "hmr2-tars": write_hmr2, "hamer-tars": write_hamer, "bedlam": write_bedlam,
    "rich": write_rich, "arctic": write_arctic, "ehf": write_ehf,
    "h36m-hmr2": partial(write_hmr2_evaluation, name="h36m_val_p2")}
READERS = {name: partial(data.OFFICIAL[name], size=32) for name in WRITERS}
(dexycb, interhand, freihand, threedpw, threedpw_moon, threedpw_hmr2, emdb, human36m, h36m_smplx,
 hmr2, hamer, bedlam, rich, arctic, ehf, h36m_hmr2) = READERS.values()
HANDS = ("freihand", "dexycb", "interhand", "hamer-tars")
NEED_MODELS = ("rich", "arctic")
BODIES = tuple(name for name in READERS if name not in HANDS)

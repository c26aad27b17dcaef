"""A training step in somebody else's project: under 25 lines, without any other file of ours.

Each script knows only its paper file, torch and the smplx package with official model files (here
the free models under the official names). It fills the batch that the docstrings describe.
"""

import numpy as np
import pytest

import bodymodels
import genhmr

smplx = pytest.importorskip("smplx")

SIMPLEHAND = '''
import smplx, torch
from simplehand import Config, SimpleHand, losses, mano_keypoint_regressor, total_loss

mano = smplx.MANOLayer(FOLDER + "/mano", ext="npz", use_pca=False)
regressor = mano_keypoint_regressor(mano.J_regressor)  # (21, 778)
model = SimpleHand(Config(image_size=32, embed_dims=(8, 8, 16, 32), depths=(1, 1, 1, 1),
                          feature_width=32, token_width=8, dims=(8, 8, 8), heads=1))
pose = torch.eye(3).expand(2, 16, 3, 3)  # an open hand, seen from the front
vertices = mano(betas=torch.randn(2, 10), global_orient=pose[:, :1], hand_pose=pose[:, 1:],
                transl=torch.tensor([[0, 0, 0.5]] * 2)).vertices  # (2, 778, 3)
joints = regressor @ vertices  # (2, 21, 3)
batch = {"image": torch.randint(0, 256, (2, 3, 32, 32)), "vertices": vertices, "joints": joints,
         "keypoints_2d": 16 + 40 * joints[..., :2] / joints[..., 2:],
         "keypoints_valid": torch.ones(2, 21), "mesh_valid": torch.ones(2)}
loss = total_loss(losses(model(batch["image"]), batch, regressor), model.config)
loss.backward()
'''

GENHMR_TOKENIZER = '''
import smplx, torch
from genhmr import Tokenizer, TokenizerConfig, rotation_6d_to_matrix, tokenizer_losses, total_loss

smpl = smplx.SMPLLayer(FOLDER + "/smpl/SMPL_NEUTRAL.pkl")
body = lambda betas, pose: smpl(betas=betas, global_orient=pose[:, :1], body_pose=pose[:, 1:])
model = Tokenizer(TokenizerConfig(codebook_size=16, code_dim=8, width=16))
batch = {"pose": rotation_6d_to_matrix(torch.randn(2, 24, 6)), "betas": torch.randn(2, 10)}
loss = total_loss(tokenizer_losses(model(batch["pose"]), batch, body), model.config)
loss.backward()
'''

GENHMR_BODY = '''
import smplx, torch
from genhmr import *

class Body:
    smpl = smplx.SMPLLayer(FOLDER + "/smpl/SMPL_NEUTRAL.pkl")
    def __call__(self, betas, pose):
        return self.smpl(betas=betas, global_orient=pose[:, :1], body_pose=pose[:, 1:])
    def keypoints(self, posed):
        return posed.joints  # (B, 45, 3)

body = Body()
model = GenHMR(Config(TokenizerConfig(codebook_size=16, code_dim=8, width=16), image_size=64,
                      vit_dim=16, vit_depth=1, vit_heads=2, scales=(1, 2), width=16, heads=2))
'''

GENHMR = GENHMR_BODY + '''
pose, betas = rotation_6d_to_matrix(torch.randn(2, 24, 6)), torch.randn(2, 10)
points, one = body.keypoints(body(betas, pose)), torch.ones(2, 45)
batch = mask_batch(model, {
    "image": torch.randint(0, 256, (2, 3, 64, 64)), "pose": pose, "pose_valid": one[:, 0],
    "betas": betas, "betas_valid": one[:, 0], "keypoints_3d": points, "keypoints_3d_valid": one,
    "keypoints_2d": 32 + 20 * points[..., :2], "keypoints_valid": one})
found = model(batch["image"], batch["masked_tokens"])
loss = total_loss(losses(found, batch, model, body, temperature=1.0), model.config)
loss.backward()
'''

GENHMR_PREDICT = GENHMR_BODY + '''
points = body.keypoints(body(torch.zeros(1, 10), torch.eye(3).expand(1, 24, 3, 3)))[0]
keypoints = np.array([(60 + 30 * x, 45 + 30 * y, 1) for x, y, _ in points.tolist()])  # as detected
found = predict(model.eval(), body, np.zeros((90, 120, 3), np.uint8), keypoints=keypoints,
                step_size=0.1, fitted_camera=True, samples=3)
'''

HMR_ADAPTER_HAND = '''
import smplx, torch
from hmr_adapter import HandAdapter, HandConfig, HandExpertConfig, hand_losses, hand_samples, \\
    hand_total_loss, rotation_6d_to_matrix

class Hand:
    mano = smplx.MANOLayer(FOLDER + "/mano", ext="npz", use_pca=False)
    rows = torch.cat((mano.J_regressor, torch.eye(778)[[744, 320, 443, 555, 672]]))  # the tips
    keypoint_regressor = rows[[0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9,
                               20]]  # (21, 778): wrist, then thumb to pinky, base to tip
    def __call__(self, betas, pose):
        return self.mano(betas=betas, global_orient=pose[:, :1], hand_pose=pose[:, 1:])

small = HandExpertConfig(image_size=64, vit_dim=16, vit_depth=1, vit_heads=2, decoder_dim=16,
                         decoder_layers=1, decoder_ffn=16)  # HaMeR's: weights/hmr_adapter.py
model, hand, pose = HandAdapter(HandConfig(expert=small)), Hand(), torch.randn(2, 2, 16, 6)
batch = {"hand_images": torch.randint(0, 256, (2, 2, 3, 64, 64)),
         "hand_pose": rotation_6d_to_matrix(pose), "hand_joints": torch.randn(2, 2, 21, 3),
         "hand_keypoints_2d": 64 * torch.rand(2, 2, 21, 2), "hand_valid": torch.ones(2, 2),
         "body_pose": rotation_6d_to_matrix(torch.randn(2, 55, 6))}
samples = hand_samples(batch)
found = model(samples["images"], samples["arm"], samples["arm_valid"])
loss = hand_total_loss(hand_losses(found, samples, hand, model.config), model.config)
loss.backward()
'''

HMR_ADAPTER_BODY = '''
import smplx, torch
from hmr_adapter import *

class Body:
    smplx = smplx.SMPLXLayer(FOLDER + "/smplx", ext="npz", use_pca=False)
    def __call__(self, betas, pose, expression):
        parts = {"global_orient": slice(0, 1), "body_pose": slice(1, 22), "jaw_pose": JAW,
                 "leye_pose": slice(23, 24), "reye_pose": slice(24, 25),
                 "left_hand_pose": LEFT_FINGERS, "right_hand_pose": RIGHT_FINGERS}
        return self.smplx(betas=betas, expression=expression,
                          **{name: pose[:, part] for name, part in parts.items()})
    def keypoints(self, posed):
        return posed.joints[:, :76]

small = BodyExpertConfig(image_size=64, vit_dim=16, vit_depth=1, vit_heads=2, depth_bins=4,
                         hand_cells=4, box_dim=8, joint_dim=8)  # weights/hmr_adapter.py
model, body = BodyAdapter(BodyConfig(expert=small, decoder_dim=16)), Body()
batch = {"image": torch.randint(0, 256, (2, 3, 64, 64)), "keypoints_valid": torch.ones(2, 76),
         "body_pose": rotation_6d_to_matrix(torch.randn(2, 55, 6)), "betas": torch.randn(2, 10),
         "expression": torch.randn(2, 10), "keypoints_3d": torch.randn(2, 76, 3),
         "keypoints_2d": 64 * torch.rand(2, 76, 2), "hand_valid": torch.ones(2, 2),
         "hand_boxes": 10 + 20 * torch.rand(2, 2, 4)}
found = model(batch["image"], true_knuckles(batch), batch["hand_valid"])
loss = body_total_loss(body_losses(found, batch, body, model.expert, model.config), model.config)
loss.backward()
'''


@pytest.mark.parametrize("script", [
    SIMPLEHAND, GENHMR_TOKENIZER, GENHMR, HMR_ADAPTER_HAND, HMR_ADAPTER_BODY])
def test_a_training_step_elsewhere_is_short(official_models, script):
    """It has a finite loss, and every parameter that is trained has a finite gradient."""
    assert len([line for line in script.splitlines() if line.strip()]) < 25
    space = {"FOLDER": str(official_models)}
    exec(script, space)
    assert space["loss"].isfinite()
    gradients = [p.grad for p in space["model"].parameters() if p.requires_grad]
    told = [gradient for gradient in gradients if gradient is not None]
    assert told and all(gradient.isfinite().all() for gradient in told)


def test_genhmr_predicts_elsewhere(official_models):
    """A picture with 2D keypoints needs of a body its vertices, joints and keypoints alone."""
    space = {"FOLDER": str(official_models)}
    exec(GENHMR_PREDICT, space)
    found, ours = space["found"], bodymodels.load_model("body")
    assert not hasattr(space["body"], "for_keypoints") and hasattr(ours, "for_keypoints")
    assert all(np.isfinite(value).all() for value in found.values())
    assert found["fitted"]
    assert np.unique(found["drawn_poses"].round(4), axis=0).shape == (3, 24, 3, 3)
    assert (np.diff(found["energies"]) < 0).all() and len(found["energies"]) == 11
    other = genhmr.predict(space["model"], ours, np.zeros((90, 120, 3), np.uint8), step_size=0.1,
                           keypoints=space["keypoints"], fitted_camera=True)
    assert np.allclose(other["vertices"], found["vertices"], atol=1e-3)

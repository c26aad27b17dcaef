"""Meshes, skeletons, rotations, cameras, joint sets and rendering.

To use it in another project copy files.py with it, and assets/*.npz for the free models.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from files import check_mesh, load_arrays, single, to_numpy, vertex_colors, vertex_normals
from files import save_mesh as save_mesh
from files import write_atomically as write_atomically

# ------------------------------------------------------------------------------- rotations
# Tensors may have any leading dimensions, or none. Values and gradients are finite everywhere, also
# at angles 0 and pi. Half precision becomes float32. genhmr.py and hmr_adapter.py have 6D.


def _floats(x: Tensor, *trailing: int) -> Tensor:
    """The tensor as float32 or float64; ValueError unless it ends in the dimensions `trailing`."""
    if tuple(x.shape[-len(trailing):]) != trailing or not x.is_floating_point():
        raise ValueError(f"expected a floating-point tensor ending in {trailing}, got {x.dtype} of "
                         f"shape {tuple(x.shape)}")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Axis times angle in radians (..., 3) -> rotation matrices (..., 3, 3); Rodrigues' formula."""
    axis_angle = _floats(axis_angle, 3)
    squared = axis_angle.square().sum(-1, keepdim=True)
    angle = squared.clamp(min=1e-12).sqrt()  # below 1e-6 rad both factors equal their limits
    sine = angle.sin() / angle
    versine = 0.5 * ((0.5 * angle).sin() / (0.5 * angle)).square()  # (1 - cos) / angle^2
    x, y, z = (sine * axis_angle).unbind(-1)
    cosine = (1 - versine * squared).squeeze(-1)
    skew = torch.stack([cosine, -z, y, z, cosine, -x, -y, x, cosine], -1).unflatten(-1, (3, 3))
    return skew + (versine * axis_angle).unsqueeze(-1) * axis_angle.unsqueeze(-2)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) -> axis times angle (..., 3), angle in [0, pi].

    Computed from the quaternion, which is accurate at every angle. At pi both the axis and its
    opposite are right, and either may be returned.
    """
    quaternion = matrix_to_quaternion(matrix)
    w, axis = quaternion[..., :1], quaternion[..., 1:]
    sine = axis.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
    return axis * (2 * torch.atan2(sine, w) / sine)


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) -> unit quaternions (w, x, y, z), w >= 0, (..., 4)."""
    matrix = _floats(matrix, 3, 3)
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix.flatten(-2).unbind(-1)
    outer = torch.stack([  # 4 q q^T: every row is the quaternion times four of its components
        1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01,
        m21 - m12, 1 + m00 - m11 - m22, m01 + m10, m02 + m20,
        m02 - m20, m01 + m10, 1 - m00 + m11 - m22, m12 + m21,
        m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22,
    ], -1).unflatten(-1, (4, 4))
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None].expand(
        *matrix.shape[:-2], 1, 4)
    row = outer.gather(-2, largest).squeeze(-2)  # its component is at least 1/2: no cancellation
    row = torch.where(row[..., :1] < 0, -row, row)
    return row / row.norm(dim=-1, keepdim=True)


def chain_rotation(rotations: Tensor) -> Tensor:
    """The product (..., 3, 3) of the rotations (..., J, 3, 3) of a chain of joints, root first.

    Each rotation is relative to the joint before. For an arm, "left_arm08" of JOINT_SETS, the
    product is the hand's orientation: MANO's global rotation, in the frame of the root's rotation.
    """
    return functools.reduce(torch.matmul, rotations.unbind(-3))


# --------------------------------------------------------------------------------- cameras
# OpenCV frame: x right, y down, z forward. An image spans [0, W] x [0, H], so the centre of its
# first pixel is (0.5, 0.5). K is in pixels of the image that it belongs to.


def project(points: Tensor, K: Tensor) -> Tensor:
    """Project camera-frame points (..., N, 3) by K (..., 3, 3) to pixels (..., N, 2), also arrays.

    Depth is not checked: points behind the camera are mirrored, points at depth 0 are infinite.
    """
    homogeneous = points @ K.swapaxes(-1, -2)
    return homogeneous[..., :2] / homogeneous[..., 2:]


# ---------------------------------------------------------------------------------- mirror
# M = diag(-1, 1, 1) turns left hands into right hands. Each function is its own inverse.


def mirror_points(points: Tensor) -> Tensor:
    """Points or translations (..., 3): x -> -x."""
    return points * points.new_tensor([-1, 1, 1])


def mirror_matrix(matrix: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3): R -> M R M."""
    return matrix * matrix.new_tensor([[1, -1, -1], [-1, 1, 1], [-1, 1, 1]])


def mirror_axis_angle(axis_angle: Tensor) -> Tensor:
    """Axis-angle vectors (..., 3): (a, b, c) -> (a, -b, -c)."""
    return axis_angle * axis_angle.new_tensor([1, -1, -1])


def mirror_pose(pose: Tensor, joint_names: Sequence[str] | None = None) -> Tensor:
    """Mirror a pose: axis-angle (..., K, 3) or matrices (..., K, 3, 3), at least (1, 3, 3).

    With the K joint names, left and right joints are exchanged, as a body needs. Without names,
    joints keep their order: a hand's pose becomes that of the other hand.
    """
    is_matrix = pose.dim() > 2 and pose.shape[-2] == 3
    if joint_names is not None:
        axis = -3 if is_matrix else -2
        if pose.shape[axis] != len(joint_names):
            raise ValueError(f"pose of shape {tuple(pose.shape)} does not have one rotation for "
                             f"each of the {len(joint_names)} joint names")
        order = torch.tensor(mirror_indices(joint_names), device=pose.device)
        pose = pose.index_select(axis, order)
    return mirror_matrix(pose) if is_matrix else mirror_axis_angle(pose)


# ------------------------------------------------------------------------------ joint sets
# Joints by name. If two sets share a name, published mappings treat these joints as the same. Their
# regressors may still differ: an LSP hip is not exactly an SMPL hip.


def _fingers(order: str, *parts: str) -> tuple[str, ...]:
    return tuple(f"{finger}{part}" for finger in order.split() for part in parts)


def _named(prefix: str, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{prefix}_{name}" for name in names)


def _sided(order: str, parts: str) -> tuple[str, ...]:
    """Names by side: _sided("left right", "hip knee") is left_hip, left_knee, right_hip, ..."""
    return tuple(f"{side}_{part}" for side in order.split() for part in parts.split())


def _pairs(order: str, parts: str) -> tuple[str, ...]:
    """Names by part: _pairs("left right", "hip knee") is left_hip, right_hip, left_knee, ..."""
    return tuple(f"{side}_{part}" for part in parts.split() for side in order.split())


_TIPS = _fingers("thumb index middle ring pinky", "_tip")
_MANO_FINGERS = _fingers("index middle pinky ring thumb", "1", "2", "3")  # pinky before ring
_HAND_21 = ("wrist", *_fingers("thumb index middle ring pinky", "1", "2", "3", "_tip"))
_INTERHAND_21 = (*_fingers("thumb index middle ring pinky", "_tip", "3", "2", "1"), "wrist")

_SPINE = ("pelvis", "spine1", "spine2", "spine3")
_SMPL_22 = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2",
    "left_ankle", "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar",
    "right_collar", "head", *_pairs("left right", "shoulder elbow wrist"),
)
_SMPL_24 = (*_SMPL_22, "left_hand", "right_hand")
_SMPLX_55 = (*_SMPL_22, "jaw", "left_eyeball", "right_eyeball",
             *_named("left", _MANO_FINGERS), *_named("right", _MANO_FINGERS))
_SURFACE_21 = (  # the vertices that the smplx package appends to the joints of a body
    "nose", *_pairs("right left", "eye ear"), *_sided("left right", "big_toe small_toe heel"),
    *_named("left", _TIPS), *_named("right", _TIPS),
)

_OPENPOSE_25 = (
    "nose", "neck", *_sided("right left", "shoulder elbow wrist"), "pelvis",
    *_sided("right left", "hip knee ankle"), *_pairs("right left", "eye ear"),
    *_sided("left right", "big_toe small_toe heel"),
)
_LEGS_THEN_ARMS = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
    "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
)
_J24 = (*_LEGS_THEN_ARMS, "neck", "head_top", "pelvis", "thorax", "spine", "jaw", "head", "nose",
        *_pairs("left right", "eye ear"))
_LSP_14 = (*_LEGS_THEN_ARMS, "neck", "head")
_H36M_TORSO_AND_ARMS = ("spine", "neck", "jaw", "head",
                        *_sided("left right", "shoulder elbow wrist"))
_OPENPOSE_IN_44 = tuple(f"{name}_openpose" for name in _OPENPOSE_25)  # beside LSP's own hips etc.

JOINT_SETS: dict[str, tuple[str, ...]] = {
    # hands: the models' own order, the papers' order, InterHand2.6M's
    "mano16": ("wrist", *_MANO_FINGERS),
    "mano21": ("wrist", *_MANO_FINGERS, *_TIPS),
    "hand21": _HAND_21,
    "left_hand21": _named("left", _HAND_21),
    "right_hand21": _named("right", _HAND_21),
    "interhand21": _INTERHAND_21,
    # body models: their joints, then what the smplx package appends
    "smpl24": _SMPL_24,
    "smpl45": (*_SMPL_24, *_SURFACE_21),
    "smplh52": (*_SMPL_22, *_named("left", _MANO_FINGERS), *_named("right", _MANO_FINGERS)),
    "smplx55": _SMPLX_55,
    "smplx76": (*_SMPLX_55, *_SURFACE_21),
    "amass24": (*_SMPL_22, "left_index1", "right_index1"),  # SMPL's hands taken from SMPL-H's
    # detectors
    "openpose18": ("nose", "neck", *_sided("right left", "shoulder elbow wrist"),
                   *_sided("right left", "hip knee ankle"), *_pairs("right left", "eye ear")),
    "openpose25": _OPENPOSE_25,
    "coco17": ("nose", *_pairs("left right", "eye ear shoulder elbow wrist hip knee ankle")),
    "mediapipe33": ("nose", *_sided("left right", "eye_inner eye eye_outer"),
                    *_pairs("left right", "ear mouth shoulder elbow wrist pinky1 index1 thumb2 "
                                          "hip knee ankle heel big_toe")),
    # evaluation and packaged data: SPIN's 24, HMR2's 44 (OpenPose, then 19 of SPIN's), EFT's 49
    "j24": _J24,
    "j17": (*_LSP_14, "pelvis", "spine", "jaw"),
    "lsp14": _LSP_14,
    "hmr44": (*_OPENPOSE_IN_44, *_J24[:19]),
    "eft49": (*_OPENPOSE_IN_44, *_J24),
    "smpl14": (*_pairs("left right", "hip knee ankle"), "neck", "head",  # SMPLer-X's LSP-14
               *_pairs("left right", "shoulder elbow wrist")),
    # HMR-Adapter: from the pelvis to either wrist
    "left_arm08": (*_SPINE, *_sided("left", "collar shoulder elbow wrist")),
    "right_arm08": (*_SPINE, *_sided("right", "collar shoulder elbow wrist")),
    # Human3.6M regressors, two files of one name: SPIN's has the left leg first, Moon's the right
    "h36m17_spin": ("pelvis", *_sided("left right", "hip knee ankle"), *_H36M_TORSO_AND_ARMS),
    "h36m17_moon": ("pelvis", *_sided("right left", "hip knee ankle"), *_H36M_TORSO_AND_ARMS),
}

# The five fingertips as vertices of MANO, thumb to pinky, in the conventions in use.
TIP_VERTEX_IDS: dict[str, tuple[int, ...]] = {
    "freihand": (744, 320, 443, 555, 672),  # FreiHAND's tools, SimpleHand, HandMesh
    "smplx": (744, 320, 443, 554, 671),  # smplx, HaMeR, WiLoR; our free hands
    "manopth_right": (745, 317, 444, 556, 673),  # DexYCB's ground truth
    "manopth_left": (745, 317, 445, 556, 673),
    "moon": (728, 353, 442, 576, 694),  # I2L-MeshNet, HandOccNet
}

# The 21 vertices that "smpl45" and "smplx76" append to the joints, in that order: nose, eyes, ears,
# toes and heels, fingertips. SMPL-H has SMPL's mesh. The free bodies have the same landmarks there.
SURFACE_VERTEX_IDS: dict[str, tuple[int, ...]] = {
    "smpl": (332, 6260, 2800, 4071, 583, 3216, 3226, 3387, 6617, 6624, 6787,
             2746, 2319, 2445, 2556, 2673, 6191, 5782, 5905, 6016, 6133),
    "smplx": (9120, 9929, 9448, 616, 6, 5770, 5780, 8846, 8463, 8474, 8635,
              5361, 4933, 5058, 5169, 5286, 8079, 7669, 7794, 7905, 8022),
}


def _joint_names(joints: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(joints, str):
        return tuple(joints)
    if joints not in JOINT_SETS:
        raise ValueError(f"unknown joint set {joints!r}: expected one of {sorted(JOINT_SETS)}")
    return JOINT_SETS[joints]


def joint_indices(source: str | Sequence[str], target: str | Sequence[str]) -> list[int]:
    """The indices of the target's joints in the source: source_joints[..., indices, :].

    Both are names of JOINT_SETS or sequences of joint names. Raises ValueError if the source lacks
    joints of the target.
    """
    place = {name: index for index, name in enumerate(_joint_names(source))}
    missing = [name for name in _joint_names(target) if name not in place]
    if missing:
        raise ValueError(f"the source joints lack {', '.join(missing)}")
    return [place[name] for name in _joint_names(target)]


def mirror_indices(joints: str | Sequence[str]) -> list[int]:
    """The permutation that exchanges left and right joints and keeps the others."""
    opposite = {"left": "right", "right": "left"}
    names = [name.split("_") for name in _joint_names(joints)]
    swapped = ["_".join([opposite.get(side, side), *rest]) for side, *rest in names]
    return joint_indices(joints, swapped)


def keypoint_regressor(J_regressor: Tensor, tip_vertex_ids: Sequence[int]) -> Tensor:
    """The matrix (21, V) from a hand's posed vertices to its hand21 keypoints.

    J_regressor (16, V) gives MANO's joints, tip_vertex_ids (thumb to pinky) the fingertips. Raises
    ValueError for other sizes, and for tips that the mesh does not have.
    """
    if len(J_regressor) != 16 or len(tip_vertex_ids) != 5:
        raise ValueError(f"expected a joint regressor of 16 rows and 5 tip vertices, got "
                         f"{tuple(J_regressor.shape)} and {len(tip_vertex_ids)}")
    if not 0 <= min(tip_vertex_ids) <= max(tip_vertex_ids) < J_regressor.shape[1]:
        raise ValueError(f"tip vertices {tuple(tip_vertex_ids)} do not fit a mesh of "
                         f"{J_regressor.shape[1]} vertices: give others with tips=")
    tips = torch.zeros_like(J_regressor[:5])
    tips[range(5), list(tip_vertex_ids)] = 1
    return torch.cat([J_regressor, tips])[joint_indices("mano21", "hand21")]


# -------------------------------------------------------------------- linear blend skinning
# One model for MANO, SMPL and SMPL-X: offsets that are linear in shape, expression and pose
# are added to a template; then a weighted mean of the joints' transforms moves every vertex
# (Loper et al. 2015, Romero et al. 2017, Pavlakos et al. 2019).
# B batch, V vertices, K joints, S shape and expression, P = 9 (K - 1) pose coefficients.

ASSETS = Path(__file__).resolve().parent / "assets"
FREE_MODELS = ("hand_right", "hand_left", "body", "wholebody")
_FAMILIES = {  # joint set, official file names
    "mano": ("mano16", ("MANO_{side}",)),
    "smpl": ("smpl24", ("SMPL_{gender}", "basic[mM]odel_{g}_lbs_*")),
    "smplx": ("smplx55", ("SMPLX_{gender}",)),
}
_CACHED_BYTES = 5 * 2**19  # of blended transforms at a time: about the cache of a CPU core


class BodyOutput(NamedTuple):
    """A batch of posed meshes, in metres."""

    vertices: Tensor  # (B, V, 3)
    joints: Tensor  # (B, K, 3) the joints that carry the skin
    transforms: Tensor  # (B, K, 4, 4) joint to world: [rotation, joint position; 0 0 0 1]


class _Skinning(torch.autograd.Function):
    """Vertices (B, 3, V) from shaped (B, 3, V), transforms (B, 3, 4, K) and weights (K, V).

    The blended transforms (B, 3, 4, V) are the largest array. On a CPU they are computed for as
    many samples at a time as fit the cache, and again in the backward pass instead of being stored.
    """

    @staticmethod
    def in_parts(weights: Tensor, *batches: Tensor) -> Iterator[tuple[Tensor, ...]]:
        samples = max(1, _CACHED_BYTES // (12 * weights.shape[1] * weights.element_size()))
        if len(batches[0]) <= samples or weights.device.type != "cpu":
            return iter([batches])
        return zip(*(batch.split(samples) for batch in batches), strict=True)

    @staticmethod
    def blend(transforms: Tensor, weights: Tensor) -> Tensor:
        return (transforms.flatten(0, 2) @ weights).view(len(transforms), 3, 4, weights.shape[1])

    @staticmethod
    def forward(ctx, shaped: Tensor, transforms: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(shaped, transforms, weights)
        vertices = torch.empty_like(shaped)
        for part, joint_transforms, out in _Skinning.in_parts(
                weights, shaped, transforms, vertices):
            x, y, z = part.unsqueeze(1).unbind(2)  # (b, 1, V)
            times_x, times_y, times_z, shift = _Skinning.blend(joint_transforms, weights).unbind(2)
            torch.addcmul(shift, times_x, x, out=out).addcmul_(times_y, y).addcmul_(times_z, z)
        return vertices

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        shaped, transforms, weights = ctx.saved_tensors
        to_shaped, to_transforms = torch.empty_like(shaped), torch.empty_like(transforms)
        for part, joint_transforms, g, to_part, to_joints in _Skinning.in_parts(
                weights, shaped, transforms, gradient, to_shaped, to_transforms):
            g = g.contiguous().unsqueeze(2)  # (b, 3, 1, V)
            blend = _Skinning.blend(joint_transforms, weights)
            (row_x, row_y, row_z), (x, y, z) = blend[:, :, :3].unbind(1), g.unbind(1)
            torch.mul(row_x, x, out=to_part).addcmul_(row_y, y).addcmul_(row_z, z)
            torch.mul(g, part.unsqueeze(1), out=blend[:, :, :3])  # the blend's gradient
            blend[:, :, 3:] = g
            torch.mm(blend.flatten(0, 2), weights.T, out=to_joints.flatten(0, 2))
        return to_shaped, to_transforms, None


class BodyModel(nn.Module):
    """A skinned mesh such as MANO, SMPL or SMPL-X; `load_model` makes it.

    Attributes: faces (F, 3) int64, parents (K indices, -1 for the root), joint_names, v_template
    (V, 3), J_regressor (K, V), skinning_weights (K, V), num_betas, num_expression, name, side
    ("left", "right" or ""). A hand also has tip_vertex_ids, thumb to pinky, and
    keypoint_regressor (21, V), from posed vertices to hand21 keypoints. An SMPL or SMPL-X body has
    surface_vertex_ids, the 21 vertices that `keypoints` appends to its joints. state_dict() is
    empty, so that checkpoints do not contain a licensed model.
    """

    def __init__(self, arrays: dict[str, np.ndarray], *, name: str = "", side: str = "",
                 num_betas: int | None = None, tips: str | Sequence[int] | None = None,
                 dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        arrays = _checked(arrays, name)
        self.name, self.side = name, side
        self.parents = (-1, *arrays["kintree_table"][0, 1:].tolist())
        family = _family(len(self.parents))
        betas, expression = _shape_bases(arrays["shapedirs"], family, num_betas)
        self.num_betas, self.num_expression = betas.shape[2], expression.shape[2]
        self.joint_names = (JOINT_SETS[_FAMILIES[family][0]] if family else
                            tuple(f"joint{index}" for index in range(len(self.parents))))
        template, regressor = arrays["v_template"], arrays["J_regressor"]
        shape_basis = np.concatenate([betas, expression], 2).transpose(2, 0, 1)  # (S, V, 3)
        pose_basis = arrays["posedirs"].transpose(2, 0, 1)  # (P, V, 3)
        buffers = {
            "faces": arrays["f"], "J_regressor": regressor, "skinning_weights": arrays["weights"].T,
            # one matrix (S + P, 3V) of all offsets, x of every vertex first: one product
            "template": template.T.flatten(),
            "offsets": np.concatenate([shape_basis, pose_basis]).swapaxes(1, 2).reshape(
                -1, template.size),
            # joints are linear in the vertices, so they are linear in the shape
            "skeleton": _with_bones(regressor @ template, self.parents),  # (6K,)
            "skeleton_basis": _with_bones(regressor @ shape_basis, self.parents),  # (S, 6K)
            "jumps": _jumps(self.parents), "identity": np.eye(3),
            "affine": _affine(len(self.parents))}
        self.tip_vertex_ids: tuple[int, ...] = ()
        if family == "mano":
            self.tip_vertex_ids = _tips(
                arrays.get("tip_vertex_ids", "freihand") if tips is None else tips)
            buffers["keypoint_regressor"] = keypoint_regressor(
                torch.from_numpy(regressor), self.tip_vertex_ids)
        for key, value in buffers.items():
            value = torch.as_tensor(value).contiguous()
            self.register_buffer(key, value, persistent=False)
        self.to(dtype)
        surface = SURFACE_VERTEX_IDS.get(family, ())
        self.surface_vertex_ids = surface if max(surface, default=0) < len(template) else ()

    def forward(self, betas: Tensor, pose: Tensor, expression: Tensor | None = None,
                transl: Tensor | None = None) -> BodyOutput:
        """Compute the posed meshes of a batch.

        Args:
            betas: (B, num_betas).
            pose: axis-angle (B, K, 3) in radians or rotation matrices (B, K, 3, 3), root first,
                each relative to its parent. Finger angles are absolute: to those of MANO's and
                SMPL-X's files add hands_mean.
            expression: (B, num_expression), default zero.
            transl: (B, 3) metres, added last.

        One shape may go with many poses, and one pose with many shapes. The root rotates about its
        rest position: v = R (v_rest - j_0) + j_0 + transl. Computed in the model's dtype, also
        under autocast. On CUDA leave TF32 off, as torch does: its 11 bits would cost a millimetre.
        """
        device = self.offsets.device.type
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.forward(betas, pose, expression, transl)
        rotations, shape = self.rotations(pose), self._shape(betas, expression)
        if len(shape) != len(rotations):
            if 1 not in (len(shape), len(rotations)):
                raise ValueError(f"{len(shape)} shapes for {len(rotations)} poses: expected equal "
                                 f"numbers, or one for all")
            batch = len(shape) * len(rotations)  # one of them is 1
            shape, rotations = shape.expand(batch, -1), rotations.expand(batch, -1, -1, -1)
        vertices, transforms = self._skin(shape, rotations)
        if transl is not None:
            transl = transl.to(vertices)
            vertices = vertices + transl[:, None]
            transforms = transforms + functional.pad(transl[:, None, :, None], (3, 0, 0, 1))
        return BodyOutput(vertices, transforms[:, :, :3, 3], transforms)

    def _skin(self, shape: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """Linear blend skinning: vertices (B, V, 3), joint-to-world transforms (B, K, 4, 4)."""
        batch, count = rotations.shape[:2]
        pose = rotations[:, 1:] - self.identity
        coefficients = torch.cat([shape, pose.flatten(1)], 1)  # (B, S + P)
        shaped = torch.addmm(self.template, coefficients, self.offsets)  # (B, 3V)

        skeleton = torch.addmm(self.skeleton, shape, self.skeleton_basis)
        joints, bones = skeleton.view(batch, 2, count, 3).unbind(1)  # (B, K, 3)
        to_parent = torch.cat([rotations, bones.unsqueeze(3)], 3)  # (B, K, 3, 4)
        transforms = functional.pad(to_parent, (0, 0, 0, 1, 0, 1)) + self.affine
        for ancestors in self.jumps.unbind():  # each doubles the length of the chains
            transforms = transforms.index_select(1, ancestors) @ transforms
        transforms = transforms[:, :count]  # (B, K, 4, 4) to world

        linear, positions = transforms[:, :, :3].permute(0, 2, 3, 1).split([3, 1], 2)
        shifts = positions - (linear * joints.mT.unsqueeze(1)).sum(2, keepdim=True)
        rest_to_world = torch.cat([linear, shifts], 2)  # (B, 3, 4, K)
        vertices = _Skinning.apply(shaped.view(batch, 3, self.skinning_weights.shape[1]),
                                   rest_to_world.contiguous(), self.skinning_weights)
        return vertices.transpose(1, 2), transforms

    def keypoints(self, output: BodyOutput) -> Tensor:
        """Joints and landmarks of posed bodies in the order of the smplx package.

        SMPL: (B, 45, 3), "smpl45" of JOINT_SETS. SMPL-X: (B, 76, 3), "smplx76".
        """
        if not self.surface_vertex_ids:
            raise ValueError(f"{self.name} has no landmarks on its surface: expected SMPL or "
                             "SMPL-X with the vertices of surface_vertex_ids")
        landmarks = [output.vertices[:, vertex] for vertex in self.surface_vertex_ids]
        return torch.cat([output.joints, torch.stack(landmarks, 1)], 1)

    def at_vertices(self, vertex_ids: Sequence[int]) -> BodyModel:
        """A copy of the body with only these vertices, in this order, and the same joints.

        For losses on keypoints: 21 vertices are much faster than 6,890. The copy has no faces, and
        its J_regressor and keypoint_regressor, which need all vertices, are None.
        """
        ids, count = [int(vertex) for vertex in vertex_ids], self.skinning_weights.shape[1]
        if not ids or min(ids) < 0 or max(ids) >= count:
            raise ValueError(f"expected vertices of {self.name}, 0 to {count - 1}, got {ids}")
        reduced = copy.deepcopy(self)
        reduced.template = self.v_template[ids].T.flatten()
        reduced.offsets = self.offsets.unflatten(1, (3, count))[:, :, ids].flatten(1)
        reduced.skinning_weights = self.skinning_weights[:, ids].contiguous()
        reduced.faces = self.faces[:0]
        reduced.J_regressor = reduced.keypoint_regressor = None
        reduced.tip_vertex_ids, surface = (), self.surface_vertex_ids
        reduced.surface_vertex_ids = tuple(map(ids.index, surface)) if set(surface) <= set(
            ids) else ()
        return reduced

    def for_keypoints(self) -> BodyModel:
        """A copy of the body with only the landmarks, which is all that `keypoints` needs."""
        return self.at_vertices(self.surface_vertex_ids)

    def rest_joints(self, betas: Tensor, expression: Tensor | None = None) -> Tensor:
        """Joints (B, K, 3) of the unposed shape; the root rotates about the first."""
        shape = self._shape(betas, expression)
        skeleton = torch.addmm(self.skeleton, shape, self.skeleton_basis)
        return skeleton.unflatten(1, (2, -1, 3))[:, 0]

    @property
    def v_template(self) -> Tensor:
        """The template's vertices (V, 3)."""
        return self.template.view(3, -1).T

    def rotations(self, pose: Tensor) -> Tensor:
        """Rotation matrices (B, K, 3, 3) of any pose that `forward` accepts."""
        joints, pose = len(self.parents), pose.to(self.offsets.dtype)
        if pose.shape[1:] not in [(joints, 3), (joints, 3, 3)]:
            raise ValueError(f"pose has shape {tuple(pose.shape)}, but {self.name} expects "
                             f"(B, {joints}, 3) or (B, {joints}, 3, 3)")
        return pose if pose.dim() == 4 else axis_angle_to_matrix(pose).to(pose)

    def _shape(self, betas: Tensor, expression: Tensor | None) -> Tensor:
        """The coefficients (B, S) of shape and expression, in the model's dtype."""
        if expression is None and self.num_expression:
            expression = betas.new_zeros(len(betas), self.num_expression)
        given = [("betas", betas, self.num_betas)]
        given += [("expression", expression, self.num_expression)] if expression is not None else []
        for name, tensor, size in given:
            if tensor.dim() != 2 or tensor.shape[1] != size:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, but {self.name} expects "
                                 f"(B, {size})")
        shape = betas if expression is None else torch.cat([betas, expression], 1)
        return shape.to(self.offsets.dtype)


def _tips(tips: str | Sequence[int]) -> tuple[int, ...]:
    if isinstance(tips, str) and tips not in TIP_VERTEX_IDS:
        raise ValueError(f"tips={tips!r}: expected one of {', '.join(TIP_VERTEX_IDS)}, or vertices")
    vertices = TIP_VERTEX_IDS[tips] if isinstance(tips, str) else tips
    return tuple(int(vertex) for vertex in vertices)


def _family(joint_count: int) -> str:
    """The family with this many joints, or ""."""
    return next((family for family, (joints, *_) in _FAMILIES.items()
                 if len(JOINT_SETS[joints]) == joint_count), "")


def _checked(arrays: dict, name: str) -> dict:
    """The arrays as float64 or int64; ValueError unless names, types, shapes and indices fit."""
    kinds = dict.fromkeys(("v_template", "shapedirs", "posedirs", "J_regressor", "weights"),
                          np.float64) | {"kintree_table": np.int64, "f": np.int64}
    missing = [key for key in kinds if key not in arrays]
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}, or has it as an expression that is "
                         "not evaluated: is it a MANO, SMPL or SMPL-X model?")
    arrays = arrays | {key: np.asarray(arrays[key]) for key in kinds}
    for key, kind in kinds.items():
        if arrays[key].dtype.kind not in "biuf":
            raise ValueError(f"{name}: {key} holds {arrays[key].dtype}, expected numbers")
        arrays[key] = arrays[key].astype(kind)
    vertices, joints = len(arrays["v_template"]), arrays["kintree_table"].shape[-1]
    expected = {"v_template": (vertices, 3), "posedirs": (vertices, 3, 9 * (joints - 1)),
                "shapedirs": (vertices, 3, arrays["shapedirs"].shape[-1]),
                "J_regressor": (joints, vertices), "weights": (vertices, joints),
                "kintree_table": (2, joints), "f": (len(arrays["f"]), 3)}
    for key, shape in expected.items():
        if arrays[key].shape != shape:
            raise ValueError(f"{name}: {key} has shape {arrays[key].shape}, expected {shape}")
    parents, faces = arrays["kintree_table"][0, 1:], arrays["f"]
    if ((parents < 0) | (parents >= np.arange(1, joints))).any():
        raise ValueError(f"{name}: kintree_table does not name an earlier joint as each parent")
    if ((faces < 0) | (faces >= vertices)).any():
        raise ValueError(f"{name}: f names vertices beyond the {vertices} of v_template")
    return arrays


def _shape_bases(shapedirs: np.ndarray, family: str, num_betas: int | None
                 ) -> tuple[np.ndarray, np.ndarray]:
    """The shape and the expression part of shapedirs (V, 3, components), at most 10 by default.

    In SMPL-X the expression follows 300 shape components, in its small files 10.
    """
    available = shapedirs.shape[2]
    if family == "smplx":
        available = 300 if available >= 400 else min(10, available)
    if not 0 <= (num_betas or 0) <= available:
        raise ValueError(f"num_betas={num_betas}, but the model has 0 to {available}")
    betas = min(10, available) if num_betas is None else num_betas
    return shapedirs[:, :, :betas], shapedirs[:, :, available:available + 10]


def _jumps(parents: Sequence[int]) -> np.ndarray:
    """Each joint's ancestor 1, 2, 4, 8, ... bones up (steps, K + 1); K means "none"."""
    none = len(parents)
    ancestors = np.array([none, *parents[1:], none])
    steps = []
    while (ancestors != none).any():
        steps.append(ancestors)
        ancestors = ancestors[ancestors]
    return np.array(steps, np.int64).reshape(-1, none + 1)


def _with_bones(joints: np.ndarray, parents: Sequence[int]) -> np.ndarray:
    """Joints (..., K, 3) and their offsets from their parents, as one row (..., 6K)."""
    bones = joints.copy()
    bones[..., 1:, :] -= joints[..., list(parents[1:]), :]
    return np.concatenate([joints, bones], -2).reshape(*joints.shape[:-2], 6 * len(parents))


def _affine(joints: int) -> np.ndarray:
    """What must be added to zero-padded 3x4 transforms: the last row, and entry K's identity."""
    ones = np.zeros((joints + 1, 4, 4))
    ones[:, 3, 3] = 1
    ones[joints] = np.eye(4)
    return ones


def find_model(folder: Path, family: str | None, side: str, gender: str) -> Path:
    """The model file with an official name in the folder or its usual sub-folders.

    Raises FileNotFoundError for none, and ValueError for several families or an unknown one.
    """
    if family is not None and family not in _FAMILIES:
        raise ValueError(f"family={family!r}: expected one of {', '.join(_FAMILIES)}")
    words = {"side": side.upper(), "gender": gender.upper(),
             "g": gender.lower() if gender.lower() == "neutral" else gender[:1].lower()}
    found, looked_for = {}, []
    for kind in [family] if family else _FAMILIES:
        for pattern in (name.format(**words) for name in _FAMILIES[kind][1]):
            looked_for.append(pattern)
            files = [file for place in (".", kind, "models") for suffix in (".npz", ".pkl")
                     for file in sorted((folder / place).glob(pattern + suffix))]
            if files:
                found.setdefault(kind, files[0])
    if not found:
        raise FileNotFoundError(f"no body model in {folder}: expected {', '.join(looked_for)} "
                                f"(.npz or .pkl) in it or in mano/, smpl/, smplx/, models/")
    if len(found) > 1:
        raise ValueError(f"{folder} holds {', '.join(found)}: choose one with family=...")
    return next(iter(found.values()))


def load_model(source: str | Path = "hand_right", *, family: str | None = None,
               side: str = "right", gender: str = "neutral", fix_left_shapedirs: bool = False,
               v_template: np.ndarray | None = None, **options) -> BodyModel:
    """Load a body model: a free one, a file, or one of a folder's.

    Args:
        source: "hand_right", "hand_left", "body" or "wholebody"; or an official MANO, SMPL or
            SMPL-X file (.npz, .pkl), of which nothing is executed; or a folder of such files.
        family, side, gender: which file of a folder; family is mano, smpl or smplx.
        fix_left_shapedirs: mirror x of MANO_LEFT's shape components, which the official file does
            not. InterHand2.6M's annotation needs this; DexYCB's was made without it.
        v_template: (V, 3) metres, a subject's own body at rest, instead of the file's.
        options: dtype; num_betas (default: at most 10); tips, a name of TIP_VERTEX_IDS or five
            vertices (default: the file's, else FreiHAND's).

    Raises FileNotFoundError, and ValueError for a file that is unsafe or not a body model.
    """
    name, path = str(source), Path(source)
    if source in FREE_MODELS:
        path = ASSETS / f"{source}.npz"
    elif path.is_dir():
        path = find_model(path, family, side, gender)
        name = path.stem
    elif not path.is_file():
        raise FileNotFoundError(f"{source} is not a file or folder, nor one of the free models "
                                f"{', '.join(FREE_MODELS)}; see sets/README.md for others")
    arrays, side = load_arrays(path), ""
    if _family(np.shape(arrays.get("weights", [[]]))[-1]) == "mano":
        side = str(arrays.get("side", "left" if "LEFT" in path.stem.upper() else "right"))
    if fix_left_shapedirs:
        if side != "left" or "side" in arrays:
            raise ValueError("fix_left_shapedirs is for the official MANO_LEFT file alone")
        arrays["shapedirs"] = arrays["shapedirs"] * np.array([-1, 1, 1])[:, None]
    if v_template is not None:
        arrays["v_template"] = np.asarray(v_template, np.float64)
    return BodyModel(arrays, name=name, side=side, **options)


def hand_vertex_ids(source: str | Path = "wholebody") -> dict[str, Tensor]:
    """The vertices of a body that are MANO's: {"left", "right"}, indices (778,) each.

    source: the free "body" or "wholebody", or the official file MANO_SMPLX_vertex_ids.pkl.
    """
    if source in FREE_MODELS:
        keys = {side: f"{source}_{side}" for side in ("left", "right")}
        path = ASSETS / "hand_vertex_ids.npz"
    else:
        keys, path = {"left": "left_hand", "right": "right_hand"}, Path(source)
    arrays = load_arrays(path)
    if not set(keys.values()) <= set(arrays):
        raise ValueError(f"{source} has no hands: expected body, wholebody or a file with "
                         "left_hand and right_hand, such as MANO_SMPLX_vertex_ids.pkl")
    return {side: torch.from_numpy(np.asarray(arrays[key]).astype(np.int64))
            for side, key in keys.items()}


# ------------------------------------------------------------------------------- rendering
# A z-buffer in numpy without a loop over triangles: every triangle becomes rows of pixels, every
# row becomes fragments (one triangle in one pixel), each as one flat array. Two triangles that
# share an edge compute the same crossing of a row with it, so meshes have no holes.


BLUE = (0.45, 0.65, 0.9)  # of meshes: neither skin nor clothes (our choice)
AMBIENT, HEADLIGHT = 0.18, 0.2  # shares of the light: from everywhere, from the camera
NEAR = 1e-6  # metres in front of the camera that a face must keep to be drawn
_BAND_SAMPLES = 2**20  # of a picture that `render` draws at a time, so that it needs little memory


class Rendered(NamedTuple):
    """A picture of a mesh."""

    image: np.ndarray  # (h, w, 3) float32 RGB, 0..1
    mask: np.ndarray  # (h, w) float32, the part of the pixel that the mesh covers, 0..1


class _Triangles(NamedTuple):
    """The F triangles that can be seen; columns of one array belong to one triangle."""

    face: np.ndarray  # (F,) its number in the mesh
    x: np.ndarray  # (3, F) its corners, pixels
    y: np.ndarray  # (3, F)
    inverse: np.ndarray  # (3, F) 1 / z of the corners
    grow_x: np.ndarray  # (2, F) how the weights of corners 1 and 2 grow along x
    grow_y: np.ndarray  # (2, F) and along y


def _triangles(vertices, faces) -> _Triangles:
    """Triangles beyond NEAR that have an area, of vertices (V, 3) [pixel x, y, depth]."""
    vertices, faces = check_mesh(single(vertices), faces)
    x, y, z = vertices.astype(np.float64).T[:, faces.T]  # (3 corners, F) each
    area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
    kept = np.flatnonzero((z > NEAR).all(0) & (area != 0))
    x, y, inverse, area = x[:, kept], y[:, kept], 1 / z[:, kept], area[kept]
    grow_x = np.stack([y[2] - y[0], y[0] - y[1]]) / area
    grow_y = np.stack([x[0] - x[2], x[1] - x[0]]) / area
    return _Triangles(kept, x, y, inverse, grow_x, grow_y)


def _centers_between(low: np.ndarray, high: np.ndarray, pixels: range):
    """First and end of the pixels whose centre, at + 0.5, is in [low, high]."""
    first, end = np.ceil(low - 0.5), np.floor(high - 0.5) + 1
    return (each.clip(pixels.start, pixels.stop).astype(np.int64) for each in (first, end))


def _pixel_rows(triangles: _Triangles, rows: range):
    """Triangles cut into rows of pixels: each row's triangle, number, left and right end."""
    order = triangles.y.argsort(0)  # of the corners, from top to bottom
    x, y = (np.take_along_axis(corners, order, 0) for corners in (triangles.x, triangles.y))
    first, end = _centers_between(y[0], y[2], rows)
    count = end - first
    owner = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(owner)) + np.repeat(first - count.cumsum() + count, count)
    starts, ends = [0, 0, 1], [2, 1, 2]  # top to bottom, top to middle, middle to bottom
    edges = np.stack([x[starts], y[starts], x[ends] - x[starts], y[ends] - y[starts]])
    above = (row + 0.5 < y[1, owner]) | (y[1] == y[2])[owner]  # the edge crossed is not horizontal

    def crossing(edge) -> np.ndarray:
        x, y, step_x, step_y = edges[:, edge, owner]
        return x + (row + 0.5 - y) * step_x / step_y  # multiplied first: exact on pixel centres

    short, long = crossing(np.where(above, 1, 2)), crossing(0)
    return owner, row, np.minimum(short, long), np.maximum(short, long)


def _fragments(triangles: _Triangles, rows: range, width: int
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fragments in some rows: their pixel, row by row, 1 / z as float32, and triangle."""
    owner, row, left, right = _pixel_rows(triangles, rows)
    first, end = _centers_between(left, right, range(width))
    inverse = triangles.inverse
    rise_x, rise_y = (((inverse[1:] - inverse[0]) * grow).sum(0)  # how 1 / z grows along x and y
                      for grow in (triangles.grow_x, triangles.grow_y))
    offset_y = row + 0.5 - triangles.y[0, owner]
    low, high = inverse.min(0)[owner], inverse.max(0)[owner]
    begin, last = (
        (inverse[0, owner] + rise_y[owner] * offset_y
         + rise_x[owner] * (column + 0.5 - triangles.x[0, owner])
         ).clip(low, high) for column in (first, end - 1))  # slivers: large rounding errors
    count = end - first
    step = (last - begin) / np.maximum(count - 1, 1)
    before = count.cumsum() - count  # fragment i is i - before of its row
    fragment = np.arange(count.sum())
    pixel = fragment + np.repeat((row - rows.start) * width + first - before, count)
    nearness = np.repeat(begin - step * before, count) + np.repeat(step, count) * fragment
    return pixel, nearness.astype(np.float32), np.repeat(owner, count)


def _nearest(pixel: np.ndarray, inverse: np.ndarray, count: int) -> np.ndarray:
    """Index of the nearest fragment of each covered pixel; ties go to the first."""
    winner = np.full(count, -1)
    rival, rival_inverse = np.arange(len(pixel))[::-1], inverse[::-1]
    pixel = pixel[::-1]
    while len(rival):  # at most once for each surface behind another
        winner[pixel] = rival  # of several in one pixel the last written stays
        nearer = rival_inverse > inverse[winner[pixel]]
        pixel, rival, rival_inverse = pixel[nearer], rival[nearer], rival_inverse[nearer]
    return winner[winner >= 0]


def _draw(triangles: _Triangles, rows: range, width: int
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is seen in some rows of a picture: as `rasterize`."""
    size = len(rows), width
    face_ids, depth = np.full(size, -1, np.int32), np.full(size, np.inf, np.float32)
    barycentric = np.zeros((*size, 3), np.float32)
    pixel, nearness, triangle = _fragments(triangles, rows, width)
    seen = _nearest(pixel, nearness, depth.size)
    pixel, triangle = pixel[seen], triangle[seen]
    row, column = np.divmod(pixel, width)
    offset_x = column + 0.5 - triangles.x[0, triangle]
    offset_y = row + rows.start + 0.5 - triangles.y[0, triangle]
    second, third = (triangles.grow_x[:, triangle] * offset_x
                     + triangles.grow_y[:, triangle] * offset_y)
    weights = np.stack([1 - second - third, second, third]).clip(0) * triangles.inverse[:, triangle]
    face_ids[row, column] = triangles.face[triangle]
    barycentric[row, column] = (weights / weights.sum(0)).T
    depth[row, column] = 1 / nearness[seen]
    return face_ids, barycentric, depth


def rasterize(vertices, faces, size: tuple[int, int]):
    """Find the triangle that is seen in every pixel.

    Args: vertices (V, 3), x and y in pixels and depth z; faces (F, 3); size (height, width).
    Triangles that reach z <= NEAR are dropped, also those without area. Both sides are seen.
    Returns: face_ids (h, w) int32, -1 for background; barycentric (h, w, 3) float32, correct in
    perspective, so that they interpolate what is linear on the surface; depth (h, w) float32,
    inf for background. A pixel shows what covers its centre, nearest first, then lowest face.
    Raises ValueError for what is not a triangle mesh.
    """
    return _draw(_triangles(vertices, faces), range(size[0]), size[1])


def _canvas(background, size: tuple[int, int]) -> np.ndarray:
    """The picture (h, w, 3) to draw on: an image, a plain colour, or white."""
    background = np.asarray(1.0 if background is None else to_numpy(background))
    if background.shape not in [(), (3,), (*size, 3)]:
        raise ValueError(f"background must be a colour (3,) or an image {(*size, 3)} in 0..1, "
                         f"got shape {background.shape}")
    colors = np.float32(background) / (255 if background.dtype == np.uint8 else 1)
    return np.broadcast_to(colors, (*size, 3))


def _mean_of_samples(image: np.ndarray, factor: int) -> np.ndarray:
    """(h * factor, w * factor, ...) -> (h, w, ...): the mean of the samples of each pixel."""
    return np.stack([image[row::factor, column::factor]
                     for row in range(factor) for column in range(factor)]).mean(0)


def _unit_rows(vectors: np.ndarray) -> np.ndarray:
    squared = np.einsum("...i,...i->...", vectors, vectors)[..., None]
    return vectors / np.sqrt(np.maximum(squared, 1e-24))


def render(vertices, faces, K, size: tuple[int, int], *, colors=BLUE, opacity: float = 1.0,
           background=None, supersample: int = 1) -> Rendered:
    """Render a shaded picture of a mesh as the pinhole camera K sees it.

    Args: vertices (V, 3) metres, OpenCV camera frame; faces (F, 3), counter-clockwise seen from
    outside; K (3, 3) pixels; size (height, width). Arrays or tensors. colors 0..1, (3,) or one
    per vertex (V, 3); opacity of the mesh, 0..1; background a colour (3,) or an image (h, w, 3),
    0..1 or uint8, white by default; supersample the samples along each side of a pixel. Faces that
    reach behind the camera are not drawn; both sides of the others are.
    Raises ValueError for what is not a triangle mesh, or another background.
    """
    vertices, faces = check_mesh(vertices, faces)
    colors, canvas = vertex_colors(colors, len(vertices)), _canvas(background, size)
    at_vertices = np.concatenate([vertex_normals(vertices, faces), colors, vertices], 1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        pixels = supersample * project(vertices, to_numpy(K))
    pixels = np.where(vertices[:, 2:] > NEAR, pixels, 0)  # behind the camera: not drawn
    triangles = _triangles(np.concatenate([pixels, vertices[:, 2:]], 1), faces)
    x, y = pixels.T[:, faces.T]
    inside_out = (x[1] - x[0]) * (y[2] - y[0]) > (x[2] - x[0]) * (y[1] - y[0])

    def shade(seen: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Colours (N, 3) of points on the faces `seen` (N,) with barycentric weights (N, 3)."""
        at_pixels = sum(weights[:, corner, None] * at_vertices.take(faces[:, corner].take(seen), 0)
                        for corner in range(3))
        normal, color, position = np.split(at_pixels, 3, 1)
        normal = _unit_rows(np.where(inside_out[seen, None], -normal, normal))
        toward_light = normal @ _unit_rows(np.asarray((-0.5, -0.8, -0.8), normal.dtype))
        toward_camera = -np.einsum("ni,ni->n", normal, _unit_rows(position))
        brightness = (AMBIENT + (1 - AMBIENT - HEADLIGHT) * toward_light.clip(0)
                      + HEADLIGHT * toward_camera.clip(0))
        return color * np.sqrt(brightness)[:, None]  # colours have gamma 2

    result = Rendered(np.empty((*size, 3), np.float32), np.empty(size, np.float32))
    height = max(1, _BAND_SAMPLES // max(1, size[1] * supersample**2))
    for top in range(0, size[0], height):
        band = slice(top, top + height)
        rows = range(supersample * top, supersample * min(top + height, size[0]))
        face_ids, weights, _ = _draw(triangles, rows, supersample * size[1])
        seen, image = face_ids >= 0, np.zeros_like(weights)
        image[seen] = shade(face_ids[seen], weights[seen])
        image, mask = (_mean_of_samples(samples, supersample)
                       for samples in (image, seen.astype(np.float32)))
        image += canvas[band] * (1 - mask[..., None])
        if opacity < 1:
            image = opacity * image + (1 - opacity) * canvas[band]
        result.image[band], result.mask[band] = image.clip(0, 1), mask
    return result

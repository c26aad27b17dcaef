"""HMR-Adapter on a picture: from a person's box, or a hand's, to a mesh before your camera."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hmr_adapter import (
    JAW,
    LEFT_FINGERS,
    RIGHT_FINGERS,
    BodyAdapter,
    HandAdapter,
    HMRAdapter,
    hand_squares,
    hand_translation,
    matrix_to_axis_angle,
    mirror,
    require,
    sample_squares,
)


def smplx_parameters(body_pose: Tensor, hand_mean: Tensor | None = None) -> dict[str, Tensor]:
    """Convert rotations (B, 55, 3, 3) to the axis-angles that smplx.SMPLX takes, by their names.

    hand_mean: (2, 15, 3), hands_meanr and hands_meanl of the model file, for layers made with
    flat_hand_mean=False, smplx's default; None: for flat_hand_mean=True.
    """
    pose = matrix_to_axis_angle(body_pose)  # (B, 55, 3)
    if hand_mean is not None:
        right, left = hand_mean.to(pose)
        pose[:, RIGHT_FINGERS] -= right
        pose[:, LEFT_FINGERS] -= left
    parts = {"global_orient": slice(0, 1), "body_pose": slice(1, 22), "jaw_pose": JAW,
             "leye_pose": slice(23, 24), "reye_pose": slice(24, 25),
             "left_hand_pose": LEFT_FINGERS, "right_hand_pose": RIGHT_FINGERS}
    return {name: pose[:, part].flatten(1) for name, part in parts.items()}


def in_picture(boxes: Tensor, width: int, height: int) -> Tensor:
    """Say which boxes (B, 2, 4), x, y, width, height, have their centre in a picture: (B, 2)."""
    centers = boxes[..., :2] + boxes[..., 2:] / 2
    return ((centers >= 0) & (centers < centers.new_tensor([width, height]))).all(-1)


def square_of(model: nn.Module, image: np.ndarray, box: Sequence[float] | None,
              margin: float) -> tuple[np.ndarray, float]:
    """Return centre (2,) and side, in pixels, of the square of a picture that the model is to see.

    box: x, y, width, height in pixels, grown to 3:4 and by the margin; None: the whole picture,
    grown only to 3:4. Raises ValueError for a box outside the picture, with a side below 1 px or
    above ten times the picture's, for no picture, and for a model in training mode.
    """
    require(not model.training, "the model is in training mode: call model.eval() first")
    require(image.ndim == 3 and image.shape[2] == 3 and image.size and image.dtype == np.uint8,
            f"image {image.shape} of {image.dtype}: expected (H, W, 3) uint8 RGB")
    height, width = image.shape[:2]
    if box is None:
        return np.array([width, height]) / 2, max(height, width * 4 / 3)
    box, most = np.asarray(box, np.float64), 10 * max(width, height)
    require(box.shape == (4,) and np.isfinite(box).all()
            and 1 <= min(box[2:]) and max(box[2:]) <= most
            and max(box[:2] - (width, height)) < 0 < min(box[:2] + box[2:]),
            f"box {box.tolist()}: expected x,y,width,height on the {width} x {height} picture, "
            f"with sides from 1 px to {most} px")
    return box[:2] + box[2:] / 2, margin * max(box[3], box[2] * 4 / 3)


def cut_square(model: nn.Module, image: np.ndarray, center: np.ndarray, side: float, size: int,
               mirrored: bool = False) -> Tensor:
    """Crop a square (1, 3, size, size) of a picture (H, W, 3), on the model's device."""
    edge = np.array(image.shape[1::-1])
    low = np.clip(np.floor(center - side / 2) - 1, 0, edge - 1).astype(int)
    high = np.clip(np.ceil(center + side / 2) + 1, 1, edge).astype(int)
    image = image[low[1] : high[1], low[0] : high[0]]  # the rest of a huge picture costs nothing
    parameter = next(model.parameters())
    pixels = torch.tensor(np.ascontiguousarray(image.transpose(2, 0, 1)[None])).to(parameter)
    return sample_squares(pixels, torch.tensor((center - low)[None]).to(parameter),
                          parameter.new_tensor([side]), size, mirrored)


def to_arrays(tensors: Mapping[str, Tensor], center: np.ndarray, side: float,
              focal: float) -> dict[str, np.ndarray]:
    """Convert a batch of one to float32 arrays, with the K and the box of its square crop."""
    require(all(value.isfinite().all() for value in tensors.values()),
            "the network's output is not finite: its weights are damaged, or training diverged")
    arrays = {name: value[0].float().cpu().numpy() for name, value in tensors.items()}
    f, (x, y) = focal * side, center
    return arrays | {"K": np.array([[f, 0, x], [0, f, y], [0, 0, 1]], np.float32),
                     "box": np.array([*(center - side / 2), side, side], np.float32)}


def before_camera(arrays: dict[str, np.ndarray], K: np.ndarray | None) -> dict[str, np.ndarray]:
    """Move arrays of `to_arrays` from their K to yours: the origin of the mesh keeps its pixel.

    Its distance grows with the focal length (our choice).
    """
    if K is None:
        return arrays
    K, old, start = np.asarray(K, np.float64), arrays["K"], arrays["transl"]
    require(K.shape == (3, 3) and np.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0,
            f"K {K.tolist()}: expected the (3, 3) intrinsics in pixels")
    shift = np.linalg.inv(K) @ old @ start * (K[0, 0] / old[0, 0]) - start
    return arrays | {name: np.float32(arrays[name] + shift) for name in (
        "vertices", "joints", "transl")} | {"K": np.float32(K)}


@torch.inference_mode()
def predict(model: HMRAdapter | BodyAdapter, image: np.ndarray, body: Callable, *,
            box: Sequence[float] | None = None, hand_boxes: np.ndarray | None = None,
            K: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Predict the SMPL-X mesh of one person in a picture, in camera coordinates.

    model: both paths, or the body path alone. image: (H, W, 3) uint8 RGB. body: a whole-body model
    on the CPU; body(betas, rotations, expression, transl) returns vertices and joints, as
    bodymodels.load_model("wholebody") does. box: see square_of; grown by a quarter (SMPLer-X).
    hand_boxes: (2, 4) tight x, y, width, height in pixels of the right and left hand, in place of
    the predicted ones; NaN where unknown. K: (3, 3) of the picture, see before_camera. Hands are
    cut out of the picture, where they have more pixels than in the person's crop. A hand whose
    predicted box has its centre outside the picture keeps the body path's pose (our choice).
    Returns float32 arrays: vertices (V, 3), joints (K, 3), metres; K (3, 3), the camera's
    intrinsics, whose axis goes through the centre of the box; transl (3,); rotations (55, 3, 3);
    betas, expression (10,); smplx_parameters, fingers absolute; keypoints_2d (25, 2), POSITIONED
    joints as the body expert sees them, and hand_boxes (2, 4), x, y, width, height, [right, left],
    in pixels; hand_inside (2,), 1 for boxes with their centre in the picture, and hand_valid (2,),
    1 for hands of the hand path; box, the person's square. Raises ValueError for bad input.
    """
    center, side = square_of(model, image, box, 1.25)
    path = getattr(model, "body", model)
    expert = path.config.expert
    prediction = path(cut_square(path, image, center, side, expert.image_size))
    at = torch.tensor(center).to(prediction["hand_boxes"])
    boxes, tight = (prediction[f"{kind}_boxes"] * (side / expert.image_size)  # (1, 2, 4) each
                    for kind in ("hand", "tight"))
    for each in (boxes, tight):
        each[..., :2] += at - side / 2  # pixels of the picture
        if hand_boxes is not None:
            given = each.new_tensor(hand_boxes)
            each[:] = torch.where(given.isfinite(), given, each)
    inside = in_picture(boxes, *image.shape[1::-1])
    valid = torch.zeros_like(inside)
    if path is not model:  # both paths
        middles, sides = (part[0].double().cpu().numpy() for part in hand_squares(tight))
        crops = [cut_square(path, image, middles[hand], sides[hand],
                            model.hand.config.expert.image_size, hand == 1) for hand in range(2)]
        prediction = model.join(prediction, torch.stack(crops, 1), inside)
        valid = prediction["hand_valid"]

    rows, columns = expert.grid
    cells = prediction["joints"][..., :2] - at.new_tensor([columns, rows]) / 2  # from the centre
    names = ("betas", "body_pose", "expression", "translation")
    found = {name: prediction[name].float().cpu() for name in names}
    mesh = body(*found.values())
    return before_camera(to_arrays({
        "vertices": mesh.vertices, "joints": mesh.joints, "transl": found["translation"],
        "rotations": found["body_pose"], "betas": found["betas"], "expression": found["expression"],
        "keypoints_2d": at + cells * (side / rows), "hand_boxes": boxes,
        "hand_inside": inside, "hand_valid": valid,
    } | smplx_parameters(found["body_pose"]), center, side, expert.focal), K)


@torch.inference_mode()
def predict_hand(model: HandAdapter, image: np.ndarray, hand: Callable, *,
                 box: Sequence[float] | None = None, side: str = "right",
                 K: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Predict the MANO mesh of one hand in a picture, in camera coordinates; its arm is unknown.

    hand: a right hand's model on the CPU. box: x, y, width, height in pixels, grown to 3:4 and
    twice as large (HaMeR); None: the whole picture. side: a "left" hand is mirrored for the
    network, and its mesh back. K: see before_camera. Returns float32 arrays as predict's vertices,
    joints, transl, rotations (16, 3, 3), K and box; and betas, of a right hand.
    """
    center, length = square_of(model, image, box, 2.0)
    expert, left = model.config.expert, side == "left"
    crop = cut_square(model, image, center, length, expert.image_size, left)
    prediction = {name: value.float().cpu() for name, value in model(crop).items()}
    transl = hand_translation(prediction["camera"], expert.focal)
    betas, pose = prediction["betas"], prediction["hand_pose"]
    posed, sign = hand(betas, pose, transl=transl), transl.new_tensor([-1 if left else 1, 1, 1])
    return before_camera(to_arrays({
        "vertices": sign * posed.vertices, "joints": sign * posed.joints, "transl": sign * transl,
        "rotations": mirror(pose) if left else pose, "betas": betas,
    }, center, length, expert.focal), K)

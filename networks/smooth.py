"""Smooth hands or people over the frames of a video: rotations, translations, one shape (ours).

Both filters run forward and backward in time, so that their lags cancel. Positions go through a
Butterworth filter. Rotations go through the One Euro Filter (Casiez, Roussel, Vogel, CHI 2012),
which follows joints that move fast and holds those that rest; it lags in the first and last frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from scipy.signal import butter, detrend, sosfiltfilt

from hmr_adapter import mirror

Arrays = dict[str, np.ndarray]

# Cutoffs in Hz: of positions; of rotations at rest, what one rad/s adds to it, and of the speed
# (our choices; positions: least error for noisy recordings of 20 movements)
POSITION, REST, SLOPE, SPEED = 3.0, 1.0, 1.0, 1.0
GAP = 10  # frames without a person after which somebody new begins (our choice)
LEAST_OVERLAP = 0.3  # of the boxes of one person in two frames, intersection over union (ours)


def smooth_positions(values: np.ndarray, frames: Sequence[int], rate: float) -> np.ndarray:
    """Smooth positions (T, N, D) in frames (T,) of a video; between them the body moves evenly.

    rate: frames a second.
    """
    if len(values) == 1:
        return values
    every = make_interp_spline(frames, values, k=1)(np.arange(frames[0], frames[-1] + 1))
    sections = butter(2, min(POSITION, 0.45 * rate), fs=rate, output="sos")
    bends = detrend(every, axis=0)  # from a straight line, which the filter would bend at its ends
    smooth = sosfiltfilt(sections, bends, axis=0, padlen=min(len(bends) - 1, math.ceil(rate)))
    return (every - bends + smooth)[np.subtract(frames, frames[0])]


def smooth_rotations(values: np.ndarray, frames: Sequence[int], rate: float) -> np.ndarray:
    """Smooth rotation matrices (T, N, 3, 3): their entries, then the nearest rotation."""
    entries, times = values.reshape(*values.shape[:2], 9), np.asarray(frames) / rate
    backward = one_euro(entries[::-1], -times[::-1])[::-1]
    mean = (one_euro(entries, times) + backward).reshape(values.shape) / 2
    left, _, right = np.linalg.svd(mean)
    left[..., 2] *= np.linalg.det(left @ right)[..., None]
    return left @ right


def one_euro(values: np.ndarray, times: Sequence[float]) -> np.ndarray:
    """Smooth entries of rotations (T, N, 9) at times (T,) in seconds, each with its own cutoff."""
    def share(cutoff: np.ndarray | float, step: float) -> np.ndarray | float:
        return 1 / (1 + 1 / (2 * math.pi * cutoff * step))

    smooth, speed = [values[0]], np.zeros_like(values[0])
    for step, before, now in zip(np.diff(times), values[:-1], values[1:], strict=True):
        speed = speed + share(SPEED, step) * ((now - before) / step - speed)
        angular = np.linalg.norm(speed, axis=-1, keepdims=True) / math.sqrt(2)  # rad/s
        smooth.append(smooth[-1] + share(REST + SLOPE * angular, step) * (now - smooth[-1]))
    return np.stack(smooth)


def smooth_track(track: Sequence[Arrays], frames: Sequence[int], rate: float,
                 pose: Callable[[Arrays], Arrays] | None) -> list[Arrays]:
    """Smooth the arrays of one hand or person, as `predict` returns them with a common K.

    pose: computes the mesh of arrays with a new pose, betas and transl. None, for hands of a
    network that returns no pose: their vertices and joints are smoothed around the root.
    """
    def over_time(name: str) -> np.ndarray:
        return np.stack([arrays[name] for arrays in track]).astype(np.float64)

    if pose is None:
        root = over_time("root")[:, None]
        still = smooth_positions(root, frames, rate)
        new = {name: still + smooth_positions(over_time(name) - root, frames, rate)
               for name in ("vertices", "joints")} | {"root": still[:, 0]}
    else:
        rotations = "pose" if "pose" in track[0] else "rotations"
        new = {rotations: smooth_rotations(over_time(rotations), frames, rate),
               "transl": smooth_positions(over_time("transl")[:, None], frames, rate)[:, 0],
               "betas": np.repeat(over_time("betas").mean(0)[None], len(track), 0)}
    smooth = [arrays | {name: np.float32(value[number]) for name, value in new.items()}
              for number, arrays in enumerate(track)]
    return smooth if pose is None else list(map(pose, smooth))


def pose_hand(hand: Callable, arrays: Arrays) -> Arrays:
    """Compute the mesh of a left or right hand from hmr_adapter's betas, rotations and transl.

    hand: a right hand's model on the CPU.
    """
    betas, turns, transl = (torch.tensor(arrays[name])[None]
                            for name in ("betas", "rotations", "transl"))
    sign = torch.tensor([1.0 if arrays["side"] else -1.0, 1, 1])
    posed = hand(betas, turns if arrays["side"] else mirror(turns), transl=sign * transl)
    new = {name: (sign * getattr(posed, name))[0].numpy() for name in ("vertices", "joints")}
    return arrays | new | {"root": new["joints"][0]}


def follow(frames: Sequence[Sequence[Arrays]]) -> list[list[tuple[int, int]]]:
    """Return the tracks of hands or people: (frame, number in the frame) of each one, in order.

    Each result joins the track whose last box overlaps its own most, of a hand of its side.
    """
    tracks: list[list[tuple[int, int]]] = []
    for frame, results in enumerate(frames):
        pairs = [(overlap(frames[last[0]][last[1]]["box"], result["box"]), number, track)
                 for number, result in enumerate(results) for track in tracks
                 if frame - (last := track[-1])[0] <= GAP
                 and frames[last[0]][last[1]].get("side", 0) == result.get("side", 0)]
        known: set[int] = set()
        for share, number, track in sorted(pairs, key=lambda pair: -pair[0]):
            if share >= LEAST_OVERLAP and number not in known and track[-1][0] < frame:
                track.append((frame, number))
                known.add(number)
        tracks += [[(frame, number)] for number in range(len(results)) if number not in known]
    return tracks


def overlap(first: Sequence[float], second: Sequence[float], smaller: bool = False) -> float:
    """Intersection over union of two boxes x, y, width, height, or over the smaller box."""
    (x, y, w, h), (u, v, s, t) = first, second
    common = max(min(x + w, u + s) - max(x, u), 0) * max(min(y + h, v + t) - max(y, v), 0)
    return common / (min(w * h, s * t) if smaller else w * h + s * t - common)


def smooth_video(frames: Sequence[Sequence[Arrays]], rate: float,
                 pose: Callable[[Arrays], Arrays] | None) -> list[list[Arrays]]:
    """Smooth all hands or people of the frames of a video, `rate` a second; see smooth_track."""
    smooth = [list(results) for results in frames]
    for track in follow(frames):
        arrays = smooth_track([frames[frame][number] for frame, number in track],
                              [frame for frame, _ in track], rate, pose)
        for (frame, number), one in zip(track, arrays, strict=True):
            smooth[frame][number] = one
    return smooth

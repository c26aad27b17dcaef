"""Official body models behind data sets, loaded once in a process."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

import bodymodels
from files import load_arrays, load_vertices


@lru_cache(maxsize=16)
def official_body(folder: Path, template: bytes | None, keypoints_only: bool, **options
                  ) -> bodymodels.BodyModel:
    """Load a model from a folder, with options for `bodymodels.load_model`.

    template: other vertices of the resting body, from `template_bytes`. keypoints_only: leave out
    all vertices that joints and keypoints do not need.
    """
    if keypoints_only:
        return official_body(folder, template, False, **options).for_keypoints()
    own = {} if template is None else {
        "v_template": np.frombuffer(template, np.float32).reshape(-1, 3)}
    return bodymodels.load_model(folder, **options, **own)


@lru_cache(maxsize=64)
def template_bytes(path: Path, modified: int) -> bytes:
    """Return the vertices of a mesh file as float32; `modified`, its time, only keys the cache."""
    return load_vertices(path).tobytes()


@lru_cache(maxsize=16)
def hand_space(folder: Path, family: str, side: str, gender: str
               ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return mean pose (45,) and principal components (45, 45) of a model's hand.

    SMPL-X has two hands, left then right; MANO has one.
    """
    arrays = load_arrays(bodymodels.find_model(folder, family, side, gender), "hands_")
    ends = ("",) if family == "mano" else ("l", "r")
    return [(np.reshape(arrays[f"hands_mean{end}"], 45), arrays[f"hands_components{end}"])
            for end in ends]

"""Draw how GenHMR arrives at a pose: masks, confidences, and the mesh after each step."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

import bodymodels

SIDE = 256  # pixels of a panel
MOST = 6  # panels of a row


def draw_sampling(prediction: Mapping[str, np.ndarray], image: np.ndarray,
                  body: bodymodels.BodyModel, crop: Callable) -> bytes:
    """Draw the sampling and the refinement of a picture: Figures 5, 6, 4 and 11 of GenHMR, a PNG.

    prediction: of genhmr.predict on `image`, (H, W, 3) uint8, with `body`. crop: genhmr's
    crop_picture. Rows: which tokens are masked and how confident each is, iteration by iteration;
    the mesh after each iteration; with keypoints, the mesh after each step of refinement.
    """
    x, y, side, _ = prediction["box"].astype(float)
    background = crop(image, np.array([x, y]) + side / 2, side, SIDE).permute(1, 2, 0).numpy()
    K = np.diag([SIDE / side, SIDE / side, 1]) @ (prediction["K"] - [[0, 0, x], [0, 0, y], [0] * 3])

    def meshes(poses: np.ndarray) -> list[np.ndarray]:
        """Render poses (P, 24, 3, 3) over the crop."""
        betas = torch.from_numpy(prediction["betas"]).to(body.template).expand(len(poses), -1)
        posed = body(betas, torch.from_numpy(poses).to(betas)).vertices.cpu().numpy()
        return [bodymodels.render(vertices, body.faces, K, (SIDE, SIDE), supersample=2,
                                  background=background / np.float32(255)).image
                for vertices in posed + prediction["transl"]]

    iterations = evenly(len(prediction["poses"]))
    rows = [(meshes(prediction["poses"][iterations]),
             [f"iteration {index + 1}" for index in iterations])]
    if len(prediction["energies"]) > 1:
        steps = evenly(len(prediction["energies"]))
        rows.append((meshes(prediction["refined_poses"][steps]),
                     [f"refined, {index} steps" for index in steps]))

    columns = max(len(titles) for _, titles in rows)
    figure = Figure(figsize=(max(2.2 * columns, 10), 2.6 * (1 + len(rows))), layout="constrained")
    top, *others = figure.subfigures(1 + len(rows), 1)
    left, right = top.subplots(1, 2)
    draw_masks(left, prediction["masks"])
    top.colorbar(draw_confidences(right, prediction["confidences"]), ax=right)
    for part, (pictures, titles) in zip(others, rows, strict=True):
        panels = part.subplots(1, columns, squeeze=False)[0]
        for panel in panels:
            panel.axis("off")
        for panel, picture, title in zip(panels, pictures, titles, strict=False):
            panel.imshow(picture)
            panel.set_title(title)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def evenly(count: int) -> np.ndarray:
    """At most MOST evenly spaced indices of `count`, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST)).round().astype(int))


def draw_masks(axes, masks: np.ndarray) -> AxesImage:
    """Draw which tokens are masked before and after each iteration, (T + 1, L) bool (Fig. 5)."""
    axes.set(title="masked tokens (black) after each iteration", xlabel="token", ylabel="iteration")
    axes.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return axes.imshow(masks, cmap=ListedColormap(["orange", "black"]), vmin=0, vmax=1,
                       aspect="auto", interpolation="nearest")


def draw_confidences(axes, confidences: np.ndarray) -> AxesImage:
    """Draw the confidence of each token in each iteration, (T, L) (Fig. 6)."""
    count, length = confidences.shape
    axes.set(title="confidence of each iteration", xlabel="token", ylabel="iteration")
    axes.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return axes.imshow(confidences, vmin=0, vmax=1, aspect="auto", interpolation="nearest",
                       extent=(-0.5, length - 0.5, count + 0.5, 0.5))

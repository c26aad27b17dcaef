"""GenHMR's Figures 4, 5, 6, 7 and 11, and two of ours: sampling and refinement, iterations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import bodymodels
import genhmr
from tasks.base import Predictions, save_figure
from tasks.bodies import BodyTask

ITERATIONS = 10  # T of Figures 5 and 6
COUNTS = (1, 2, 5, 10, 20)  # T of the figure about iterations
TOLD = (10, 25, 50, 90)  # % of the true tokens that its oracles tell
ZOOM = 3  # of crops, in drawings


def draw(name: str, task: BodyTask, predictions: Predictions, pictures: Sequence[int],
         path: Path) -> None:
    """Write a figure of some pictures of the test split; without a choice, of telling ones."""
    if not pictures:
        pictures = telling(predictions, {"11": 6, "sampling": 2}.get(name, 3))
    if max(pictures) >= len(predictions.index) or min(pictures) < 0:
        raise ValueError(f"--pictures {','.join(map(str, pictures))}: the test split has "
                         f"{len(predictions.index)}, from 0 on")
    draw_one = draw_tokens if name in ("5", "6") else draw_meshes
    draw_one(name, task, predictions, pictures, path)


def telling(predictions: Predictions, count: int) -> list[int]:
    """Choose pictures from the best to the worst, evenly spaced in rank.

    Best: the last predictor's gain over the first one in MPJPE; with one predictor its MPJPE.
    """
    errors = [rows["MPJPE"] for rows in predictions.errors.values()]
    badness = errors[-1] - errors[0] if len(errors) > 1 else errors[0]
    order = np.argsort(badness, kind="stable")
    ranks = np.linspace(0, len(order) - 1, min(count, len(order)))
    return order[ranks.round().astype(int)].tolist()


def draw_tokens(name: str, task: BodyTask, predictions: Predictions, pictures: Sequence[int],
                path: Path) -> None:
    """Figure 5 or 6: a picture, its mesh, and the masks or confidences of all tokens."""
    figure = Figure(figsize=(10, 2.2 * len(pictures)), layout="constrained")
    panels = figure.subplots(len(pictures), 3, squeeze=False, width_ratios=(1, 1, 4))
    for (photo, mesh, trace), index in zip(panels, pictures, strict=True):
        found, error = predictions.first, predictions.errors["UGS"]["MPJPE"][index]
        show(photo, picture(task, index), f"picture {index}")
        show(mesh, overlay(task, predictions, "UGS", index), f"MPJPE {error:.0f} mm")
        tokens = found["masks"].shape[2]
        area = dict(aspect="auto", interpolation="nearest",
                    extent=(-0.5, tokens - 0.5, ITERATIONS + 0.5, 0.5))
        if name == "5":
            trace.imshow(~found["masks"][index], cmap="inferno", vmin=0, vmax=1.3, **area)
            title = "after each iteration: masked tokens black, kept ones orange"
        else:
            shown = trace.imshow(found["confidences"][index], vmin=0, vmax=1, **area)
            title = "confidence of each token when it was chosen last"
            figure.colorbar(shown, ax=trace)
        trace.set(title=title if index == pictures[0] else "", xlabel="token", ylabel="iteration",
                  yticks=range(1, ITERATIONS + 1, 3))
    save_figure(figure, path)


def draw_meshes(figure_name: str, task: BodyTask, predictions: Predictions,
                pictures: Sequence[int], path: Path) -> None:
    """Draw Figure 4, 11 or "sampling": every mesh, with its 2D errors or also from the side."""
    names, turned = list(predictions.found), figure_name == "11"
    lines = len(pictures) * (1 + turned)
    side = 12 / (len(names) + 2)
    figure = Figure(figsize=(12, 1.17 * side * lines), layout="constrained")
    panels = figure.subplots(lines, len(names) + 2, squeeze=False)
    if figure_name == "sampling":
        means = ", ".join(f"{name} {predictions.errors[name]['MPJPE'].mean():.0f} mm"
                          for name in names)
        figure.suptitle(f"Mean MPJPE of {len(predictions.index)} pictures: {means}")
    for place, index in enumerate(pictures):
        line = panels[place * (1 + turned)]
        show(line[0], picture(task, index), f"picture {index}")
        for axes, name in zip(line[1:], names, strict=False):
            error = predictions.errors[name]["MPJPE"][index]
            show(axes, overlay(task, predictions, name, index), f"{name}: {error:.0f} mm")
            if not turned:
                draw_distances(axes, task, predictions, name, index)
        show(line[-1], overlay(task, predictions, "", index), "truth")
        if turned:
            below = panels[2 * place + 1]
            below[0].axis("off")
            for axes, name in zip(below[1:], [*names, ""], strict=True):
                show(axes, from_side(task, predictions, name, index))
    save_figure(figure, path)


def draw_distances(axes: Axes, task: BodyTask, predictions: Predictions, name: str,
                   index: int) -> None:
    """Draw red lines from the projected joints to the true 2D joints inside the crop."""
    sample, values = task.test_set[index], predictions.found[name]
    one = {key: value[index:index + 1] for key, value in values.items()}
    joints = (task.mesh(one)["joints"][0] + one["transl"]) @ sample["K"].numpy().T
    joints, seen = joints[:, :2] / joints[:, 2:], sample["keypoints_valid"][:24].numpy() > 0
    wanted = sample["keypoints_2d"][:24].numpy()
    for start, end in zip(ZOOM * joints[seen] - 0.5, ZOOM * wanted[seen] - 0.5, strict=True):
        axes.plot(*zip(start, end, strict=True), color="red", linewidth=0.8)
    side = ZOOM * sample["image"].shape[-1]
    axes.plot(*(ZOOM * wanted[seen] - 0.5).T, "o", color="white", markeredgecolor="k",
              markeredgewidth=0.5, markersize=2.5)
    axes.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))


def draw_schedules(path: Path, length: int = 96, iterations: int = 10) -> None:
    """Figure 7: gamma(t / T) of every masking schedule, and the tokens that stay masked."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = np.linspace(0, 1, 201)
    for name in ("cosine", "linear", "cubic", "sqrt"):
        left.plot(x, [genhmr.SCHEDULES[name](value) for value in x], label=name)
        right.step(range(iterations + 1), genhmr.mask_counts(length, iterations, name),
                   where="post", label=name)
    left.set(xlabel="t / T", ylabel=r"$\gamma(t / T)$")
    right.set(xlabel=f"iteration of {iterations}", ylabel=f"masked tokens of {length}")
    left.legend()
    save_figure(figure, path)
    print(f"in {path}", flush=True)


def changes(predictions: Predictions) -> dict[str, np.ndarray]:
    """By predictor, for each T: MPJPE, its change from T = 1, paired standard error (T, 3), mm."""
    lines = {}
    for name in dict.fromkeys(name.rsplit(", ", 1)[0] for name in predictions.found):
        errors = np.array([predictions.errors[f"{name}, T = {T}"]["MPJPE"] for T in COUNTS])
        change = errors - errors[0]  # (T, N)
        error = change.std(1, ddof=1) / change.shape[1]**0.5
        lines[name] = np.stack((errors.mean(1), change.mean(1), error), 1)
    return lines


def draw_iterations(predictions: Predictions, path: Path) -> None:
    """Draw what more iterations change, with and without oracles, and whether confidence is right.

    Writes the numbers to a Markdown table beside the figure.
    """
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.4, 1))
    lines = changes(predictions)
    for place, (name, rows) in enumerate(lines.items()):
        left.errorbar(np.arange(len(COUNTS)) + 0.05 * place, rows[:, 1], rows[:, 2], capsize=2,
                      marker="o", markersize=3, label=f"{name}: {rows[0, 0]:.1f} mm at T = 1")
    every = np.stack([rows[:, 1] for rows in lines.values()])
    left.axhline(0, color="k", linewidth=0.5)
    left.set(xticks=range(len(COUNTS)), xticklabels=COUNTS, xlabel="iterations T",
             ylabel="MPJPE minus that of T = 1, mm",
             title=f"More iterations change MPJPE by {every.min():+.1f} to {every.max():+.1f} mm")
    left.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    draw_calibration(right, predictions.found["as it is, T = 5"])
    save_figure(figure, path)
    heads = " | ".join(f"T = {T}" for T in COUNTS)
    table = [f"| MPJPE, mm | {heads} |", "|---" * (1 + len(COUNTS)) + "|"]
    table += [f"| {name} | {rows[0, 0]:.1f} | " + " | ".join(
        f"{change:+.2f} ± {error:.2f}" for _, change, error in rows[1:]) + " |"
        for name, rows in lines.items()]
    bodymodels.write_atomically(path.with_suffix(".md"), "\n".join([*table, ""]).encode())


def draw_calibration(axes: Axes, values: dict[str, np.ndarray]) -> None:
    """Draw the share of right tokens by their confidence, and by iteration."""
    confidence, right, kept = (values[name].ravel() for name in ("confidence", "right", "kept"))
    order = confidence.argsort(kind="stable")
    tenths = np.array_split(order, 10)
    axes.plot([0, 1], [0, 1], color="k", linewidth=0.5)
    axes.plot([confidence[tenth].mean() for tenth in tenths],
              [right[tenth].mean() for tenth in tenths], "o-", markersize=3,
              label="tenths of all tokens")
    for iteration in range(1, kept.max() + 1):
        chosen = kept == iteration
        x, y = confidence[chosen].mean(), right[chosen].mean()
        axes.plot(x, y, "s", color="tab:red", markersize=4,
                  label="kept in iteration 1, 2, ..." if iteration == 1 else None)
        axes.annotate(f"{iteration}", (x, y), (4, -9), textcoords="offset points", fontsize=8)
    shares = 100 * right.mean(), 100 * right[kept == 1].mean()
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence of a kept token, T = 5",
             ylabel="share that is right",
             title="{:.0f} % of the tokens are right, {:.0f} % of the first".format(*shares))
    axes.legend(fontsize=7)


# ------------------------------------------------------------------------------------ panels


def show(axes: Axes, image: np.ndarray, title: str = "") -> None:
    """Show a picture without axes."""
    axes.imshow(image.clip(0, 1))
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def picture(task: BodyTask, index: int) -> np.ndarray:
    """A crop of the test split (ZOOM S, ZOOM S, 3) of 0..1."""
    photo = task.test_set[index]["image"].permute(1, 2, 0).numpy() / np.float32(255)
    return photo.repeat(ZOOM, 0).repeat(ZOOM, 1)


def mesh_of(task: BodyTask, predictions: Predictions, name: str,
            index: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) of a predictor or, without a name, of the truth, and their translation."""
    values = predictions.found[name] if name else predictions.truth
    one = {key: values[key][index:index + 1] for key in ("pose", "betas")}
    transl = values["transl"][index] if name else task.test_set[index]["transl"].numpy()
    return task.mesh(one)["vertices"][0], transl


def overlay(task: BodyTask, predictions: Predictions, name: str, index: int) -> np.ndarray:
    """Draw a mesh over its picture."""
    vertices, transl = mesh_of(task, predictions, name, index)
    K = np.diag([ZOOM, ZOOM, 1.0]) @ task.test_set[index]["K"].numpy()
    return task.draw(vertices + transl, K, picture(task, index))


def from_side(task: BodyTask, predictions: Predictions, name: str, index: int) -> np.ndarray:
    """Draw a mesh on white, seen from its right, from 4 m away."""
    x, y, z = (mesh_of(task, predictions, name, index)[0]).T
    seen = np.stack((z, y, -x), 1)
    seen = seen - seen.mean(0) + (0, 0, 4)
    size = ZOOM * task.test_set[index]["image"].shape[-1]
    K = np.array([[2.1 * size, 0, size / 2], [0, 2.1 * size, size / 2], [0, 0, 1]])
    return bodymodels.render(seen, task.faces, K, (size, size), supersample=2).image

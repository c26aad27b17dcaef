"""Draws the notebooks' figures, so that their cells show methods and not matplotlib."""

from __future__ import annotations

import ast
import inspect
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Code, display
from matplotlib.animation import FuncAnimation

plt.rcParams.update({"figure.dpi": 120, "font.size": 9, "axes.titlesize": 9})


def listing(*functions) -> None:
    """Display the source code of functions and methods, without their docstrings."""
    sources = []
    for function in functions:
        source = textwrap.dedent(inspect.getsource(function))
        lines, node = source.splitlines(), ast.parse(source).body[0]
        if ast.get_docstring(node) is not None:
            del lines[node.body[0].lineno - 1:node.body[0].end_lineno]
        sources.append("\n".join(lines))
    display(Code("\n\n".join(sources), language="python"))


def diagram(boxes, arrows, size, dashed=()) -> None:
    """Draw boxes (text, column, row), and arrows between them by number; dashed ones are losses."""
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    style = {"boxstyle": "round,pad=0.5", "facecolor": "#eaf1fa", "edgecolor": "#4878a8"}
    drawn = [axes.text(x, -y, text, ha="center", va="center", bbox=style) for text, x, y in boxes]
    for tail, head in (*arrows, *dashed):
        ends = [drawn[number].get_bbox_patch() for number in (tail, head)]
        axes.annotate("", drawn[head].get_position(), drawn[tail].get_position(), arrowprops={
            "arrowstyle": "-|>", "color": "0.3" if (tail, head) in arrows else "tab:red",
            "linestyle": "-" if (tail, head) in arrows else "--",
            "patchA": ends[0], "patchB": ends[1]})
    axes.set(xlim=(-0.5, max(x for _, x, _ in boxes) + 0.5),
             ylim=(-max(y for *_, y in boxes) - 0.5, 0.5))
    axes.axis("off")
    plt.show()


def show(*rows, titles=None, names=None, width=1.8) -> None:
    """Show rows of pictures (H, W, 3), with titles above the first row and names at the left."""
    height, across = np.asarray(rows[0][0]).shape[:2]
    size = (width * len(rows[0]) + 0.3 * bool(names),
            width * len(rows) * height / across + 0.3 * bool(titles))
    figure, panels = plt.subplots(len(rows), len(rows[0]), figsize=size, layout="constrained",
                                  squeeze=False)
    for axes, picture in zip(panels.flat, [one for row in rows for one in row], strict=True):
        axes.imshow(picture)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes, title in zip(panels[0], titles or [], strict=bool(titles)):
        axes.set_title(title)
    for axes, name in zip(panels[:, 0], names or [], strict=bool(names)):
        axes.set_ylabel(name)
    plt.show()


def play(frames, interval=120, height=2.4) -> None:
    """Show pictures (H, W, 3) as an animation with a slider."""
    rows, columns, _ = frames[0].shape
    figure = plt.figure(figsize=(height * columns / rows, height), dpi=90)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    shown = axes.imshow(frames[0])
    film = FuncAnimation(figure, lambda i: [shown.set_data(frames[i])], len(frames),
                         interval=interval)
    plt.close(figure)
    display(HTML(film.to_jshtml()))

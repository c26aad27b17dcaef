"""The paper's ablations of SimpleHand: the rows of Tables 4 to 8."""

from __future__ import annotations

import dataclasses
import math

from simplehand import COARSE, Config
from tasks.ablations import Found, Row, Table, table_text

LAYER, NAIVE = {"blocks": (1,)}, {"tokens": (21,), "dims": (256,), "mixer": "identity"}
# Table -> row -> fields that differ from the paper's model, PA-MPJPE and PA-MPVPE (mm, FreiHAND,
# Hiera-Tiny). Sizes are the paper's; `ablated` scales them to a config.
ABLATIONS: dict[str, dict[str, tuple[dict, tuple[float, float]]]] = {
    "table4": {  # the baseline has the regressor of Sec. 3.2: one layer, identity mixer
        "simple baseline": ({"sampling": "global", **NAIVE, **LAYER}, (6.9, 7.2)),
        "+ mesh regressor": ({"sampling": "global"}, (6.5, 6.8)),
        "+ token generator": ({**NAIVE, **LAYER}, (6.6, 7.1)),
        "+ both": ({}, (6.2, 6.5)),
    },
    "table5": {
        "global, 1 x 1": ({"sampling": "global"}, (6.5, 6.8)),
        "grid, 7 x 7": ({"sampling": "grid", "upsample": (1,)}, (6.3, 6.6)),
        "point, 7 x 7": ({"upsample": (1,)}, (6.3, 6.6)),
        "point, 14 x 14": ({"upsample": (2,)}, (6.3, 6.6)),
        "point, 28 x 28": ({}, (6.2, 6.5)),
        "point, 28 x 28, enhanced": ({"refine": 1}, (6.2, 6.5)),
        "coarse mesh, 28 x 28": ({"sampling": "coarse_mesh"}, (6.2, 6.5)),
    },
    "table6": {  # unless there are three layers, their widths are our choice: each half the last
        "1 layer: 21": ({"tokens": (21,), "dims": (256,), **LAYER}, (6.6, 7.1)),
        **{f"{len(tokens)} layers: {', '.join(map(str, tokens))}": ({
            "tokens": tokens, "dims": (256, 128, 64, 32)[:len(tokens)],
            "blocks": (1, 1, 1, 1)[:len(tokens)]}, scores) for tokens, scores in {
                (21, 256): (6.3, 6.6), (21, 384): (6.3, 6.6), (21, 256, 384): (6.2, 6.5),
                (21, 84, 336): (6.2, 6.5), (21, 128, 256, 384): (6.2, 6.5),
                (21, 63, 126, 252): (6.3, 6.6)}.items()},
    },
    "table7": {
        "dimensions 64, 32, 16": ({"dims": (64, 32, 16)}, (6.5, 6.9)),
        "dimensions 128, 64, 32": ({"dims": (128, 64, 32)}, (6.3, 6.6)),
        "dimensions 256, 128, 64; blocks 1, 1, 1": ({}, (6.2, 6.5)),
        "dimensions 512, 256, 128": ({"dims": (512, 256, 128)}, (6.2, 6.5)),  # printed: 12
        "dimensions 1024, 512, 256": ({"dims": (1024, 512, 256)}, (6.4, 6.7)),
        "blocks 2, 2, 2": ({"blocks": (2, 2, 2)}, (6.2, 6.6)),
        "blocks 3, 3, 3": ({"blocks": (3, 3, 3)}, (6.3, 6.6)),
    },
    "table8": {  # the last row is ours
        "ours": ({}, (6.2, 6.5)),
        "identity mixer": ({"mixer": "identity"}, (6.3, 6.6)),
        "without position embedding": ({"position_embedding": False}, (6.3, 6.6)),
        "separable convolution mixer": ({"mixer": "convolution"}, (math.nan, math.nan)),
    },
}


def ablated(config: Config, changes: dict) -> Config:
    """Apply a row's changes to a config, at the config's own scale.

    Dimensions keep their ratio to the paper's first one, 256. The number of tokens that enter the
    regressor is the number of points sampled; with "grid" that is the number of cells of X_b.
    """
    values = changes | {"dims": tuple(width * config.dims[0] // 256 for width in changes["dims"])
                        } if "dims" in changes else dict(changes)
    first = {"grid": (config.image_size // 32) ** 2,
             "coarse_mesh": 21 + len(range(0, config.num_vertices, COARSE))}
    if changes.get("sampling") in first:
        values["tokens"] = (first[changes["sampling"]], *config.tokens[1:])
    return dataclasses.replace(config, **values)


COLUMNS = ("PA-MPJPE", "PA-MPVPE")
TABLES = {name: Table(COLUMNS, COLUMNS, {row: Row(*entry) for row, entry in rows.items()})
          for name, rows in ABLATIONS.items()}


def ablation_table(name: str, found: Found, config: Config, command: str) -> str:
    """Write a table in Markdown: our scores beside the paper's, then each ordering of its rows."""
    cells = config.image_size // 32
    about = (f"`{command}`\n\nOurs: {config.backbone}, {config.steps:,} steps of "
             f"{config.batch_size} images of {config.image_size} px, so X_b has {cells} x {cells} "
             f"cells, where the paper's has 7 x 7; dimensions times {config.dims[0] / 256:g}. "
             "The paper's: FreiHAND, Hiera-Tiny. Errors in mm; mean ± standard deviation over "
             "seeds.")
    return table_text(f"SimpleHand, {name.replace('table', 'Table ')}", TABLES[name], found, about)

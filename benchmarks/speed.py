"""Speed of SimpleHand, GenHMR, skinning and Procrustes beside the usual code, and of training."""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

import genhmr
import simplehand
import train
from bodymodels import BodyModel, load_model
from metrics import procrustes_align
from networks import fast
from networks.backbones import simplehand_model
from networks.small_encoder import build_genhmr
from tasks.settings import ON_A_CPU

# T, P: ms on an RTX A5000 (GenHMR's Tables 2 and 3). The paper also says that AITI "measures
# per-iteration processing time", but its figures grow with T and P.
AITI = {(1, 0): 32, (3, 0): 75, (5, 0): 102, (10, 0): 255, (15, 0): 321, (20, 0): 412,
        (5, 1): 154, (5, 3): 209, (5, 5): 253, (5, 10): 444, (5, 20): 638}
BATCHES = {"hand_right": (1, 64), "body": (1, 64), "wholebody": (1, 16)}  # of skinning
POINTS = ((3960, 778), (990, 6890))  # of Procrustes: samples, points
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of the papers' models
Poser = Callable[[Tensor, Tensor], Tensor]  # shape, pose -> vertices
Ways = Mapping[str, Callable[[], object]]


def medians(ways: Ways, seconds: float, rounds: int = 3) -> dict[str, float]:
    """Median time in ms of each function, after one run that is not timed.

    The functions take turns, so that other load slows all of them alike, for `seconds` and at least
    `rounds` rounds. On a CPU with one thread the time is the process's own.
    """
    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    own = torch.get_num_threads() == 1 and DEVICE == "cpu"
    clock = time.process_time if own else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for function in ways.values():
        function()
    start, done = time.perf_counter(), 0
    while done < rounds or time.perf_counter() - start < seconds:
        for name, function in ways.items():
            wait()
            begin = clock()
            function()
            wait()
            times[name].append(1e3 * (clock() - begin))
        done += 1
    return {name: statistics.median(spent) for name, spent in times.items()}


def table(title: str, ways: Ways, seconds: float) -> None:
    """Print the time of each function, and its ratio to that of the first."""
    print(title, flush=True)
    times = medians(ways, seconds)
    for name, spent in times.items():
        print(f"  {name:46}{spent:10.2f} ms{spent / next(iter(times.values())):8.3f}", flush=True)


# ----------------------------------------------------------------------------------- papers


@torch.inference_mode()
def compare_fused(model: simplehand.SimpleHand, images: Tensor, seconds: float) -> None:
    """Print the times of a plain and a fused SimpleHand, and how far apart they are."""
    fused = model.fuse()
    error = 1e3 * (fused(images)["vertices"] - model(images)["vertices"]).abs().max().item()
    table(f"{images.device}, batch {len(images)}, {torch.get_num_threads()} threads", {
        "plain": partial(model, images), f"fused, differs by {error:.0e} mm": partial(fused, images)
    }, seconds)


def time_simplehand(arguments: argparse.Namespace) -> None:
    """Print SimpleHand's times at two batch sizes."""
    model = simplehand_model(simplehand.PRESETS[arguments.preset]).eval().to(DEVICE)
    for batch in (1, 32):
        shape = (batch, 3, *[model.config.image_size] * 2)
        images = torch.randint(0, 256, shape, dtype=torch.uint8).to(DEVICE)
        compare_fused(model, images, arguments.seconds)


def compare_attention(width: int, seconds: float) -> None:
    """Print the times of plain and fast deformable attention: 96 queries, as the paper's cells."""
    attention = genhmr.DeformableAttention(
        replace(genhmr.Config(), width=width, pyramid_width=width))
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    inputs = torch.randn(1, 96, width), torch.rand(96, 2), torch.randn(1, 15_552, width)
    quick = fast.replace(copy.deepcopy(attention))
    expected = attention(*inputs)
    error = ((quick(*inputs) - expected).abs().max() / expected.abs().max()).item()
    for title, run in ((f"attention, width {width}, differs by {error:.0e}", forward),
                       ("the same, forward and backward", backward)):
        table(title, {"plain": partial(run, attention, *inputs),
                      "fast": partial(run, quick, *inputs)}, seconds)


@torch.no_grad()
def time_per_image(config: genhmr.Config, seconds: float) -> None:
    """Print the time from a crop to its pose, AITI; random weights do not change it."""
    model = build_genhmr(config).eval().to(DEVICE)
    body = load_model("body").for_keypoints().to(DEVICE)
    images = torch.zeros(1, 3, config.image_size, config.image_size, device=DEVICE)

    def predict(iterations: int, steps: int) -> None:
        start = genhmr.sample_from(model, model.encode(images), iterations=iterations)
        if steps:
            genhmr.refine(
                model, start.embeddings, start.betas, start.camera, images.new_zeros(1, 45, 2),
                images.new_ones(1, 45), lambda betas, pose: body.keypoints(body(betas, pose)),
                iterations=steps)

    table(f"GenHMR, from a crop to its pose, {DEVICE}", {
        f"T = {T}{f', P = {P}' * bool(P)} (RTX A5000: {paper} ms)": partial(predict, T, P)
        for (T, P), paper in AITI.items()}, seconds)


def time_genhmr(arguments: argparse.Namespace) -> None:
    """Print GenHMR's times."""
    compare_attention(1024, arguments.seconds)
    time_per_image(genhmr.PRESETS[arguments.preset], arguments.seconds)


# --------------------------------------------------------------------------------- geometry


def smplx_vertices(model: BodyModel) -> Poser:
    """smplx.lbs with the model's arrays in the layouts of smplx's own modules."""
    from smplx.lbs import lbs
    offsets = model.offsets.view(-1, 3, model.J_regressor.shape[1]).transpose(1, 2)  # (S + P, V, 3)
    components = model.num_betas + model.num_expression
    shapedirs = offsets[:components].permute(1, 2, 0).contiguous()
    posedirs = offsets[components:].flatten(1).T.contiguous().T
    weights, parents = model.skinning_weights.T.contiguous(), torch.tensor(model.parents)
    return lambda shape, pose: lbs(shape, pose.flatten(1), model.v_template, shapedirs, posedirs,
                                   model.J_regressor, parents, weights)[0]


def our_vertices(model: BodyModel) -> Poser:
    """The same of bodymodels.py; shape: betas and expression."""
    return lambda shape, pose: model(
        shape[:, :model.num_betas], pose, shape[:, model.num_betas:]).vertices


def common_procrustes(source: Tensor, target: Tensor) -> Tensor:
    """Similarity alignment as most repositories of the field write it: one batch, torch.svd."""
    source_mean, target_mean = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
    x, y = (source - source_mean).mT, (target - target_mean).mT
    cross = x @ y.mT
    u, _, v = torch.svd(cross)
    flip = torch.eye(3, dtype=source.dtype).repeat(len(source), 1, 1)
    flip[:, 2, 2] = torch.sign(torch.linalg.det(u @ v.mT))
    rotation = v @ flip @ u.mT
    scale = (rotation @ cross).diagonal(dim1=1, dim2=2).sum(1) / (x**2).sum(dim=(1, 2))
    return (scale[:, None, None] * (rotation @ x)).mT + target_mean


@torch.no_grad()
def forward(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Run a function without gradients."""
    function(*inputs)


def backward(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Run a function forward and backward."""
    function(*(x.detach().clone().requires_grad_() for x in inputs)).sum().backward()


def time_geometry(arguments: argparse.Namespace) -> None:
    """Print the times of skinning and of Procrustes alignment."""
    for name, batch in [(name, batch) for name, batches in BATCHES.items() for batch in batches]:
        model = load_model(name)
        inputs = (torch.randn(batch, len(model.skeleton_basis)),
                  0.4 * torch.randn(batch, len(model.parents), 3))
        ways = {}
        for way, poser in (("smplx", smplx_vertices(model)), ("ours", our_vertices(model))):
            ways |= {way: partial(poser, *inputs),
                     f"{way}, and backward": partial(backward, poser, *inputs)}
        table(f"{name}, batch {batch}", ways, arguments.seconds)
    for samples, points in POINTS:
        source = 0.05 * torch.randn(samples, points, 3)
        both = source, source + 0.01 * torch.randn(samples, points, 3)
        pieces = list(zip(*(x.split(64) for x in both), strict=True))  # these fit into caches
        table(f"Procrustes, {samples} x {points} points", {
            "ours": partial(procrustes_align, *both),
            "common, whole": partial(common_procrustes, *both),
            "common, in batches of 64": lambda pieces=pieces: [
                common_procrustes(*piece) for piece in pieces]}, arguments.seconds)


# ------------------------------------------------------------------------------------- GPUs


def time_step(name: str, preset: str, device: torch.device, seconds: float, *changes: str) -> None:
    """Print the time of one optimiser step of a task of train.py, with changes as of --set."""
    kind, (model, _, stage) = train.TASKS[name], name.partition("-")
    if hasattr(kind.PRESETS[preset], "arm_source"):
        changes += ("arm_source=true",)  # needs no second network
    with tempfile.TemporaryDirectory() as cache:
        arguments = train.parse_arguments([
            "--model", model, "--preset", preset, *["--stage", stage] * bool(stage),
            "--cache", cache, "--set", "train_samples=4", *changes])
        config, settings = train.choose_config(arguments)
        origin = {"data": "rendered"}  # as of a checkpoint: no trained expert or tokenizer needed
        task = kind(config, arguments, origin, settings)
        trainer = train.Trainer(task, train.World(device=device), task.build())
        part = config.batch_size // settings.accumulate
        samples = default_collate([task.train_set[index % 4] for index in range(part)])
    batches = [{key: value.to(device) for key, value in samples.items()}] * settings.accumulate
    table(f"{name}, training step, {preset}", {
        f"{config.batch_size} samples": lambda: trainer.train_step(batches)}, seconds)


def time_gpu(arguments: argparse.Namespace) -> None:
    """Print all times on a GPU: of inference, and of training steps of every paper."""
    if not torch.cuda.is_available():
        print("not run: no GPU can be used on this machine")
        return
    time_simplehand(arguments)
    time_per_image(genhmr.PRESETS["paper"], arguments.seconds)
    for name, kind in train.TASKS.items():
        for preset in set(() if name == "hmr_adapter-all" else kind.PRESETS).difference(ON_A_CPU):
            torch.cuda.reset_peak_memory_stats()
            try:
                time_step(name, preset, torch.device("cuda"), arguments.seconds)
                print(f"  at most {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
            except torch.cuda.OutOfMemoryError as error:
                print(f"{name}, {preset}: {error!r:.80}")

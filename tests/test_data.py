"""The door: data sets and mixtures by name, and the command line."""

import pickle
import re

import numpy as np
import pytest
import torch
from official_folders import jpeg, tar_person, write_amass, write_shard

import data
from sets.readers import BEDLAM

pytestmark = pytest.mark.usefixtures("few_vertices")


@pytest.mark.parametrize("arguments,expected,shape", [
    (["rendered"], "40,000 samples", (768, 384)), (["people"], "20,000 samples", (768, 1152)),
    (["3dpw"], "split test: 4 samples", (768, 384)),
    (["interhand"], "split train: 5 samples", (768, 384))])
def test_command_line_counts_and_draws(tmp_path, capsys, folders, models, monkeypatch, arguments,
                                       expected, shape):
    """It prints count and arrays, and draws a picture named after the data set."""
    name, = arguments
    if name in data.OFFICIAL:
        arguments += ["--data-root", str(folders(name)), "--models", str(models)]
    monkeypatch.chdir(tmp_path)
    data.main([*arguments, "--draw", "2"])
    output = capsys.readouterr().out
    assert f"{name}, split" in output and expected in output
    assert re.search(r"image +\(3, 128, 128\) +torch.uint8", output)
    picture = data.read_image(tmp_path / f"{name}.png")
    assert picture.shape == (*shape, 3) and picture[:384].std() > 5


def test_command_line_reads_recordings(tmp_path, capsys):
    write_amass(tmp_path)
    data.main(["amass", "--data-root", str(tmp_path), "--split", "test", "--draw", "1"])
    assert "amass, split test: 3 samples" in capsys.readouterr().out


@pytest.mark.parametrize("arguments,message", [
    (["freihand"], "freihand needs --data-root"),
    (["moyo", "--data-root", "nowhere"], "expected MOYO"),
    (["rendered", "--split", "val"], "unknown split 'val'")])
def test_command_line_errors_are_one_line(arguments, message):
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        data.main(arguments)


def test_mixtures_have_the_papers_weights():
    """They name data sets that exist, and sum to one where a paper tells them."""
    for name, parts in data.MIXTURES.items():
        assert all(reader in data.OFFICIAL for reader, _ in parts)
        if not name.startswith("hmr-adapter"):
            assert sum(parts.values()) == pytest.approx(1.0)
    itw, bl = data.MIXTURES["genhmr-itw"], data.MIXTURES["genhmr-bl"]
    assert itw["hmr2-tars", "insta-train-vitpose-replicate"] == 0.2 and len(itw) == 8
    assert bl["bedlam", "bedlam"] == 0.18 and bl["hmr2-tars", "mpi-inf-train-pruned"] == 0.04
    assert data.MIXTURES["genhmr-sd"]["hmr2-tars", "coco-train-2014-pruned"] == 0.4


class Numbers(data.KeyedDataset):
    """So many samples that tell their set, their index and a random number."""

    def __init__(self, name, length):
        super().__init__("train", ["train"], seed=0)
        self.name, self.length = name, length

    def __len__(self):
        return self.length

    def load(self, index, rng):
        return {"x": np.array([self.name, index, rng.random()])}


def test_mixed_samples_follow_their_weights_and_keys():
    """Three of four are of the first set; the same key gives the same sample, and epochs differ."""
    mixed = data.Mixed([Numbers(0, 5), Numbers(1, 395)], (3, 1))
    samples = [mixed[key] for key in range(400)]
    drawn = torch.stack([sample["x"] for sample in samples])
    assert 0.2 < drawn[:, 0].mean() < 0.3
    assert drawn[drawn[:, 0] == 0, 1].unique().tolist() == [0, 1, 2, 3, 4]
    assert [int(sample["index"]) for sample in samples] == list(range(400))
    assert torch.equal(mixed[7]["x"], drawn[7]) and not torch.equal(mixed[407]["x"], drawn[7])
    assert len(drawn[:, 2].unique()) == 400  # each has an augmentation of its own
    assert len(mixed) == 400


def test_a_mixture_of_shards_is_opened_by_name(tmp_path):
    """Each data set is looked for in its folder; samples of all can be put in one batch."""
    for folder in ("h36m-train", "mpii-train", "coco-train-2014-pruned", "mpi-inf-train-pruned"):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "000000.tar", {
            "a.jpg": jpeg(), "a.data.pyd": pickle.dumps([tar_person()])})
    mixed = data.open_official("genhmr-sd", tmp_path, size=32, augmentation="official_hmr")
    batch = torch.utils.data.default_collate([mixed[key] for key in range(4)])
    assert batch["image"].shape == (4, 3, 32, 32)
    (tmp_path / "mpii-train/000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match="mpii-train"):
        data.open_official("genhmr-sd", tmp_path, size=32, cache=tmp_path / "new")
    with pytest.raises(ValueError, match="no split 'val'"):
        data.open_official("genhmr-sd", tmp_path, "val")


def test_the_mixture_of_hands_has_people_and_pairs(folders, models, tmp_path, monkeypatch):
    """HMR-Adapter's hands: of three sets of bodies and of two of hands, in one layout."""
    monkeypatch.setattr(BEDLAM, "NUM_BETAS", 10)  # all that the free model has
    for name in ("rich", "bedlam", "interhand", "freihand", "h36m"):
        (tmp_path / name).symlink_to(folders(name.replace("h36m", "h36m-smplx")))
    mixed = data.open_official("hmr-adapter-hands", tmp_path, size=48, models=models, hand_size=32,
                               augmentation="official_hmr", cache=tmp_path / "cache")
    assert [type(part) for part in mixed.datasets] == [data.OfficialPeople] * 3 + [
        data.HandPairs] * 2
    recipe = data.for_hands(data.AUGMENTATIONS["official_hmr"])
    assert mixed.datasets[3].hands.augmentation == recipe
    batch = torch.utils.data.default_collate([part[0] for part in mixed.datasets])
    assert batch["hand_images"].shape == (5, 2, 3, 32, 32)
    assert batch["body_pose_valid"].tolist() == [1, 1, 1, 0, 0]
    assert batch["betas_valid"].tolist() == [1, 0, 1, 0, 0]  # RICH's are a gendered model's
    assert batch["hand_betas_valid"].sum(1).tolist() == [0, 0, 0, 2, 2]
    assert mixed[0].keys() == batch.keys()


def test_hands_beside_people_follow_the_chosen_recipe(folders, models):
    """A recipe of bodies is widened for crops of hands. Without one their crops are twice as large
    as the hands, as people's are."""
    recipe = data.for_hands(data.AUGMENTATIONS["official_hmr"])
    assert recipe.scale == (1.4, 2.6) and recipe.flip == 0 and recipe.gain == (0.8, 1.2)
    pairs = data.open_official("freihand", folders("freihand"), size=64, hand_size=32,
                               models=models)
    sides = np.ptp(pairs[0]["hand_keypoints_2d"].numpy(), 1).max(1)
    np.testing.assert_allclose(sides, 16, atol=0.5)

"""Image folders and CIFAR-10 become data sets, and what is wrong with them is named."""

import builtins
import hashlib
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import normlib as nl
from normlib.data import images

torchvision = pytest.importorskip("torchvision")


def picture(path: Path, seed: int, size=(6, 5), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, three training images and one test image each, 5 × 6 pixels."""
    root, seed = tmp_path / "pictures", 0
    for split, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            for i in range(count):
                picture(root / split / name / f"{i}.png", seed)
                seed += 1
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "normlib"


def pixels(dataset, folder):
    """The training images as uint8 again, by undoing the standardisation."""
    files = sorted((folder / "train").rglob("*.png"))
    raw = np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files]).astype(float)
    mean, std = raw.mean((0, 1, 2)), raw.std((0, 1, 2))
    back = dataset.x_train.double().permute(0, 2, 3, 1).numpy() * std + mean
    return raw, back


def test_a_folder_becomes_a_dataset(folder):
    data = nl.image_folder(folder)
    assert data.sizes == (6, 2)
    assert data.shape == (3, 5, 6)
    assert data.classes == 2
    assert data.y_train.bincount().tolist() == [3, 3]
    assert data.y_test.tolist() == [0, 1]
    assert data.source == "images in pictures"
    assert nl.image_folder(folder, source="ours").source == "ours"


def test_pixels_are_those_of_the_files(folder):
    raw, back = pixels(nl.image_folder(folder), folder)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0)).numpy()
    assert np.abs(back - raw[order]).max() < 1e-3


def test_each_colour_is_standardised_by_the_training_set(folder):
    x = nl.image_folder(folder).x_train.double()
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert x.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_classes_are_mixed_so_that_the_last_images_are_not_one_class(folder):
    for i in range(3, 40):
        for name in ("cat", "dog"):
            picture(folder / "train" / name / f"{i}.png", 100 + i)
    held_out = nl.image_folder(folder).held_out(30)
    assert min(held_out.y_test.bincount(minlength=2)) >= 8


def test_gray_images_have_three_equal_colours(tmp_path):
    for split in images.SPLITS:
        for i, name in enumerate("ab"):
            picture(tmp_path / "gray" / split / name / "0.png", i, mode="L")
    x = nl.image_folder(tmp_path / "gray").x_train
    assert torch.equal(x[:, 0], x[:, 1])


# The cache ---------------------------------------------------------------------------------------


def refuse(_):
    raise AssertionError("decoded again")


def test_images_are_decoded_once(folder, monkeypatch):
    first = nl.image_folder(folder)
    monkeypatch.setattr(images, "_decode", refuse)
    again = nl.image_folder(folder)
    assert torch.equal(first.x_train, again.x_train)
    assert torch.equal(first.y_test, again.y_test)


@pytest.mark.parametrize("change", ["content", "new", "gone"])
def test_a_change_is_seen(folder, change):
    before = nl.image_folder(folder)
    victim = folder / "train" / "cat" / "1.png"
    if change == "gone":
        victim.unlink()
    else:
        picture(victim if change == "content" else victim.with_name("9.png"), 77)
        os.utime(victim, ns=(time.time_ns(), time.time_ns() + 10**9))
    after = nl.image_folder(folder)
    assert before.identity != after.identity


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", None])
def test_a_damaged_cache_is_made_anew(folder, cache, damage):
    before = nl.image_folder(folder)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert nl.image_folder(folder).identity == before.identity
    assert kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_a_warning(folder, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="could not be kept"):
        data = nl.image_folder(folder, cache=tmp_path / "file")
    assert data.sizes == (6, 2)


def test_a_failed_write_leaves_nothing(folder, cache, monkeypatch):
    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="disk full"):
        nl.image_folder(folder)
    assert list(cache.iterdir()) == []


# What is wrong is named --------------------------------------------------------------------------


def remove_folder(folder):
    shutil.rmtree(folder)
    return "there is no folder .*pictures"


def file_instead(folder):
    shutil.rmtree(folder)
    folder.write_text("")
    return "pictures is a file"


def remove_split(folder):
    shutil.rmtree(folder / "test")
    return "there is no folder .*test; expected"


def empty_class(folder):
    (folder / "train" / "dog" / "notes.txt").write_text("no image")
    for path in (folder / "train" / "dog").glob("*.png"):
        path.unlink()
    return "class .*train/dog holds no image"


def folder_with_the_name_of_an_image(folder):
    for path in (folder / "train" / "dog").glob("*.png"):
        path.unlink()
        path.mkdir()
    return "class .*train/dog holds no image"


def no_class(folder):
    for split in images.SPLITS:
        shutil.rmtree(folder / split)
        (folder / split).mkdir()
    return "train holds no folder of a class"


def missing_class(folder):
    shutil.rmtree(folder / "test" / "dog")
    return "only: .*dog"


def another_size(folder):
    picture(folder / "train" / "dog" / "2.png", 5, size=(7, 5))
    return r"one size .*train/dog/2.png has \(5, 7\).*train/cat/0.png has \(5, 6\)"


def another_size_in_the_test_set(folder):
    for name in ("cat", "dog"):
        picture(folder / "test" / name / "0.png", 5, size=(5, 6))
    return r"one size .*test/cat/0.png has \(6, 5\)"


def no_image(folder):
    (folder / "test" / "dog" / "0.png").write_text("not an image")
    return "test/dog/0.png cannot be read"


def cut_short(folder):
    path = folder / "train" / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    return "train/cat/0.png cannot be read"


@pytest.mark.parametrize(
    "damage",
    [remove_folder, file_instead, remove_split, empty_class, folder_with_the_name_of_an_image,
     no_class, missing_class,
     another_size, another_size_in_the_test_set, no_image, cut_short],
)  # fmt: skip
def test_what_is_wrong_is_named(folder, damage):
    message = damage(folder)
    with pytest.raises(ValueError, match=message):
        nl.image_folder(folder)


@pytest.mark.parametrize("read", [nl.image_folder, nl.cifar10])
def test_something_that_is_no_path_is_named(read):
    with pytest.raises(TypeError, match="must be the path of a folder, got 3"):
        read(3)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("none"), "pip install torchvision"),
        (RuntimeError("operator torchvision::nms does not exist"), "does not fit torch"),
    ],
)
def test_a_torchvision_that_is_missing_or_does_not_fit_is_said(folder, monkeypatch, error, message):
    real = builtins.__import__

    def fail(name, *rest, **keywords):
        if name == "torchvision":
            raise error
        return real(name, *rest, **keywords)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(RuntimeError, match=message):
        nl.image_folder(folder)


# CIFAR-10 ----------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Files in the format of CIFAR-10, with ten images each, that torchvision takes for it."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    kind = torchvision.datasets.CIFAR10
    base = root / kind.base_folder
    base.mkdir(parents=True)
    raw = {}

    def put(name, content):
        data = pickle.dumps(content)
        (base / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    lists = {"train_list": [n for n, _ in kind.train_list], "test_list": ["test_batch"]}
    for attribute, names in lists.items():
        entries = []
        for name in names:
            raw[name] = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
            entries.append(put(name, {"data": raw[name], "labels": list(range(10))}))
        monkeypatch.setattr(kind, attribute, entries)
    name, digest = put("batches.meta", {"label_names": [str(i) for i in range(10)]})
    meta = {"filename": name, "key": "label_names", "md5": digest}
    monkeypatch.setattr(kind, "meta", meta)
    return root, raw


def test_cifar10_is_read_in_its_published_format(published):
    root, raw = published
    data = nl.cifar10(root, download=False)
    assert data.sizes == (50, 10)
    assert data.shape == (3, 32, 32)
    assert data.y_test.tolist() == list(range(10))
    train = np.concatenate([raw[f"data_batch_{i}"] for i in range(1, 6)]).reshape(-1, 3, 32, 32)
    mean, std = (getattr(train, f)((0, 2, 3)).reshape(-1, 1, 1) for f in ("mean", "std"))
    expected = (raw["test_batch"].reshape(-1, 3, 32, 32) - mean) / std
    assert np.abs(data.x_test.numpy() - expected).max() < 1e-5


def test_cifar10_that_is_not_there_is_said(tmp_path):
    with pytest.raises(RuntimeError, match="download=True"):
        nl.cifar10(tmp_path / "nothing", download=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        nl.cifar10(tmp_path / "file")


def test_cifar10_without_a_network_is_said(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
    with pytest.raises(RuntimeError, match=r"no route to host.*cifar-10-python.tar.gz"):
        nl.cifar10(tmp_path)


def test_damaged_cifar10_is_noticed(published):
    root, _ = published
    (root / torchvision.datasets.CIFAR10.base_folder / "data_batch_3").write_bytes(b"")
    with pytest.raises(RuntimeError, match="could not be read"):
        nl.cifar10(root, download=False)


# Augmentation ------------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_image_is_a_shifted_original_or_its_mirror_image():
    x = torch.randn(200, 2, 6, 5)
    changed = nl.flip_and_shift(shift=2)(x, generator())
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    seen = set()
    for i in range(len(x)):
        found = [
            (flip, down, right)
            for flip in (False, True)
            for down in range(5)
            for right in range(5)
            if torch.equal(
                changed[i],
                (padded[i].flip(-1) if flip else padded[i])[:, down : down + 6, right : right + 5],
            )
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 45  # of 2 × 25 ways


def test_no_flip_and_no_shift_change_nothing():
    x = torch.randn(8, 3, 4, 4)
    assert torch.equal(nl.flip_and_shift(flip=False, shift=0)(x, generator()), x)


def test_the_same_seed_makes_the_same_changes():
    x, change = torch.randn(16, 1, 4, 4), nl.flip_and_shift()
    assert torch.equal(change(x, generator(1)), change(x, generator(1)))
    assert not torch.equal(change(x, generator(1)), change(x, generator(2)))


def test_augmentation_stays_on_the_device_of_the_images():
    """`meta` has no data: a tensor of another device in the middle would be refused."""
    changed = nl.flip_and_shift()(torch.empty(4, 3, 8, 8, device="meta"), generator())
    assert changed.device.type == "meta"
    assert changed.shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (TypeError, dict(flip=1)),
        (ValueError, dict(shift=-1)),
        (TypeError, dict(shift=1.5)),
        (TypeError, dict(shift=True)),
    ],
)
def test_a_wrong_augmentation_is_named(error, wrong):
    with pytest.raises(error, match=next(iter(wrong))):
        nl.flip_and_shift(**wrong)

"""A sweep that is interrupted or damaged ends as if nothing had happened."""

import dataclasses
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
import warnings

import numpy as np
import pytest
import torch

import normlib as nl
from normlib import files
from normlib.sweeps import store, training
from tests.conftest import noise

ARGUMENTS = dict(
    lr=[0.01, 0.03, 0.1], weight_decay=[0, 1e-2], seed=range(2), epochs=2, chunk_size=2
)


def spec(data, **changes):
    return nl.Sweep(nl.convnet(width=8, depth=2), data, nl.nesterov(), **ARGUMENTS).replace(
        **changes
    )


def run(data, checkpoint_dir=None, **changes):
    return spec(data, **changes).run(checkpoint_dir)


def kept(folder):
    return sorted(folder.glob("*.npz"))


def same_bits(one, other):
    assert set(one.data_vars) == set(other.data_vars)
    for name in one.data_vars:
        np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=name)


@pytest.fixture(scope="module")
def whole(data):
    return run(data)


@pytest.fixture
def trained(monkeypatch):
    """The labels of parts that are trained."""
    labels, train = [], training.train

    def note(spec, part, *rest):
        labels.append(part.label)
        return train(spec, part, *rest)

    monkeypatch.setattr(training, "train", note)
    return labels


def test_kept_and_not_kept_are_the_same_bits(data, whole, tmp_path, trained):
    same_bits(run(data, tmp_path), whole)
    assert len(kept(tmp_path)) == len(trained) == 6
    same_bits(run(data, tmp_path), whole)
    assert len(trained) == 6


def test_seeds_may_be_added(data, tmp_path, trained):
    first = run(data, tmp_path)
    more = run(data, tmp_path, seed=range(3))
    assert trained[6:] == ["seed2-cells0-2", "seed2-cells2-4", "seed2-cells4-6"]
    same_bits(more.sel(seed=[0, 1]), first)


def test_twenty_kills_at_random_moments_lose_nothing(data, whole, tmp_path):
    def work():
        torch.set_num_threads(1)
        run(data, tmp_path)

    chance, context = random.Random(0), multiprocessing.get_context("fork")
    start = time.perf_counter()
    run(data)
    length = time.perf_counter() - start
    counts = []
    for _ in range(20):
        with warnings.catch_warnings():  # forking a process with threads that stand still
            warnings.simplefilter("ignore")
            process = context.Process(target=work)
            process.start()
        time.sleep(chance.uniform(0, length / 3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        counts.append(len(kept(tmp_path)))
        if counts[-1] == 6:
            same_bits(run(data, tmp_path), whole)
            for path in kept(tmp_path):
                path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no part was left damaged
        same_bits(run(data, tmp_path), whole)
    assert any(0 < count < 6 for count in counts)  # some kill came in the middle
    for left in tmp_path.glob("*.tmp"):
        os.utime(left, (0, 0))
    run(data, tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_killed_at_30_percent_it_repeats_no_finished_part(tmp_path, trained):
    """Colour images with augmentation, as in chapter 10."""
    pictures = noise(600, 100)
    changes = dict(
        lr=np.geomspace(0.01, 0.1, 10), weight_decay=0.01, seed=0, chunk_size=1, epochs=4,
        batch_size=50, augment=nl.flip_and_shift(shift=1),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        process = multiprocessing.get_context("fork").Process(
            target=lambda: (torch.set_num_threads(1), run(pictures, tmp_path, **changes))
        )
        process.start()
    while len(kept(tmp_path)) < 3:
        assert process.is_alive()
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    finished = {path.name.split(".")[0] for path in kept(tmp_path)}
    assert 3 <= len(finished) < 10
    again = run(pictures, tmp_path, **changes)
    assert len(trained) == 10 - len(finished)
    assert not finished & set(trained)
    same_bits(again, run(pictures, **changes))


def test_files_of_others_are_not_touched(data, tmp_path):
    for name in ("mine.npz", "mine.npz.tmp", "notes.txt"):
        (tmp_path / name).write_text("mine")
    run(data, tmp_path)
    run(data, tmp_path)
    assert all((tmp_path / n).read_text() == "mine" for n in ("mine.npz", "mine.npz.tmp"))


def damaged(data, tmp_path, whole, damage, match, trained):
    run(data, tmp_path)
    victim = kept(tmp_path)[2]
    damage(victim)
    trained.clear()
    with pytest.warns(UserWarning, match=match) as caught:
        again = run(data, tmp_path)
    assert victim.name in str(caught[0].message)
    same_bits(again, whole)
    assert len(trained) == 1
    assert victim.with_name(victim.name + ".aside").exists()
    assert len(kept(tmp_path)) == 6


@pytest.mark.parametrize("position", [0.001, 0.3, 0.5, 0.9, 0.999])
def test_a_flipped_bit_is_noticed(data, tmp_path, whole, trained, position):
    def flip(path):
        content = bytearray(path.read_bytes())
        content[int(position * len(content))] ^= 1
        path.write_bytes(content)

    damaged(data, tmp_path, whole, flip, "damaged", trained)


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_part_is_noticed(data, tmp_path, whole, trained, share):
    def cut(path):
        os.truncate(path, int(share * path.stat().st_size))

    damaged(data, tmp_path, whole, cut, "damaged", trained)


def test_a_part_of_another_sweep_is_set_aside(data, tmp_path, whole):
    run(data, tmp_path, epochs=1)
    with pytest.warns(UserWarning, match="another sweep"):
        again = run(data, tmp_path)
    same_bits(again, whole)


def test_other_data_are_another_sweep(data):
    flipped = dataclasses.replace(data, x_train=data.x_train.flip(3), x_test=data.x_test.flip(3))
    settings = [spec(d).settings for d in (data, flipped, dataclasses.replace(data, classes=12))]
    assert not any(files.agree(a, b) for a, b in itertools.combinations(settings, 2))


@pytest.mark.parametrize(
    "changes",
    [
        dict(lr=[0.01, 0.03, 0.11]),
        dict(weight_decay=[0, 2e-2]),
        dict(epochs=3),
        dict(batch_size=50),
        dict(schedule="cosine"),
        dict(schedule_other="cosine"),
        dict(lr_other=0.1),
        dict(init_scale=2.0),
        dict(decay_on="all"),
        dict(augment=nl.flip_and_shift(shift=1)),
        dict(precision="bfloat16"),
        dict(record_every=7),
        dict(net=nl.convnet(width=9, depth=2)),
        dict(net=nl.convnet(width=8, depth=2, eps=1e-6)),
        dict(optimizer=nl.nesterov(0.8)),
        dict(optimizer=nl.momentum(0.9)),
        dict(optimizer=nl.unit_norm(nl.nesterov(), per="layer")),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_argument_that_matters_changes_the_fingerprint(data, changes):
    one, other = spec(data), spec(data, **changes)
    assert one.fingerprint != other.fingerprint
    assert not files.agree(one.settings, other.settings)


def test_the_fingerprint_does_not_depend_on_seeds_chunks_or_threads(data):
    assert spec(data).fingerprint == spec(data, seed=7, chunk_size=1).fingerprint


def test_settings_agree_in_spite_of_rounding(data):
    """Of learning rates and of a schedule that another machine has computed."""
    rates = np.geomspace(0.01, 0.1, 3)
    one = spec(data, lr=rates, schedule="cosine")
    other = spec(
        data, lr=rates * (1 + 1e-9), schedule=lambda t, n: 0.5 * (1 + np.cos(np.pi * t / n + 1e-9))
    )
    assert files.agree(one.settings, other.settings)


def test_another_version_of_the_algorithm_is_not_mixed_in(data, tmp_path, monkeypatch, trained):
    run(data, tmp_path)
    monkeypatch.setattr("normlib.sweeps.spec.ALGORITHM", 2)
    with pytest.warns(UserWarning, match="made by version 1 of the algorithm, not 2"):
        run(data, tmp_path)
    assert len(trained) == 12
    assert len(kept(tmp_path)) == 6


def test_chunks_are_those_it_was_begun_with(data, tmp_path):
    first = run(data, tmp_path, chunk_size=2)
    kept(tmp_path)[0].unlink()
    same_bits(run(data, tmp_path, chunk_size=None), first)
    with pytest.raises(ValueError, match="chunk_size=2"):
        run(data, tmp_path, chunk_size=3)


def test_threads_are_those_it_was_begun_with(data, tmp_path):
    """As many as the parts that are there say, and the number is put back."""
    run(data, tmp_path)
    for path in kept(tmp_path):
        arrays, about = store.read(path)
        path.unlink()
        store.write(tmp_path, path.name.split(".")[0], arrays, about | {"threads": 2})
    kept(tmp_path)[0].unlink()
    with pytest.warns(UserWarning, match="begun with 2 threads and goes on"):
        again = run(data, tmp_path)
    assert again.attrs["threads"] == 2
    assert {store.read(path)[1]["threads"] for path in kept(tmp_path)} == {2}
    assert torch.get_num_threads() == 1


def test_the_checkpoints_must_be_in_a_folder(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder"):
        run(data, tmp_path / "file")


def test_a_failed_write_loses_nothing_that_was_computed(data, tmp_path, whole, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.warns(UserWarning, match=r"6 of 6 parts.*No space left.*seed0-cells0-2"):
        same_bits(run(data, tmp_path), whole)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tmpfs(tmp_path):
    """tmpfs(options) -> a small file system of its own; only root can mount one."""
    mounted = []

    def mount(options):
        if not shutil.which("mount") or os.geteuid() != 0:
            pytest.skip("only root can mount a file system")
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)], capture_output=True
        )
        if made.returncode:
            pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
        mounted.append(tmp_path)
        return tmp_path

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_loses_nothing_that_was_computed(data, whole, tmpfs):
    folder = tmpfs("size=16k")
    with pytest.warns(UserWarning, match="could not be kept"):
        same_bits(run(data, folder), whole)
    assert 0 < len(kept(folder)) < 6  # what fitted is there and whole
    assert not list(folder.glob("*.tmp"))
    with pytest.warns(UserWarning, match="could not be kept"):
        same_bits(run(data, folder), whole)


def test_a_read_only_folder_loses_nothing_that_was_computed(data, whole, tmpfs):
    folder = tmpfs("size=10m")
    run(data, folder)
    kept(folder)[0].unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.warns(UserWarning, match="1 of 1 parts could not be kept"):
        same_bits(run(data, folder), whole)


def test_a_part_says_what_it_was_made_with(data, tmp_path):
    run(data, tmp_path)
    arrays, about = store.read(kept(tmp_path)[0])
    assert arrays["test_error"].shape == (2,)
    assert about["torch"] == torch.__version__
    assert about["settings"]["epochs"] == 2
    assert about["threads"] == 1
    assert about["seconds"] > 0


def test_parts_open_with_numpy_alone(data, tmp_path):
    run(data, tmp_path)
    with np.load(kept(tmp_path)[0]) as file:
        assert "weight_norm" in file.files

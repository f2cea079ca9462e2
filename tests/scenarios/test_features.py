"""The feature store: computed once, never half, never copied."""

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_toys import FEATURES, KEY

from fl_core.errors import DataError, ResourceError
from scenarios.data.catalogue import load_dataset
from scenarios.encode import chunk_rows, encode_chunk
from scenarios.features import FeatureStore

BUILD_SLOWLY = """
import json, os, sys, time
import numpy as np
from pathlib import Path
from scenarios.features import FeatureKey, FeatureStore
root, log, key = Path(sys.argv[1]), Path(sys.argv[2]), FeatureKey(**json.loads(sys.argv[3]))
def build():
    with log.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    for part in range(2):
        time.sleep(float(sys.argv[4]))
        yield np.full((5, 6), part, dtype=np.float32)
print("ready", flush=True)
sys.stdin.readline()
print(FeatureStore(root).write(key, build(), (10, 6)).sum())
"""


def builder(root: Path, log: Path, pause_s: float) -> subprocess.Popen:
    """A process that builds the entry when a line is written to it."""
    key = json.dumps(asdict(KEY))
    return subprocess.Popen(
        [sys.executable, "-c", BUILD_SLOWLY, str(root), str(log), key, str(pause_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def start(process: subprocess.Popen) -> None:
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()


def no_build():
    """Chunks that nobody may ask for."""
    raise AssertionError("nothing is to be computed")
    yield


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(10, 6), (10, 3, 2), (10,)])
def test_what_was_written_is_read_back_bit_for_bit(store, dtype, shape):
    values = FEATURES.reshape(-1)[: np.prod(shape)].reshape(shape).astype(dtype)
    key = replace(KEY, dtype=dtype)
    assert store.open(key) is None
    store.write(key, [values[:4], values[4:]], shape)
    read = store.open(key)
    assert read is not None
    assert (read.dtype, read.shape) == (values.dtype, shape)
    assert read.tobytes() == values.tobytes()


def test_the_second_use_computes_nothing(store):
    first = store.write(KEY, iter([FEATURES]), (10, 6))
    assert np.array_equal(store.write(KEY, no_build(), (10, 6)), first)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "x"},
        {"data": "x"},
        {"transform": "x"},
        {"output": "patches"},
        {"dtype": "float16"},
        {"device": "cuda"},
        {"torch_version": "3"},
        {"batch_size": 8},
    ],
)
def test_each_part_of_the_key_has_its_own_entry(store, change):
    store.write(KEY, FEATURES, (10, 6))
    assert store.open(replace(KEY, **change)) is None


def test_the_array_is_the_mapped_file_and_not_a_copy(store):
    key = replace(KEY, weights="large")
    values = np.random.default_rng(0).normal(size=(4096, 1024)).astype(np.float32)  # 16 MiB
    store.write(key, values, values.shape)
    read = store.open(key)
    assert read is not None
    assert not read.flags.writeable
    assert not read.flags.owndata
    address = read.__array_interface__["data"][0]
    mappings = Path("/proc/self/maps").read_text().splitlines()
    ranges = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in mappings
        if line.endswith(str(store.path(key)))
    ]
    assert any(low <= address and address + read.nbytes <= high for low, high in ranges)


def test_a_mapped_array_outlives_the_removal_of_its_file(store):
    read = store.write(KEY, FEATURES, (10, 6))
    store.path(KEY).unlink()
    assert np.array_equal(read, FEATURES)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: b"\0" * len(content),
        lambda content: content + b"more",
    ],
    ids=["half", "one byte short", "empty", "zeros", "longer"],
)
def test_a_damaged_entry_counts_as_absent_and_is_built_again(store, damage, caplog):
    store.write(KEY, FEATURES, (10, 6))
    path = store.path(KEY)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert store.open(KEY) is None
    assert "counts as absent" in caplog.text
    assert np.array_equal(store.write(KEY, FEATURES, (10, 6)), FEATURES)


def test_an_entry_under_a_wrong_name_is_not_used(store):
    store.write(KEY, FEATURES, (10, 6))
    other = replace(KEY, data="other")
    store.path(KEY).rename(store.path(other))
    assert store.open(other) is None


def test_two_processes_that_race_for_one_entry_compute_it_once(tmp_path):
    log = tmp_path / "log"
    processes = [builder(tmp_path / "store", log, 0.2) for _ in range(2)]
    for process in processes:
        start(process)
    assert {process.communicate()[0] for process in processes} == {"30.0\n"}
    assert len(log.read_text().splitlines()) == 1


def test_what_a_killed_writer_left_is_removed_and_built_again(tmp_path):
    root, log = tmp_path / "store", tmp_path / "log"
    process = builder(root, log, 0.1)
    start(process)
    while not list(root.glob("*.tmp")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    store = FeatureStore(root)
    assert store.open(KEY) is None
    store.write(replace(KEY, data="another entry"), FEATURES, (10, 6))
    assert not list(root.glob("*.tmp"))
    assert np.array_equal(store.write(KEY, FEATURES, (10, 6)), FEATURES)


def test_a_failed_build_leaves_nothing_and_can_be_repeated(store):
    def fail():
        yield FEATURES[:4]
        raise DataError("image 5 is unreadable")

    with pytest.raises(DataError, match="image 5"):
        store.write(KEY, fail(), (10, 6))
    assert [path.suffix for path in store.root.iterdir()] == [".lock"]
    assert np.array_equal(store.write(KEY, FEATURES, (10, 6)), FEATURES)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "ended after 0 of 10"),
        ([FEATURES[:4]], "ended after 4 of 10"),
        ([FEATURES, FEATURES], "after 10 rows do not fit"),
        ([FEATURES[:4], FEATURES[4:, :3]], "do not fit an entry float32"),
        ([FEATURES.astype(np.float64)], "features float64"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(store, chunks, message):
    with pytest.raises(DataError, match=message):
        store.write(KEY, iter(chunks), (10, 6))
    assert store.open(KEY) is None


def test_a_full_disk_is_told_with_bytes_place_and_next_step(tmp_path, tables):
    """A limit on file sizes stands for the full disk; it needs no rights to set up."""
    code = """
import resource, sys
import numpy as np
from pathlib import Path
from fl_core.errors import ResourceError
from scenarios.features import FeatureKey, FeatureStore
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = FeatureStore(Path(sys.argv[1]))
seen = []
def build():
    for part in range(4):
        seen.append(part)
        yield np.zeros((1000, 64), dtype=np.float32)
try:
    key = FeatureKey("w", "d", "t", "global", "float32", "cpu", "2", 8)
    store.write(key, build(), (4000, 64))
except ResourceError as error:
    print(error, seen, [path.suffix for path in store.root.iterdir()])
"""
    message = tables.run_python(code, str(tmp_path / "store"))
    assert "needs 1,024,000 bytes" in message
    assert str(tmp_path / "store") in message
    assert "are free" in message
    assert "Move the feature store" in message
    assert message.endswith("[] ['.lock']")


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 KiB, where this machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_file_system_is_told_and_still_serves_what_it_has(tiny_disk):
    store = FeatureStore(tiny_disk / "store")
    store.write(KEY, FEATURES, (10, 6))
    large = np.zeros((1000, 128), dtype=np.float32)
    with pytest.raises(ResourceError, match=r"needs 512,000 bytes, [\d,]+ are free"):
        store.write(replace(KEY, data="large"), large, large.shape)
    assert not list(store.root.glob("*.tmp"))
    assert np.array_equal(store.write(KEY, no_build(), (10, 6)), FEATURES)


def test_no_write_access_is_told_with_the_next_step(tmp_path):
    """A folder below a regular file: not even root may create it."""
    (tmp_path / "file").write_text("")
    store = FeatureStore(tmp_path / "file" / "store")
    with pytest.raises(ResourceError, match=r"cannot be written.*Move the feature store"):
        store.write(KEY, FEATURES, (10, 6))


def _transform(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def test_encoded_rows_do_not_depend_on_how_the_work_is_shared(toy_path):
    dataset = load_dataset(str(toy_path))
    torch.manual_seed(0)
    layer, shapes = torch.nn.Linear(8 * 8 * 3, 5), set()

    def encoder(inputs):
        shapes.add(tuple(inputs.shape))
        return layer(inputs.flatten(1))

    rows = np.arange(len(dataset))[:27]
    parts = chunk_rows(rows, 8)
    chunks = [encode_chunk(dataset, part, encoder, _transform, 8) for part in parts]
    together = np.concatenate(chunks)
    apart = [encode_chunk(dataset, part, encoder, _transform, 8) for part in reversed(parts)]
    assert together.shape == (27, 5)
    assert np.array_equal(together, np.concatenate(apart[::-1]))
    assert shapes == {(8, 3, 8, 8)}


def test_an_unreadable_image_ends_the_build_and_leaves_no_entry(tables, tmp_path, store):
    records = tables.rows()
    records[9]["image"] = b"damaged"
    dataset = load_dataset(str(tables.write(tmp_path / "toy.parquet", records)))
    parts = chunk_rows(np.arange(len(dataset)), 8)
    chunks = (encode_chunk(dataset, p, lambda x: x.flatten(1), _transform, 8) for p in parts)
    with pytest.raises(DataError, match="row 9"):
        store.write(KEY, chunks, (len(dataset), 192))
    assert store.open(KEY) is None

"""The store at a URL: fetched instead of computed, whole or absent, whoever else writes."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from feature_toys import FEATURES, KEY
from remote_toys import mounted

from scenarios.features import FeatureStore
from scenarios.shared_store import SharedStore


def no_build():
    """Chunks that nobody may ask for."""
    raise AssertionError("nothing is to be computed")
    yield


@pytest.fixture
def bucket():
    with mounted("s3") as kind:
        yield kind


@pytest.fixture
def node(tmp_path, bucket):
    """Feature stores of nodes that have nothing in common but a URL."""
    return lambda name: FeatureStore(tmp_path / name, SharedStore("s3://bucket/features"))


def filled(store, values=FEATURES):
    store.write(KEY, values, values.shape)
    store.share(KEY)
    return store


@pytest.mark.parametrize("url", ["file://{}/shared", "{}/shared", "memory://{}/shared"])
def test_what_one_node_has_computed_another_only_fetches(tmp_path, url):
    shared = SharedStore(url.format(tmp_path))
    first, second = (FeatureStore(tmp_path / name, shared) for name in "ab")
    assert not second.holds(KEY)
    filled(first)
    assert second.holds(KEY)
    assert not second.path(KEY).exists()
    fetched = second.write(KEY, no_build(), (10, 6))
    assert fetched.tobytes() == FEATURES.tobytes()
    assert second.path(KEY).read_bytes() == first.path(KEY).read_bytes()
    assert list(second.root.glob("*.tmp")) == []


def test_what_was_fetched_is_mapped_and_fetched_once(node, bucket):
    filled(node("a"))
    store = node("b")
    values = store.open(KEY)
    assert not values.flags.owndata
    bucket.calls.clear()
    assert store.open(KEY) is not None
    assert bucket.calls == []


def test_processes_of_one_node_fetch_an_entry_once(node, bucket):
    filled(node("a"))
    found = []
    readers = [
        threading.Thread(target=lambda: found.append(node("b").open(KEY).sum())) for _ in range(4)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(found) == 4
    assert len(bucket.names("get", "/blobs/")) == 1


def test_an_entry_that_is_there_is_not_sent_again(node, bucket):
    store = filled(node("a"))
    bucket.calls.clear()
    store.share(KEY)
    filled(node("b"))
    assert bucket.names("put") == []


def test_other_features_are_another_entry(node):
    filled(node("a"))
    assert node("b").open(replace(KEY, weights="x")) is None


@pytest.mark.parametrize("cut", ["blobs", ".json"])
@pytest.mark.parametrize("protocol", ["s3", "far"])
def test_an_upload_that_is_cut_off_shows_no_entry_and_is_made_good(tmp_path, protocol, cut, caplog):
    def fail(what, path):
        if what == "put" and cut in path:
            raise OSError("the line went dead")

    with mounted(protocol) as kind:
        shared = SharedStore(f"{protocol}://bucket/features")
        first, second = (FeatureStore(tmp_path / name, shared) for name in "ab")
        kind.before = staticmethod(fail)
        filled(first)
        assert "was not sent to the shared store" in caplog.text
        assert "the line went dead" in caplog.text
        assert second.open(KEY) is None
        kind.before = staticmethod(lambda what, path: None)
        first.share(KEY)
        assert second.open(KEY).tobytes() == FEATURES.tobytes()


@pytest.mark.parametrize("damage", ["changed", "short", "gone", "marker"])
def test_a_damaged_entry_counts_as_absent_and_is_made_again(node, bucket, damage):
    first, second = filled(node("a")), node("b")
    name = next(n for n in bucket.store if ("blobs" in n) == (damage != "marker"))
    content = bucket.store[name].getvalue()
    if damage == "gone":
        del bucket.store[name]
    else:
        changed = b"\0" + content[1:] if damage == "changed" else content[:-3]
        bucket().pipe_file(name, changed)
    assert second.open(KEY) is None
    assert list(second.root.glob("*.arrow")) == list(second.root.glob("*.tmp")) == []
    first.share(KEY)
    assert second.open(KEY).tobytes() == FEATURES.tobytes()


@pytest.mark.parametrize("moment", ["blobs", ".json"])
def test_two_publishers_of_other_bits_leave_the_whole_entry_of_one(node, bucket, moment):
    """The second publishes all of its own while the first is about to send blob or marker."""
    first, second = node("a"), node("b")
    ours, theirs = FEATURES, np.nextafter(FEATURES, 9, dtype=np.float32)
    second.write(KEY, theirs, theirs.shape)
    begun = []

    def meanwhile(what, path):
        if what == "put" and moment in path and not begun:
            begun.append(path)
            second.share(KEY)

    bucket.before = staticmethod(meanwhile)
    filled(first, ours)
    assert begun
    fetched = node("c").open(KEY).tobytes()
    assert fetched in (ours.tobytes(), theirs.tobytes())
    marker = next(n for n in bucket.store if n.endswith(".json"))
    (facts,) = json.loads(bucket.store[marker].getvalue())["files"].values()
    assert f"/bucket/features/blobs/{facts['sha256']}" in bucket.store


def test_publishers_at_once_leave_a_whole_entry(tmp_path):
    shared = SharedStore(f"file://{tmp_path}/shared")
    stores = [FeatureStore(tmp_path / str(i), shared) for i in range(4)]
    for store in stores:
        store.write(KEY, FEATURES, FEATURES.shape)
    gate = threading.Barrier(len(stores))

    def publish(store):
        gate.wait()
        store.share(KEY)

    threads = [threading.Thread(target=publish, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = FeatureStore(tmp_path / "last", shared)
    assert last.write(KEY, no_build(), (10, 6)).tobytes() == FEATURES.tobytes()
    assert list((tmp_path / "shared").rglob("*.tmp")) == []


def test_a_shared_store_that_cannot_be_asked_costs_only_the_computation(node, bucket, caplog):
    filled(node("a"))

    def fail(what, path):
        raise OSError("the line went dead")

    bucket.before = staticmethod(fail)
    store = node("b")
    values = store.write(KEY, FEATURES, (10, 6))
    assert np.array_equal(values, FEATURES)
    assert not store.holds(replace(KEY, weights="x"))
    assert "was not fetched from the shared store" in caplog.text


def test_a_marker_that_names_files_elsewhere_is_not_followed(node, bucket, tmp_path):
    store = filled(node("a"))
    marker = next(n for n in bucket.store if n.endswith(".json"))
    facts = json.loads(bucket.store[marker].getvalue())["files"]["features.arrow"]
    bucket().pipe_file(marker, json.dumps({"files": {"../../x": facts}}).encode())
    shared = store.shared
    assert not shared.fetch(KEY.digest, lambda name: tmp_path / "place" / name)
    assert not (tmp_path / "x").exists()

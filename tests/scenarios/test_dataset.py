"""Data sets: Parquet files, image folders, and what is wrong with them, said plainly."""

import io
import os
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fl_core.errors import DataError
from scenarios.data import catalogue
from scenarios.data.catalogue import check_overlap, load_dataset, overlap_with_alignment
from scenarios.data.dataset import TEST, TRAIN, UNSPECIFIED
from scenarios.data.hashing import hash_items
from scenarios.encode import encode_chunk

PACKAGED_FINGERPRINTS = {
    "emoji_coarse": "506085e876df683d28deb568c9261d4ebc0705f9e61d280ccce62a493157a72a",
    "emoji_fine": "c3e00ab752d3587cc63f0796e48636a2e69d8cd7c1b6b74d4c98e144cb6325d9",
    "fashion_mnist": "4036b1fb9ed44066e45e739c90f38a2f046886c71bf0822b0e7ff30962da4d63",
    "flags": "6a6bed6d09b1473ca55d88b454ce03b554e47517d1841527549a2d6c22e17ac1",
}


@pytest.fixture
def toy(toy_path):
    return load_dataset(str(toy_path))


def test_a_parquet_file_is_read_as_described(toy, tables):
    assert (toy.name, toy.classes, toy.templates) == ("toy", tables.CLASSES, tables.TEMPLATES)
    assert len(toy) == 80
    assert toy.domains == ("flat", "line")
    assert np.bincount(toy.labels).tolist() == [20] * 4
    assert len(np.unique(toy.concept_ids)) == 40
    assert ((toy.split == TRAIN).sum(), (toy.split == TEST).sum()) == (56, 24)


def test_every_image_is_the_one_that_was_stored(toy, tables):
    for row, record in enumerate(tables.rows()):
        stored = Image.open(io.BytesIO(record["image"]))
        assert toy.image(row).tobytes() == stored.tobytes()


def test_a_data_set_pickles_as_a_path(toy):
    again = pickle.loads(pickle.dumps(toy))  # noqa: S301
    assert again.fingerprint == toy.fingerprint
    assert again.image(7).tobytes() == toy.image(7).tobytes()
    assert len(pickle.dumps(toy.items)) < 500


def test_the_fingerprint_depends_on_content_and_not_on_place(toy, tmp_path, tables):
    (tmp_path / "elsewhere").mkdir()
    copy = load_dataset(str(tables.write(tmp_path / "elsewhere" / "x.parquet", tables.rows())))
    assert copy.fingerprint == toy.fingerprint
    changed = tables.rows()
    changed[0]["label"] = "dog"
    other = load_dataset(str(tables.write(tmp_path / "y.parquet", changed)))
    assert other.fingerprint != toy.fingerprint
    assert other.content_fingerprint == toy.content_fingerprint


def test_the_fingerprints_of_packaged_data_are_what_they_were():
    found = {name: load_dataset(name).fingerprint for name in PACKAGED_FINGERPRINTS}
    assert found == PACKAGED_FINGERPRINTS


def test_the_fingerprint_tells_owners_kinds_and_orders_apart(toy):
    owners = np.zeros(len(toy), dtype=np.int64)
    others = [
        replace(toy, clients=("a",), client_ids=owners),
        replace(toy, clients=("b",), client_ids=owners),
        replace(toy, clients=("a",), client_ids=owners - 1),
        replace(toy, modality="text"),
        replace(toy, class_order=toy.classes[::-1]),
    ]
    assert len({dataset.fingerprint for dataset in (toy, *others)}) == 6


def test_a_data_set_that_contradicts_itself_is_refused_with_every_fault(toy):
    with pytest.raises(DataError) as caught:
        replace(
            toy,
            labels=toy.labels + 1,
            client_ids=np.full(len(toy), 2),
            clients=("b", "a"),
            class_order=("cat",),
        )
    for part in (
        "labels must lie in 0..3",
        "clients must be sorted",
        "client_ids must lie in -1..1",
        "class_order must name each class once",
    ):
        assert part in str(caught.value)


def test_an_image_encoder_refuses_texts(toy):
    texts = replace(toy, modality="text")
    with pytest.raises(DataError, match="holds texts, but images were asked for"):
        encode_chunk(texts, np.arange(2), lambda x: x, lambda x: x, 2)


def test_hashes_are_computed_where_the_file_has_none(toy, tmp_path, tables):
    bare = [{key: row[key] for key in ("image", "label")} for row in tables.rows()]
    dataset = load_dataset(str(tables.write(tmp_path / "bare.parquet", bare)))
    assert np.array_equal(dataset.content_hashes, toy.content_hashes)
    assert (dataset.split == UNSPECIFIED).all()
    assert len(np.unique(dataset.concept_ids)) == 80


def test_a_concept_that_only_repeats_the_label_groups_nothing(tmp_path, tables):
    records = [row | {"concept": row["label"].upper()} for row in tables.rows()]
    dataset = load_dataset(str(tables.write(tmp_path / "fine.parquet", records)))
    assert len(np.unique(dataset.concept_ids)) == len(dataset)


def test_an_unreadable_image_is_named_with_its_file_and_row(tmp_path, tables):
    records = tables.rows()
    records[33]["image"] = records[33]["image"][:60]
    dataset = load_dataset(str(tables.write(tmp_path / "broken.parquet", records)))
    dataset.image(32)
    with pytest.raises(DataError, match=r"cannot read image row 33 .*broken\.parquet, row 33"):
        dataset.image(33)


def test_an_image_that_changed_since_it_was_hashed_is_refused(tmp_path, tables):
    records = tables.rows()
    records[5]["image"] = records[6]["image"]
    dataset = load_dataset(str(tables.write(tmp_path / "swapped.parquet", records)))
    with pytest.raises(DataError, match=r"row 5 .* is not the image"):
        dataset.image(5)


def test_an_unknown_name_gets_the_nearest_names():
    with pytest.raises(DataError, match=r"Did you mean 'emoji_coarse'"):
        load_dataset("emoji_corse")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "wolf"}, r"labels \['wolf'\] are not among"),
        ({"split": "dev"}, r"split holds \['dev'\]"),
        ({"label": None}, r"label is null in rows \[3\]"),
        ({"sha256": "zz"}, "64 hexadecimal"),
        ({"sha256": "z" * 64}, "not hexadecimal"),
    ],
)
def test_a_bad_column_is_refused_by_name(tmp_path, change, message, tables):
    records = tables.rows()
    records[3] |= change
    with pytest.raises(DataError, match=message):
        load_dataset(str(tables.write(tmp_path / "bad.parquet", records)))


def test_a_file_without_labels_or_of_another_kind_is_refused(tmp_path, tables):
    bare = [{"image": row["image"]} for row in tables.rows()]
    with pytest.raises(DataError, match="no column label"):
        load_dataset(str(tables.write(tmp_path / "bare.parquet", bare)))
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        load_dataset(str(tmp_path / "text.parquet"))


def test_a_table_of_a_kind_that_is_not_read_is_told_what_is(tmp_path):
    (tmp_path / "texts.csv").write_text("text,label\ngood,yes\n")
    with pytest.raises(DataError, match=r"no Parquet file.*\.jsonl.*read_csv"):
        load_dataset(str(tmp_path / "texts.csv"))


def _fill_folder(tables, root, splits):
    for split in splits:
        for label in tables.CLASSES:
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(3):
                seed = index + 10 * tables.CLASSES.index(label) + 100 * (split == "test")
                (folder / f"{index}.png").write_bytes(tables.png(seed)[0])
    return root


def test_a_folder_with_splits_is_read(tmp_path, tables):
    dataset = load_dataset(str(_fill_folder(tables, tmp_path / "set", ("train", "test"))))
    assert (dataset.name, dataset.classes) == ("set", tables.CLASSES)
    assert ((dataset.split == TRAIN).sum(), (dataset.split == TEST).sum()) == (12, 12)
    assert dataset.image(0).size == (8, 8)


def test_a_folder_without_splits_leaves_them_open(tmp_path, tables):
    dataset = load_dataset(str(_fill_folder(tables, tmp_path / "set", ("",))))
    assert (dataset.split == UNSPECIFIED).all()
    assert len(dataset) == 12


def test_a_folder_lists_all_its_unreadable_images(tmp_path, tables):
    root = _fill_folder(tables, tmp_path / "set", ("",))
    (root / "cat" / "0.png").write_bytes(b"not an image")
    (root / "fox" / "2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)2 of 12 images.*cat/0\.png.*fox/2\.png"):
        load_dataset(str(root))


def test_an_empty_folder_and_an_extra_split_are_refused(tmp_path, tables):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_dataset(str(tmp_path / "empty"))
    root = _fill_folder(tables, tmp_path / "set", ("train", "test"))
    (root / "extra" / "cat").mkdir(parents=True)
    (root / "extra" / "cat" / "0.png").write_bytes(tables.png(7)[0])
    with pytest.raises(DataError, match="folders extra are no splits"):
        load_dataset(str(root))


def test_a_folder_of_texts_is_told_where_texts_are_read_from(tmp_path):
    (tmp_path / "train" / "good").mkdir(parents=True)
    (tmp_path / "train" / "good" / "1.txt").write_text("fine")
    with pytest.raises(DataError, match=r"holds no images.*columns text and label.*JSON lines"):
        load_dataset(str(tmp_path))


class Counting:
    """Items that count how often they are read."""

    def __init__(self, items):
        self.items, self.num_reads = items, 0

    def read(self, row):
        self.num_reads += 1
        return self.items.read(row)

    def __getattr__(self, name):
        return getattr(self.items, name)


def _reads(root, cache):
    draft = catalogue.open_draft(str(root))
    items = Counting(draft.items)
    hashes = hash_items(replace(draft, items=items), cache)
    assert np.array_equal(hashes, hash_items(draft))
    return items.num_reads


def test_the_hashes_of_a_folder_are_kept_and_only_what_changed_is_read_again(tmp_path, tables):
    root, cache = _fill_folder(tables, tmp_path / "set", ("",)), tmp_path / "cache"
    assert [_reads(root, cache), _reads(root, cache)] == [12, 0]
    (root / "cat" / "1.png").write_bytes(tables.png(99, size=9)[0])
    (root / "cat" / "0.png").rename(root / "cat" / "new.png")
    assert [_reads(root, cache), _reads(root, cache)] == [2, 0]
    assert len(list(cache.iterdir())) == 1


def test_the_hashes_of_a_file_are_kept_until_it_changes(tmp_path, tables):
    bare = [{key: row[key] for key in ("image", "label")} for row in tables.rows()]
    path, cache = tables.write(tmp_path / "bare.parquet", bare), tmp_path / "cache"
    assert [_reads(path, cache), _reads(path, cache)] == [80, 0]
    os.utime(path, ns=(1, 1))
    assert _reads(path, cache) == 80


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_cache_counts_as_absent(tmp_path, tables, content, caplog):
    root, cache = _fill_folder(tables, tmp_path / "set", ("",)), tmp_path / "cache"
    _reads(root, cache)
    next(cache.iterdir()).write_bytes(content)
    assert [_reads(root, cache), _reads(root, cache)] == [12, 0]
    assert "counts as absent" in caplog.text


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, tables, caplog):
    root = _fill_folder(tables, tmp_path / "set", ("",))
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert _reads(root, tmp_path / "cache") == 12
    assert "cannot be kept" in caplog.text


def test_a_cached_hash_is_compared_when_the_image_is_read(tmp_path, tables):
    root, cache = _fill_folder(tables, tmp_path / "set", ("",)), tmp_path / "cache"
    load_dataset(str(root), cache)
    path = root / "cat" / "0.png"
    before, other = path.stat(), tables.png(77)[0]
    assert len(other) == before.st_size
    path.write_bytes(other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    dataset = load_dataset(str(root), cache)
    row = next(r for r in range(12) if dataset.items.where(r).endswith("cat/0.png"))
    with pytest.raises(DataError, match=r"cat/0\.png\) is not the image"):
        dataset.image(row)


def test_data_that_the_packaged_backbone_was_aligned_on_is_refused(
    toy, tmp_path, monkeypatch, tables
):
    aligned = [tables.rows()[3]["sha256"], "0" * 64]
    pq.write_table(pa.table({"sha256": aligned}), tmp_path / "aligned_items.parquet")
    monkeypatch.setattr(catalogue, "PACKAGED_BACKBONES", {"emoji_clip": tmp_path})
    assert overlap_with_alignment(toy, "emoji_clip").tolist() == [3]
    check_overlap(toy, "ViT-B-32")
    with pytest.raises(DataError, match=r"1 of its 80 images .*rows \[3\]"):
        check_overlap(toy, "emoji_clip")


def test_importing_scenarios_brings_in_nothing_heavy(tables):
    code = (
        "import sys, scenarios.population, scenarios.features, scenarios.picture, scenarios.encode,"
        " scenarios.data.catalogue\n"
        "heavy = {'ray', 'mlflow', 'pydantic', 'pyarrow', 'PIL', 'matplotlib', 'pandas',"
        " 'open_clip', 'orchestrator', 'cluster'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert tables.run_python(code) == "[]"

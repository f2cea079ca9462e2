"""Data sets: Parquet files, image folders, and what is wrong with them, said plainly."""

import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fl_core.errors import DataError
from scenarios.data import catalogue
from scenarios.data.catalogue import check_overlap, load_dataset, overlap_with_alignment
from scenarios.data.dataset import TEST, TRAIN, UNSPECIFIED


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
    assert len(pickle.dumps(toy.images)) < 500


def test_the_fingerprint_depends_on_content_and_not_on_place(toy, tmp_path, tables):
    (tmp_path / "elsewhere").mkdir()
    copy = load_dataset(str(tables.write(tmp_path / "elsewhere" / "x.parquet", tables.rows())))
    assert copy.fingerprint == toy.fingerprint
    changed = tables.rows()
    changed[0]["label"] = "dog"
    other = load_dataset(str(tables.write(tmp_path / "y.parquet", changed)))
    assert other.fingerprint != toy.fingerprint
    assert other.content_fingerprint == toy.content_fingerprint


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
        ({"split": "val"}, r"split holds \['val'\]"),
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
    (root / "val").mkdir()
    with pytest.raises(DataError, match="also val"):
        load_dataset(str(root))


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

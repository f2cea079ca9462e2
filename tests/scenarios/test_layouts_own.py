"""A user's own data: folders, tables, and what `datasets` saves, all the same data set."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from fl_core.errors import DataError
from scenarios.data.catalogue import PACKAGED_DATASETS, load_dataset
from scenarios.data.columns import Shard
from scenarios.data.dataset import TEST, TRAIN, VALIDATION
from scenarios.data.hub import hub_shards
from scenarios.data.table import draft_table


@pytest.fixture(scope="module")
def flags():
    return load_dataset("flags")


@pytest.fixture(scope="module")
def records():
    return pq.read_table(*PACKAGED_DATASETS["flags"]).to_pylist()


@pytest.fixture(scope="module")
def renamed(records):
    """The packaged records without hashes, under other names, with an owner for each row."""
    return pa.Table.from_pylist(
        [
            {
                "picture": row["image"],
                "kind": row["label"],
                "style": row["domain"],
                "part": row["split"],
                "owner": f"owner {number % 3}",
            }
            for number, row in enumerate(records)
        ]
    )


OPTIONS = "?image=picture&label=kind&domain=style&split=part&client=owner"


def assert_same(dataset, flags):
    assert dataset.content_fingerprint == flags.content_fingerprint
    assert dataset.classes == flags.classes
    assert dataset.domains == flags.domains
    for name in ("labels", "domain_ids", "split"):
        assert np.array_equal(getattr(dataset, name), getattr(flags, name)), name
    assert dataset.image(100).tobytes() == flags.image(100).tobytes()


def test_folders_whose_levels_are_named_give_the_packaged_set(tmp_path, flags, records):
    for number, row in enumerate(records):
        folder = tmp_path / f"{number:04d}" / row["split"] / row["domain"] / row["label"]
        folder.mkdir(parents=True)
        (folder / "flag.png").write_bytes(row["image"])
    assert_same(load_dataset(f"{tmp_path}?levels=*,split,domain,class"), flags)
    owned = load_dataset(f"folder:{tmp_path}?levels=client,split,*,class")
    assert owned.domains == ("all",)
    assert owned.clients[:2] == ("0000", "0001")
    assert owned.client_ids.tolist() == list(range(len(flags)))


def test_a_parquet_file_with_other_names_of_columns_gives_it(tmp_path, flags, renamed):
    pq.write_table(renamed, tmp_path / "own.parquet", row_group_size=100)
    dataset = load_dataset(f"{tmp_path}/own.parquet{OPTIONS}&template=a flag of {{}}&name=mine")
    assert_same(dataset, flags)
    assert (dataset.name, dataset.templates) == ("mine", ("a flag of {}",))
    assert dataset.clients == ("owner 0", "owner 1", "owner 2")
    assert dataset.client_ids.tolist() == [row % 3 for row in range(len(flags))]


@pytest.mark.parametrize("compression", ["lz4", "uncompressed"])
def test_a_feather_file_and_an_arrow_file_give_it(tmp_path, flags, renamed, compression):
    feather.write_feather(renamed, tmp_path / "own.feather", compression, chunksize=100)
    assert_same(load_dataset(f"{tmp_path}/own.feather{OPTIONS}"), flags)
    with pa.ipc.new_stream(tmp_path / "own.arrow", renamed.schema) as writer:
        writer.write_table(renamed, max_chunksize=64)
    assert_same(load_dataset(f"arrow:{tmp_path}/own.arrow{OPTIONS}"), flags)


def test_a_folder_of_parquet_files_takes_splits_from_their_names(tmp_path, flags, renamed):
    (tmp_path / "data").mkdir()
    parts = np.array(renamed["part"].to_pylist())
    bare = renamed.drop_columns(["part"])
    for split in ("train", "test"):
        rows = np.flatnonzero(parts == split)
        for number, some in enumerate(np.array_split(rows, 2)):
            path = tmp_path / "data" / f"{split}-{number:05d}-of-00002.parquet"
            pq.write_table(bare.take(some), path)
    dataset = load_dataset(f"{tmp_path}?image=picture&label=kind&domain=style")
    order = np.concatenate([np.flatnonzero(parts == split) for split in ("test", "train")])
    assert np.array_equal(dataset.content_hashes, flags.content_hashes[order])
    assert np.array_equal(dataset.split, flags.split[order])
    assert dataset.image(400).tobytes() == flags.image(int(order[400])).tobytes()


@pytest.fixture(scope="module")
def hugging(records, flags):
    datasets = pytest.importorskip("datasets")
    label, style = (datasets.ClassLabel(names=list(n)) for n in (flags.classes, flags.domains))
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "label": label,
            "domain": style,
            "split": datasets.Value("string"),
        }
    )
    columns = {
        "img": [{"bytes": row["image"], "path": None} for row in records],
        "label": [row["label"] for row in records],
        "domain": [row["domain"] for row in records],
        "split": [row["split"] for row in records],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def test_what_datasets_saves_to_disk_gives_it(tmp_path, flags, hugging):
    hugging.save_to_disk(tmp_path / "one", num_shards=3)
    assert_same(load_dataset(str(tmp_path / "one")), flags)
    assert_same(load_dataset(f"hf:{tmp_path / 'one'}?image=img"), flags)
    hugging.to_parquet(tmp_path / "own.parquet")
    assert_same(load_dataset(str(tmp_path / "own.parquet")), flags)


def test_saved_splits_are_chosen_by_name(tmp_path, hugging):
    import datasets

    parts = {"train": hugging.select(range(40)), "extra": hugging.select(range(40, 60))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "dict")
    with pytest.raises(DataError, match=r"has the splits train, extra, .* what extra is for"):
        load_dataset(str(tmp_path / "dict"))
    dataset = load_dataset(f"{tmp_path / 'dict'}?train=train&test=extra")
    assert [(dataset.split == code).sum() for code in (TRAIN, TEST)] == [40, 20]
    with pytest.raises(DataError, match=r"no split 'extras', which is to be test.*mean 'extra'"):
        load_dataset(f"{tmp_path / 'dict'}?train=train&test=extras")
    hugging.save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match=r"without splits, so test=extra means nothing"):
        load_dataset(f"{tmp_path / 'one'}?test=extra")


def test_a_set_that_the_library_loads_is_read_from_its_arrow_files(
    tmp_path, monkeypatch, hugging, flags
):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    hugging.select(range(50)).to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    shards = hub_shards(str(tmp_path / "set"), None, None, {})
    assert [(shard.format, shard.split) for shard in shards] == [("arrow", "train")]
    draft = draft_table("set", shards)
    assert list(draft.labels) == [flags.classes[label] for label in flags.labels[:50]]
    assert draft.items.read(7)[:4] == b"\x89PNG"


def test_packaged_texts_are_read_and_keep_their_hashes():
    (path,) = PACKAGED_DATASETS["text_sentiment"]
    dataset = load_dataset(f"{path}?domain=task")
    assert (dataset.modality, dataset.templates) == ("text", ("{}",))
    assert (len(dataset.domains), dataset.families, dataset.candidates) == (4, (), None)
    named, tasks = load_dataset("text_sentiment"), load_dataset(f"{path}?domain=task&family=family")
    assert (named.fingerprint, named.families) == (tasks.fingerprint, ("sentiment",) * 4)
    assert dataset.text(0).startswith("Why does my kitchen")
    with pytest.raises(DataError, match="holds texts, but images were asked for"):
        dataset.image(0)


def test_a_text_is_hashed_in_normal_form_c(tmp_path):
    for name, text in (("a", "caf\u00e9"), ("b", "cafe\u0301")):
        pq.write_table(pa.table({"text": [text], "label": ["x"]}), tmp_path / f"{name}.parquet")
    one, other = (load_dataset(str(tmp_path / f"{name}.parquet")) for name in "ab")
    assert one.content_fingerprint == other.content_fingerprint
    assert other.text(0) == "caf\u00e9"


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_validation_rows_and_rows_without_an_owner_are_understood(tmp_path, tables):
    images = [tables.png(seed)[0] for seed in range(4)]
    path = write(
        tmp_path / "own.parquet",
        image=images,
        label=["a", "b", "a", "b"],
        split=["train", "val", "validation", "test"],
        client=["x", "x", "w", None],
    )
    dataset = load_dataset(path)
    assert dataset.split.tolist() == [TRAIN, VALIDATION, VALIDATION, TEST]
    assert (dataset.clients, dataset.client_ids.tolist()) == (("w", "x"), [1, 1, 0, -1])


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"image": [b""], "kind": ["a"]}, "", r"no column label \(found: image, kind\)"),
        ({"image": [b""], "kind": ["a"]}, "?label=kinds", r"no column kinds.*Did you mean 'kind'"),
        ({"image": [b""], "text": ["t"], "label": ["a"]}, "", "are both there: choose one"),
        ({"image": [b""], "label": [3]}, "", "holds numbers, and no metadata say"),
        ({"image": ["a.png"], "label": ["a"]}, "", "column image holds strings, not encoded"),
        ({"text": ["t"], "label": [3]}, "?classes=a,b", r"outside 0\.\.1 in 1 rows: \[0\]"),
        ({"text": ["t"], "label": [1.0]}, "?classes=a,b", "column label holds fractions"),
        ({"text": ["t"], "label": ["a"]}, "?labels=x", r"'labels' is unknown.*mean 'label'"),
        ({"text": ["t"], "label": ["a"]}, "?label=label&label=x", "given 2 times"),
        ({"text": ["t"], "label": ["a"]}, "?template=hello", r"must hold \{\} once"),
        ({"text": ["t"], "label": ["a"]}, "?duplicates=maybe", "must be refuse or drop"),
    ],
)
def test_a_table_that_is_not_understood_is_refused(tmp_path, columns, options, message):
    path = write(tmp_path / "own.parquet", **columns)
    with pytest.raises(DataError, match=message):
        load_dataset(path + options)


def test_numbers_can_be_given_names(tmp_path):
    path = write(tmp_path / "own.parquet", text=["s", "t"], label=[1, 0])
    dataset = load_dataset(f"{path}?classes=no,yes")
    assert [dataset.classes[label] for label in dataset.labels] == ["yes", "no"]


def fill(tables, root, folders):
    for seed, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{seed}.png").write_bytes(tables.png(seed)[0])
    return root


def test_a_folder_may_have_validation_rows(tmp_path, tables):
    root = fill(tables, tmp_path, ("train/cat", "validation/cat", "test/cat"))
    assert load_dataset(str(root)).split.tolist() == [TEST, TRAIN, VALIDATION]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", r"2 of 3 images do not lie 1 folders deep.*Say what each level"),
        ("?levels=domain,class", r"1 of 3 images do not lie 2 folders deep.*cat/2\.png"),
        ("?levels=domain,clas", r"(?s)'clas' is unknown.*mean 'class'.*name `class` once, not 0"),
        ("?levels=split,class", r"folders real, sketch are no splits"),
        ("?level=class", r"'level' is unknown here\. Did you mean 'levels'"),
    ],
)
def test_levels_are_not_guessed(tmp_path, tables, options, message):
    root = fill(tables, tmp_path, ("real/cat", "sketch/cat", "cat"))
    with pytest.raises(DataError, match=message):
        load_dataset(f"{root}{options}")


def test_an_unknown_kind_gets_the_nearest():
    with pytest.raises(DataError, match=r"'oxford_pet' is no kind.*mean 'oxford_pets'"):
        load_dataset("oxford_pet:data")
    with pytest.raises(DataError, match=r"named with its folder, such as oxford_pets:FOLDER"):
        load_dataset("oxford_pets")


def test_a_path_with_a_question_mark_is_that_path(tmp_path, tables):
    root = fill(tables, tmp_path / "what?levels=x", ("cat", "dog"))
    assert load_dataset(str(root)).classes == ("cat", "dog")


def test_copies_of_test_rows_can_be_left_out_of_training(tmp_path, tables):
    root = fill(tables, tmp_path, ("train/cat", "train/cat", "test/cat", "train/dog"))
    (root / "train/cat/0copy.png").write_bytes(tables.png(2)[0])
    whole, clean = load_dataset(str(root)), load_dataset(f"{root}?duplicates=drop")
    assert (len(whole), len(clean)) == (5, 4)
    assert not any("copy" in clean.items.where(row) for row in range(4))
    assert clean.image(3).tobytes() == whole.image(4).tobytes()


def test_shards_are_read_as_one_table(tmp_path):
    paths = [write(tmp_path / f"{n}.parquet", text=[n, n * 2], label=["a", "b"]) for n in "xy"]
    draft = draft_table("both", [Shard(tmp_path / path, "parquet") for path in paths])
    assert [draft.items.read(row) for row in range(4)] == [b"x", b"xx", b"y", b"yy"]


def test_a_packaged_name_wins_over_a_file_and_takes_options(tmp_path, monkeypatch, flags, tables):
    monkeypatch.chdir(tmp_path)
    fill(tables, tmp_path / "flags", ("cat", "dog"))
    assert load_dataset("flags").fingerprint == flags.fingerprint
    assert load_dataset("./flags").classes == ("cat", "dog")
    assert load_dataset("flags?template=flag of {}").templates == ("flag of {}",)
    with pytest.raises(DataError, match="'label' is unknown here"):
        load_dataset("flags?label=x")


def test_items_pickle_as_places(tmp_path, tables):
    root = fill(tables, tmp_path, ("cat", "dog"))
    for spec in (str(root), "flags", f"{root}?duplicates=drop"):
        dataset = load_dataset(spec)
        again = pickle.loads(pickle.dumps(dataset))  # noqa: S301
        assert again.image(1).tobytes() == dataset.image(1).tobytes()

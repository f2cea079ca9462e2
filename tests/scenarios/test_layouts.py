"""Published few-shot sets and ImageNets: small copies, and copies that are not whole."""

from pathlib import Path

import numpy as np
import pytest
from small_copies import (
    DOMAINS,
    NAMES,
    SMALL_SPLIT,
    SPLIT_FILES,
    VARIANTS,
    WNIDS,
    counts,
    draw,
    load,
    write_aircraft,
    write_split,
    write_wnids,
)

from fl_core.errors import DataError
from scenarios.data.catalogue import load_dataset
from scenarios.data.expected import Expected
from scenarios.data.published import LAYOUTS


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_a_set_with_a_split_file_is_read_from_its_folder_and_from_the_one_above(tmp_path, name):
    folder = write_split(tmp_path, name)
    dataset = load(name, tmp_path, SMALL_SPLIT)
    assert (dataset.name, dataset.classes) == (name, ("Cat", "big dog", "small fox"))
    assert dataset.class_order == ("small fox", "Cat", "big dog")
    assert counts(dataset) == (6, 3, 3)
    assert np.bincount(dataset.labels).tolist() == [4, 4, 4]
    assert "Cat" in dataset.items.where(int(np.flatnonzero(dataset.labels == 0)[0]))
    assert dataset.image(0).size == (6, 5)
    assert load(name, folder, SMALL_SPLIT).fingerprint == dataset.fingerprint


def test_prompts_and_class_names_are_the_published_ones(tmp_path):
    write_split(tmp_path, "eurosat", ("AnnualCrop", "River", "SeaLake"))
    eurosat = load("eurosat", tmp_path, SMALL_SPLIT)
    assert eurosat.classes == ("Annual Crop Land", "River", "Sea or Lake")
    assert eurosat.templates == ("a centered satellite photo of {}.",)
    assert LAYOUTS["oxford_pets"].templates == ("a photo of a {}, a type of pet.",)
    write_split(tmp_path, "caltech101", ("Faces", "airplanes", "ant"))
    assert load("caltech101", tmp_path, SMALL_SPLIT).classes == ("airplane", "ant", "face")


@pytest.mark.parametrize(
    ("name", "num_classes", "rows"),
    [
        ("caltech101", 100, (4128, 1649, 2465)),
        ("oxford_pets", 37, (2944, 736, 3669)),
        ("stanford_cars", 196, (6509, 1635, 8041)),
        ("flowers102", 102, (4093, 1633, 2463)),
        ("food101", 101, (50500, 20200, 30300)),
        ("fgvc_aircraft", 100, (3334, 3333, 3333)),
        ("sun397", 397, (15880, 3970, 19850)),
        ("dtd", 47, (2820, 1128, 1692)),
        ("eurosat", 10, (13500, 5400, 8100)),
        ("ucf101", 101, (7639, 1898, 3783)),
    ],
)
def test_the_expected_counts_are_those_of_the_papers_table(name, num_classes, rows):
    expected = LAYOUTS[name].expected
    assert expected.num_classes == num_classes
    assert tuple(expected.rows[part] for part in ("train", "val", "test")) == rows


def test_domains_add_up_to_the_published_totals():
    totals = {"pacs": 9_991, "office_home": 15_588, "vlcs": 10_729, "domainnet": 586_575}
    assert {name: sum(LAYOUTS[name].expected.rows.values()) for name in totals} == totals


def test_a_copy_that_is_not_whole_is_refused_with_all_that_is_wrong(tmp_path):
    folder = write_split(tmp_path, "oxford_pets")
    (folder / "images" / "Cat" / "Cat_0.jpg").unlink()
    (folder / "images" / "Cat" / "Cat_3.jpg").unlink()
    with pytest.raises(DataError) as caught:
        load_dataset(f"oxford_pets:{tmp_path}")
    message = str(caught.value)
    for part in (
        "3 classes, but 37 are expected",
        "6 rows of train, but 2,944 are expected",
        "3 rows of val, but 736",
        "3 rows of test, but 3,669",
        "2 of 12 images are missing: images/Cat/Cat_0.jpg, images/Cat/Cat_3.jpg",
        "docs/data.md",
    ):
        assert part in message


def test_missing_files_are_all_named(tmp_path):
    (tmp_path / "oxford_pets").mkdir()
    with pytest.raises(DataError, match=r"(?s)split_zhou_OxfordPets\.json is missing.*images is"):
        load_dataset(f"oxford_pets:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a split file"),
        ('{"train": [], "val": []}', "is not a split file"),
        ('{"train": [["a.jpg", 0, "x"]], "val": [["b.jpg", 0, "y"]], "test": []}', "means 'x' and"),
    ],
)
def test_a_damaged_split_file_is_refused(tmp_path, content, message):
    folder = write_split(tmp_path, "dtd")
    (folder / SPLIT_FILES["dtd"][2]).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load("dtd", tmp_path, SMALL_SPLIT)


def test_aircraft_is_read_from_its_own_lists(tmp_path):
    root = write_aircraft(tmp_path)
    expected = Expected(3, {"train": 6, "val": 3, "test": 3})
    dataset = load("fgvc_aircraft", tmp_path, expected)
    assert dataset.class_order == ("Boeing 707-320", "A300B4", "F-16A/B")
    assert counts(dataset) == (6, 3, 3)
    (root / "variants.txt").write_text("Boeing 707-320\nA300B4\n")
    with pytest.raises(DataError, match=r"variants\.txt lacks F-16A/B"):
        load("fgvc_aircraft", tmp_path, expected)


def test_imagenet_trains_on_train_and_is_tested_on_val(tmp_path):
    write_wnids(tmp_path / "imagenet", ("images/train", "images/val"))
    dataset = load("imagenet", tmp_path, Expected(3, {"train": 6, "test": 6}))
    assert dataset.class_order == NAMES
    assert counts(dataset) == (6, 0, 6)
    assert "n02123045" in dataset.items.where(
        int(np.flatnonzero(dataset.labels == dataset.classes.index("tabby cat"))[0])
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_of_imagenet_holds_test_rows_of_its_own_classes(tmp_path, name):
    folder, part = VARIANTS[name]
    write_wnids(tmp_path / folder, (part,), WNIDS[1:])
    dataset = load(name, tmp_path, Expected(2, {"test": 4}))
    assert dataset.classes == ("goldfish", "tabby cat")
    assert counts(dataset) == (0, 0, 4)


def test_imagenet_v2_counts_its_folders_by_the_lines_of_classnames(tmp_path):
    part = "imagenetv2-matched-frequency-format-val"
    write_wnids(tmp_path / "imagenetv2", (part,), ("0", "1", "2"))
    dataset = load("imagenet_v2", tmp_path, Expected(3, {"test": 6}))
    row = int(np.flatnonzero(dataset.labels == dataset.classes.index("tabby cat"))[0])
    assert f"{part}/2/" in dataset.items.where(row)


def test_imagenets_classes_of_one_name_get_wordnets_names(tmp_path):
    wnids = ("n03773504", "n04008634")
    root = tmp_path / "imagenet"
    write_wnids(root, ("images/train", "images/val"), wnids)
    (root / "classnames.txt").write_text("".join(f"{wnid} missile\n" for wnid in wnids))
    dataset = load("imagenet", tmp_path, Expected(2, {"train": 4, "test": 4}))
    assert dataset.class_order == ("missile", "projectile")


def test_folders_that_are_no_class_are_refused(tmp_path):
    write_wnids(tmp_path / "imagenet", ("images/train", "images/val"))
    draw(tmp_path / "imagenet" / "images" / "val" / "loose.JPEG", 1)
    with pytest.raises(DataError, match=r"loose\.JPEG\. Images lie in one folder"):
        load("imagenet", tmp_path, Expected(3, {"train": 6, "test": 6}))


def test_every_layout_is_tested_and_documented_with_its_counts():
    tested = {*SPLIT_FILES, *VARIANTS, *DOMAINS, "fgvc_aircraft", "imagenet", "imagenet_v2"}
    tested |= {"domainnet", "inaturalist_user_120k", "cifar10", "cifar100"}
    assert tested == set(LAYOUTS)
    page = Path(__file__).parents[2].joinpath("docs", "data.md").read_text(encoding="utf-8")
    for name, layout in LAYOUTS.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| {layout.expected.num_classes:,} |" in line
        parts = ("train", "val", "test")
        rows = [f"{layout.expected.rows[part]:,}" for part in parts if part in layout.expected.rows]
        assert all(count in line for count in rows), name

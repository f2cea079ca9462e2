"""Published sets of domains, of people, and CIFAR: small copies, and copies that are not whole."""

import numpy as np
import pytest
from small_copies import (
    DOMAINNET,
    DOMAINS,
    counts,
    draw,
    load,
    write_cifar,
    write_domains,
    write_inaturalist,
)

from fl_core.errors import DataError
from scenarios.data.catalogue import load_dataset
from scenarios.data.expected import Expected


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_set_is_read(tmp_path, name):
    folder, domains = DOMAINS[name]
    write_domains(tmp_path / folder, domains)
    rows = {domain.replace("_", " "): 2 * (i + 1) for i, domain in enumerate(domains)}
    dataset = load(name, tmp_path, Expected(2, rows))
    assert dataset.classes == ("Alarm Clock", "mug")
    held = np.bincount(dataset.domain_ids)
    assert dict(zip(dataset.domains, held.tolist(), strict=True)) == rows
    wrong = rows | {domains[0].replace("_", " "): 3}
    with pytest.raises(DataError, match=r"2 rows of .*, but 3 are expected"):
        load(name, tmp_path, Expected(2, wrong))


def test_a_domain_under_another_spelling_is_found_and_a_missing_one_named(tmp_path):
    write_domains(tmp_path / "OfficeHome", ("Art", "Clipart", "Product", "RealWorld"))
    dataset = load("office_home", tmp_path, Expected(2, {"Real World": 8}))
    assert dataset.domains == ("Art", "Clipart", "Product", "Real World")
    write_domains(tmp_path / "PACS", ("photo", "sketch"))
    with pytest.raises(DataError, match=r"(?s)art_painting is missing.*cartoon is missing"):
        load("pacs", tmp_path, Expected(2))


def test_domainnet_is_read_from_its_lists(tmp_path):
    root = tmp_path / "domain_net"
    names = ("aircraft_carrier", "zebra")
    for number, domain in enumerate(DOMAINNET):
        for part, each in (("train", 2), ("test", 1)):
            lines = []
            for label, name in enumerate(names):
                for index in range(each):
                    file = f"{domain}/{name}/{domain}_{part}_{index}.jpg"
                    draw(root / file, 100 * number + 10 * label + index + 5 * len(part))
                    lines.append(f"{file} {label}")
            (root / f"{domain}_{part}.txt").write_text("\n".join(lines) + "\n")
    rows = {f"{domain} train": 4 for domain in DOMAINNET}
    rows |= {f"{domain} test": 2 for domain in DOMAINNET}
    dataset = load("domainnet", tmp_path, Expected(2, rows))
    assert (dataset.domains, dataset.classes) == (DOMAINNET, ("aircraft carrier", "zebra"))
    assert counts(dataset) == (24, 0, 12)
    (root / "real_test.txt").write_text("real/zebra/real_test_0.jpg 0\n")
    (root / "sketch_test.txt").unlink()
    with pytest.raises(DataError, match=r"(?s)class 0 is 'zebra' here.*sketch_test.txt is missing"):
        load("domainnet", tmp_path, Expected(2, rows))


def test_inaturalists_clients_are_the_people_who_took_the_pictures(tmp_path):
    write_inaturalist(tmp_path)
    expected = Expected(2, {"train": 4, "test": 2}, num_clients=3)
    dataset = load("inaturalist_user_120k", tmp_path, expected)
    assert dataset.classes == ("Ardea alba", "Rosa canina")
    assert dataset.clients == ("ann", "bob", "cem")
    assert dataset.client_ids.tolist() == [0, 1, 0, 2, -1, -1]
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0, 1]
    with pytest.raises(DataError, match="3 clients, but 9,275 are expected"):
        load_dataset(f"inaturalist_user_120k:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "folder", "files", "names_file", "num_labels"),
    [
        (
            "cifar10",
            "cifar-10-batches-bin",
            (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
            "batches.meta.txt",
            1,
        ),
        ("cifar100", "cifar-100-binary", ("train.bin", "test.bin"), "fine_label_names.txt", 2),
    ],
)
def test_cifar_is_read_record_by_record(tmp_path, name, folder, files, names_file, num_labels):
    pictures = write_cifar(tmp_path / folder, files, num_labels)
    (tmp_path / folder / names_file).write_text("tree_frog\nairplane\nship\n\n")
    num_train = 3 * (len(files) - 1)
    expected = Expected(3, {"train": num_train, "test": 3})
    dataset = load(name, tmp_path, expected)
    assert dataset.class_order == ("tree frog", "airplane", "ship")
    assert counts(dataset) == (num_train, 0, 3)
    for row, (number, pixels) in enumerate(pictures):
        assert dataset.classes[dataset.labels[row]] == dataset.class_order[number]
        assert np.array_equal(np.asarray(dataset.image(row)), pixels)
    cut = tmp_path / folder / files[0]
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(DataError, match="is cut short"):
        load(name, tmp_path, expected)


def test_the_pickled_cifar_is_not_opened(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DataError, match="the pickled one is not opened"):
        load_dataset(f"cifar10:{tmp_path}")


def test_lists_that_are_no_text_are_named(tmp_path):
    write_inaturalist(tmp_path)
    (tmp_path / "inaturalist-user-120k" / "test.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"test\.csv cannot be read: .*utf-8"):
        load("inaturalist_user_120k", tmp_path, Expected(2))

"""Small copies of published data sets, in the real folders and file formats."""

import csv
import json
from dataclasses import replace

import numpy as np
from PIL import Image

from scenarios.data.dataset import TEST, TRAIN, VALIDATION
from scenarios.data.draft import finish
from scenarios.data.expected import Expected
from scenarios.data.hashing import hash_items
from scenarios.data.published import LAYOUTS, draft_layout

SPLIT_FILES = {
    "caltech101": ("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
    "oxford_pets": ("oxford_pets", "images", "split_zhou_OxfordPets.json"),
    "stanford_cars": ("stanford_cars", "", "split_zhou_StanfordCars.json"),
    "flowers102": ("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json"),
    "food101": ("food-101", "images", "split_zhou_Food101.json"),
    "sun397": ("sun397", "SUN397", "split_zhou_SUN397.json"),
    "dtd": ("dtd", "images", "split_zhou_DescribableTextures.json"),
    "eurosat": ("eurosat", "2750", "split_zhou_EuroSAT.json"),
    "ucf101": ("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json"),
}
SMALL_SPLIT = Expected(3, {"train": 6, "val": 3, "test": 3})
VARIANTS = {
    "imagenet_sketch": ("imagenet-sketch", "images"),
    "imagenet_a": ("imagenet-adversarial", "imagenet-a"),
    "imagenet_r": ("imagenet-rendition", "imagenet-r"),
}
WNIDS = ("n01440764", "n01443537", "n02123045")
NAMES = ("tench", "goldfish", "tabby cat")
DOMAINS = {
    "pacs": ("PACS", ("art_painting", "cartoon", "photo", "sketch")),
    "office_home": ("office_home", ("Art", "Clipart", "Product", "Real World")),
    "vlcs": ("VLCS", ("Caltech101", "LabelMe", "SUN09", "VOC2007")),
    "terra_incognita": (
        "terra_incognita",
        ("location_100", "location_38", "location_43", "location_46"),
    ),
}
DOMAINNET = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def draw(path, seed, size=(6, 5)):
    """A random picture; the folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(path, format="PNG" if path.suffix == ".png" else "JPEG")


def load(name, place, expected):
    draft = draft_layout(replace(LAYOUTS[name], expected=expected), place)
    return finish(draft, hash_items(draft))


def counts(dataset):
    return tuple(int((dataset.split == code).sum()) for code in (TRAIN, VALIDATION, TEST))


def write_split(data, name, classes=("big_dog", "Cat", "small_fox")):
    """A split file as CoOp publishes it: label numbers need not follow the names."""
    folder, images, split_file = SPLIT_FILES[name]
    held = {"train": [], "val": [], "test": []}
    for label, raw in enumerate(reversed(classes)):
        for number, part in enumerate(("train", "train", "val", "test")):
            path = f"{raw}/{raw}_{number}.jpg"
            draw(data / folder / images / path, 10 * label + number)
            held[part].append([path, label, raw])
    (data / folder / split_file).write_text(json.dumps(held), encoding="utf-8")
    return data / folder


def write_aircraft(data):
    root = data / "fgvc_aircraft"
    variants = ("Boeing 707-320", "A300B4", "F-16A/B")
    for part, each in (("train", 2), ("val", 1), ("test", 1)):
        lines = []
        for label, variant in enumerate(variants):
            for number in range(each):
                image = f"{len(part)}{label}{number}{each:04d}"
                draw(root / "images" / f"{image}.jpg", int(image))
                lines.append(f"{image} {variant}")
        (root / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    (root / "variants.txt").write_text("\n".join(variants) + "\n")
    return root


def write_wnids(root, parts, folders=WNIDS, each=2):
    root.mkdir(parents=True, exist_ok=True)
    listed = (f"{wnid} {name}" for wnid, name in zip(WNIDS, NAMES, strict=True))
    (root / "classnames.txt").write_text("\n".join(listed) + "\n")
    for part in parts:
        for label, folder in enumerate(folders):
            for number in range(each):
                draw(root / part / folder / f"{part[-3:]}_{number}.JPEG", 10 * label + number)
        (root / part / "README.txt").write_text("not an image")


def write_domains(root, domains, classes=("Alarm_Clock", "mug")):
    for number, domain in enumerate(domains):
        for label, name in enumerate(classes):
            for index in range(number + 1):
                draw(root / domain / name / f"{index}.jpg", 100 * number + 10 * label + index)


def write_inaturalist(root):
    takers = {"train": ("ann", "bob", "ann", "cem"), "test": (None, None)}
    for part, users in takers.items():
        name = "federated_train_user_120k.csv" if part == "train" else "test.csv"
        path = root / "inaturalist-user-120k" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = ["user_id", "image_id", "class", "label"][part == "test" :]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fields, extrasaction="ignore")
            writer.writeheader()
            for number, user in enumerate(users):
                label, image = number % 2, f"{part}{number:08x}"
                species = ("Aves/Ardea alba", "Plantae/Rosa canina")[label]
                draw(root / "train_val_images" / species / f"{image}.jpg", number + 7 * len(part))
                row = {"user_id": user, "image_id": image, "class": label, "label": 90 + label}
                writer.writerow(row)


def write_cifar(root, files, num_labels, each=3):
    """Records of label bytes and three colour planes, from one generator."""
    root.mkdir()
    rng = np.random.default_rng(0)
    pictures = []
    for name in files:
        records = b""
        for number in range(each):
            planes = rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)
            labels = bytes([7, number]) if num_labels == 2 else bytes([number])
            records += labels + planes.tobytes()
            pictures.append((number, planes.transpose(1, 2, 0)))
        (root / name).write_bytes(records)
    return pictures

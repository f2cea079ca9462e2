"""The published data sets that can be named: where their files lie, and what they must hold.

Counts and prompts are those of CoOp (Zhou et al. 2022, arXiv 2109.01134), of DomainBed (Gulrajani
and Lopez-Paz 2021, arXiv 2007.01434), of DomainNet's cleaned edition (Peng et al. 2019, arXiv
1812.01754) and of Hsu et al. 2020, arXiv 2003.08082.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from scenarios.data import domains, federated, few_shot
from scenarios.data.dataset import TEST, TRAIN
from scenarios.data.domains import DomainFolders, DomainLists
from scenarios.data.draft import Draft
from scenarios.data.expected import Expected
from scenarios.data.federated import BinaryRecords, UserLists
from scenarios.data.few_shot import SplitFile, VariantLists, WnidFolders

Layout = (
    SplitFile | VariantLists | WnidFolders | DomainFolders | DomainLists | UserLists | BinaryRecords
)


def _split(num_classes: int, train: int, val: int, test: int) -> Expected:
    return Expected(num_classes, {"train": train, "val": val, "test": test})


_CALTECH_NAMES = {
    "airplanes": "airplane",
    "Faces": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
}
_EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}

_FEW_SHOT: tuple[Layout, ...] = (
    SplitFile(
        "caltech101",
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        _split(100, 4_128, 1_649, 2_465),
        renamed=_CALTECH_NAMES,
    ),
    SplitFile(
        "oxford_pets",
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        _split(37, 2_944, 736, 3_669),
        ("a photo of a {}, a type of pet.",),
    ),
    SplitFile(
        "stanford_cars",
        "stanford_cars",
        ".",
        "split_zhou_StanfordCars.json",
        _split(196, 6_509, 1_635, 8_041),
    ),
    SplitFile(
        "flowers102",
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        _split(102, 4_093, 1_633, 2_463),
        ("a photo of a {}, a type of flower.",),
    ),
    SplitFile(
        "food101",
        "food-101",
        "images",
        "split_zhou_Food101.json",
        _split(101, 50_500, 20_200, 30_300),
        ("a photo of {}, a type of food.",),
    ),
    VariantLists(
        "fgvc_aircraft",
        "fgvc_aircraft",
        _split(100, 3_334, 3_333, 3_333),
        ("a photo of a {}, a type of aircraft.",),
    ),
    SplitFile(
        "sun397",
        "sun397",
        "SUN397",
        "split_zhou_SUN397.json",
        _split(397, 15_880, 3_970, 19_850),
    ),
    SplitFile(
        "dtd",
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        _split(47, 2_820, 1_128, 1_692),
        ("{} texture.",),
    ),
    SplitFile(
        "eurosat",
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        _split(10, 13_500, 5_400, 8_100),
        ("a centered satellite photo of {}.",),
        _EUROSAT_NAMES,
    ),
    SplitFile(
        "ucf101",
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        _split(101, 7_639, 1_898, 3_783),
        ("a photo of a person doing {}.",),
    ),
)

_IMAGENETS: tuple[Layout, ...] = (
    WnidFolders(
        "imagenet",
        "imagenet",
        {"images/train": TRAIN, "images/val": TEST},
        Expected(1_000, {"train": 1_281_167, "test": 50_000}),
    ),
    WnidFolders(
        "imagenet_v2",
        "imagenetv2",
        {"imagenetv2-matched-frequency-format-val": TEST},
        Expected(1_000, {"test": 10_000}),
        is_numbered=True,
    ),
    WnidFolders(
        "imagenet_sketch",
        "imagenet-sketch",
        {"images": TEST},
        Expected(1_000, {"test": 50_889}),
    ),
    WnidFolders(
        "imagenet_a",
        "imagenet-adversarial",
        {"imagenet-a": TEST},
        Expected(200, {"test": 7_500}),
    ),
    WnidFolders(
        "imagenet_r",
        "imagenet-rendition",
        {"imagenet-r": TEST},
        Expected(200, {"test": 30_000}),
    ),
)

_DOMAINNET_ROWS = {
    "clipart": (33_525, 14_604),
    "infograph": (36_023, 15_582),
    "painting": (50_416, 21_850),
    "quickdraw": (120_750, 51_750),
    "real": (120_906, 52_041),
    "sketch": (48_212, 20_916),
}

_DOMAINS: tuple[Layout, ...] = (
    DomainLists(
        "domainnet",
        ("domain_net", "domainnet", "DomainNet"),
        tuple(_DOMAINNET_ROWS),
        Expected(
            345,
            {
                f"{domain} {part}": rows
                for domain, counts in _DOMAINNET_ROWS.items()
                for part, rows in zip(("train", "test"), counts, strict=True)
            },
        ),
    ),
    DomainFolders(
        "pacs",
        ("PACS", "pacs"),
        ("art_painting", "cartoon", "photo", "sketch"),
        Expected(7, {"art painting": 2_048, "cartoon": 2_344, "photo": 1_670, "sketch": 3_929}),
    ),
    DomainFolders(
        "office_home",
        ("office_home", "OfficeHome", "OfficeHomeDataset_10072016"),
        ("Art", "Clipart", "Product", "Real World"),
        Expected(65, {"Art": 2_427, "Clipart": 4_365, "Product": 4_439, "Real World": 4_357}),
    ),
    DomainFolders(
        "vlcs",
        ("VLCS", "vlcs"),
        ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
        Expected(5, {"Caltech101": 1_415, "LabelMe": 2_656, "SUN09": 3_282, "VOC2007": 3_376}),
    ),
    DomainFolders(
        "terra_incognita",
        ("terra_incognita", "TerraIncognita"),
        ("location_38", "location_43", "location_46", "location_100"),
        Expected(10, totals=(24_330, 24_788)),
    ),
)

_FEDERATED: tuple[Layout, ...] = (
    UserLists(
        "inaturalist_user_120k",
        ("inaturalist", "iNat-120k"),
        "train_val_images",
        {
            "inaturalist-user-120k/federated_train_user_120k.csv": TRAIN,
            "inaturalist-user-120k/test.csv": TEST,
        },
        Expected(1_203, {"train": 120_300, "test": 35_641}, num_clients=9_275),
    ),
    BinaryRecords(
        "cifar10",
        "cifar-10-batches-bin",
        {f"data_batch_{i}.bin": TRAIN for i in range(1, 6)} | {"test_batch.bin": TEST},
        "batches.meta.txt",
        1,
        Expected(10, {"train": 50_000, "test": 10_000}),
    ),
    BinaryRecords(
        "cifar100",
        "cifar-100-binary",
        {"train.bin": TRAIN, "test.bin": TEST},
        "fine_label_names.txt",
        2,
        Expected(100, {"train": 50_000, "test": 10_000}),
    ),
)

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {layout.name: layout for layout in _FEW_SHOT + _IMAGENETS + _DOMAINS + _FEDERATED}
)


def draft_layout(layout: Layout, place: Path) -> Draft:
    """The data set in a copy of a published layout.

    ``place`` is the data set's own folder, or the one that its folder lies in. DataError lists
    everything in which the copy is not what was published.
    """
    match layout:
        case SplitFile():
            return few_shot.draft_split_file(layout, place)
        case VariantLists():
            return few_shot.draft_variant_lists(layout, place)
        case WnidFolders():
            return few_shot.draft_wnid_folders(layout, place)
        case DomainFolders():
            return domains.draft_domain_folders(layout, place)
        case DomainLists():
            return domains.draft_domain_lists(layout, place)
        case UserLists():
            return federated.draft_user_lists(layout, place)
        case BinaryRecords():
            return federated.draft_binary_records(layout, place)

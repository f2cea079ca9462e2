"""Stage `measure`: zero-shot and linear-probe accuracy through open_clip's own interface."""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression

from scenarios.data.packaged.recipe.export import MODEL_FOLDER, PACKAGED
from scenarios.data.packaged.recipe.pictures import decode
from scenarios.data.packaged.recipe.seeds import numpy_generator
from scenarios.data.packaged.recipe.tables import METADATA_KEY
from scenarios.data.packaged.recipe.vit_export import VIT_FOLDER

logger = logging.getLogger(__name__)

IMAGE_SETS = ("emoji_coarse", "emoji_fine", "fashion_mnist", "flags")
NUM_SHOTS = 8
NUM_WAYS = 20
NUM_EPISODES = 100
_INVERSE_PENALTY = 20.0


@dataclass(frozen=True)
class Encoded:
    """Normalised image features [N, 256] and what the file says of each picture."""

    features: np.ndarray
    labels: np.ndarray
    domains: np.ndarray
    train: np.ndarray
    aligned: np.ndarray

    def where(self, keep: np.ndarray) -> "Encoded":
        return Encoded(
            self.features[keep],
            self.labels[keep],
            self.domains[keep],
            self.train[keep],
            self.aligned[keep],
        )


def _tower_paths(folder: Path) -> dict[str, Any]:
    """How open_clip is told of towers in files of their own."""
    about = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    if "towers" not in about:
        return {}
    files = {tower: str(folder / name) for tower, name in about["towers"].items()}
    return {"load_weights": False} | {
        f"pretrained_{tower}_path": file for tower, file in files.items()
    }


class Model:
    """A packaged model as a user loads it."""

    def __init__(self, folder: Path) -> None:
        name = f"local-dir:{folder}"
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(
            name, precision="fp32", **_tower_paths(folder)
        )
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(name)

    @torch.inference_mode()
    def images(self, pictures: list[Image.Image], batch_size: int = 64) -> np.ndarray:
        parts = []
        for start in range(0, len(pictures), batch_size):
            pixels = torch.stack(
                [self.preprocess(picture) for picture in pictures[start : start + batch_size]]
            )
            parts.append(self.model.encode_image(pixels, normalize=True).numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def classes(self, names: list[str], templates: list[str]) -> np.ndarray:
        """Mean over the templates, normalised: [C, 256]."""
        parts = []
        for start in range(0, len(names), 256):
            chunk = names[start : start + 256]
            texts = [
                self.tokenizer([template.format(name) for name in chunk]) for template in templates
            ]
            parts.append(
                torch.stack([self.model.encode_text(text, normalize=True) for text in texts]).mean(
                    0
                )
            )
        return F.normalize(torch.cat(parts), dim=-1).numpy()


def encode(model: Model, path: Path) -> tuple[Encoded, dict[str, list[str]], float]:
    """The encoded file, its metadata, and its pictures per second."""
    table = pq.read_table(path)
    columns = table.to_pydict()
    start = time.perf_counter()
    features = model.images([Image.fromarray(decode(data)) for data in columns["image"]])
    rate = len(features) / (time.perf_counter() - start)
    encoded = Encoded(
        features,
        np.array(columns["label"]),
        np.array(columns["domain"]),
        np.array(columns["split"]) == "train",
        np.array(columns["name_aligned"]),
    )
    return encoded, json.loads(table.schema.metadata[METADATA_KEY]), rate


def zero_shot(data: Encoded, names: list[str], text: np.ndarray) -> float:
    predicted = np.array(names)[(data.features @ text.T).argmax(1)]
    return float((predicted == data.labels).mean())


def few_way(data: Encoded, names: list[str], text: np.ndarray) -> float | None:
    """Mean zero-shot accuracy among 20 random pictures of one domain, each its own class.

    Domains with fewer pictures are left out; None where no domain is left.
    """
    draw, hits = numpy_generator("few-way"), []
    place = {name: i for i, name in enumerate(names)}
    for domain in sorted(set(data.domains)):
        rows = np.flatnonzero(data.domains == domain)
        if len(rows) < NUM_WAYS:
            continue
        for _ in range(NUM_EPISODES):
            chosen = draw.choice(rows, NUM_WAYS, replace=False)
            ways = text[[place[label] for label in data.labels[chosen]]]
            hits.append(((data.features[chosen] @ ways.T).argmax(1) == np.arange(NUM_WAYS)).mean())
    return float(np.mean(hits)) if hits else None


def probe(train: Encoded, test: Encoded) -> float:
    classifier = LogisticRegression(C=_INVERSE_PENALTY, max_iter=500).fit(
        train.features, train.labels
    )
    return float(classifier.score(test.features, test.labels))


def few_shot(train: Encoded, test: Encoded, num_shots: int = NUM_SHOTS) -> float:
    """Probe on that many pictures of each class."""
    draw, rows = numpy_generator("few-shot"), []
    for label in sorted(set(train.labels)):
        own = np.flatnonzero(train.labels == label)
        rows.extend(draw.choice(own, min(num_shots, len(own)), replace=False))
    return probe(train.where(np.array(rows)), test)


def _by_domain(
    train: Encoded, test: Encoded, names: list[str], text: np.ndarray
) -> dict[str, dict[str, float]]:
    """Zero-shot, and probes trained on every other domain and on that domain alone."""
    report = {}
    for domain in sorted(set(test.domains)):
        here = test.where(test.domains == domain)
        own, rest = train.where(train.domains == domain), train.where(train.domains != domain)
        report[domain] = {
            "zero_shot": zero_shot(here, names, text),
            "probe_others": probe(rest, here),
            "probe_own": probe(own, here),
        }
    return report


def measure_set(model: Model, name: str) -> dict[str, object]:
    data, metadata, rate = encode(model, PACKAGED / f"{name}.parquet")
    classes, templates = metadata["classes"], metadata["templates"]
    train, test = data.where(data.train), data.where(~data.train)
    single, ensemble = model.classes(classes, templates[:1]), model.classes(classes, templates)
    report: dict[str, object] = {
        "num_train": len(train.labels),
        "num_test": len(test.labels),
        "num_classes": len(classes),
        "zero_shot_single": zero_shot(test, classes, single),
        "zero_shot_ensemble": zero_shot(test, classes, ensemble),
        "images_per_s": rate,
    }
    if len(classes) > 100:
        for tag, keep in (("aligned", test.aligned), ("held_out", ~test.aligned)):
            report[f"zero_shot_20_way_{tag}"] = few_way(test.where(keep), classes, ensemble)
        return report
    report["probe"] = probe(train, test)
    report[f"probe_{NUM_SHOTS}_shot"] = few_shot(train, test)
    if len(metadata["domains"]) > 1:
        report["domains"] = _by_domain(train, test, classes, ensemble)
    if not data.aligned.all():
        report["zero_shot_held_out_names"] = zero_shot(test.where(~test.aligned), classes, ensemble)
    return report


def measure(work: Path) -> None:
    torch.set_num_threads(1)
    present = [name for name in IMAGE_SETS if (PACKAGED / f"{name}.parquet").exists()]
    report: dict[str, dict[str, object]] = {}
    for folder in (MODEL_FOLDER, VIT_FOLDER):
        model, found = Model(folder), report.setdefault(folder.name, {})
        for name in present:
            found[name] = measure_set(model, name)
            logger.info("%s, %s: %s", folder.name, name, found[name])
    (work / "measured.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

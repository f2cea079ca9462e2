"""The runs behind docs/scenarios.md: heterogeneity, few shots, new classes, new styles.

    python benchmarks/scenario_study.py --out study

Every study is a ``fedarena compare`` of a few methods and their references, three seeds; what lies
in the folder already is not run again. Writes a table (Markdown) and a picture of all studies.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
PROMPTFL, KGCOOP, FEDPGP = (
    str(ROOT / "examples" / f"{name}.yaml") for name in ("promptfl", "kgcoop", "fedpgp")
)
COMMON = (
    "federation.rounds=10",
    "evaluation.every=0",
    "resources.executor=inline",
    "tracking.enabled=false",
)
STUDIES: Mapping[str, tuple[Sequence[str], str]] = {
    "het_0.05": ((PROMPTFL, FEDPGP), "scenario.partition.alpha=0.05"),
    "het_iid": ((PROMPTFL, FEDPGP), "scenario.partition=iid"),
    "shots_1": ((PROMPTFL,), "scenario.shots=1"),
    "shots_4": ((PROMPTFL,), "scenario.shots=4"),
    "shots_16": ((PROMPTFL,), "scenario.shots=16"),
    "b2n": ((PROMPTFL, KGCOOP), "scenario.protocol.name=base_to_novel"),
    "ldo_mono": (
        (PROMPTFL, KGCOOP),
        "scenario.protocol={name: leave_domain_out, domain: emojione-monotone}",
    ),
    "ldo_noto": (
        (PROMPTFL, KGCOOP),
        "scenario.protocol={name: leave_domain_out, domain: noto}",
    ),
}
TABLES: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "Heterogeneity: shared model, and clients' own models": (
        {"het_0.05": "alpha 0.05", "het_iid": "iid"},
        {"eval/global/accuracy": "shared", "eval/personal/accuracy": "clients"},
    ),
    "Few shots: shared model, and clients' own models": (
        {"shots_1": "1 shot", "shots_4": "4 shots", "shots_16": "16 shots"},
        {"eval/global/accuracy": "shared", "eval/personal/accuracy": "clients"},
    ),
    "Base to novel: shared model": (
        {"b2n": ""},
        {
            "eval/base/accuracy": "base",
            "eval/novel/accuracy": "novel",
            "eval/base_to_novel/hm2": "HM2",
            "eval/local/accuracy": "local",
            "eval/base_to_novel/hm3": "HM3",
            "eval/base_to_novel/cm": "CM",
        },
    ),
    "Leave one style out: shared model": (
        {"ldo_mono": "without emojione-monotone", "ldo_noto": "without noto"},
        {"eval/global/accuracy": "styles seen", "eval/held_out/accuracy": "held out"},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("study"))
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    for name, (files, setting) in STUDIES.items():
        if not (args.out / name / "summary.csv").exists():
            run(args.out, name, files, setting, args.seeds)
    text = "\n\n".join(
        f"**{title}**, %\n\n{table(args.out, columns, metrics)}"
        for title, (columns, metrics) in TABLES.items()
    )
    (args.out / "tables.md").write_text(text + "\n")
    draw(args.out, args.out / "study.png")
    print(text)


def run(out: Path, name: str, files: Sequence[str], setting: str, seeds: int) -> None:
    import fedarena
    from orchestrator.compare.export import write_comparison

    places = (f"folder={out / 'runs'}", f"store={out / 'store'}")
    write_comparison(fedarena.compare(files, setting, *COMMON, *places, seeds=seeds), out / name)


def table(out: Path, studies: Mapping[str, str], metrics: Mapping[str, str]) -> str:
    """Methods by study and metric, mean ± standard deviation over seeds."""
    columns: dict[str, dict[str, str]] = {}
    for study, title in studies.items():
        found = pd.read_csv(out / study / "summary.csv").set_index("method")
        for metric, short in metrics.items():
            head = f"{title}: {short}" if title else short
            columns[head] = {method: cell(row, metric) for method, row in found.iterrows()}
    methods = list(dict.fromkeys(method for cells in columns.values() for method in cells))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method in methods:
        cells = (column.get(method, "n/a") for column in columns.values())
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(row: pd.Series, metric: str) -> str:
    value, spread = row.get(metric), row.get(f"{metric}.std")
    if value is None or pd.isna(value):
        return "n/a"
    return f"{100 * value:.1f}" + ("" if pd.isna(spread) else f" ± {100 * spread:.1f}")


def draw(out: Path, path: Path) -> None:
    """Accuracy of clients' models over heterogeneity and shots; base and novel; styles."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 4.2), layout="constrained", sharey=True)
    for axis, (title, (studies, metrics)) in zip(axes, TABLES.items(), strict=True):
        bars: dict[str, list[tuple[float, float]]] = {}
        labels = []
        for study, name in studies.items():
            found = pd.read_csv(out / study / "summary.csv").set_index("method")
            chosen = list(metrics.items())[: 2 if name == "" else None]
            for metric, short in chosen if name == "" else chosen[-1:]:
                labels.append(name.removeprefix("without ") or short)
                for method, row in found.iterrows():
                    if "(learner=kgcoop)" in method or "(learner=fedpgp)" in method:
                        continue
                    pair = (row.get(metric, float("nan")), row.get(f"{metric}.std", 0.0))
                    bars.setdefault(method, []).append(pair)
        width = 0.8 / len(bars)
        for number, (method, pairs) in enumerate(bars.items()):
            places = [k + (number - len(bars) / 2 + 0.5) * width for k in range(len(pairs))]
            heights, errors = ([100 * v for v in column] for column in zip(*pairs, strict=True))
            short = method.replace(" (learner=coop)", "").replace("zero-shot, ", "")
            axis.bar(places, heights, width, yerr=errors, label=short, color=COLOURS.get(short))
        axis.set_xticks(range(len(labels)), labels)
        axis.set_title(
            title.split(":")[0]
            + ("" if title.startswith(("Base", "Leave")) else ", clients' models"),
            fontsize=10,
        )
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy on test data, %")
    handles = {}
    for axis in axes:
        found, names = axis.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=8, frameon=False
    )
    figure.savefig(path, dpi=110)


COLOURS = {
    "promptfl": "#0072b2",
    "kgcoop": "#e69f00",
    "fedpgp": "#009e73",
    "majority class": "#bbbbbb",
    "zero-shot": "#888888",
    "ensemble": "#666666",
    "local only": "#cc79a7",
    "centralised": "#56b4e9",
}

if __name__ == "__main__":
    main()

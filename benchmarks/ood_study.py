"""The data, tables and picture of docs/ood.md.

    python benchmarks/ood_study.py data
    fedarena sweep benchmarks/studies/ood.yaml
    fedarena sweep benchmarks/studies/ood_strength.yaml
    fedarena sweep benchmarks/studies/ood_rate.yaml
    python benchmarks/ood_study.py report --picture docs/img/ood.png

``data`` draws 300 training and 100 test rows of each task of the packaged ``text_families`` into
ood_texts.parquet of this folder, so that scoring does not outweigh training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fl_core.metrics import ood_gap
from orchestrator.sweep.state import find_sweep
from scenarios.data.catalogue import load_dataset
from scenarios.data.dataset import TEST, TRAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_ROWS = {TRAIN: 300, TEST: 100}
HELD_OWN, HELD_SHARED = "eval/held_out/personal_accuracy", "eval/held_out/accuracy"
HOME_OWN, HOME_SHARED = "eval/personal/accuracy", "eval/global/accuracy"
STRENGTH, DISTANCE = "federation.strength", "train/feature_distance"
SPLITS = {TRAIN: "train", TEST: "test"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("step", choices=["data", "report"])
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    if args.step == "data":
        write_data(Path("ood_texts.parquet"))
    else:
        print(report(args.folder, args.picture))


def write_data(path: Path) -> None:
    """Rows drawn task by task and split by split, by one seed."""
    texts, draws = load_dataset("text_families"), np.random.default_rng(0)
    rows = []
    for code in range(len(texts.domains)):
        for split, count in NUM_ROWS.items():
            held = np.flatnonzero((texts.domain_ids == code) & (texts.split == split))
            rows += sorted(draws.choice(held, count, replace=False).tolist())
    table = {
        "text": [texts.text(row) for row in rows],
        "label": [texts.classes[texts.labels[row]] for row in rows],
        "task": [texts.domains[texts.domain_ids[row]] for row in rows],
        "family": [texts.families[texts.domain_ids[row]] for row in rows],
        "split": [SPLITS[int(texts.split[row])] for row in rows],
    }
    pd.DataFrame(table).to_parquet(path)


def report(folder: Path, picture: Path | None) -> str:
    """The tables; and the picture, where it is asked for."""
    methods, others = trials_of("ood", folder), trials_of("ood_strength", folder)
    usual = methods[(methods.method == "fedoa") & methods.held_out.isin(others.held_out)]
    usual = usual.assign(**{STRENGTH: 0.5})
    strengths = pd.concat([others, usual])
    held = [main_table(methods, folder, metric) for metric in (HELD_OWN, HELD_SHARED, HOME_OWN)]
    tables = [*held, strength_table(strengths), rate_table(trials_of("ood_rate", folder))]
    if picture:
        draw(strengths, folder, picture)
    return "\n\n".join(tables)


def trials_of(sweep: str, folder: Path) -> pd.DataFrame:
    found = find_sweep(sweep, folder)
    if found is None:
        raise SystemExit(f"no sweep {sweep} in {folder}: run it first")
    trials = pd.read_csv(found / "trials.csv", keep_default_na=False, na_values=[""])
    return trials[(trials.stage == "test") & trials.status.isin(["finished", "reused"])]


def main_table(trials: pd.DataFrame, folder: Path, metric: str) -> str:
    """A row per method that has such a model; a column per family that was left out, their mean."""
    held = list(dict.fromkeys(trials.held_out))
    lines = [f"| | {' | '.join(held)} | mean |", "|---" * (2 + len(held)) + "|"]
    rows: dict[str, list[Sequence[float] | pd.Series]] = {}
    for name in ("majority", "zero_shot"):
        told = (references(trials[trials.held_out == family], folder, name) for family in held)
        rows[name.replace("_", "-")] = [own.get(metric, []) for own in told]
    for method in dict.fromkeys(trials.method):
        own = trials[trials.method == method]
        found = own.get(metric, pd.Series(dtype=float, index=own.index))
        rows[method] = [found[own.held_out == family].dropna() for family in held]
    for name, values in rows.items():
        if all(len(value) for value in values):
            mean = np.mean([np.mean(value) for value in values])
            cells = [*(percent(value) for value in values), f"{100 * mean:.1f}"]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def references(trials: pd.DataFrame, folder: Path, name: str) -> dict[str, list[float]]:
    """What a model that nobody trains reaches; it is the same for all seeds, and told once."""
    run = trials[trials.method == "fedit"].run.iloc[0]
    metrics = json.loads((folder / run / "rounds" / "000000.json").read_text())["metrics"]
    known = (HELD_SHARED, HOME_OWN, HOME_SHARED)
    names = {metric: metric.replace("eval", f"reference/{name}", 1) for metric in known}
    return {m: [metrics[n]] for m, n in names.items() if n in metrics}


def strength_table(trials: pd.DataFrame) -> str:
    """By family held out and lambda: accuracy at home and held out, the gap between them, and D."""
    heads = "| held out | lambda | own task | held out | OOD gap | D, last round |"
    lines = [heads, "|---|---|---|---|---|---|"]
    for (family, value), own in trials.groupby(["held_out", STRENGTH]):
        cells = [own[HOME_OWN], own[HELD_OWN], gaps(own)]
        distance = own[DISTANCE].dropna()
        last = f"{distance.mean():.1f} ± {distance.std():.1f}" if len(distance) else "n/a"
        row = [str(family), f"{value:g}", *(percent(cell) for cell in cells), last]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def rate_table(trials: pd.DataFrame) -> str:
    """By method: accuracy of either kind of model on the held-out family, and at home."""
    lines = ["| | personal | shared | own task |", "|---|---|---|---|"]
    for method in dict.fromkeys(trials.method):
        own = trials[trials.method == method]
        cells = [percent(own[m].dropna()) for m in (HELD_OWN, HELD_SHARED, HOME_OWN)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gaps(trials: pd.DataFrame) -> pd.Series:
    return trials.apply(lambda row: ood_gap(row[HOME_OWN], row[HELD_OWN]), axis=1)


def percent(values: Sequence[float] | pd.Series) -> str:
    """Mean ± standard deviation; the deviation where there is more than one."""
    shares = 100 * np.asarray(values, dtype=float)
    if not len(shares):
        return "n/a"
    spread = f" ± {shares.std(ddof=1):.1f}" if len(shares) > 1 else ""
    return f"{shares.mean():.1f}{spread}"


def draw(trials: pd.DataFrame, folder: Path, path: Path) -> None:
    """Accuracies and gap over lambda for each family; D over rounds for the first."""
    import matplotlib.pyplot as plt

    families = sorted(set(trials.held_out))
    figure, axes = plt.subplots(1, len(families) + 1, figsize=(13, 3.9), layout="constrained")
    for axis, family in zip(axes, families, strict=False):
        draw_accuracy(axis, trials[trials.held_out == family])
        axis.set_title(f"{family} left out", fontsize=10)
    axes[0].legend(frameon=False)
    for value, own in trials[trials.held_out == families[0]].groupby(STRENGTH):
        curves = np.array([distances(folder / run) for run in own.run])
        if curves.shape[1]:
            rounds = np.arange(2, 2 + curves.shape[1])
            axes[-1].plot(rounds, curves.mean(axis=0), marker="o", label=f"lambda {value:g}")
    axes[-1].set(xlabel="round", ylabel="D, mean over steps and clients", ylim=(0, None))
    axes[-1].set_title(f"{families[0]} left out", fontsize=10)
    axes[-1].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def draw_accuracy(axis: Axes, trials: pd.DataFrame) -> None:
    """Personal models over lambda, mean and standard deviation over seeds."""
    values = sorted(set(trials[STRENGTH]))
    for title, colour, of in (
        ("own task", "#0072b2", lambda own: own[HOME_OWN]),
        ("held-out family", "#e69f00", lambda own: own[HELD_OWN]),
        ("OOD gap: their difference", "#009e73", gaps),
    ):
        found = [100 * of(trials[trials[STRENGTH] == value]) for value in values]
        means, stds = [f.mean() for f in found], [f.std() for f in found]
        axis.errorbar(range(len(values)), means, stds, marker="o", color=colour, label=title)
    axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axis.set(xlabel="lambda", ylabel="accuracy of personal models, %", ylim=(-12, 80))


def distances(run: Path) -> list[float]:
    """D of each round in which it was measured: from the second on."""
    records = [json.loads(p.read_text()) for p in sorted((run / "rounds").glob("*.json"))]
    found = [record["metrics"].get(DISTANCE) for record in records]
    return [value for value in found if value is not None]


if __name__ == "__main__":
    main()

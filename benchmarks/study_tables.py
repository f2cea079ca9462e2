"""Markdown tables of the sweeps in benchmarks/studies, for the documentation.

    fedarena sweep benchmarks/studies/robust.yaml
    python benchmarks/study_tables.py robust --picture robust.png

Mean and standard deviation over seeds, in percent; from runs/sweeps of this folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from orchestrator.sweep.state import find_sweep

SHARED, OWN = "eval/global/accuracy", "eval/personal/accuracy"
WORST, NOVEL = "eval/personal/worst_accuracy", "eval/novel/accuracy"
METRICS = {
    "robust": [SHARED],
    "heterogeneity": [SHARED, OWN, WORST],
    "clients": [SHARED, OWN, WORST],
    "adapters": [SHARED, OWN, WORST],
    "methods": [SHARED, NOVEL, OWN, WORST],
    "vision": [SHARED, NOVEL, OWN, WORST],
}
NUM_CLIENTS = {"adapters": 8}
"""Where it is not 10."""
TITLES = {
    SHARED: "shared model",
    OWN: "clients' models",
    WORST: "worst client",
    NOVEL: "new classes",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("study", choices=METRICS)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--picture", type=Path, help="where to draw the table's figures")
    args = parser.parse_args()
    found = find_sweep(args.study, args.folder)
    if found is None:
        raise SystemExit(f"no sweep {args.study} in {args.folder}: run it first")
    trials = pd.read_csv(found / "trials.csv", keep_default_na=False, na_values=[""])
    trials = trials[(trials.stage == "test") & trials.status.isin(["finished", "reused"])]
    print(table(trials, METRICS[args.study], NUM_CLIENTS.get(args.study, 10)))
    if args.picture:
        draw(trials, METRICS[args.study], args.picture)


def cells_of(trials: pd.DataFrame) -> pd.Series[str]:
    """What each trial's values on all axes but method and seed are, as one text.

    An axis with one value tells nothing apart.
    """
    stage = list(trials.columns).index("stage")
    axes = list(trials.columns[stage + 1 : list(trials.columns).index("seed")])
    axes = [axis for axis in axes if trials[axis].nunique() > 1]
    return trials[axes].astype(str).agg(", ".join, axis=1) if axes else pd.Series("", trials.index)


def draw(trials: pd.DataFrame, metrics: list[str], path: Path) -> None:
    """A panel per metric: over the cells, each method's mean and standard deviation over seeds."""
    from matplotlib.figure import Figure

    cells = cells_of(trials)
    names, methods = list(dict.fromkeys(cells)), list(dict.fromkeys(trials.method))
    figure = Figure(figsize=(1.5 + 4.5 * len(metrics), 3.6), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(panels, metrics, strict=True):
        for i, method in enumerate(methods):
            own = [100 * trials[(trials.method == method) & (cells == c)][metric] for c in names]
            places = [c + 0.11 * (i - (len(methods) - 1) / 2) for c in range(len(names))]
            means, spread = [v.mean() for v in own], [v.std() for v in own]
            axis.errorbar(places, means, spread, fmt="o", markersize=5, capsize=2, label=method)
        axis.set_xticks(range(len(names)), [name.replace(" ", "\n", 1) for name in names])
        axis.set_ylabel(f"accuracy of the {TITLES[metric]}, %")
        axis.spines[["top", "right"]].set_visible(False)
    panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def table(trials: pd.DataFrame, metrics: list[str], num_clients: int) -> str:
    """A row per method; a column per cell and metric."""
    cells = cells_of(trials)
    names, methods = list(dict.fromkeys(cells)), list(dict.fromkeys(trials.method))
    columns = [(cell, m) for m in metrics if m in trials for cell in names]
    plain = len(names) == 1
    heads = [TITLES[m] if plain else f"{TITLES[m]}: {cell}" for cell, m in columns]
    if len(metrics) == 1:
        heads = [cell for cell, _ in columns]
    extra = ["floats up", "s per client round"] if plain else []
    lines = [
        f"| method | {' | '.join([*heads, *extra])} |",
        "|---" * (1 + len(heads) + len(extra)) + "|",
    ]
    for method in methods:
        row = [method]
        for cell, metric in columns:
            values = 100 * trials[(trials.method == method) & (cells == cell)][metric].dropna()
            row.append(f"{values.mean():.1f} ± {values.std():.1f}" if len(values) else "–")
        own = trials[trials.method == method]
        if plain:
            row += [f"{_floats(own) / num_clients:,.0f}", f"{_seconds(own) / num_clients:.3f}"]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _floats(own: pd.DataFrame) -> float:
    """float32 values that all clients send in a round."""
    return float(own["comm/up_payload_bytes"].iloc[0] / 4 / own["rounds"].iloc[0])


def _seconds(own: pd.DataFrame) -> float:
    return float(own["time/run_s"].mean() / own["rounds"].iloc[0])


if __name__ == "__main__":
    main()

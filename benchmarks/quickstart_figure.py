"""The README's table and picture of how much sharing gains: four experiments over several seeds.

    python benchmarks/quickstart_figure.py --seeds 0 1 2 --out docs/img/quickstart.png

Runs what is missing (in this process, without Ray), then prints mean and standard deviation over
seeds and draws accuracy over rounds.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import fedarena

METHODS = {
    "zero_shot": "zero-shot",
    "local_only": "local only",
    "promptfl": "PromptFL",
    "centralised": "centralised",
}
COLOURS = {
    "zero_shot": "#7f7f7f",
    "local_only": "#d95f02",
    "promptfl": "#1b6ca8",
    "centralised": "#2a9d5c",
}
EXAMPLES = Path(__file__).parent.parent / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    curves = {
        method: [run(method, seed, args.overrides) for seed in args.seeds] for method in METHODS
    }
    for method, tables in curves.items():
        print(f"{METHODS[method]:12s}", *(cell(tables, c) for c in COLUMNS))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(curves).savefig(args.out, dpi=130)


COLUMNS = ("eval/global/accuracy", "eval/personal/accuracy", "eval/personal/worst_accuracy")


def run(method: str, seed: int, overrides: list[str]) -> pd.DataFrame:
    """Rounds of one experiment; partition and training both take the seed."""
    settings = [f"seed={seed}", f"scenario.seed={seed}", "resources.executor=inline"]
    settings += [f"name={method}-s{seed}", "tracking.enabled=false", *overrides]
    return fedarena.run(EXAMPLES / f"{method}.yaml", *settings).rounds


def cell(tables: list[pd.DataFrame], column: str) -> str:
    """Mean and standard deviation over seeds of the last round, in percent."""
    if column not in tables[0]:
        return "      –     "
    last = [100 * float(table[column].iloc[-1]) for table in tables]
    return f"{statistics.mean(last):5.1f} ± {statistics.stdev(last):3.1f}"


def draw(curves: dict[str, list[pd.DataFrame]]) -> Figure:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    shared, own = figure.subplots(1, 2)
    titles = {
        shared: ("eval/global/accuracy", "shared model, whole test split"),
        own: ("eval/personal/accuracy", "each client's model, its own test data"),
    }
    for axes, (column, title) in titles.items():
        for method, tables in curves.items():
            if column not in tables[0]:
                continue
            values = pd.concat([100 * table[column] for table in tables], axis=1)
            mean, spread = values.mean(axis=1), values.std(axis=1)
            colour = COLOURS[method]
            if len(mean) == 1:
                axes.axhline(mean.iloc[0], color=colour, linestyle="--", label=METHODS[method])
                continue
            axes.plot(mean.index, mean, color=colour, label=METHODS[method])
            axes.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.18)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("rounds")
        axes.set_ylabel("accuracy (%)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.legend(
        *own.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    return figure


if __name__ == "__main__":
    main()

"""What ``round_overhead.py`` times of Flower: its simulation engine, in an environment of its own.

Run by it as ``python overhead_flower.py SETTING`` (JSON); its last line is JSON. Clients send
back the arrays that they got; FedAvg averages them; nothing is evaluated.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

setting: dict[str, Any] = json.loads(sys.argv[1])
starts: list[float] = []
client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
    return Message(content=content, reply_to=message)


class Timed(FedAvg):
    """Notes when each round begins."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        starts.append(time.perf_counter())
        return super().configure_train(server_round, arrays, config, grid)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    share = setting["cohort"] / setting["clients"]
    strategy = Timed(fraction_train=share, fraction_evaluate=0.0)
    arrays = ArrayRecord([np.ones(setting["floats"], np.float32)])
    strategy.start(grid, arrays, num_rounds=setting["rounds"])


run_simulation(
    server_app,
    client_app,
    num_supernodes=setting["clients"],
    backend_config={
        "init_args": {"num_cpus": setting["slots"], "include_dashboard": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    },
)
print("\n" + json.dumps({"seconds": [b - a for a, b in itertools.pairwise(starts)]}))

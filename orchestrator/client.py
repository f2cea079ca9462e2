"""The client actor: the shards and the private state of its clients, on one slice.

A plain class: ``ray.remote`` is applied where actors are made, and the inline executor calls it as
it is. It only caches: the truth about a client's private state is what the coordinator committed.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

from fl_core import wire
from fl_core.backbones.clip import load_clip
from fl_core.errors import FedarenaError
from fl_core.federation.base import LocalResult
from fl_core.local import Moment, Problem, Work, blank_lanes, plan_work, stack, train_group
from fl_core.predict import Scores, score, score_group
from fl_core.seeds import generator
from fl_core.types import ClientFailure, ClientResult, Outcome, Params
from orchestrator.jobs import (
    EncodeJob,
    EncodeReply,
    GroupCall,
    GroupReply,
    Job,
    Reply,
    ScorePersonalJob,
    ScoreReply,
    ScoreSharedJob,
    Setup,
    TrainJob,
)
from orchestrator.memory import keep_freed_memory
from scenarios.encode import Encoder, Transform, encode_chunk
from scenarios.features import FeatureStore

logger = logging.getLogger(__name__)

CLIENT_ERRORS = (RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError, FedarenaError)
"""What the work of one client may raise; it costs that client its round, not the run."""


class ClientActor:
    """Trains and scores groups of clients; owns one slice of a machine."""

    def __init__(self, own_process: bool = False) -> None:
        if own_process:
            keep_freed_memory()
        self.setup: Setup | None = None
        self._states: dict[int, tuple[int, Params]] = {}

    def configure(self, setup: Setup) -> int:
        """Make this actor ready for an experiment; the same again costs nothing. Returns pid."""
        if self.setup is None or self.setup.key != setup.key:
            torch.set_num_threads(setup.threads)
            self.device = _device(setup.gpu_share)
            self.problem = build_problem(setup, self.device)
            specs = setup.learner.tensors(self.problem.initial)
            self.fresh_state = setup.rule.init_client(self.problem.initial, specs)
            server = setup.rule.init_server(self.problem.initial, specs)
            self.broadcast_shapes = {
                n: tuple(t.shape) for n, t in setup.rule.broadcast(server).items()
            }
            self.setup = setup
        self._states = {}
        return os.getpid()

    def pid(self) -> int:
        return os.getpid()

    def do(self, job: Job, shared: bytes | np.ndarray) -> list[Reply]:
        """Carry out one job; ``shared`` is the message that all actors get (a broadcast)."""
        message = shared if isinstance(shared, bytes) else shared.data
        match job:
            case TrainJob():
                broadcast = self._decode(message)
                return [self._train(call, job.round, broadcast) for call in job.groups]
            case ScoreSharedJob():
                params = self._load(message)
                blocks = [(i, score(self.problem, params, self._rows(r))) for i, r in job.blocks]
                return [_reply(index, [scores]) for index, scores in blocks]
            case ScorePersonalJob():
                broadcast = self._load(message)
                return [self._score_own(call, rows, broadcast) for call, rows in job.groups]
            case EncodeJob():
                return encode(job)

    # -- training ----------------------------------------------------------------------------

    def _train(self, call: GroupCall, round: int, broadcast: Params) -> GroupReply:
        setup = self._configured()
        moment = Moment(round, setup.rule.rounds, setup.seed)
        shards = [self._shard(client) for client in call.clients]
        work = plan_work(setup.training, moment, call.clients, shards)
        states = [self._state(call, lane) for lane in range(len(call.clients))]
        result, reasons = self._attempts(broadcast, stack(states), work, moment)
        metrics = _by_lane(result.metrics, len(call.clients))
        outcomes: list[Outcome] = []
        for lane, client in enumerate(call.clients):
            if lane in reasons:
                outcomes.append(ClientFailure(client, reasons[lane]))
                continue
            measured = ClientResult(client, b"", len(shards[lane]), metrics=metrics[lane])
            outcomes.append(self._with_message(measured, result.update, lane))
        for lane, outcome in enumerate(outcomes):
            if isinstance(outcome, ClientResult) and result.state:
                own = {name: tensor[lane] for name, tensor in result.state.items()}
                self._states[outcome.client] = (round, own)
        cpu = {name: tensor.cpu().contiguous() for name, tensor in result.state.items()}
        return GroupReply(call.index, outcomes, save(cpu) if cpu else b"")

    def _attempts(
        self, broadcast: Params, states: Params, work: Work, moment: Moment
    ) -> tuple[LocalResult, dict[int, str]]:
        """Train a group; clients that fail are tried again, then left out and named.

        Whoever fails keeps its lane, idle, so that the others compute in the same shapes.
        """
        for attempt in range(self._configured().retries + 1):
            reasons: dict[int, str] = {}
            try:
                result = self._train_lanes(broadcast, states, work, moment)
            except CLIENT_ERRORS as error:
                logger.info("round %d, attempt %d: %s", moment.round, attempt, error)
                reasons = self._culprits(broadcast, states, work, moment)
                healthy = blank_lanes(work, list(reasons))
                result = self._train_lanes(broadcast, states, healthy, moment)
            reasons |= _not_finite(result)
            if not reasons:
                break
        return result, reasons

    def _culprits(
        self, broadcast: Params, states: Params, work: Work, moment: Moment
    ) -> dict[int, str]:
        """The lanes that raise when they train alone, and what they raise."""
        reasons: dict[int, str] = {}
        lanes = range(len(work.rows))
        for lane in lanes:
            alone = blank_lanes(work, [other for other in lanes if other != lane])
            try:
                self._train_lanes(broadcast, states, alone, moment)
            except CLIENT_ERRORS as error:
                reasons[lane] = f"{type(error).__name__}: {error}"
        return reasons

    def _train_lanes(
        self, broadcast: Params, states: Params, work: Work, moment: Moment
    ) -> LocalResult:
        setup = self._configured()
        return train_group(
            self.problem, setup.rule, setup.training, broadcast, states, work, moment
        )

    def _with_message(self, measured: ClientResult, update: Params, lane: int) -> Outcome:
        try:
            own = {name: tensor[lane] for name, tensor in update.items()}
            return replace(measured, message=wire.encode(self._configured().codec, own))
        except FedarenaError as error:
            return ClientFailure(measured.client, str(error))

    # -- scoring -----------------------------------------------------------------------------

    def _score_own(
        self, call: GroupCall, rows: Sequence[np.ndarray], broadcast: Params
    ) -> ScoreReply:
        rule = self._configured().rule
        models = []
        for lane in range(len(call.clients)):
            model = rule.personal_model(broadcast, self._state(call, lane))
            models.append(broadcast if model is None else model)
        own = [torch.from_numpy(np.array(client_rows)) for client_rows in rows]
        return _reply(call.index, score_group(self.problem, stack(models), own))

    # -- what is held ------------------------------------------------------------------------

    def _configured(self) -> Setup:
        if self.setup is None:
            raise RuntimeError("configure() comes before do()")
        return self.setup

    def _decode(self, message: wire.Message) -> Params:
        codec, sender = self._configured().codec, "the server's broadcast"
        tensors = wire.decode(codec, message, self.broadcast_shapes, sender)
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def _load(self, message: wire.Message) -> Params:
        """Tensors of a message between coordinator and actors that is no communication."""
        tensors = load(bytes(message)) if message else {}
        return {name: tensor.to(self.device, copy=True) for name, tensor in tensors.items()}

    def _rows(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(rows)).to(self.device)

    def _shard(self, client: int) -> torch.Tensor:
        setup = self._configured()
        held = setup.rows[setup.offsets[client] : setup.offsets[client + 1]]
        return torch.from_numpy(np.array(held))

    def _state(self, call: GroupCall, lane: int) -> Params:
        client, version = call.clients[lane], call.versions[lane]
        if client in call.states:
            state = self._load(call.states[client])
            self._states[client] = (version, state)
            return state
        if version < 0:
            return self.fresh_state
        held, state = self._states.get(client, (-1, self.fresh_state))
        if held != version:
            raise RuntimeError(
                f"client {client}: asked for its state of round {version}, hold {held}"
            )
        return state


def build_problem(setup: Setup, device: torch.device) -> Problem:
    """Everything the clients share: stored features, labels, and the learner's frozen part."""
    store = FeatureStore(setup.store)
    backbone = load_clip(setup.backbone, str(device))
    frozen = setup.learner.prepare(backbone, setup.task)
    inputs = {}
    for kind, key in setup.features.items():
        values = store.open(key)
        if values is None:
            raise RuntimeError(f"the feature store {setup.store} has lost {key.digest}")
        inputs[kind] = as_tensor(values).to(device)
    labels = torch.from_numpy(np.array(setup.labels)).to(device)
    initial = setup.learner.init(frozen, generator(setup.seed, "init"))
    return Problem(setup.learner, frozen, initial, inputs, labels)


def encode(job: EncodeJob) -> list[Reply]:
    """Features of chunks of images, through the image tower."""
    torch.set_num_threads(job.threads)
    encoder, transform = _image_tower(job.backbone, str(_device(job.gpu_share)))
    return [
        EncodeReply(index, encode_chunk(job.dataset, rows, encoder, transform, job.batch_size))
        for index, rows in job.chunks
    ]


@lru_cache(maxsize=1)
def _image_tower(backbone: Path, device: str) -> tuple[Encoder, Transform]:
    """Built once per process, not once per chunk of images."""
    clip = load_clip(backbone, device)
    return clip.image_encoder(), clip.transform()


def as_tensor(values: np.ndarray) -> torch.Tensor:
    """A read-only memory map as a tensor that shares its pages; nothing here writes to inputs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def _device(gpu_share: float) -> torch.device:
    if gpu_share and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(1.0, gpu_share))
        return torch.device("cuda", 0)
    return torch.device("cpu")


def _not_finite(result: LocalResult) -> dict[int, str]:
    """Lanes whose trained values are not all finite, with the first tensor's name."""
    reasons: dict[int, str] = {}
    for name, values in {**result.update, **result.state, **result.metrics}.items():
        if wire.all_finite(values):
            continue
        for lane, own in enumerate(values):
            if not own.isfinite().all():
                reasons.setdefault(lane, f"{name} has values that are not finite after training")
    return reasons


def _by_lane(metrics: Params, num_lanes: int) -> list[dict[str, float]]:
    """Metrics [G] by name as one dict per client."""
    columns = {name: values.tolist() for name, values in metrics.items()}
    return [{name: values[lane] for name, values in columns.items()} for lane in range(num_lanes)]


def _reply(index: int, scores: Sequence[Scores]) -> ScoreReply:
    predicted = torch.cat([s.predicted for s in scores]).cpu().to(torch.int32)
    nll = torch.cat([s.nll for s in scores]).cpu()
    return ScoreReply(index, predicted.numpy(), nll.numpy())

"""The client actor: the shards and the private state of its clients, on one slice.

A plain class: ``ray.remote`` is applied where actors are made, and the inline executor calls it as
it is. It only caches: the truth about a client's private state is what the coordinator committed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.torch import load, save

from fl_core import wire
from fl_core.errors import FedarenaError
from fl_core.federation import LocalOnly
from fl_core.federation.base import LocalResult
from fl_core.federation.states import as_personal, kept, personal_part
from fl_core.local import Problem, stack, train_group
from fl_core.per_input import CENTRE, Fit, centre_of, reference_draws
from fl_core.predict import AnyScores, score, score_group
from fl_core.seeds import derive, generator
from fl_core.server_training import refiner
from fl_core.types import (
    ClientFailure,
    ClientResult,
    Outcome,
    Params,
    Scope,
    ServerState,
    TensorSpec,
)
from fl_core.work import Moment, Work, blank_lanes, plan_work
from orchestrator.encoding import encode, with_fresh_views
from orchestrator.jobs import (
    Block,
    EncodeJob,
    GroupCall,
    GroupReply,
    Job,
    OwnPart,
    RefineJob,
    RefineReply,
    Reply,
    ScorePersonalJob,
    ScoreReply,
    ScoreSharedJob,
    Setup,
    TrainJob,
)
from orchestrator.memory import keep_freed_memory, peak_bytes
from orchestrator.problem import build_problem, stored_inputs
from scenarios.targets import HOME

logger = logging.getLogger(__name__)

CLIENT_ERRORS = (RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError, FedarenaError)
"""What the work of one client may raise; it costs that client its round, not the run."""


@dataclass(frozen=True, kw_only=True)
class Adapting(LocalOnly):
    """Training of a newcomer alone; ``resting``: what is in the shared model but not trained."""

    resting: tuple[str, ...] = ()

    def scopes(self, specs: Mapping[str, TensorSpec], round: int) -> dict[str, Scope]:
        return super().scopes(specs, round) | dict.fromkeys(self.resting, "frozen")


class ClientActor:
    """Trains and scores groups of clients; owns one slice of a machine."""

    def __init__(self, own_process: bool = False) -> None:
        if own_process:
            keep_freed_memory()
        self.setup: Setup | None = None
        self._states: dict[int, tuple[int, Params]] = {}
        self._problems: dict[tuple[str, str | None], Problem] = {}
        self._centres: dict[int, torch.Tensor] = {}

    def configure(self, setup: Setup) -> int:
        """Make this actor ready for an experiment; the same again costs nothing. Returns pid."""
        if self.setup is None or self.setup.key != setup.key:
            torch.set_num_threads(setup.threads)
            self.device = _device(setup.gpu_share)
            self.problem = build_problem(setup, self.device, HOME, setup.learner)
            self.problem = replace(
                self.problem, views=stored_inputs(setup, setup.views, self.device)
            )
            self._problems = {(HOME, None): self.problem}
            self._let_in_attackers(setup)
            specs = setup.learner.tensors(self.problem.initial)
            self.specs = specs
            self.fresh_state = setup.rule.init_client(self.problem.initial, specs)
            self._per_input = setup.rule.per_input(setup.learner)
            self._centres = {}
            num_clients = int(np.count_nonzero(np.diff(setup.offsets)))  # that can train
            server = setup.rule.init_server(self.problem.initial, specs, num_clients)
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
                trained = [self._train(call, job.round, broadcast) for call in job.groups]
                return [*trained[:-1], replace(trained[-1], peak_bytes=peak_bytes(self.device))]
            case RefineJob():
                return [self._refine(job, message)]
            case ScoreSharedJob():
                params = self._load(message)
                problem = self._problem(job.target, job.reference)
                return [self._score_block(problem, params, block) for block in job.blocks]
            case ScorePersonalJob():
                broadcast = self._load(message)
                return [self._score_own(job, part, broadcast) for part in job.parts]
            case EncodeJob():
                return list(encode(job, _device(job.gpu_share)))

    # -- training ----------------------------------------------------------------------------

    def _train(self, call: GroupCall, round: int, broadcast: Params) -> GroupReply:
        setup = self._configured()
        moment = Moment(round, setup.rule.rounds, setup.seed)
        shards = [self._shard(client) for client in call.clients]
        self._trained_on = self.problem
        if setup.augmentation.views == "fresh":
            self._trained_on, shards = with_fresh_views(setup, self.problem, shards, round)
        num_views = self._trained_on.num_views
        work = plan_work(setup.training, moment, call.clients, shards, num_views)
        held = [wire.split_residual(self._state(call, g)) for g in range(len(call.clients))]
        states, residuals = [own for own, _ in held], [left for _, left in held]
        result, reasons = self._attempts(broadcast, stack(states), work, moment)
        metrics = _by_lane(result.metrics, len(call.clients))
        outcomes: list[Outcome] = []
        for lane, client in enumerate(call.clients):
            if lane in reasons:
                outcomes.append(ClientFailure(client, reasons[lane]))
                continue
            measured = ClientResult(client, b"", len(shards[lane]), metrics=metrics[lane])
            update = {name: tensor[lane] for name, tensor in result.update.items()}
            if client in self.attackers:
                update = setup.attack.update(update, generator(setup.seed, "attack", round, client))
            part = setup.rule.part_of(client, wire.shapes_of(update), self.specs)
            draws = wire.named_draws(setup.seed, round, client)
            try:
                message, residuals[lane] = wire.encode_with_feedback(
                    setup.up, update, residuals[lane], draws, part
                )
                outcomes.append(replace(measured, message=message))
            except FedarenaError as error:
                outcomes.append(ClientFailure(client, str(error)))
        state = {**result.state, **wire.stack_residuals(residuals)}
        for lane, outcome in enumerate(outcomes):
            if isinstance(outcome, ClientResult) and state:
                own = {name: tensor[lane] for name, tensor in state.items()}
                self._states[outcome.client] = (round, own)
        cpu = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
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
            self._trained_on, setup.rule, setup.training, broadcast, states, work, moment
        )

    def _refine(self, job: RefineJob, message: wire.Message) -> RefineReply:
        setup, held = self._configured(), self._load(message)
        refine = refiner(self.problem, setup.rule, self._tensor(job.public), setup.seed)
        refined = refine(ServerState(kept(held, "server"), job.round), kept(held, "update"))
        cpu = {name: tensor.cpu().contiguous() for name, tensor in refined.update.items()}
        return RefineReply(save(cpu), refined.metrics)

    # -- scoring -----------------------------------------------------------------------------

    def _score_block(self, problem: Problem, params: Params, block: Block) -> ScoreReply:
        rows = self._tensor(block.rows)
        candidates = None if block.candidates is None else self._tensor(block.candidates)
        return _reply(block.index, [score(problem, params, rows, candidates)])

    def _score_own(self, job: ScorePersonalJob, part: OwnPart, broadcast: Params) -> ScoreReply:
        clients = part.call.clients
        fit: Fit | None = None
        if job.adapt_steps:
            models = self._adapted(part, broadcast, job.adapt_steps)
        else:
            models = stack([self._own_model(part.call, g, broadcast) for g in range(len(clients))])
            fit = self._per_input.fit(self.specs) if self._per_input else None
        rows = [torch.from_numpy(np.array(client_rows)) for client_rows in part.rows]
        candidates = None if part.candidates is None else self._tensor(part.candidates)
        scores = score_group(self._problem(job.target), models, rows, candidates, fit=fit)
        return _reply(part.call.index, scores)

    def _own_model(self, call: GroupCall, lane: int, broadcast: Params) -> Params:
        own, _ = wire.split_residual(self._state(call, lane))
        model = self._configured().rule.personal_model(broadcast, own, self.specs)
        if self._per_input is not None and model is not None:
            return model | {CENTRE: self._centre(call.clients[lane])}
        return broadcast if model is None else model

    def _centre(self, client: int) -> torch.Tensor:
        """Of the client's reference examples; they are its own, and the same in every round."""
        wanted, seed = self._per_input, self._configured().seed
        assert wanted is not None  # asked for where there is one
        if client not in self._centres:
            rows, draws = self._shard(client), reference_draws(seed, client)
            self._centres[client] = centre_of(self.problem, wanted, rows, draws)
        return self._centres[client]

    def _adapted(self, part: OwnPart, broadcast: Params, num_steps: int) -> Params:
        """The shared model after ``num_steps`` steps on the rows of each client, [G, ...]."""
        setup = self._configured()
        training = replace(setup.training, local_steps=num_steps)
        shared = setup.rule.shared_model(ServerState(broadcast)) or broadcast
        start = {n: shared.get(n, t) for n, t in self.problem.initial.items()}
        scopes = setup.rule.scopes(self.specs, 0)
        resting = {n: t for n, t in shared.items() if n not in start and n in scopes}
        rule = Adapting(rounds=1, resting=tuple(resting))
        moment = Moment(0, 1, derive(setup.seed, "adapt"))
        shards = [torch.from_numpy(np.array(rows)) for rows in part.adapt_on]
        work = plan_work(training, moment, part.call.clients, shards)
        states = stack([as_personal(start) for _ in shards])
        result = train_group(self.problem, rule, training, resting, states, work, moment)
        fixed = {
            name: tensor.expand(len(shards), *tensor.shape) for name, tensor in resting.items()
        }
        return fixed | personal_part(result.state)

    def _let_in_attackers(self, setup: Setup) -> None:
        """Who attacks, and what they train on; no row of theirs is anyone else's, or scored."""
        clients = np.flatnonzero(np.diff(setup.offsets)).tolist()
        self.attackers = setup.attack.attackers(setup.seed, clients)
        labels = self.problem.labels.clone() if self.attackers else self.problem.labels
        for client in self.attackers:
            held = self._tensor(setup.rows[setup.offsets[client] : setup.offsets[client + 1]])
            labels[held] = setup.attack.labels(labels[held], len(setup.home.task.classes))
        self.problem = replace(self.problem, labels=labels)

    # -- what is held ------------------------------------------------------------------------

    def _configured(self) -> Setup:
        if self.setup is None:
            raise RuntimeError("configure() comes before do()")
        return self.setup

    def _decode(self, message: wire.Message) -> Params:
        codec, sender = self._configured().down, "the server's broadcast"
        tensors = wire.decode(codec, message, self.broadcast_shapes, sender)
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def _load(self, message: wire.Message) -> Params:
        """Tensors of a message between coordinator and actors that is no communication."""
        tensors = load(bytes(message)) if message else {}
        return {name: tensor.to(self.device, copy=True) for name, tensor in tensors.items()}

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(values)).to(self.device)

    def _problem(self, target: str, reference: str | None = None) -> Problem:
        """What scoring a target needs, for the experiment's learner or an untrained reference."""
        key = (target, reference)
        if key not in self._problems:
            setup = self._configured()
            learner = setup.references[reference] if reference else setup.learner
            self._problems[key] = build_problem(setup, self.device, target, learner)
        return self._problems[key]

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


def _reply(index: int, scores: Sequence[AnyScores]) -> ScoreReply:
    together = (torch.cat(part).cpu() for part in zip(*scores, strict=True))
    columns = dict(zip(scores[0]._fields, together, strict=True))
    if "predicted" in columns:
        columns["predicted"] = columns["predicted"].to(torch.int32)
    return ScoreReply(index, {name: column.numpy() for name, column in columns.items()})

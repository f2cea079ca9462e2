"""The client actor: the shards and the private state of its clients, on one slice.

A plain class: ``ray.remote`` is applied where actors are made, and the inline executor calls it as
it is. ``held.py`` says what it keeps from call to call, ``client_scoring.py`` how it scores.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace

from safetensors.torch import save

from fl_core import wire
from fl_core.errors import FedarenaError, ResourceError
from fl_core.federation.base import LocalResult
from fl_core.federation.states import kept
from fl_core.local import stack, train_group
from fl_core.seeds import generator
from fl_core.server_training import refiner
from fl_core.types import ClientFailure, ClientResult, Outcome, Params, ServerState
from fl_core.work import Moment, Work, blank_lanes, plan_work
from orchestrator.client_scoring import score_block, score_own
from orchestrator.encoding import encode, with_fresh_views
from orchestrator.held import Held, device_for
from orchestrator.jobs import (
    EncodeJob,
    GroupCall,
    GroupReply,
    Job,
    RefineJob,
    RefineReply,
    Reply,
    ScorePersonalJob,
    ScoreSharedJob,
    TrainJob,
)
from orchestrator.memory import keep_freed_memory, peak_bytes

logger = logging.getLogger(__name__)

CLIENT_ERRORS = (RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError, FedarenaError)
"""What the work of one client may raise; it costs that client its round, not the run."""


class ClientActor(Held):
    """Trains and scores groups of clients; owns one slice of a machine."""

    def __init__(self, own_process: bool = False) -> None:
        if own_process:
            keep_freed_memory()
        super().__init__()

    def pid(self) -> int:
        return os.getpid()

    def do(self, job: Job, message: wire.Message) -> list[Reply]:
        """Carry out one job; ``message`` is what all actors get (a broadcast)."""
        match job:
            case TrainJob():
                broadcast = self.decoded(message)
                trained = [self._train(call, job.round, broadcast) for call in job.groups]
                return [*trained[:-1], replace(trained[-1], peak_bytes=peak_bytes(self.device))]
            case RefineJob():
                return [self._refine(job, message)]
            case ScoreSharedJob():
                params = self.loaded(message)
                problem = self.problem_of(job.target, job.reference)
                return [score_block(self, problem, params, block) for block in job.blocks]
            case ScorePersonalJob():
                broadcast = self.loaded(message)
                return [score_own(self, job, part, broadcast) for part in job.parts]
            case EncodeJob():
                return list(encode(job, device_for(job.gpu_share)))

    def _train(self, call: GroupCall, round: int, broadcast: Params) -> GroupReply:
        setup = self.configured
        moment = Moment(round, setup.rule.rounds, setup.seed)
        shards = [self.shard(client) for client in call.clients]
        self._trained_on = self.problem
        if setup.augmentation.views == "fresh":
            self._trained_on, shards = with_fresh_views(setup, self.problem, shards, round)
        num_views = self._trained_on.num_views
        work = plan_work(setup.training, moment, call.clients, shards, num_views)
        held = [wire.split_residual(self.state(call, g)) for g in range(len(call.clients))]
        states, residuals = [own for own, _ in held], [left for _, left in held]
        result, reasons = self._attempts(broadcast, stack(states), work, moment)
        metrics = _by_lane(result.metrics, len(call.clients))
        outcomes: list[Outcome] = []
        for lane, client in enumerate(call.clients):
            if lane in reasons:
                outcomes.append(ClientFailure(client, reasons[lane]))
                continue
            update = {name: tensor[lane] for name, tensor in result.update.items()}
            try:
                message, residuals[lane] = self._encoded(round, client, update, residuals[lane])
            except FedarenaError as error:
                outcomes.append(ClientFailure(client, str(error)))
                continue
            size = len(shards[lane])
            outcomes.append(ClientResult(client, message, size, metrics=metrics[lane]))
        state = {**result.state, **wire.stack_residuals(residuals)}
        for lane, outcome in enumerate(outcomes):
            if isinstance(outcome, ClientResult) and state:
                own = {name: tensor[lane] for name, tensor in state.items()}
                self.states[outcome.client] = (round, own)
        cpu = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        return GroupReply(call.index, outcomes, save(cpu) if cpu else b"")

    def _encoded(
        self, round: int, client: int, update: Params, residual: Params
    ) -> tuple[bytes, Params]:
        """A client's message, turned against the others if it attacks; and what it left out."""
        setup = self.configured
        if client in self.attackers:
            update = setup.attack.update(update, generator(setup.seed, "attack", round, client))
        part = setup.rule.part_of(client, wire.shapes_of(update), self.specs)
        draws = wire.named_draws(setup.seed, round, client)
        return wire.encode_with_feedback(setup.up, update, residual, draws, part)

    def _attempts(
        self, broadcast: Params, states: Params, work: Work, moment: Moment
    ) -> tuple[LocalResult, dict[int, str]]:
        """Train a group; clients that fail are tried again, then left out and named.

        Whoever fails keeps its lane, idle, so that the others compute in the same shapes.
        """
        for attempt in range(self.configured.retries + 1):
            reasons: dict[int, str] = {}
            try:
                result = self._train_lanes(broadcast, states, work, moment)
            except CLIENT_ERRORS as error:
                logger.info("round %d, attempt %d: %s", moment.round, attempt, error)
                reasons = self._culprits(broadcast, states, work, moment)
                result = self._without(reasons, broadcast, states, work, moment)
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

    def _without(
        self,
        reasons: Mapping[int, str],
        broadcast: Params,
        states: Params,
        work: Work,
        moment: Moment,
    ) -> LocalResult:
        """The group without the lanes that fail; ResourceError where the others fail together."""
        healthy = blank_lanes(work, list(reasons))
        try:
            return self._train_lanes(broadcast, states, healthy, moment)
        except CLIENT_ERRORS as error:
            clients = [c for lane, c in enumerate(work.clients.tolist()) if lane not in reasons]
            raise ResourceError(
                f"round {moment.round}: clients {clients} fail as one batch, and none of them does "
                f"alone: {type(error).__name__}: {error}. Start anew with a smaller "
                f"resources.group_size than {len(work.clients)}, or with a larger resources.slice."
            ) from error

    def _train_lanes(
        self, broadcast: Params, states: Params, work: Work, moment: Moment
    ) -> LocalResult:
        setup = self.configured
        return train_group(
            self._trained_on, setup.rule, setup.training, broadcast, states, work, moment
        )

    def _refine(self, job: RefineJob, message: wire.Message) -> RefineReply:
        setup, held = self.configured, self.loaded(message)
        refine = refiner(self.problem, setup.rule, self.tensor(job.public), setup.seed)
        refined = refine(ServerState(kept(held, "server"), job.round), kept(held, "update"))
        cpu = {name: tensor.cpu().contiguous() for name, tensor in refined.update.items()}
        return RefineReply(save(cpu), refined.metrics)


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

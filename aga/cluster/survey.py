"""Asks every node of the connected Ray cluster what `aga.cluster.node` checks, in under a minute.

On one node nothing is started: this process looks for itself.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from aga.cluster.config import ClusterConfig
from aga.cluster.job import Job
from aga.cluster.node import (
    TOKEN_SECONDS,
    NodeFacts,
    check_data,
    check_exchange,
    check_versions,
    inspect,
    missing_tokens,
    warn_of_shared_memory,
    warn_of_tracking,
    write_token,
)
from aga.cluster.preflight import workers_that_fit
from aga.errors import ClusterError
from aga.training.recipe import STUDIES, TOKENS

SECONDS = 60.0
HERE = "this machine"
FIRST_READ = (STUDIES / "dataset.json", STUDIES / "manifest.parquet", TOKENS / "tokens.json")
Answer = TypeVar("Answer")


def survey(job: Job, cluster: ClusterConfig) -> None:
    """Check every node that a worker fits on; connected to Ray, before workers are started.

    Args:
        job: What will be trained.
        cluster: The workers.

    Raises:
        ClusterError: A node lacks the storage, the data, or the software, or
            does not answer within a minute. The message names node and setting.
    """
    import ray

    files = [job.home / path for path in FIRST_READ]
    uri = job.tracking.uri
    here = inspect(files, uri)
    each = cluster.resources_per_worker
    fits = {
        node["NodeID"]: workers_that_fit(node["Resources"], each)
        for node in ray.nodes()
        if node["Alive"] and workers_that_fit(node["Resources"], each)
    }
    if list(fits) == [ray.get_runtime_context().get_node_id()]:
        facts = [here]
    else:
        ask = _Round(list(fits))
        facts = [_named(*item) for item in zip(ask(inspect, files, uri), ask.names, strict=True)]
        _exchange_tokens(job.folder, ask)
    check_data(facts, here.data)
    check_versions(facts)
    if cluster.gpus_per_worker and min(cluster.workers, max(fits.values())) > 1:
        warn_of_shared_memory(facts)
    warn_of_tracking(facts, uri)


def lack_of_room(each: Mapping[str, int]) -> str | None:
    """What a run's workers wait for while Ray has no room for them; None where none wait.

    Args:
        each: What one of them needs.
    """
    import ray
    from ray.util import placement_group_table

    need = {name: amount for name, amount in each.items() if amount}
    waiting = [
        len(group["bundles"])
        for group in placement_group_table().values()
        if group["state"] in ("PENDING", "RESCHEDULING")
        and all(bundle == need for bundle in group["bundles"].values())
    ]
    if not waiting:
        return None
    free = ray.available_resources()
    amounts = [f"{name} {amount} each, {free.get(name, 0):g} free" for name, amount in need.items()]
    return f"waiting for room for {max(waiting)} worker(s) on the cluster: {'; '.join(amounts)}"


class _Round:
    """Runs a function once on each node; all rounds together may take a minute.

    Args:
        nodes: Their ids.

    Attributes:
        names: Of the nodes, in their order: address and the beginning of the id.
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        import ray

        known = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        self._nodes = nodes
        self.names = [f"{known[node]}-{node[:6]}" for node in nodes]
        self._deadline = time.monotonic() + SECONDS

    def __call__(self, function: Callable[..., Answer], *arguments: Any) -> list[Answer]:
        """The function's answers with the same arguments, in the order of the nodes."""
        return self.each(function, [arguments] * len(self._nodes))

    def each(
        self, function: Callable[..., Answer], arguments: Sequence[Sequence[Any]]
    ) -> list[Answer]:
        """The function's answers, with arguments of their own for each node.

        Raises:
            ClusterError: A node does not answer in time.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        task = ray.remote(num_cpus=0)(function)
        answers = [
            task.options(scheduling_strategy=On(node, soft=False)).remote(*given)
            for node, given in zip(self._nodes, arguments, strict=True)
        ]
        left = max(0.0, self._deadline - time.monotonic())
        _, late = ray.wait(answers, num_returns=len(answers), timeout=left)
        if late:
            silent = [
                name for name, answer in zip(self.names, answers, strict=True) if answer in late
            ]
            raise ClusterError(
                f"Nodes do not answer within {SECONDS:.0f} s",
                where=", ".join(silent),
                fix="see `ray status` and the logs of these nodes, or take them out of the cluster",
            )
        return ray.get(answers)  # type: ignore[no-any-return]


def _exchange_tokens(run: Path, ask: _Round) -> None:
    """Each node and this machine leave a token; each must see all of them."""
    folder = run / f".preflight-{time.time_ns()}"
    tokens = [HERE, *ask.names]
    try:
        refused = {HERE: _made(folder) or write_token(folder, HERE, 0.0)}
        arguments = [(folder, name, TOKEN_SECONDS) for name in ask.names]
        refused |= dict(zip(ask.names, ask.each(write_token, arguments), strict=True))
        if not any(refused.values()):
            seen = ask(missing_tokens, folder, tokens, TOKEN_SECONDS)
            missing = dict(zip(ask.names, seen, strict=True))
            missing[HERE] = missing_tokens(folder, tokens, TOKEN_SECONDS)
        else:
            missing = {}
        check_exchange(run.parent, refused, missing)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _made(folder: Path) -> str | None:
    """Make the folder of the tokens; why it cannot be made, or None."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _named(facts: NodeFacts, address: str) -> NodeFacts:
    """Nodes of one machine, as in a test, differ by their address."""
    return NodeFacts(**{**vars(facts), "name": f"{facts.name} {address}"})

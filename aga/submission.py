"""A workflow as a job of a Ray cluster: its package, its start, its log, its end.

    build_package   what travels: the project's folder without what .gitignore and .rayignore name
    start           start the job, or find the one that the same command started before
    follow          print its log until it ends

A job is named by its command and its package's content. So repeating a command while its job is
there attaches to that job, and an edit makes another one. Ray is optional and imported inside
functions. May import `aga.errors`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shlex
import signal
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import ZipFile

from aga.errors import AgaError, ClusterError

logger = logging.getLogger(__name__)

Client: TypeAlias = Any
"""`ray.job_submission.JobSubmissionClient`."""
ENDS = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}
RAY_LIMIT_MIB = 100
"""What a Ray head takes; it answers 413 to more."""
AGENT_SECONDS = 180.0
"""The head's agent, which takes jobs, may start after its dashboard answers."""
AWAY_SECONDS, STOP_SECONDS = 300.0, 60.0
SILENT_SECONDS, ANSWER_SECONDS = 60.0, 60.0
"""A connection to a head that lost its power just falls silent: then the head is asked."""


@dataclass(frozen=True)
class Package:
    """What travels with a job.

    Attributes:
        path: The zip file.
        sizes: Path in the project to bytes.
        sha256: Of paths and contents.
    """

    path: Path
    sizes: dict[str, int]
    sha256: str

    @property
    def mib(self) -> float:
        """Its size."""
        return self.path.stat().st_size / 2**20

    def table(self, count: int = 5) -> str:
        """The largest paths, a line each."""
        largest = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))[:count]
        return "\n".join(f"  {size / 2**10:10.1f} KiB  {name}" for name, size in largest)

    def check_size(self, limit_mib: float) -> None:
        """Refuse to upload too much.

        Raises:
            ClusterError: It is over the limit.
        """
        if self.mib > limit_mib:
            raise ClusterError(
                f"The job's package is too large; its largest paths:\n{self.table()}",
                where=".rayignore",
                got=f"{self.mib:.1f} MiB",
                expected=f"at most {limit_mib:g} MiB",
                fix="name in .rayignore what the job need not have; data belong on storage that "
                "every node mounts",
            )


def build_package(project: Path, target: Path) -> Package:
    """Pack what Ray would upload of a folder, by Ray's own rules.

    Args:
        project: The folder; its .gitignore and .rayignore are honoured.
        target: The zip file to write, outside of `project`.
    """
    # The public interface packs and uploads in one call: nothing could be shown or refused before.
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import create_package

    create_package(
        str(project),
        target,
        include_gitignore=True,
        excludes=list(ray_constants.get_runtime_env_default_excludes()),
        logger=logging.getLogger(f"{__name__}.ray"),
    )
    with ZipFile(target) as archive:
        content = sorted((info.filename, info.CRC, info.file_size) for info in archive.infolist())
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return Package(target, {name: size for name, _, size in content}, digest)


def entrypoint(workflow: str, home: Path, arguments: Sequence[str], project: Path) -> str:
    """The job's shell command.

    Raises:
        AgaError: There is no such workflow.
    """
    script = f"workflows/{workflow}.py"
    if not (project / script).is_file():
        names = sorted(path.stem for path in (project / "workflows").glob("[a-z]*.py"))
        raise AgaError("There is no such workflow", got=workflow, expected=", ".join(names))
    return shlex.join(["python", script, "--home", str(home), *arguments])


def connect(address: str | None) -> Client:
    """A client of the cluster's dashboard.

    Args:
        address: `http://127.0.0.1:8265`; None takes RAY_ADDRESS.

    Raises:
        ClusterError: No address is given, nobody answers there, or the token is missing or wrong.
    """
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    class BoundedClient(JobSubmissionClient):  # type: ignore[misc]
        """Ray's client waits for an answer for ever; an upload may still take its time."""

        def _do_request(self, method: str, *request: Any, **options: Any) -> Any:
            if options.get("data") is None:
                # A busy head takes its time to start a job.
                patience = ANSWER_SECONDS if method == "GET" else AGENT_SECONDS
                options.setdefault("timeout", patience)
            return super()._do_request(method, *request, **options)

    address = address or os.environ.get("RAY_ADDRESS")
    if not (address and address.startswith(("http://", "https://"))):
        raise ClusterError(
            "The address of the cluster's dashboard is needed",
            where="--address, RAY_ADDRESS",
            got=address,
            expected="http://<host>:8265",
        )
    try:
        return BoundedClient(address)
    except (OSError, RuntimeError, RayError) as error:
        raise ClusterError(
            "The cluster does not take jobs",
            where=address,
            got=str(error).partition("\n")[0],
            fix="start it (docs/cluster.md); a cluster with tokens wants RAY_AUTH_MODE=token here",
        ) from error


def start(client: Client, command: str, package: Package) -> str:
    """Start a job, or find the running one that the same command and package have started.

    Call it from the main thread. An interrupt leaves no job behind that this call has started.

    Returns:
        Its submission id.

    Raises:
        ClusterError: The cluster does not take it, or does not answer.
    """
    try:
        return _start(client, command, package)
    except OSError as error:
        raise ClusterError(
            "The cluster does not answer, so that it is not known whether it took the job",
            where=client.get_address(),
            got=error,
            fix="repeat the command: it follows the job where there is one",
        ) from error
    except RuntimeError as error:
        raise ClusterError("The cluster does not take the job", got=error) from error


def _start(client: Client, command: str, package: Package) -> str:
    name = job_name(command, package)
    attempts = {str(job.submission_id): str(job.status) for job in client.list_jobs()}
    mine = [one for one in attempts if one.rpartition("-")[0] == name]
    for job in mine:
        if attempts[job] not in ENDS:
            logger.info("job %s is there already; following it", job)
            return job
    job = f"{name}-{1 + max((int(one.rpartition('-')[2]) for one in mine), default=0)}"
    environment = {"working_dir": str(package.path)}
    # `submit_job` would upload it as well; here it may be interrupted, as there is no job yet.
    client._upload_working_dir_if_needed(environment)
    logger.info("job %s: %s", job, command)
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            _submit(client, command, environment, job)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(1)
        else:
            return job


def _submit(client: Client, command: str, environment: dict[str, str], job: str) -> None:
    """Ask for a job. Ctrl-C waits for the answer, as a request cut off may be carried out."""
    interrupts = []
    before = signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
    try:
        client.submit_job(entrypoint=command, runtime_env=environment, submission_id=job)
    except RuntimeError as refusal:
        if interrupts:
            raise KeyboardInterrupt from refusal
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        _stop(client, job)
        raise KeyboardInterrupt


def job_name(command: str, package: Package) -> str:
    """Equal for equal commands with equal packages; attempts append their number."""
    digest = hashlib.sha256(f"{command}\0{package.sha256}".encode()).hexdigest()
    return f"aga-{Path(shlex.split(command)[1]).stem}-{digest[:10]}"


def follow(client: Client, job: str, write: Callable[[str], object]) -> int:
    """Pass a job's log on until it ends.

    Interrupting this call stops the job. A connection that breaks is made anew.

    Args:
        client: The cluster.
        job: The submission id.
        write: Gets the log, piece by piece.

    Returns:
        0 where it succeeded, 1 where it failed, 130 where it was stopped.

    Raises:
        ClusterError: The cluster stays away, or does not stop the job, which may go on.
    """
    try:
        return asyncio.run(_follow(client, job, write))
    except KeyboardInterrupt:
        _stop(client, job)
        return ENDS["STOPPED"]


def _stop(client: Client, job: str) -> None:
    logger.info("stopping job %s", job)
    deadline = time.monotonic() + STOP_SECONDS
    try:
        client.stop_job(job)
        while (status := str(client.get_job_status(job))) not in ENDS:
            if time.monotonic() >= deadline:
                raise ClusterError("The job does not stop", where=job, got=status)
            time.sleep(0.5)
    except (OSError, RuntimeError) as error:
        raise ClusterError(
            "The cluster does not answer, so that the job was not stopped",
            where=job,
            got=error,
            fix=f"when it is back: ray job stop --address {client.get_address()} {job}",
        ) from error
    logger.info("job %s %s", job, status)


@dataclass
class _Log:
    """How much of a job's log was passed on, and when the cluster was heard of last."""

    write: Callable[[str], object]
    written: int = 0
    heard: float = 0.0

    def take(self, text: str, end: int) -> None:
        """Pass on a text that ends at a position of the log, but for what was passed on before."""
        if end > self.written:
            self.write(text[self.written - end :])
            self.written = end
        self.heard = time.monotonic()


async def _follow(client: Client, job: str, write: Callable[[str], object]) -> int:
    import aiohttp

    log = _Log(write, heard=time.monotonic())
    while True:
        try:
            status = await _follow_connection(client, job, log)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            if time.monotonic() - log.heard > AWAY_SECONDS:
                raise ClusterError(
                    "The cluster does not answer any more",
                    where=job,
                    got=error,
                    fix="the job may go on; repeat the command to follow it",
                ) from error
        else:
            log.heard = time.monotonic()
            if status in ENDS:
                logger.info("job %s %s", job, status)
                return ENDS[status]
        await asyncio.sleep(1)


async def _follow_connection(client: Client, job: str, log: _Log) -> str:
    """Pass the log on until the connection ends or tells less than there is; the job's status."""
    seen = 0
    async with aclosing(_pieces(client, job)) as pieces:
        async for text in pieces:
            if text:
                seen += len(text)
                log.take(text, seen)
                continue
            status = str(client.get_job_status(job))  # first: an ended job's log is whole
            whole = client.get_job_logs(job)
            log.take(whole, len(whole))
            if status in ENDS or len(whole) > seen:
                return status
    return str(client.get_job_status(job))


async def _pieces(client: Client, job: str) -> AsyncGenerator[str, None]:
    """A job's log from its beginning, as it comes; an empty piece for each long silence."""
    stream = client.tail_job_logs(job)
    coming = asyncio.ensure_future(anext(stream, None))
    try:
        while True:
            done, _ = await asyncio.wait([coming], timeout=SILENT_SECONDS)
            text = coming.result() if done else ""
            if text is None:
                return
            yield text
            if done:  # a silent one is kept: the head would go on serving any that it is not rid of
                coming = asyncio.ensure_future(anext(stream, None))
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await stream.aclose()

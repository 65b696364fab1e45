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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import ZipFile

from aga.errors import AgaError, ClusterError

logger = logging.getLogger(__name__)

Client: TypeAlias = Any
"""`ray.job_submission.JobSubmissionClient`."""
SUCCEEDED, FAILED, STOPPED = 0, 1, 130
ENDS = {"SUCCEEDED": SUCCEEDED, "FAILED": FAILED, "STOPPED": STOPPED}
RAY_LIMIT_MIB = 100
"""What a Ray head takes; it answers 413 to more."""
AGENT_SECONDS = 180.0
"""The head's agent, which takes jobs, may start after its dashboard answers."""
AWAY_SECONDS = 300.0
STOP_SECONDS = 60.0


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

    address = address or os.environ.get("RAY_ADDRESS")
    if not (address and address.startswith(("http://", "https://"))):
        raise ClusterError(
            "The address of the cluster's dashboard is needed",
            where="--address, RAY_ADDRESS",
            got=address,
            expected="http://<host>:8265",
        )
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, RayError) as error:
        raise ClusterError(
            "The cluster does not take jobs",
            where=address,
            got=str(error).partition("\n")[0],
            fix="start it (docs/cluster.md); a cluster with tokens wants RAY_AUTH_MODE=token here",
        ) from error


def start(client: Client, command: str, package: Package) -> str:
    """Start a job, or find the running one that the same command and package have started.

    Returns:
        Its submission id.

    Raises:
        ClusterError: The cluster does not take it.
    """
    name = job_name(command, package)
    attempts = {str(job.submission_id): str(job.status) for job in client.list_jobs()}
    mine = [one for one in attempts if one.rpartition("-")[0] == name]
    for job in mine:
        if attempts[job] not in ENDS:
            logger.info("job %s is there already; following it", job)
            return job
    job = f"{name}-{1 + max((int(one.rpartition('-')[2]) for one in mine), default=0)}"
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            client.submit_job(
                entrypoint=command,
                runtime_env={"working_dir": str(package.path)},
                submission_id=job,
            )
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() >= deadline:
                raise ClusterError("The cluster does not take the job", got=error) from error
            time.sleep(1)
        else:
            logger.info("job %s: %s", job, command)
            return job


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
        return STOPPED


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
            fix=f"when it is back: ray job stop {job}",
        ) from error
    logger.info("job %s %s", job, status)


async def _follow(client: Client, job: str, write: Callable[[str], object]) -> int:
    import aiohttp

    written, answered = 0, time.monotonic()
    while True:
        try:
            seen = 0
            async for text in client.tail_job_logs(job):
                seen += len(text)
                if seen > written:  # after a broken connection the log comes from its beginning
                    write(text[written - seen :])
                    written = seen
                answered = time.monotonic()
            status = str(client.get_job_status(job))
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            if time.monotonic() - answered > AWAY_SECONDS:
                raise ClusterError(
                    "The cluster does not answer any more",
                    where=job,
                    got=error,
                    fix="the job may go on; repeat the command to follow it",
                ) from error
        else:
            answered = time.monotonic()
            if status in ENDS:
                logger.info("job %s %s", job, status)
                return ENDS[status]
        await asyncio.sleep(1)

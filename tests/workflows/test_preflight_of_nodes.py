"""The command refuses, before it reads data, what would wait for ever for machines."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

from fixtures.small_runs import write_params


def processor_seconds() -> float:
    """Of the processes that ended: a busy machine is no failure of the command."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_eight_gpus_on_a_box_without_exit_with_the_table_in_time(tmp_path: Path) -> None:
    params = write_params(tmp_path, {"cluster": {"workers": 8, "gpus_per_worker": 1}})
    before = processor_seconds()
    done = subprocess.run(
        [sys.executable, "workflows/pretrain.py", "--params", str(params)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = processor_seconds() - before
    assert done.returncode == 1
    assert "need   have   largest node" in done.stderr
    assert ["GPU", "8", "0", "0"] in [line.split()[:4] for line in done.stderr.splitlines()]
    assert "cluster.gpus_per_worker" in done.stderr
    assert seconds < 15, f"{seconds:.1f} s"

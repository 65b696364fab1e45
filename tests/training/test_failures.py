"""Of several workers' failures the cause is told, not what it did to the others."""

from __future__ import annotations

import logging
import os

import pytest

from aga.training.failures import first_failure

LOST = "[pair.cc:1] Connection closed by peer [127.0.0.1]:1"


def test_the_cause_is_told_whatever_its_rank() -> None:
    errors = {0: RuntimeError(LOST), 1: ValueError("boom")}
    assert first_failure(errors) == (1, "ValueError: boom")
    assert first_failure({0: ValueError("a"), 1: ValueError("b")}) == (0, "ValueError: a")
    assert first_failure({0: RuntimeError(LOST)}) == (0, f"RuntimeError: {LOST}")
    assert first_failure({}) is None


@pytest.mark.slow
def test_two_real_workers_of_which_the_second_fails() -> None:
    import ray
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer

    def fail_in_the_second() -> None:  # within: Ray takes it along, and need not find this file
        import torch.distributed as dist

        if dist.get_rank() == 1:
            raise ValueError("boom")
        dist.barrier()

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    options = {"_node_ip_address": "127.0.0.1", "include_dashboard": True}
    ray.init(num_cpus=2, logging_level=logging.ERROR, **options)
    try:
        with pytest.raises(train.TrainingFailedError) as caught:
            TorchTrainer(
                fail_in_the_second,
                torch_config=TorchConfig(backend="gloo"),
                scaling_config=train.ScalingConfig(num_workers=2),
            ).fit()
        assert first_failure(caught.value.worker_failures) == (1, "ValueError: boom")
    finally:
        ray.shutdown()

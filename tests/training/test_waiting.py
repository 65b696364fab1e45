"""What is waited for is told in time, again and again, and not any more once it is there."""

from __future__ import annotations

import logging
import time

import pytest

from aga.training.waiting import telling


def test_a_wait_is_told_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="aga")
    with telling("waiting for Ray", 0.02):
        while len(caplog.records) < 2:
            time.sleep(0.01)
    told = len(caplog.records)
    time.sleep(0.1)
    assert len(caplog.records) == told
    assert caplog.records[0].message == "waiting for Ray, for 0:00:00"


def test_a_short_wait_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="aga")
    with pytest.raises(ValueError, match="boom"), telling("waiting", 60.0):
        raise ValueError("boom")
    assert caplog.records == []


def test_a_wait_that_comes_and_goes_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="aga")
    answers = [None, "waiting for room", None]
    with telling(lambda: answers.pop(0) if answers else None, 0.01):
        while answers:
            time.sleep(0.01)
    assert [record.message for record in caplog.records] == ["waiting for room, for 0:00:00"]

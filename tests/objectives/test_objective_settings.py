"""Wrong settings fail at start and name the key; each name builds its objective."""

from __future__ import annotations

import logging

import pytest
import torch
from builders import embeddings, objective_config, settings
from pydantic import ValidationError

from aga.objectives import OBJECTIVES, AgaConfig, build_objective


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"gate__init": 0.0}, "init"),
        ({"gate__init": 1.0}, "init"),
        ({"gate__init": "unifrom"}, "init"),
        ({"gate__kind": "linear"}, "kind"),
        ({"gate__temperature": 0.001}, "temperature"),
        ({"gate__hidden": 0}, "hidden"),
        ({"scaling": "max"}, "scaling"),
        ({"scaling_temperature": 0.0}, "scaling_temperature"),
        ({"iga__temperature": -0.1}, "temperature"),
        ({"iga__max_patches": 0}, "max_patches"),
        ({"iga__patch_similarity": 1.5}, "patch_similarity"),
        ({"bcga__form": "sum"}, "form"),
        ({"contrast__temperature": 0.005}, "temperature"),
        ({"weights__iga": -1.0}, "iga"),
        ({"weights__iga": float("nan")}, "iga"),
        ({"weights__contrast": 0, "weights__iga": 0, "weights__bcga": 0}, "weights"),
    ],
    ids=str,
)
def test_a_wrong_value_names_its_key(change: dict, key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AgaConfig.model_validate(settings(**change))
    assert key in caught.value.errors()[0]["loc"]


def test_heads_that_do_not_divide_their_width_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"heads \(4\) must divide width \(6\)"):
        objective_config("aga", bcga__heads=4, bcga__width=6)


def test_a_learned_gate_that_cannot_learn_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build_objective(objective_config("aga", gate__relaxation="hard"), width=6)
    assert "gate.relaxation" in caplog.text


@pytest.mark.parametrize(("name", "kind"), OBJECTIVES.items())
def test_names_build_their_objective(name: str, kind: type) -> None:
    built = build_objective(objective_config(name), width=6)
    assert isinstance(built, kind)
    found = built(embeddings([6, 2], dtype=torch.float32))
    torch.testing.assert_close(found.total, sum(found.terms.values()))
    assert not any(value.requires_grad for value in found.diagnostics.values())
    assert all(value.ndim == 0 for value in found.diagnostics.values())

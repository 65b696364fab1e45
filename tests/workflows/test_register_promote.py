"""The stages `register` and `promote` on a project folder, as DVC runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fixtures.bundles import write_bundle
from fixtures.studies import phantom_rows, write_studies

from aga.errors import CheckpointError, TrackingError
from aga.evaluation import Metric, write_metrics
from aga.evaluation.metrics import Metrics
from workflows import promote, register

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
VALUE = Metric(value=0.5, low=0.4, high=0.6, chance=0.1, n=20)
MEASURED = Metrics(
    "retrieval", {"retrieval/mean_recall_at_10": VALUE}, {"gallery_sha256": "g" * 64}
)


def test_a_bundle_is_registered_promoted_and_written_down(tmp_path: Path) -> None:
    project = ["--params", str(shutil.copy(ROOT / "params.yaml", tmp_path))]
    with pytest.raises(TrackingError, match="register"):
        promote.main(project)
    with pytest.raises(CheckpointError, match=r"(?s)no bundle.*dvc repro pretrain"):
        register.main(project)

    studies = write_studies(tmp_path / "studies", phantom_rows(20), size=32)
    bundle = write_bundle(tmp_path / "models" / "encoder", studies)
    register.main(project)
    stated = (tmp_path / "models" / "registered.json").read_text()
    assert json.loads(stated)["bundle_sha256"] == bundle.sha256
    register.main(project)
    assert (tmp_path / "models" / "registered.json").read_text() == stated

    with pytest.raises(TrackingError, match="no value of the gate"):
        promote.main(project)
    write_metrics([MEASURED], tmp_path / "metrics")
    promote.main(project)
    decision = json.loads((tmp_path / "metrics" / "promotion.json").read_text())
    assert (decision["promoted"], decision["candidate_value"]) == (True, 0.5)
    with pytest.raises(TrackingError, match="no champion before"):
        promote.main([*project, "--roll-back"])

"""params.yaml, presets and overlays: wrong settings fail at start, right ones round-trip."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from aga.errors import ParamsError
from aga.params import (
    apply_overlay,
    load_params,
    overlaid,
    parse_settings,
    read_preset,
    read_yaml,
    validate,
)

ROOT = Path(__file__).parent.parent
PRESETS = sorted(p.stem for p in (ROOT / "presets").glob("*.yaml"))


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))


def test_the_committed_params_are_valid_and_frozen(golden) -> None:
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(Exception, match="frozen"):
        params.seed = 1  # type: ignore[misc]
    golden("params", params.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("optimizer.learning_rate=-0.001", ["optimizer.learning_rate", "-0.001", "greater than 0"]),
        ("optimizer.learning_rat=0.001", ["optimizer.learning_rat", "did you mean learning_rate"]),
        ("objective.name=agga", ["objective.name", "agga", "'aga'", "'clip'"]),
        ("nonsense.key=1", ["nonsense", "unknown key"]),
        ("training.epochs=many", ["training.epochs", "many", "integer"]),
        ("prepare.split.test=0.5", ["prepare.split"]),
        ("objective.aga.gate.init=1.5", ["objective.aga.gate.init", "1.5"]),
        ("tracking.experiment=it's", ["tracking.experiment", "it's"]),
        ("optimizer.learning_rate=.nan", ["optimizer.learning_rate", "finite"]),
    ],
)
def test_a_wrong_setting_names_key_value_and_what_is_allowed(
    params_file: Path, setting: str, named: list[str]
) -> None:
    before = params_file.read_bytes()
    with pytest.raises(ParamsError) as raised:
        apply_overlay(params_file, parse_settings([setting]))
    for words in named:
        assert words in str(raised.value)
    assert params_file.read_bytes() == before


def test_a_missing_key_is_named(params_file: Path) -> None:
    values = read_yaml(params_file)
    del values["optimizer"]["weight_decay"]
    with pytest.raises(ParamsError, match=r"optimizer\.weight_decay: missing"):
        validate(values, params_file)


@pytest.mark.parametrize("text", ["", "- a list\n", "a: [unclosed\n", "seed: 0\nseed: 1\n"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError):
        load_params(tmp_path / "params.yaml")


def test_an_overlay_keeps_comments_and_shows_a_diff(params_file: Path) -> None:
    diff = apply_overlay(params_file, parse_settings(["training.epochs=3"]))
    changed = [line for line in diff.splitlines()[2:] if line[:1] in "+-"]
    assert len(changed) == 2, diff
    assert changed[1].lstrip("+").strip().startswith("epochs: 3")
    assert load_params(params_file).training.epochs == 3
    assert "# Every value of the line" in params_file.read_text()


def test_what_is_equal_keeps_its_notation(params_file: Path) -> None:
    tiny = read_yaml(ROOT / "presets" / "tiny.yaml")
    assert apply_overlay(params_file, tiny) == ""


def test_a_free_mapping_is_replaced_whole(params_file: Path) -> None:
    apply_overlay(params_file, {"image_encoder": {"options": {"depth": 4}}})
    assert load_params(params_file).image_encoder.options == {"depth": 4}


def test_without_write_the_file_stays(params_file: Path) -> None:
    before = params_file.read_bytes()
    assert apply_overlay(params_file, {"seed": 7}, write=False)
    assert params_file.read_bytes() == before


def test_a_preset_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ParamsError, match=r"(?s)got:\s+tinny.*aga_grounded, covid, .*tiny"):
        read_preset("tinny", ROOT / "presets")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_tiny_undoes_it(params_file: Path, preset: str) -> None:
    committed = read_yaml(params_file)
    apply_overlay(params_file, read_yaml(ROOT / "presets" / f"{preset}.yaml"))
    load_params(params_file)
    apply_overlay(params_file, read_yaml(ROOT / "presets" / "tiny.yaml"))
    assert read_yaml(params_file) == committed


def test_tiny_is_the_committed_state() -> None:
    values = read_yaml(ROOT / "params.yaml")
    assert overlaid(values, read_yaml(ROOT / "presets" / "tiny.yaml")) == values


@pytest.mark.parametrize("setting", ["a={", "seed", "=1", "seed.=1", "seed=1 seed.more=2"])
def test_a_setting_that_cannot_be_read_is_named(setting: str) -> None:
    with pytest.raises(ParamsError, match=r"seed|a=|=1"):
        parse_settings(setting.split())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"params\.yaml"):
        apply_overlay(tmp_path / "params.yaml", {"seed": 1})

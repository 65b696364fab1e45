"""`dvc.yaml` against the code: a library edit or a setting can never leave a stale result."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import grimp
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
STAGES: dict[str, dict] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]

# params.py imports every component only for its configuration class. The values are tracked by
# `params`; the code that a stage runs, it reaches by other imports as well.
COMPOSITION = {"aga.params"}


@cache
def import_graph() -> grimp.ImportGraph:
    return grimp.build_graph("aga", "workflows", cache_dir=None)


def module_path(module: str) -> str:
    path = Path(*module.split("."))
    package = path / "__init__.py"
    return str(package if (ROOT / package).is_file() else path.with_suffix(".py"))


def import_closure(workflow: str) -> set[str]:
    """Files that a workflow imports, directly or not, short of the composition of all configs."""
    graph, reached, todo = import_graph(), set(), [workflow]
    while todo:
        module = todo.pop()
        if module in reached or module in COMPOSITION:
            continue
        reached.add(module)
        parents = [module.rpartition(".")[0]] if "." in module else []
        todo += [*graph.find_modules_directly_imported_by(module), *parents]
    return {module_path(m) for m in reached} - {"aga/__init__.py", "workflows/__init__.py"}


def workflow_of(stage: str) -> str:
    script = STAGES[stage]["cmd"].split()[1]
    return script.removesuffix(".py").replace("/", ".")


def code_deps(stage: str) -> list[str]:
    return [d for d in STAGES[stage]["deps"] if d.startswith(("aga", "workflows"))]


def covers(dep: str, file: str) -> bool:
    return file == dep or file.startswith(dep + "/")


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_the_import_closure(stage: str) -> None:
    closure = import_closure(workflow_of(stage))
    missing = {f for f in closure if not any(covers(d, f) for d in code_deps(stage))}
    assert not missing, f"add to deps of {stage}: {sorted(missing)}"


@pytest.mark.parametrize("stage", STAGES)
def test_deps_name_nothing_that_the_stage_does_not_import(stage: str) -> None:
    closure = import_closure(workflow_of(stage))
    # A template or prompt file is data that a module of the same folder reads.
    idle = [
        dep
        for dep in code_deps(stage)
        if not any(covers(dep, f) or covers(str(Path(dep).parent), f) for f in closure)
        or (dep.endswith(".py") and dep not in closure)
    ]
    assert not idle, f"remove from deps of {stage}: {idle}"


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_those_that_the_workflow_reads(stage: str) -> None:
    source = (ROOT / module_path(workflow_of(stage))).read_text()
    read = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "params"
    }
    assert read == set(STAGES[stage]["params"])


def test_every_dep_is_there_or_is_made_by_a_stage() -> None:
    made = {
        str(next(iter(o)) if isinstance(o, dict) else o)
        for s in STAGES.values()
        for kind in ("outs", "metrics", "plots")
        for o in s.get(kind, [])
    }
    for stage, spec in STAGES.items():
        for dep in spec["deps"]:
            known = dep in made or dep.startswith("${") or (ROOT / dep).exists()
            assert known, f"{stage} depends on {dep}, which nothing makes"


def test_outputs_made_of_patients_are_never_pushed() -> None:
    for stage, spec in STAGES.items():
        for out in spec.get("outs", []):
            path, options = next(iter(out.items())) if isinstance(out, dict) else (out, {})
            private = options.get("push") is False or options.get("cache") is False
            assert private, f"{stage}: {path} could be pushed to a remote"


def test_private_folders_are_ignored_by_git_and_by_ray() -> None:
    for name in (".gitignore", ".rayignore"):
        ignored = {line.rstrip("/") for line in (ROOT / name).read_text().splitlines()}
        # Anchored: a bare `data` would also take the package aga/data out of a job's code.
        private = {"/data", "/models", "/runs", "/reports", "/private", "/mlartifacts"}
        private |= {"/mlflow.db*"}
        assert private <= ignored, name
        assert "data" not in ignored, name


def test_live_checkpoints_are_no_dvc_output() -> None:
    outs = [str(o) for spec in STAGES.values() for o in spec.get("outs", [])]
    assert not [o for o in outs if "runs" in o]

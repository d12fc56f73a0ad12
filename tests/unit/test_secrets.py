"""Secrets: found by name, shown by name, never written by value."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import job, launch, pipeline, plan, project, secrets
from launcher.clusters import Profile
from launcher.errors import Refused, UserError
from tests.unit.test_plan import add_stage

PROFILE = Profile(name="aws", files=())


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in secrets.STANDARD:
        monkeypatch.delenv(name, raising=False)


def test_standard_ones_are_handed_on_where_they_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert secrets.of(PROFILE, None, None) == {}
    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    assert secrets.of(PROFILE, None, None) == {"HF_TOKEN": "hf_fake"}


def test_a_demanded_one_that_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = Profile(name="ours", files=(), secrets=("VAULT_KEY",))
    monkeypatch.setenv("VAULT_KEYS", "fake")
    with pytest.raises(Refused, match=r"ours needs the secret VAULT_KEY.*VAULT_KEYS"):
        secrets.of(profile, None, None)
    monkeypatch.setenv("VAULT_KEY", "fake")
    assert secrets.of(profile, None, None) == {"VAULT_KEY": "fake"}


def test_a_file_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "from the environment")
    file = tmp_path / "secrets.env"
    file.write_text("# ours\n\nexport HF_TOKEN='hf fake'\nOTHER=a=b\n")
    assert secrets.of(PROFILE, None, file) == {"HF_TOKEN": "hf fake", "OTHER": "a=b"}


def test_a_wrong_line_is_named_without_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "secrets.env"
    file.write_text("A=1\nhunter2\n")
    with pytest.raises(UserError) as caught:
        secrets.read(file)
    assert f"{file}:2" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "logs_in"),
    [
        ("docker:nvcr.io/nvidia/nemo:26.04", True),
        ("nvcr.io/x", True),
        ("docker:ubuntu", False),
        (None, False),
    ],
)
def test_ngc_is_logged_in_to_where_its_image_is_used(
    image: str | None, logs_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGC_API_KEY", "nvapi-fake")
    found = secrets.of(PROFILE, image, None)
    assert (found.get("SKYPILOT_DOCKER_PASSWORD") == "nvapi-fake") is logs_in


@given(
    st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,9}", fullmatch=True), st.text("abc =#'\"", max_size=8))
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]) -> None:
    file = tmp_path_factory.mktemp("secrets") / "file"
    file.write_text("".join(f'{name}="{value}"\n' for name, value in values.items()))
    assert secrets.read(file) == values


# A Ray cluster of several nodes.

RAY = '# [tool.runspec.run]\n# launch = "ray"\n'
SAID = '# [tool.runspec.env]\n# RAY_AUTH_MODE = "disabled"\n'
AUTH = "RAY_AUTH_TOKEN"


@pytest.fixture
def ray(place: project.Project, monkeypatch: pytest.MonkeyPatch) -> plan.Request:
    """A Ray stage and one that is none, on the nodes of a cloud that sees this machine's folders."""
    add_stage(place.root, "f/ray", more=RAY)
    add_stage(place.root, "f/said", more=RAY + SAID)
    add_stage(place.root, "f/plain")
    (place.root / "there.yaml").write_text("extends: aws\nshared_filesystem: true\n")
    return plan.Request("f", "ray", cluster=str(place.root / "there.yaml"), nodes=2, managed=True)


def hidden(place: project.Project, request: plan.Request) -> dict[str, str]:
    [drafted] = plan.plans(request, place, plan.select(request, place))
    return secrets.of_plan(drafted, request.secrets)


def test_the_nodes_of_a_ray_cluster_share_a_token_of_their_own(
    place: project.Project, ray: plan.Request, tmp_path: Path
) -> None:
    first, second = hidden(place, ray)[AUTH], hidden(place, ray)[AUTH]
    assert first != second
    assert re.fullmatch("[0-9a-f]{64}", first)
    file = tmp_path / "secrets.env"
    file.write_text(f"{AUTH}=mine\n")
    assert hidden(place, replace(ray, secrets=file)) == {AUTH: "mine"}
    others = [replace(ray, nodes=1), replace(ray, stage="plain"), replace(ray, stage="said")]
    local = replace(ray, cluster="local", managed=False)
    assert [hidden(place, one) for one in (*others, local)] == [{}] * 4


@pytest.mark.parametrize("stages", [1, 2])
def test_the_token_goes_to_skypilot_and_into_no_file_of_ours(
    place: project.Project, ray: plan.Request, monkeypatch: pytest.MonkeyPatch, stages: int
) -> None:
    import sky.jobs

    tokens: list[str] = []
    said: list[str] = []

    def posted(dag: Any, **_: Any) -> str:
        tokens.extend(task.envs_and_secrets[AUTH].get_secret_value() for task in dag.tasks)
        return "request"

    monkeypatch.setattr(sky.jobs, "launch", posted)
    store = launch.open_store(place)
    drafts = plan.plans(ray, place, plan.select(ray, place)) * stages
    asked = replace(ray, detach=True, force=True)
    if stages > 1:
        pipeline.launch(drafts, asked, place, store, said.append, said.append)
    else:
        launch.begin(drafts[0], asked, place, store, said.append)
    assert len(set(tokens)) == stages
    files = [path for path in place.root.rglob("*") if path.is_file()]
    tasks = [path.read_text() for path in files if path.name == "task.yaml"]
    assert len([text for text in tasks if f"secrets:\n  {AUTH}: null\n" in text]) == stages
    for token in tokens:
        assert not any(token in text for text in said)
        assert [path for path in files if token.encode() in path.read_bytes()] == []


def test_a_recovery_has_the_token_of_its_launch(place: project.Project, ray: plan.Request) -> None:
    """A managed job is begun again from what SkyPilot's controller keeps of it."""
    from sky import Task
    from sky.utils import dag_utils

    [drafted] = plan.plans(ray, place, plan.select(ray, place))
    values = secrets.of_plan(drafted, None)
    submitted = {**job.task_of(drafted, place, "r"), "file_mounts": {}, "secrets": values}
    dag = dag_utils.convert_entrypoint_to_dag(Task.from_yaml_config(submitted))
    dag.name = "r"
    dag_utils.dump_dag_to_yaml(dag, str(place.root / "controllers.yaml"))
    again = dag_utils.load_dag_from_yaml(str(place.root / "controllers.yaml"))
    [task] = again.tasks
    assert task.num_nodes == 2
    assert task.envs_and_secrets[AUTH].get_secret_value() == values[AUTH]

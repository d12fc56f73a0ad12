"""Plans: which stages, in which order, from which versions, and when two launches are the same run."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import clusters, config, inputs, job, launch, plan, project, runs, runspec, strategy
from launcher.agent import inputs as agent_inputs
from launcher.agent.job import read_job
from launcher.artifacts import registry
from launcher.artifacts.manifest import Manifest
from launcher.artifacts.store import open_store
from launcher.errors import Refused, UserError
from launcher.money import booking
from launcher.money.account import Entry
from launcher.money.lease import UNCAPPED_LEASE
from launcher.skyplugin import decide

ROOT = Path(__file__).parents[2]
HEAD = '# /// script\n# [tool.runspec]\n# name = "{name}"\n# [tool.runspec.resources]\n# gpus_per_node = 0\n'


def add_stage(root: Path, name: str, output: str | None = None, more: str = "", **inputs_: str) -> Path:
    folder = root / "recipes" / name
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "default.yaml").write_text("a: 1\nsource: none\n")
    text = HEAD.format(name=name) + more
    if inputs_:
        text += "# [tool.nemo_sky.inputs]\n" + "".join(f'# {k} = "{v}"\n' for k, v in inputs_.items())
    if output:
        text += f'# [tool.nemo_sky.output]\n# name = "{output}"\n# type = "eval-report"\n'
    script = folder / "script.py"
    script.write_text(text + "# ///\n")
    return script


def chain(root: Path) -> None:
    """A family whose order by name is not its order by need."""
    add_stage(root, "f/a-eval", "f-report", model="art://f-tuned", data="art://f-data")
    add_stage(root, "f/b-tune", "f-tuned", model="art://f-model:latest")
    add_stage(root, "f/c-train", "f-model", data="art://f-data")
    add_stage(root, "f/d-prep", "f-data")


def ask(stage: str = "all", **changes: object) -> plan.Request:
    return replace(plan.Request("f", stage), **changes)  # type: ignore[arg-type]


def planned(place: project.Project, request: plan.Request) -> list[plan.Plan]:
    return plan.plans(request, place, plan.select(request, place))


def publish(place: project.Project, name: str, text: str) -> Manifest:
    folder = place.root / "made"
    folder.mkdir(exist_ok=True)
    (folder / "file").write_text(text)
    store = open_store(place.artifacts)
    return registry.import_path(store, folder, name=name, type="eval-report", metadata={"scores": {}})


def test_stages_run_in_the_order_of_their_needs(place: project.Project) -> None:
    chain(place.root)
    stages = [spec.stage for spec in plan.select(ask(), place)]
    assert stages == ["d-prep", "c-train", "b-tune", "a-eval"]
    part = plan.select(ask(first="c-train", last="b-tune"), place)
    assert [spec.stage for spec in part] == ["c-train", "b-tune"]


def test_a_stage_beside_the_chain_runs_only_by_itself(place: project.Project) -> None:
    chain(place.root)
    add_stage(place.root, "f/convert", "f-base", more="# [tool.nemo_sky]\n# in_all = false\n")
    assert "convert" not in [spec.stage for spec in plan.select(ask(), place)]
    assert [spec.stage for spec in plan.select(ask("convert"), place)] == ["convert"]
    with pytest.raises(UserError, match="`all` does not run convert: launch it by itself"):
        plan.select(ask(first="convert"), place)


def test_a_circle_of_stages_is_named(place: project.Project) -> None:
    add_stage(place.root, "f/x", "f-x", y="art://f-y")
    add_stage(place.root, "f/y", "f-y", x="art://f-x")
    with pytest.raises(UserError, match="f/x -> f/y -> f/x"):
        plan.select(ask(), place)


def test_what_an_earlier_stage_makes_need_not_exist_yet(place: project.Project) -> None:
    chain(place.root)
    assert plan.awaited(planned(place, ask())) == [[], ["data"], ["model"], ["model", "data"]]
    assert plan.awaited(planned(place, ask(first="b-tune"))) == [[], ["model"]]


def test_inputs_are_pinned_to_what_this_launch_made_before_what_is_latest(place: project.Project) -> None:
    chain(place.root)
    mine, other = publish(place, "f-data", "mine"), publish(place, "f-data", "other")
    (draft,) = planned(place, ask("c-train"))
    store = open_store(place.artifacts)
    newest = plan.pin(draft, ask("c-train"), place, store, {})
    assert newest.job["inputs"] == {"data": {"ref": other.uri}}
    before = plan.pin(draft, ask("c-train"), place, store, {"f-data": mine})
    assert before.job["inputs"] == {"data": {"ref": mine.uri}}
    exact = ask("c-train", overrides=(f"run.data={other.uri}",))
    (draft,) = planned(place, exact)
    asked = plan.pin(draft, exact, place, store, {"f-data": mine})
    assert asked.job["inputs"] == {"data": {"ref": other.uri}}


def test_an_absent_input_is_refused_with_the_nearest(place: project.Project) -> None:
    chain(place.root)
    publish(place, "f-datta", "x")
    (draft,) = planned(place, ask("c-train"))
    with pytest.raises(Refused, match="did you mean 'f-datta'"):
        plan.pin(draft, ask("c-train"), place, open_store(place.artifacts), {})


def test_a_folder_may_stand_in_for_an_artifact(place: project.Project) -> None:
    chain(place.root)
    (place.root / "mine").mkdir()
    (draft,) = planned(place, ask("c-train", overrides=("run.data=./mine",)))
    assert draft.job["inputs"]["data"]["path"] == str(place.root / "mine")
    assert draft.fingerprint, "nothing is left to pin"


def test_a_config_may_do_without_an_input(place: project.Project) -> None:
    chain(place.root)
    (draft,) = planned(place, ask("c-train", overrides=("run.data=null",)))
    assert draft.inputs == {}
    assert draft.fingerprint


def test_overrides_of_all_belong_to_the_longest_stage_that_fits(place: project.Project) -> None:
    add_stage(place.root, "f/a")
    add_stage(place.root, "f/a/b")
    drafts = planned(place, ask(overrides=("a.a=2", "+a/b.new=3", "~a/b.a")))
    values = {draft.spec.stage: draft.values for draft in drafts}
    assert values["a"]["a"] == 2
    assert values["a/b"] == {"source": "none", "new": 3}


def fingerprint(place: project.Project, stage: str, **changes: object) -> str:
    (draft,) = planned(place, ask(stage, **changes))
    assert draft.fingerprint
    return draft.fingerprint


def test_a_fingerprint_changes_with_what_decides_the_output_and_with_nothing_else(
    place: project.Project,
) -> None:
    script = add_stage(place.root, "f/x")
    other = add_stage(place.root, "f/y")
    shared = place.root / "recipes" / "f" / "shared.py"
    shared.write_text("x = 1\n")
    first = fingerprint(place, "x")
    other.write_text(other.read_text() + "# changed\n")
    (place.root / "notes.txt").write_text("changed")
    assert fingerprint(place, "x") == first
    assert fingerprint(place, "x", nodes=2, command="typed otherwise") == first
    assert fingerprint(place, "x", overrides=("a=1",)) == first, "the same value, said twice"
    changed = {first, fingerprint(place, "x", overrides=("a=2",))}
    changed.add(fingerprint(place, "x", script_args=("b",)))
    shared.write_text("x = 2\n")
    changed.add(fingerprint(place, "x"))
    script.write_text(script.read_text() + "# changed\n")
    changed.add(fingerprint(place, "x"))
    assert len(changed) == 5


def test_a_source_folder_counts_by_its_content(place: project.Project) -> None:
    add_stage(place.root, "f/x", more='# [tool.nemo_sky]\n# sources = ["source"]\n')
    folder = place.root / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    before = fingerprint(place, "x", overrides=("source=texts",))
    assert fingerprint(place, "x", overrides=("source=texts",)) == before
    (folder / "b.txt").write_text("two")
    assert fingerprint(place, "x", overrides=("source=texts",)) != before


def test_an_input_folder_counts_by_names_sizes_and_times(place: project.Project) -> None:
    """Behind a link too: data is often put together of links to where it lies."""
    chain(place.root)
    elsewhere, folder = place.root / "elsewhere", place.root / "mine"
    (elsewhere / "deep").mkdir(parents=True)
    (elsewhere / "deep" / "a.bin").write_text("one")
    folder.mkdir()
    (folder / "train").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)  # in a circle

    def now() -> str:
        return fingerprint(place, "c-train", overrides=("run.data=./mine",))

    seen = [now()]
    assert now() == seen[0]
    os.utime(elsewhere / "deep" / "a.bin", ns=(1, 1))
    seen.append(now())
    (elsewhere / "deep" / "a.bin").write_text("three")
    os.utime(elsewhere / "deep" / "a.bin", ns=(1, 1))
    seen.append(now())
    (elsewhere / "deep" / "a.bin").rename(elsewhere / "b.bin")
    seen.append(now())
    (folder / "one.bin").write_bytes(b"")
    os.rename(folder / "one.bin", os.fsencode(folder) + b"/\xff.bin")
    seen.append(now())
    assert len(set(seen)) == 5


def test_an_input_folder_is_looked_at_anew_when_its_stage_begins(place: project.Project) -> None:
    chain(place.root)
    (place.root / "mine").mkdir()
    request = ask("c-train", overrides=("run.data=./mine",))
    (draft,) = planned(place, request)
    (place.root / "mine" / "a.bin").write_text("what an earlier stage of the same launch has written")
    (later,) = planned(place, request)
    store = open_store(place.artifacts)
    assert plan.pin(draft, request, place, store, {}).fingerprint == later.fingerprint
    assert draft.fingerprint != later.fingerprint


def test_a_broken_recipe_is_refused_by_its_line(place: project.Project) -> None:
    script = add_stage(place.root, "f/x")
    script.write_text(script.read_text().replace("gpus_per_node = 0", "gpus_per_nod = 0"))
    with pytest.raises(UserError, match="gpus_per_node") as caught:
        planned(place, ask("x"))
    assert caught.value.where == "recipes/f/x/script.py:5"


record = runs.Run("r", "f", "x", "default", "0" * 64, "local", "local", 1, "2026-01-01", "c", None, "a", "t")


def test_runs_are_found_by_the_beginning_of_their_id(tmp_path: Path) -> None:
    for run_id in ("f-x-1a", "f-x-1b", "f-y-2"):
        runs.save(tmp_path, replace(record, run_id=run_id))
    assert runs.load(tmp_path, "f-y").run_id == "f-y-2"
    with pytest.raises(UserError, match="any of 2 runs"):
        runs.load(tmp_path, "f-x")
    with pytest.raises(UserError, match="did you mean 'f-x-1a'"):
        runs.load(tmp_path, "x-x-1a")


def test_half_a_record_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text('{"run_id": "br')
    runs.save(tmp_path, record)
    assert [run.run_id for run in runs.every(tmp_path)] == ["r"]
    assert not [name for name in os.listdir(tmp_path / "r") if name.endswith(".tmp")]


@given(family=st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True), stage=st.sampled_from(["a", "data/prep/b"]))
def test_run_ids_are_unique_and_plain(family: str, stage: str) -> None:
    made = {runs.new_id(family, stage) for _ in range(20)}
    assert len(made) == 20
    assert not set("".join(made)) - set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_input_names_are_told_from_paths() -> None:
    assert inputs.artifact_name("art://x:v3") == "x"
    assert inputs.artifact_name("x:latest") == "x"
    assert inputs.artifact_name("./x") is None
    assert runspec.FIELDS


def test_the_trainers_words_come_before_torchruns_report() -> None:
    report = ["E1 torch/distributed/elastic/multiprocessing/api.py failed", "Traceback", "=" * 60]
    tail = ["step 1", "error: wrong", *report, "[nemo-sky] attempt 1 failed"]
    assert launch.last_words(tail) == ["step 1", "error: wrong", "[nemo-sky] attempt 1 failed"]
    assert launch.last_words(report) == report
    assert launch.last_words([str(n) for n in range(99)])[-1] == "98"


def test_mock_data_needs_no_artifact() -> None:
    shipped = project.read(ROOT)
    request = plan.Request("tiny", "pretrain", config="mock")
    (draft,) = plan.plans(request, shipped, plan.select(request, shipped))
    assert draft.inputs == {}


def test_a_stage_of_a_pipeline_gets_the_fingerprint_that_a_later_launch_looks_for(
    place: project.Project, tmp_path: Path
) -> None:
    add_stage(place.root, "f/train", "f-model", data="art://f-data", raw="./raw")
    (place.root / "raw").mkdir()
    (draft,) = planned(place, ask("train"))
    store = open_store(place.artifacts)
    early = plan.pin(draft, ask("train"), place, store, {}, {"f-data": "the-run-before"})
    assert early.fingerprint is None
    assert early.inputs["data"].manifest is None
    folder = tmp_path / "job"
    facts = {**early.job, "run_id": "this-run", "recipe_fingerprint": early.recipe}
    runs.write_text(folder / "job.yaml", config.dump_yaml(facts | {"provenance": {"fingerprint": None}}))
    runs.write_text(folder / "train.yaml", config.dump_yaml(early.values))
    job = read_job(folder)
    with pytest.raises(Refused, match="the-run-before, which comes before this stage, has published no"):
        agent_inputs.resolve(job, store)

    publish(place, "f-data", "somebody else's, and newer")
    made = tmp_path / "made-before"
    made.mkdir()
    (made / "file").write_text("text")
    facts = {"run_id": "the-run-before", "attempt": 1}
    mine = registry.publish(
        store,
        name="f-data",
        type="eval-report",
        metadata={"scores": {}},
        inputs={},
        producer=facts,
        directory=made,
    )
    publish(place, "f-data", "newer still")
    found = agent_inputs.resolve(job, store)
    assert [item.uri for item in found] == [mine.uri, f"file://{place.root}/raw"]
    later = plan.pin(draft, ask("train"), place, store, {"f-data": mine})
    assert agent_inputs.provenance(job, found)["fingerprint"] == later.fingerprint


def test_the_codes_that_a_recipe_names_go_to_the_agent_and_to_our_strategy(place: project.Project) -> None:
    add_stage(place.root, "f/x", more="# [tool.nemo_sky]\n# no_retry = [3, 4]\n")
    add_stage(place.root, "f/y")
    spot = ask("x", cluster="aws", placement=clusters.Placement(market="spot"))
    [named], [plain] = planned(place, spot), planned(place, replace(spot, stage="y"))
    assert "no_retry" not in plain.job["limits"]
    booked = booking.Booking("runs/r", Entry("r/1", "r", None, 0, 1), None, False, UNCAPPED_LEASE)
    for drafted, codes in ((named, (3, 4)), (plain, ())):
        folder = place.root / drafted.spec.stage
        folder.mkdir()
        (folder / "job.yaml").write_text(config.dump_yaml({"run_id": "r", **drafted.job}))
        (folder / "train.yaml").write_text(config.dump_yaml(drafted.values))
        assert read_job(folder).no_retry == codes
        task = job.task_of(drafted, place, "r")
        asked = strategy.job_recovery(task, drafted, spot, open_store(place.artifacts), booked)
        assert tuple(decide.terms_of(asked["nemo_sky"]).no_retry) == codes

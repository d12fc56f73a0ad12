"""Reading runspecs: defaults, what Nemotron's own scripts hold, refusals, and finding stages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import runspec
from launcher.errors import UserError
from launcher.runspec import table

UPSTREAM = Path(__file__).parents[1] / "fixtures" / "upstream" / "train.py"

MINIMAL = """\
# /// script
# [tool.runspec]
# name = "tiny/pretrain"
# ///
print("x")
"""


def block(toml: str, before: str = "", after: str = "\nprint()\n") -> str:
    """A script whose block holds ``toml``."""
    lines = "".join(f"# {line}\n" if line else "#\n" for line in toml.splitlines())
    return f"{before}# /// script\n{lines}# ///{after}"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_those_of_the_specification(tmp_path: Path) -> None:
    spec = runspec.parse(write(tmp_path / "train.py", MINIMAL))
    assert (spec.schema, spec.docs, spec.image, spec.setup) == ("1", "", None, "")
    assert spec.run == runspec.Run("torchrun", "python {script} --config {config}", None)
    assert spec.config == runspec.ConfigSpec("./config", "default", "omegaconf")
    assert spec.resources == runspec.Resources(1, 8)
    assert spec.env == {}
    assert spec.sky == runspec.Sky((), None, None, None, 1, None, (), (), (), True, {}, None)
    assert (spec.dependencies, spec.requires_python) == ((), None)
    assert spec.script_path == tmp_path / "train.py"
    assert spec.config_dir == tmp_path / "config"


def test_a_script_of_nemotron_is_read_without_change() -> None:
    spec = runspec.parse(UPSTREAM)
    assert spec.name == "nano9/rl"
    assert spec.setup == "The image holds the RL library in /opt/rl.\nMount the tokenizer."
    assert spec.run.launch == "ray"
    assert spec.run.cmd.endswith("""--template '{"role": "user"}'""")
    assert spec.run.workdir == "/opt/rl"
    assert spec.resources == runspec.Resources(2, "gpu")
    assert spec.config_dir == UPSTREAM.parent / "config"
    assert spec.env == {"NCCL_DEBUG": "WARN", "OMP_NUM_THREADS": "8", "HF_HUB_OFFLINE": "1"}
    assert spec.dependencies == ("omegaconf>=2.3", "torch")
    assert spec.requires_python == ">=3.10"
    assert runspec.check(UPSTREAM) == []


@pytest.mark.parametrize(
    ("toml", "field", "value"),
    [
        ("schema = 1", "schema", "1"),
        ('schema = "99"', "schema", "99"),
        ('run.launch = "python"', "run.launch", "python"),
        ('name = ""', "name", ""),
        ("colour = 3\n[tool.other]\nx = 1", "config.dir", "./config"),
    ],
)
def test_what_nemotron_lets_pass_is_let_pass(tmp_path: Path, toml: str, field: str, value: str) -> None:
    spec = runspec.parse(write(tmp_path / "a.py", block(f"[tool.runspec]\n{toml}")))
    assert runspec.facts(spec)[field] == value


def test_our_own_table(tmp_path: Path) -> None:
    text = """\
[tool.runspec]
name = "tiny/data/prep/pretrain"
[tool.nemo_sky]
accelerator = "H100"
disk_gb = 256
min_gpu_memory_gb = 80
spot = true
procs_per_node = 2
checkpoint_dir = "checkpoints"
no_retry = [3, 4]
sources = ["source.path"]
config_keys = ["train.*"]
in_all = false
[tool.nemo_sky.inputs]
data = "art://tiny-pretrain-data"
[tool.nemo_sky.output]
name = "tiny-pretrain-model"
type = "model"
"""
    spec = runspec.parse(write(tmp_path / "a.py", block(text)))
    output = runspec.Output("tiny-pretrain-model", "model")
    inputs = {"data": "art://tiny-pretrain-data"}
    assert spec.sky == runspec.Sky(
        ("H100",), 256, 80, True, 2, "checkpoints", (3, 4), ("source.path",), ("train.*",), False, inputs,
        output,
    )  # fmt: skip
    assert (spec.family, spec.stage) == ("tiny", "data/prep/pretrain")
    two = block('[tool.runspec]\nname = "a/b"\n[tool.nemo_sky]\naccelerator = ["H200", "H100"]')
    assert runspec.parse(write(tmp_path / "b.py", two)).sky.accelerator == ("H200", "H100")


def test_facts_are_json() -> None:
    facts = json.loads(json.dumps(runspec.facts(runspec.parse(UPSTREAM))))
    assert facts["family"] == "nano9"
    assert facts["resources.gpus_per_node"] == "gpu"
    assert facts["nemo_sky.procs_per_node"] == 1
    assert facts["env"]["OMP_NUM_THREADS"] == "8"


REFUSED = [
    ("print()\n", 1, "no '# /// script' block"),
    (block("[tool.other]\nx = 1"), 1, "no [tool.runspec] in the block"),
    (block("[tool.runspec]"), 2, "[tool.runspec] is empty"),
    (block("[tool]\nrunspec = 3"), 3, "[tool.runspec] must be a table"),
    (block("x = 1\n[tool.runspce]\nname = 'a/b'"), 3, "no [tool.runspec] in the block, but [tool.runspce]"),
    (block("[tool.nemo_sky]\nspot = true"), 2, "[tool.nemo_sky] without [tool.runspec]"),
    (block("[tool.runspec]\nname = \n"), 3, "not valid TOML: invalid value"),
    (block("[tool.runspec]\nname = 'a/b'\nname = 'a/b'", before="x = 1\n\n"), 6, "not valid TOML"),
    (block("[tool.runspec]\n\nresources.nodes = 'two'"), 4, 'resources.nodes must be integer, not "two"'),
    (block("[tool.runspec.resources]\nnodes = true"), 3, "resources.nodes must be integer, not true"),
    (
        block("[tool.runspec.resources]\ngpus_per_node = 'all'"),
        3,
        'gpus_per_node must be integer or "gpu", not "all"',
    ),
    (block("[tool.runspec]\nname = 3"), 3, "name must be text, not 3"),
    (block("[tool.runspec]\nrun = 'x'"), 3, 'run must be table, not "x"'),
    (block("[[tool.runspec]]\nname = 'x'"), 2, "[tool.runspec] must be a table"),
    (block("[tool.runspec]\nname='a/b'\n[tool.nemo_sky]\nspot = 'yes'"), 5, "nemo_sky.spot must be true or"),
    (block("[tool.runspec]\nname='a/b'\n[tool]\nnemo_sky = 1"), 5, "[tool.nemo_sky] must be a table"),
    (block("tool.runspec.name='a/b'\ntool.nemo_sky = 1"), 3, "[tool.nemo_sky] must be a table"),
    (
        block("[tool.runspec]\nname='a/b'\n[tool.nemo_sky]\nsources = [\n  'a',\n  2,\n]"),
        7,
        "nemo_sky.sources must be list of texts, but 1 is 2",
    ),
    (block("[tool.runspec.env]\nA = '1'\nB = [1]"), 4, "env must be table of texts or numbers, but B is [1]"),
    (
        block("[tool.runspec]\nname='a/b'\n[tool.nemo_sky.output]\nname = 'x'"),
        4,
        "nemo_sky.output needs 'type'",
    ),
    (block("dependencies = 'torch'\n[tool.runspec]\nname='a/b'"), 2, "dependencies must be list of texts"),
    (
        "# /// script\n# [tool.runspec]\n#name = 3\n# ///\n",
        3,
        "'#name = 3': a line of the block begins with '# '",
    ),
    ("x = 1\n# /// script\n# [tool.runspec]\n# name = 'a/b'\n\n# ///\n", 2, "never closed"),
    ("#/// script\n# [tool.runspec]\n# ///\n", 1, "a block opens with exactly '# /// script'"),
]


@pytest.mark.parametrize(("text", "line", "message"), REFUSED)
def test_refusals_name_the_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = write(tmp_path / "a.py", text)
    with pytest.raises(UserError) as caught:
        runspec.parse(path)
    assert message in caught.value.message
    assert caught.value.where == f"{path}:{line}"
    assert any(str(problem).startswith(f"{path}:{line}: ") for problem in runspec.check(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*absent.py: No such file"):
        runspec.parse(tmp_path / "absent.py")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    with pytest.raises(UserError, match="not UTF-8 text: byte 2 is invalid"):
        runspec.parse(tmp_path / "latin.py")


def test_line_ends_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(MINIMAL.replace("\n", "\r\n").encode())
    assert runspec.parse(path).name == "tiny/pretrain"
    assert [spec.name for spec in runspec.discover([tmp_path])[0]] == ["tiny/pretrain"]


def test_a_comment_right_below_the_block_is_no_part_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.py", MINIMAL.replace("print", "# name = 3\n#\nprint"))
    assert runspec.parse(path).name == "tiny/pretrain"


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": NAMES,
            "docs": NAMES,
            "image": NAMES,
            "run": st.fixed_dictionaries({}, optional={"cmd": NAMES, "workdir": NAMES}),
            "resources": st.fixed_dictionaries({}, optional={"nodes": st.integers(-9, 99)}),
            "env": st.dictionaries(NAMES, NAMES, max_size=3),
        },
    ).filter(bool),
    st.booleans(),
)
def test_what_is_written_is_read(tmp_path_factory: Any, values: dict[str, Any], inline: bool) -> None:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{text(key)} = {text(item)}" for key, item in value.items()) + "}"
        return json.dumps(value, ensure_ascii=False)

    if inline:
        toml = f"tool = {{ runspec = {text(values)} }}"
    else:
        toml = "[tool.runspec]\n" + "\n".join(f"{key} = {text(item)}" for key, item in values.items())
    path = tmp_path_factory.getbasetemp() / "roundtrip.py"
    facts = dataclasses.asdict(runspec.parse(write(path, block(toml))))
    for key, value in values.items():
        if isinstance(value, dict) and key != "env":
            assert value.items() <= facts[key].items()
        else:
            assert facts[key] == value


def test_the_table_of_fields_is_the_dataclasses() -> None:
    shapes: dict[tuple[str, ...], Callable[..., Any]] = {
        table.RUNSPEC: runspec.Runspec,
        table.RUN: runspec.Run,
        table.CONFIG: runspec.ConfigSpec,
        table.RESOURCES: runspec.Resources,
        table.SKY: runspec.Sky,
        table.OUTPUT: runspec.Output,
    }
    ours = {"sky", "dependencies", "requires_python", "script_path"}
    for path, shape in shapes.items():
        fields = {field.name for field in dataclasses.fields(shape)}  # type: ignore[arg-type]
        assert {field.key for field in table.fields_of(path)} == fields - ours
    page = runspec.fields_markdown()
    for field in runspec.FIELDS:
        assert field.kind is table.TABLE or f"| `{field.key}` |" in page
        assert not field.allowed or field.default is None or field.default in field.allowed


def stage(name: str) -> str:
    return MINIMAL.replace("tiny/pretrain", name)


def test_discover_finds_stages_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "tiny/pretrain/train.py", stage("tiny/pretrain"))
    write(tmp_path / "tiny/data/prep.py", stage("tiny/data/prep"))
    write(tmp_path / "tiny/helper.py", "import os\n")
    write(tmp_path / "tiny/tool.py", block("dependencies = []"))
    write(tmp_path / "tiny/docs.py", 'TEXT = """\n    # /// script\n    # ///\n"""\n')
    write(tmp_path / ".venv/lib/stage.py", stage("hidden/stage"))
    write(tmp_path / "tiny/__pycache__/stage.py", stage("cached/stage"))
    specs, problems = runspec.discover([tmp_path])
    assert [spec.name for spec in specs] == ["tiny/data/prep", "tiny/pretrain"]
    assert problems == []
    assert runspec.find([tmp_path], "tiny/data/prep").script_path == tmp_path / "tiny/data/prep.py"


def test_discover_reports_broken_and_equally_named_stages(tmp_path: Path) -> None:
    one = write(tmp_path / "a/train.py", stage("tiny/pretrain"))
    two = write(tmp_path / "b/train.py", block('[tool.runspec]\n\nname = "tiny/pretrain"'))
    broken = write(tmp_path / "c/train.py", block("[tool.runspec]\nname = "))
    specs, problems = runspec.discover([tmp_path])
    assert [spec.script_path for spec in specs] == [one, two]
    assert [(problem.file, problem.line) for problem in problems] == [(broken, 3), (two, 4)]
    assert problems[1].message == f"'tiny/pretrain' is also the name of {one}"
    with pytest.raises(UserError, match="two stages are called 'tiny/pretrain'"):
        runspec.find([tmp_path], "tiny/pretrain")


def test_find_offers_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "a.py", stage("tiny/pretrain"))
    write(tmp_path / "b.py", stage("tiny/sft"))
    with pytest.raises(UserError, match="there is no stage 'tiny/pretrian'; did you mean 'tiny/pretrain'"):
        runspec.find([tmp_path], "tiny/pretrian")
    broken = write(tmp_path / "c.py", block("[tool.runspec]\nname = 3"))
    with pytest.raises(UserError) as caught:
        runspec.find([tmp_path], "tiny/rl")
    assert f"{broken}:3: name must be text" in str(caught.value)
    # A stage that cannot be read is refused for what is wrong with it, not as absent.
    write(tmp_path / "c.py", block('[tool.runspec]\nname = "tiny/rl"\nenv = 3'))
    with pytest.raises(UserError, match="env must be table") as caught:
        runspec.find([tmp_path], "tiny/rl")
    assert caught.value.where == f"{broken}:4"


def test_find_reads_names_however_they_are_written(tmp_path: Path) -> None:
    write(tmp_path / "a.py", block("tool = {runspec = {name = 'tiny/\\u0061'}}"))
    write(tmp_path / "b.py", block("tool.runspec.'name' = \"tiny/\\u0062\""))
    assert runspec.find([tmp_path], "tiny/b").script_path == tmp_path / "b.py"
    assert runspec.find([tmp_path], "tiny/\\u0061").script_path == tmp_path / "a.py"

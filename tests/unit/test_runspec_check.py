"""The strict check: each kind of mistake, on its exact line."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher import runspec

GOOD = """\
#!/usr/bin/env python
# /// script
# requires-python = ">=3.11"
#
# [tool.runspec]
# schema = "1"
# name = "tiny/pretrain"
#
# [tool.runspec.run]
# launch = "torchrun"
# cmd = "python {script} --config {config} --json '{}'"
#
# [tool.runspec.config]
# dir = "./config"
# default = "default"
#
# [tool.runspec.resources]
# nodes = 1
# gpus_per_node = 0
#
# [tool.runspec.env]
# OMP_NUM_THREADS = "2"
#
# [tool.nemo_sky]
# accelerator = "H100"
# checkpoint_dir = "checkpoints"
# sources = ["source.path"]
# config_keys = ["train.*"]
#
# [tool.nemo_sky.inputs]
# data = "art://tiny-pretrain-data"
#
# [tool.nemo_sky.output]
# name = "tiny-pretrain-model"
# type = "model"
# ///
print("x")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A right script with its config."""
    path = tmp_path / "train.py"
    path.write_text(GOOD)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "base.yaml").write_text("source:\n  path: null\n")
    (tmp_path / "config" / "default.yaml").write_text("defaults: base\ntrain:\n  lr: 1\n")
    return path


def problems(path: Path) -> list[str]:
    """``line: message`` of every problem, all of them in ``path``."""
    found = runspec.check(path)
    assert all(problem.file == path for problem in found)
    return [f"{problem.line}: {problem.message}" for problem in found]


def test_a_right_script_has_no_problem(script: Path) -> None:
    assert runspec.check(script) == []
    assert runspec.check_paths([script, script.parent]) == []


MISTAKES = [
    ('schema = "1"', 'schema = "99"', 6, 'schema must be "1", the only version there is, not "99"'),
    ('schema = "1"', "schema = 1", 6, 'schema must be "1", the only version there is, not 1'),
    ('schema = "1"', "shcema = '1'", 6, "unknown key 'shcema' in [tool.runspec]; did you mean 'schema'?"),
    ('name = "tiny/pretrain"', 'name = ""', 7, 'name is missing: "FAMILY/STAGE", as in "tiny/pretrain"'),
    ('# name = "tiny/pretrain"', "#", 5, 'name is missing: "FAMILY/STAGE", as in "tiny/pretrain"'),
    (
        'name = "tiny/pretrain"',
        'name = "pretrain"',
        7,
        'name must be "FAMILY/STAGE", as in "tiny/pretrain", not "pretrain"',
    ),
    (
        'name = "tiny/pretrain"',
        'name = "tiny/pre train"',
        7,
        'name must be "FAMILY/STAGE", as in "tiny/pretrain", not "tiny/pre train"',
    ),
    (
        'launch = "torchrun"',
        'launch = "torchrn"',
        10,
        'run.launch must be one of "torchrun", "ray", "direct", not "torchrn"; did you mean \'torchrun\'?',
    ),
    ('launch = "torchrun"', "launch = 3", 10, "run.launch must be text, not 3"),
    ("{script}", "train.py", 11, "run.cmd has no {script}: the script would not run"),
    ("{script}", "{scrpt}", 11, "run.cmd has {scrpt}; did you mean {script}?"),
    ("{config}", "{confg}", 11, "run.cmd has {confg}; did you mean {config}?"),
    ('"tiny/pretrain"', "3", 7, "name must be text, not 3"),
    ('"./config"', "3", 14, "config.dir must be text, not 3"),
    ("./config", "conf", 14, "config.dir: there is no folder conf beside the script"),
    ("nodes = 1", "nodes = 0", 18, "resources.nodes must be at least 1, not 0"),
    ("nodes = 1", 'nodes = "two"', 18, 'resources.nodes must be integer, not "two"'),
    (
        "gpus_per_node = 0",
        "gpu_per_node = 0",
        19,
        "unknown key 'gpu_per_node' in [tool.runspec.resources]; did you mean 'gpus_per_node'?",
    ),
    ("gpus_per_node = 0", "gpus_per_node = -1", 19, "resources.gpus_per_node must be at least 0, not -1"),
    (
        "gpus_per_node = 0",
        "accelerator = 'H100'",
        19,
        "unknown key 'accelerator' in [tool.runspec.resources]; it belongs in [tool.nemo_sky]",
    ),
    ("OMP_NUM_THREADS", '"OMP THREADS"', 22, "'OMP THREADS' cannot be the name of an environment variable"),
    ("OMP_NUM_THREADS", "NEMO_SKY_WORK", 22, "NEMO_SKY_WORK is set by the launcher, not by a recipe"),
    ('= "2"', "= [2]", 22, "env must be table of texts or numbers, but OMP_NUM_THREADS is [2]"),
    (
        'accelerator = "H100"',
        'accelerator = ["H200", "H100:8"]',
        25,
        '"H100:8" is not a GPU type such as "H100"; their number is resources.gpus_per_node',
    ),
    (
        'accelerator = "H100"',
        "spott = true",
        25,
        "unknown key 'spott' in [tool.nemo_sky]; did you mean 'spot'?",
    ),
    (
        'checkpoint_dir = "checkpoints"',
        "no_retry = [3, 0]",
        26,
        "nemo_sky.no_retry must hold exit codes from 1 to 255, not 0",
    ),
    (
        'checkpoint_dir = "checkpoints"',
        "no_retry = [256]",
        26,
        "nemo_sky.no_retry must hold exit codes from 1 to 255, not 256",
    ),
    (
        'checkpoint_dir = "checkpoints"',
        "no_retry = [75]",
        26,
        "nemo_sky.no_retry: 75 is the agent's: interrupted, which a retry may mend",
    ),
    (
        'checkpoint_dir = "checkpoints"',
        "no_retry = 3",
        26,
        "nemo_sky.no_retry must be list of integers, not 3",
    ),
    (
        'checkpoint_dir = "checkpoints"',
        'no_retry = ["3"]',
        26,
        'nemo_sky.no_retry must be list of integers, but 0 is "3"',
    ),
    ("checkpoints", "../x", 26, "nemo_sky.checkpoint_dir must be a folder inside the run's own"),
    ("source.path", "source.pth", 27, "default.yaml has no key 'source.pth'; did you mean 'source.path'?"),
    ("source.path", "source..path", 27, '"source..path" is not a configuration key such as source.path'),
    ("train.*", "train *", 28, '"train *" is not a glob of configuration keys such as train.*'),
    (
        'data = "art://tiny-pretrain-data"',
        'env = "art://x"',
        31,
        "'env' cannot be the name of an input: `run.env` must be a free plain key",
    ),
    ('type = "model"', 'type = "modle"', 35, "unknown artifact type \"modle\"; did you mean 'model'?"),
]


@pytest.mark.parametrize(("right", "wrong", "line", "message"), MISTAKES)
def test_a_mistake_stands_on_its_line(script: Path, right: str, wrong: str, line: int, message: str) -> None:
    assert GOOD.count(right) == 1
    script.write_text(GOOD.replace(right, wrong))
    assert problems(script) == [f"{line}: {message}"]


def test_an_output_needs_both_of_its_keys(script: Path) -> None:
    script.write_text(GOOD.replace('type = "model"', 'typ = "model"'))
    assert problems(script) == [
        "33: nemo_sky.output needs 'type'",
        "35: unknown key 'typ' in [tool.nemo_sky.output]; did you mean 'type'?",
    ]


def test_references_are_checked_by_the_artifacts_own_parser(script: Path) -> None:
    script.write_text(GOOD.replace("art://tiny-pretrain-data", "art://tiny pretrain"))
    (problem,) = problems(script)
    assert problem.startswith("31: nemo_sky.inputs.data: ")
    assert "character 11" in problem
    script.write_text(GOOD.replace("tiny-pretrain-model", "tiny:model"))
    (problem,) = problems(script)
    assert problem.startswith("34: nemo_sky.output.name: ")


def test_all_mistakes_are_told_at_once_in_order(script: Path) -> None:
    text = GOOD.replace("{script}", "x").replace('"1"', '"2"').replace('type = "model"', "type = 3")
    script.write_text(text)
    assert [problem.line for problem in runspec.check(script)] == [6, 11, 35]


def test_two_blocks(script: Path) -> None:
    script.write_text(GOOD + "\n# /// script\n# [tool.runspec]\n# ///\n")
    assert problems(script) == ["39: a second `script` block; the first is on line 2"]
    script.write_text(GOOD.replace('print("x")', "# /// script\n# x = 1\n# ///\nprint()"))
    assert problems(script) == ["37: a second `script` block; the first is on line 2"]


def test_a_block_that_is_not_toml(script: Path) -> None:
    script.write_text(GOOD.replace("nodes = 1", "nodes = one"))
    assert problems(script) == ["18: not valid TOML: invalid value"]


def test_the_default_config(script: Path) -> None:
    folder = script.parent / "config"
    script.write_text(GOOD.replace('default = "default"', 'default = "defalt"'))
    assert problems(script) == [
        f"15: config.default: no config 'defalt' in {folder}; did you mean 'default'?"
    ]
    script.write_text(GOOD)
    (folder / "default.yaml").rename(folder / "default.toml")
    (folder / "default.toml").write_text('defaults = "base"\n')
    assert problems(script) == []
    (folder / "default.json").write_text("{}")
    expected = f"15: config.default: config 'default' is ambiguous in {folder}: default.toml and default.json"
    assert problems(script) == [expected]


def test_a_broken_config_is_told_by_its_own_file(script: Path) -> None:
    base = script.parent / "config" / "base.yaml"
    base.write_text("a: 1\na: 2\n")
    assert [str(p) for p in runspec.check(script)] == [f"{base}:2: key 'a' stands here and on line 1"]


def test_dotted_keys_inline_tables_and_lists_over_lines(script: Path) -> None:
    script.write_text(
        """\
# /// script
# tool.runspec.name = "a/b"
# tool.runspec.resources = { nodes = 1, gpus = 2 }
# tool.runspec.run.lunch = "ray"
# tool.nemo_sky.sources = [
#     "source.path",
#     "",
# ]
# tool.nemo_sky.output = { name = "x", type = "model", typ = 1 }
# ///
"""
    )
    assert problems(script) == [
        "3: unknown key 'gpus' in [tool.runspec.resources]; did you mean 'gpus_per_node'?",
        "4: unknown key 'lunch' in [tool.runspec.run]; did you mean 'launch'?",
        '7: "" is not a configuration key such as source.path',
        "9: unknown key 'typ' in [tool.nemo_sky.output]; did you mean 'type'?",
    ]


def test_check_paths_of_folders_and_files(script: Path) -> None:
    folder = script.parent
    other = folder / "zz" / "other.py"
    other.parent.mkdir()
    other.write_text("# /// script\n# dependencies = []\n# ///\n")
    helper = folder / "helper.py"
    helper.write_text("x = 1\n")
    missing = folder / "missing.py"
    assert runspec.check_paths([folder]) == []
    found = [str(problem) for problem in runspec.check_paths([helper, other, missing])]
    assert found == [
        f"{helper}:1: no '# /// script' block",
        f"{missing}:1: there is no such file or folder",
        f"{other}:1: no [tool.runspec] in the block",
    ]
    twin = folder / "zz" / "twin.py"
    twin.write_text(GOOD.replace("./config", "../config"))
    twins = [str(problem) for problem in runspec.check_paths([folder])]
    assert twins == [f"{twin}:7: 'tiny/pretrain' is also the name of {script}"]
    nearly = folder / "zz" / "nearly.py"
    nearly.write_text("# ///script\n# [tool.runspec]\n# ///\n")
    assert f"{nearly}:1: a block opens with exactly" in str(runspec.check_paths([folder])[0])

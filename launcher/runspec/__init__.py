"""The block at the top of a stage's script: its identity and its needs. The one source of both.

parse(path)     lenient: reads whatever Nemotron's own recipes hold
check(path)     strict: every mistake, by file and line
find, discover  the stages of a project
"""

from launcher.runspec.check import check, check_paths
from launcher.runspec.discover import discover, find
from launcher.runspec.models import (
    ConfigSpec,
    Output,
    Problem,
    Resources,
    Run,
    Runspec,
    Sky,
    facts,
)
from launcher.runspec.parse import parse
from launcher.runspec.table import FIELDS, Field, fields_markdown

__all__ = [
    "FIELDS",
    "ConfigSpec",
    "Field",
    "Output",
    "Problem",
    "Resources",
    "Run",
    "Runspec",
    "Sky",
    "check",
    "check_paths",
    "discover",
    "facts",
    "fields_markdown",
    "find",
    "parse",
]

"""Every key that a runspec may hold, once: parsing, checking and the docs' table all read this.

``[tool.runspec]`` is version 1 of the block that Nemotron's recipes carry. Where its specification and its
own code disagree, the specification is followed, with one exception that its recipes rely on:
``gpus_per_node = "gpu"``. ``[tool.nemo_sky]`` says what a cloud must know and version 1 has no key for;
Nemotron's parser ignores it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA = "1"

RUNSPEC = ("tool", "runspec")
RUN = (*RUNSPEC, "run")
CONFIG = (*RUNSPEC, "config")
RESOURCES = (*RUNSPEC, "resources")
SKY = ("tool", "nemo_sky")
OUTPUT = (*SKY, "output")


@dataclass(frozen=True)
class Kind:
    """A type of value: its name for people, which TOML values it accepts, and how one is read."""

    name: str
    accepts: Callable[[Any], bool]
    read: Callable[[Any], Any] = lambda value: value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _env_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _is_integers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_integer, value))


TEXT = Kind("text", _is_text)
PROSE = Kind("text", _is_text, lambda value: value.strip())
VERSION = Kind("text", lambda value: _is_text(value) or _is_integer(value), str)
INTEGER = Kind("integer", _is_integer)
INTEGERS = Kind("list of integers", _is_integers, tuple)
GPUS = Kind('integer or "gpu"', lambda value: _is_integer(value) or value == "gpu")
BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
TEXTS = Kind("list of texts", _is_texts, tuple)
TEXT_OR_TEXTS = Kind(
    "text or list of texts",
    lambda value: _is_text(value) or _is_texts(value),
    lambda value: (value,) if isinstance(value, str) else tuple(value),
)
TABLE = Kind("table", lambda value: isinstance(value, dict))
TEXT_TABLE = Kind(
    "table of texts",
    lambda value: isinstance(value, dict) and all(map(_is_text, value.values())),
)
ENV_TABLE = Kind(
    "table of texts or numbers",
    lambda value: isinstance(value, dict) and all(isinstance(v, str | int | float) for v in value.values()),
    lambda value: {name: _env_text(item) for name, item in value.items()},
)


@dataclass(frozen=True)
class Field:
    """One key. ``minimum`` bounds integers; ``allowed`` lists the only values, where there are few."""

    table: tuple[str, ...]
    key: str
    kind: Kind
    default: Any
    meaning: str
    allowed: tuple[str, ...] = ()
    minimum: int | None = None

    @property
    def path(self) -> tuple[str, ...]:
        return (*self.table, self.key)

    @property
    def name(self) -> str:
        """As errors call it: ``run.launch``, ``nemo_sky.spot``."""
        return ".".join(self.path[2:] if self.table[:2] == RUNSPEC else self.path[1:])


_NO_TEXTS: Mapping[str, str] = {}

FIELDS: tuple[Field, ...] = (
    Field(RUNSPEC, "schema", VERSION, SCHEMA, "version of this block", (SCHEMA,)),
    Field(RUNSPEC, "docs", TEXT, "", "where this block is documented; for people"),
    Field(RUNSPEC, "name", TEXT, "", "identity: `FAMILY/STAGE`, as in `tiny/data/prep/pretrain`"),
    Field(RUNSPEC, "image", TEXT, None, "container image; a cluster profile may replace it"),
    Field(RUNSPEC, "setup", PROSE, "", "what the image must hold, in prose; never executed"),
    Field(RUNSPEC, "run", TABLE, None, "how the script is started"),
    Field(RUNSPEC, "config", TABLE, None, "where its configuration is"),
    Field(RUNSPEC, "resources", TABLE, None, "what it runs on"),
    Field(RUNSPEC, "env", ENV_TABLE, _NO_TEXTS, "environment variables of the job"),
    Field(
        RUN,
        "launch",
        TEXT,
        "torchrun",
        "`torchrun`: one process per GPU on every node; `ray`: once, on the head of a Ray cluster; "
        "`direct`: once per node",
        ("torchrun", "ray", "direct"),
    ),
    Field(
        RUN,
        "cmd",
        TEXT,
        "python {script} --config {config}",
        "the command; `{script}` and `{config}` are replaced, other braces stay",
    ),
    Field(RUN, "workdir", TEXT, None, "folder on the node to run in; without it, the project's root"),
    Field(CONFIG, "dir", TEXT, "./config", "folder of configurations, relative to the script"),
    Field(CONFIG, "default", TEXT, "default", "the configuration used without `-c`"),
    Field(
        CONFIG,
        "format",
        TEXT,
        "omegaconf",
        "how the script reads it; nemo-sky goes by the file's extension",
        ("omegaconf", "yaml", "json"),
    ),
    Field(RESOURCES, "nodes", INTEGER, 1, "number of nodes", minimum=1),
    Field(
        RESOURCES,
        "gpus_per_node",
        GPUS,
        8,
        'GPUs on each node; 0 for a CPU stage, `"gpu"` for as many as the node has',
        minimum=0,
    ),
    Field(SKY, "accelerator", TEXT_OR_TEXTS, (), "GPU type, or types in order of preference: `H100`"),
    Field(SKY, "disk_gb", INTEGER, None, "disk that each node needs, in GB", minimum=1),
    Field(SKY, "min_gpu_memory_gb", INTEGER, None, "memory that each GPU must have, in GB", minimum=1),
    Field(SKY, "spot", BOOLEAN, None, "whether it may run on spot; without it, the cluster profile decides"),
    Field(SKY, "procs_per_node", INTEGER, 1, "torchrun ranks on a node without GPUs", minimum=1),
    Field(SKY, "checkpoint_dir", TEXT, None, "folder of checkpoints that the stage saves and resumes from"),
    Field(
        SKY,
        "no_retry",
        INTEGERS,
        (),
        "exit codes of the script, 1 to 255, after which trying again cannot help, such as that of a wrong "
        "config",
    ),
    Field(
        SKY,
        "sources",
        TEXTS,
        (),
        "configuration keys that name files or folders which the stage reads: their content counts "
        "when deciding whether its output is current",
    ),
    Field(SKY, "config_keys", TEXTS, (), "further configuration keys that it knows, as globs: `train.*`"),
    Field(SKY, "in_all", BOOLEAN, True, "whether `launch FAMILY all` runs it; it can always run by itself"),
    Field(
        SKY, "inputs", TEXT_TABLE, _NO_TEXTS, 'artifacts read: `data = "art://NAME"`; `run.data=` overrides'
    ),
    Field(SKY, "output", TABLE, None, "the artifact made"),
    Field(OUTPUT, "name", TEXT, None, "its name"),
    Field(OUTPUT, "type", TEXT, None, "its type, which says what metadata it must have"),
)

TABLES: tuple[tuple[str, ...], ...] = tuple(dict.fromkeys(field.table for field in FIELDS))


def fields_of(table: tuple[str, ...]) -> tuple[Field, ...]:
    return tuple(field for field in FIELDS if field.table == table)


def fields_markdown() -> str:
    """The tables of the docs' runspec page, one per TOML table, in Markdown."""
    parts = []
    for table in TABLES:
        rows = [f"#### `[{'.'.join(table)}]`", "", "| Key | Type | Default | Meaning |", "|---|---|---|---|"]
        for field in fields_of(table):
            if field.kind is TABLE:
                continue
            kind = " \\| ".join(f'`"{value}"`' for value in field.allowed) or field.kind.name
            rows.append(f"| `{field.key}` | {kind} | {_default(field)} | {field.meaning} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _default(field: Field) -> str:
    if field.default is None or field.default == () or field.default == {}:
        return ""
    return f'`"{field.default}"`' if isinstance(field.default, str) else f"`{field.default}`"

"""What the agent is to do (the job's files) and where (the node's environment)."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import UserError
from launcher.money.lease import UNCAPPED_LEASE, Lease

# Of these, the versions that are installed go into the provenance.
_LIBRARIES = (
    *("torch", "megatron-core", "megatron-bridge", "nemo-rl", "transformer-engine", "trl", "transformers"),
    *("ray", "datasets", "tokenizers", "numpy", "mlflow", "mlflow-skinny"),
)


@dataclass(frozen=True)
class Terms:
    """What the launcher agreed with the ledger: the ``experiment`` whose account it is, the entry that is
    reserved for the first attempt, and the run's lease. ``capped``: without the ledger it must not run.
    ``deadline``: when its nodes must be gone, in milliseconds since the epoch, None without one."""

    experiment: str | None = None
    reservation: str | None = None
    capped: bool = False
    deadline: int | None = None
    lease: Lease = UNCAPPED_LEASE


@dataclass(frozen=True)
class Job:
    """``job.yaml``, and ``train.yaml`` as ``config``.

    ``inputs`` maps a name to ``{"ref": "art://..."}`` or ``{"path": "/folder", "digest": ...}``.
    ``price_per_hour`` is in dollars for all nodes, None when unknown. ``keep`` is how many checkpoints stay,
    None for all.
    ``checkpoint_every`` is seconds, ``auto``, or None for what the recipe says; ``between_preemptions`` are
    the seconds that nodes are expected to last, None where they stay, ``between_by_zone`` those in zones that
    are known.
    ``submission`` names the launch, which may suffer so many ``preemptions`` (None: any number).
    ``no_retry`` are the exit codes of the command that make no further attempt.
    """

    run_id: str
    family: str
    stage: str
    experiment: str
    artifacts: str
    s3_endpoint: str | None
    tracking: str | None
    inputs: Mapping[str, Mapping[str, str]]
    output: Mapping[str, str] | None
    keep: int | None
    price_per_hour: float | None
    provenance: Mapping[str, Any]
    config: Mapping[str, Any]
    submission: str | None = None
    preemptions: int | None = None
    no_retry: tuple[int, ...] = ()
    recipe_fingerprint: str | None = None
    checkpoint_every: float | str | None = None
    between_preemptions: float | None = None
    between_by_zone: Mapping[str, float] = field(default_factory=dict)
    money: Terms = field(default_factory=Terms)


@dataclass(frozen=True)
class Node:
    """This node among ``count``, rank 0 leading, and its folder ``work`` for this run."""

    rank: int
    count: int
    addresses: tuple[str, ...]
    work: Path
    config: Path
    place: Mapping[str, Any]
    code: Path | None = None  # the repository of another cookbook's script

    @property
    def inputs(self) -> Path:
        return self.work / "inputs"

    @property
    def checkpoints(self) -> Path:
        return self.work / "checkpoints"

    @property
    def output(self) -> Path:
        return self.work / "output"

    @property
    def metrics(self) -> Path:
        return self.work / "metrics.jsonl"

    @property
    def metadata(self) -> Path:
        return self.work / "metadata.json"

    def variables(self) -> dict[str, str]:
        """What the script finds in its environment, and what ``$NEMO_SKY_*`` means in its config."""
        return {
            "NEMO_SKY_WORK": str(self.work),
            "NEMO_SKY_CONFIG": str(self.config),
            "NEMO_SKY_INPUTS": str(self.inputs),
            "NEMO_SKY_CHECKPOINTS": str(self.checkpoints),
            "NEMO_SKY_OUTPUT": str(self.output),
            "NEMO_SKY_METRICS": str(self.metrics),
            "NEMO_SKY_METADATA": str(self.metadata),
            **({"NEMO_SKY_CODE": str(self.code)} if self.code else {}),
        }

    def fill(self, text: str) -> str:
        """``text`` with every ``$NEMO_SKY_*`` of this node replaced."""
        # The longest first: $NEMO_SKY_WORK must not eat the beginning of a longer name.
        for name, value in sorted(self.variables().items(), key=lambda pair: -len(pair[0])):
            text = text.replace(f"${name}", value)
        return text


def read_job(folder: Path) -> Job:
    """Read the job's files; the environment overrides the run's id, the store and the tracker.

    Raises UserError, naming the file, for what is missing or wrong.
    """
    values = _mapping(folder / "job.yaml")
    env = os.environ
    task_id = re.sub(r"[^A-Za-z0-9._-]", "-", env.get("SKYPILOT_TASK_ID", ""))
    run_id = env.get("NEMO_SKY_RUN_ID") or values.get("run_id") or task_id
    artifacts = env.get("NEMO_SKY_ARTIFACTS") or values.get("artifacts")
    where = str(folder / "job.yaml")
    if not run_id:
        raise UserError("no run_id, and neither NEMO_SKY_RUN_ID nor SKYPILOT_TASK_ID is set", where=where)
    output = values.get("output")
    if output is not None and not (isinstance(output, dict) and output.get("name") and output.get("type")):
        raise UserError(f"output must have a name and a type, not {output!r}", where=where)
    saved, bounds = values.get("checkpoints") or {}, values.get("limits") or {}
    if not artifacts:
        raise UserError("no artifacts: where is the store?", where=where, hint="or set NEMO_SKY_ARTIFACTS")
    try:
        return Job(
            run_id=str(run_id),
            family=str(values["family"]),
            stage=str(values["stage"]),
            experiment=str(values.get("experiment") or values["family"]),
            artifacts=str(artifacts),
            s3_endpoint=values.get("s3_endpoint"),
            tracking=env.get("MLFLOW_TRACKING_URI") or values.get("tracking"),
            inputs=dict(values.get("inputs") or {}),
            output=output,
            keep=saved.get("keep"),
            price_per_hour=values.get("price_per_hour"),
            provenance={**(values.get("provenance") or {}), "versions": versions()},
            config=_mapping(folder / "train.yaml"),
            submission=values.get("submission"),
            preemptions=bounds.get("preemptions"),
            no_retry=tuple(bounds.get("no_retry") or ()),
            recipe_fingerprint=values.get("recipe_fingerprint"),
            checkpoint_every=saved.get("every"),
            between_preemptions=saved.get("between_preemptions"),
            between_by_zone=saved.get("between_by_zone") or {},
            money=_terms(values.get("money")),
        )
    except KeyError as error:
        raise UserError(f"{error.args[0]} is missing", where=where) from error


def _terms(values: Mapping[str, Any] | None) -> Terms:
    """A task that was not launched by nemo-sky has no terms: it is written down, and not capped."""
    return Terms(**{**values, "lease": Lease(**values["lease"])}) if values else Terms()


def read_node(run_id: str) -> Node:
    """This node, from SkyPilot's variables; without them, one node of its own."""
    env = os.environ
    work = Path(env.get("NEMO_SKY_WORK") or Path.home() / ".nemo-sky" / "work" / run_id).absolute()
    count = int(env.get("SKYPILOT_NUM_NODES") or 1)
    try:
        cluster = json.loads(env.get("SKYPILOT_CLUSTER_INFO") or "{}")
    except ValueError:
        cluster = {}
    known = {key: cluster.get(key) for key in ("cloud", "region", "zone")}
    return Node(
        rank=int(env.get("SKYPILOT_NODE_RANK") or 0),
        count=count,
        addresses=tuple((env.get("SKYPILOT_NODE_IPS") or "127.0.0.1").split()),
        work=work,
        config=Path(env.get("NEMO_SKY_CONFIG") or work / "config.yaml").absolute(),
        place={**known, "nodes": count, "instance": cluster.get("instance_type")},
        code=Path(env["NEMO_SKY_CODE"]) if env.get("NEMO_SKY_CODE") else None,
    )


def versions() -> dict[str, str]:
    """Python's version and those of the libraries that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"is not YAML: {error}", where=str(path)) from error
    if not isinstance(values, dict):
        raise UserError("must be a mapping", where=str(path))
    return values

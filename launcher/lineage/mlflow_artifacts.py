"""Artifacts in MLflow: each version is a registered model version of the same number.

Behind it stands an external LoggedModel, which a run can have as input and as output; the bytes stay in
the store. Tags on both: ``art.uri``, ``art.base``, ``art.digest``, ``art.type``. MLflow numbers versions
itself, so earlier ones are registered first; one of which nothing is known yet is marked ``art.pending``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from launcher.artifacts import registry
from launcher.artifacts.manifest import Manifest
from launcher.artifacts.store import Store, StoreError
from launcher.artifacts.uri import ArtifactRef, check_alias, encode_name
from launcher.errors import Refused
from launcher.lineage.mlflow_client import connected, database_file, is_database_file

# Artifacts that no known run made stand in this experiment.
IMPORTS = "artifacts"
RUN_TAG = "nemo_sky.run_id"

_PENDING = "art.pending"
_MODEL_ID = "art.model_id"
_MAX_PARAMS = 50
_MAX_PARAM_LENGTH = 500


@dataclass(frozen=True)
class Known:
    """What is known of an artifact version; an empty digest means that only its name is."""

    name: str
    version: int
    type: str = ""
    digest: str = ""
    base_uri: str = ""
    run_id: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return str(ArtifactRef(self.name, version=self.version))

    def tags(self) -> dict[str, str]:
        tags = {
            "art.uri": self.uri,
            "art.base": self.base_uri,
            "art.digest": self.digest,
            "art.type": self.type,
            RUN_TAG: self.run_id,
        }
        if not self.digest:
            tags[_PENDING] = "true"
        return {key: value for key, value in tags.items() if value}


# (name, version) -> what the store knows of it.
LookUp = Callable[[str, int], Known | None]


def of_manifest(manifest: Manifest, store: Store | None) -> Known:
    """What a manifest tells MLflow."""
    return Known(
        name=manifest.name,
        version=manifest.version,
        type=manifest.type,
        digest=manifest.digest,
        base_uri=store.uri(manifest.base) if store else manifest.base,
        run_id=str(manifest.producer.get("run_id") or ""),
        metadata=dict(manifest.metadata),
    )


def look_up_in(store: Store | None) -> LookUp:
    """Earlier versions from their manifests; nothing without a store."""

    def look_up(name: str, version: int) -> Known | None:
        if store is None:
            return None
        try:
            return of_manifest(registry.resolve(store, ArtifactRef(name, version=version)), store)
        except StoreError:
            raise
        except Refused:
            return None

    return look_up


def register(manifest: Manifest, tracking: str, store: Store | None = None) -> None:
    """Show an artifact version in MLflow, under the same number; nothing happens when it is there.

    Earlier versions come first, with what ``store`` knows of them. Raises Refused when MLflow cannot be
    used, or has another artifact under this name and number.
    """
    with connected(tracking) as client:
        known = of_manifest(manifest, store)
        run_id = find_run(client, known.run_id) if known.run_id else None
        home = client.get_run(run_id).info.experiment_id if run_id else None
        ensure(client, tracking, known, home or experiment(client, tracking, IMPORTS), look_up_in(store))
        version = _version(client, known)
        if version is None or version.tags.get("art.digest") != known.digest:
            raise Refused(
                f"MLflow at {tracking} has another artifact as {manifest.uri}, from another store",
                hint="publish under another name, or use an MLflow of its own for each store",
            )


def set_alias(tracking: str, name: str, alias: str, version: int) -> None:
    """Let ``art://NAME:ALIAS`` mean ``version`` from now on. Raises Refused when MLflow lacks the version."""
    check_alias(alias)
    with connected(tracking) as client:
        if _version(client, Known(name, version)) is None:
            raise Refused(f"MLflow at {tracking} does not know art://{name}:v{version}")
        client.set_registered_model_alias(encode_name(name), alias, str(version))


def get_alias(tracking: str, name: str, alias: str) -> int | None:
    """The version that an alias means, None when there is no such alias."""
    if is_database_file(tracking) and not database_file(tracking).exists():
        return None
    with connected(tracking) as client:
        found = _unless_absent(lambda: client.get_model_version_by_alias(encode_name(name), alias))
        return int(found.version) if found else None


def ensure(client: Any, tracking: str, known: Known, experiment_id: str, look_up: LookUp) -> str:
    """The id of the LoggedModel that stands for an artifact version; both are made when absent.

    When MLflow has another artifact under the same name and number, from another store, the LoggedModel
    is made all the same, without a registered version: what a run used and made stays true.
    """
    version = _version(client, known) or _register_up_to(client, tracking, known, experiment_id, look_up)
    if version is None:
        return _logged_model(client, known, experiment_id)
    if _PENDING in version.tags and known.digest:
        _fill_in(client, known, version)
    elif known.digest not in ("", version.tags.get("art.digest", "")):
        return _logged_model(client, known, experiment_id)
    return str(version.tags[_MODEL_ID])


def experiment(client: Any, tracking: str, name: str) -> str:
    """The id of the experiment ``name``, made when absent."""
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    # MLflow's default is ./mlruns below whatever directory the command happens to run in.
    place = (
        (database_file(tracking).parent / "mlflow-artifacts").as_uri() if is_database_file(tracking) else None
    )
    return str(client.create_experiment(name, artifact_location=place))


def find_run(client: Any, run_id: str) -> str | None:
    """MLflow's id of the run that shows nemo-sky's ``run_id``."""
    everywhere = [item.experiment_id for item in client.search_experiments()]
    runs = client.search_runs(everywhere, f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _version(client: Any, known: Known) -> Any:
    return _unless_absent(lambda: client.get_model_version(encode_name(known.name), str(known.version)))


def _register_up_to(
    client: Any, tracking: str, known: Known, experiment_id: str, look_up: LookUp
) -> Any | None:
    """Make the registered version and those below it that are missing; None when MLflow is ahead already."""
    name = encode_name(known.name)
    if _unless_absent(lambda: client.get_registered_model(name)) is None:
        client.create_registered_model(name, {"art.name": known.name})
    highest = max((int(item.version) for item in client.search_model_versions(f"name = '{name}'")), default=0)
    made = None
    for number in range(highest + 1, known.version + 1):
        earlier = None if number == known.version else look_up(known.name, number)
        item = known if number == known.version else earlier or Known(known.name, number)
        model_id = _logged_model(client, item, experiment_id)
        run_id = find_run(client, item.run_id) if item.run_id else None
        made = client.create_model_version(
            name,
            source=_source(item, model_id, tracking),
            run_id=run_id,
            tags={**item.tags(), _MODEL_ID: model_id},
            model_id=None if is_database_file(tracking) else model_id,
        )
    return made


def _source(known: Known, model_id: str, tracking: str) -> str:
    """Where a registered version's bytes are. A server takes no path of our disk, so it gets the model."""
    if "://" in known.base_uri:
        return known.base_uri
    if not is_database_file(tracking):
        return f"models:/{model_id}"
    return f"file://{known.base_uri}" if known.base_uri.startswith("/") else known.uri


def _logged_model(client: Any, known: Known, experiment_id: str) -> str:
    """The external LoggedModel with this URI and digest, made when absent."""
    everywhere = [item.experiment_id for item in client.search_experiments()]
    for model in client.search_logged_models(everywhere, f"tags.`art.uri` = '{known.uri}'"):
        if model.tags.get("art.digest", "") == known.digest:
            client.finalize_logged_model(model.model_id, "READY")
            return str(model.model_id)
    run_id = find_run(client, known.run_id) if known.run_id else None
    link = [{"name": encode_name(known.name), "version": str(known.version)}]
    model = client.create_logged_model(
        experiment_id,
        # MLflow takes none of / : . % " ' in a LoggedModel's name; it is only shown.
        name=f"{re.sub(r'[^A-Za-z0-9_-]', '-', known.name)}-v{known.version}",
        source_run_id=run_id,
        tags={**known.tags(), "mlflow.model.isExternal": "true", "mlflow.modelVersions": json.dumps(link)},
        params=_params(known.metadata),
        model_type=known.type or None,
    )
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _fill_in(client: Any, known: Known, version: Any) -> None:
    """A version registered before anything was known of it gets what is known now."""
    client.set_logged_model_tags(version.tags[_MODEL_ID], known.tags())
    if _PENDING in client.get_logged_model(version.tags[_MODEL_ID]).tags:
        client.delete_logged_model_tag(version.tags[_MODEL_ID], _PENDING)
    for key, value in known.tags().items():
        client.set_model_version_tag(version.name, version.version, key, value)
    client.delete_model_version_tag(version.name, version.version, _PENDING)


def _params(metadata: dict[str, Any]) -> dict[str, str]:
    """The plain values of the metadata, as MLflow shows them beside the model."""
    plain = {key: str(value) for key, value in metadata.items() if isinstance(value, (str, int, float))}
    return {key: value[:_MAX_PARAM_LENGTH] for key, value in list(plain.items())[:_MAX_PARAMS]}


def _unless_absent(call: Callable[[], Any]) -> Any:
    """What MLflow has, None when it says that it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise

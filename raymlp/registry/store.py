"""The registry: bundles as versions, and the aliases `champion` and `challenger`. The only room that knows MLflow's models."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from raymlp.config.registry import Registry
from raymlp.config.runtime import Runtime
from raymlp.core.errors import RegistryError
from raymlp.core.files import Place
from raymlp.core.records import Registration
from raymlp.model.bundle import load_bundle, local, verify
from raymlp.runtime.copies import filled
from raymlp.runtime.session import storage_root
from raymlp.runtime.store import MANIFEST
from raymlp.runtime.tracking import Run, client, tracking_uri

REFERENCE = re.compile(r"^(?:models:/)?(?P<name>[a-z][a-z0-9_-]*)(?:@(?P<alias>[A-Za-z][A-Za-z0-9_-]*)|/(?P<version>\d+))$")


class Store:
    """The registry behind a tracking store."""

    def __init__(self, registry: Registry, runtime: Runtime) -> None:
        self._client, self._uri = client(registry, runtime), tracking_uri(registry, runtime)
        self._cache = storage_root(runtime) / "bundles"

    def register(self, name: str, bundle: Place, *, run: Run) -> Registration:
        """Add a verified bundle as a new version of `name`, as a pyfunc that MLflow's own tools can load and serve."""
        from mlflow.exceptions import MlflowException

        folder = local(bundle)
        verify(folder)
        try:
            if not self._client.search_registered_models(f"name='{name}'"):
                self._client.create_registered_model(name)
            with tempfile.TemporaryDirectory() as aside:
                model = _as_pyfunc(folder, Path(aside) / "model")
                self._client.log_artifacts(run.id, str(model), "model")
            source = f"{self._client.get_run(run.id).info.artifact_uri}/model"
            loaded = load_bundle(folder)
            spent = {f"raymlp.{name}": f"{loaded.metrics[name]:.6g}" for name in ("epsilon", "delta") if name in loaded.metrics}
            tags = {"raymlp.bundle": loaded.digest, **spent}
            version = self._client.create_model_version(name, source, run_id=run.id, tags=tags).version
        except MlflowException as error:
            raise RegistryError(f"'{name}' could not be registered: {error.message}") from error
        return self.get(f"{name}/{version}")

    def get(self, reference: str) -> Registration:
        """The version behind `name@alias` or `name/version`, its bundle in the storage, where all nodes find it.

        Raises RegistryError when there is none, or the storage has another bundle in its place.
        """
        from mlflow.exceptions import MlflowException

        match = REFERENCE.match(reference)
        if match is None:
            raise RegistryError(f"'{reference}' is no model reference; expected NAME@ALIAS or NAME/VERSION, for example flights@champion.")
        name, alias, version = match["name"], match["alias"], match["version"]
        try:
            found = self._client.get_model_version_by_alias(name, alias) if alias else self._client.get_model_version(name, version)
        except MlflowException:
            known = self.aliases(name)
            has = ", ".join(f"{name}@{key} (version {value})" for key, value in sorted(known.items())) or "no such model or alias"
            raise RegistryError(f"the registry does not have '{reference}'; found {has}. Register one: raymlp run.") from None
        held = tuple(sorted(key for key, value in self.aliases(name).items() if str(value) == str(found.version)))
        return Registration(name, str(found.version), self._fetch(found), held)

    def aliases(self, name: str) -> Mapping[str, str]:
        """Alias to version of a model; empty when there is no such model."""
        models = self._client.search_registered_models(f"name='{name}'")
        return {alias: str(version) for alias, version in models[0].aliases.items()} if models else {}

    def set_aliases(self, name: str, changes: Mapping[str, str | None]) -> None:
        """Point aliases to versions; None removes one."""
        for alias, version in changes.items():
            if version is None:
                self._client.delete_registered_model_alias(name, alias)
            else:
                self._client.set_registered_model_alias(name, alias, version)

    def set_tags(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Write tags of a version, over those of the same names."""
        for tag, value in tags.items():
            self._client.set_model_version_tag(name, version, tag, value)

    def tell_of_aliases(self, name: str, url: str, secret: str) -> None:
        """Have MLflow send a signed message to a URL whenever an alias is moved; another webhook of this model is replaced. Raises
        RegistryError where the registry offers none: a database without a server, or a server that refuses the address."""
        from mlflow.exceptions import MlflowException

        self.tell_no_more(name)
        events = ["model_version_alias.created", "model_version_alias.deleted"]
        about = f"raymlp: what drives the rollouts of {name} looks at the aliases"
        try:
            self._client.create_webhook(_webhook(name), url, events, description=about, secret=secret)
        except MlflowException as error:
            raise RegistryError(f"the registry takes no webhook for {url}: {error.message} Set serve.rollout.webhook to null.") from None

    def tell_no_more(self, name: str) -> None:
        """Remove the model's webhook. Nothing happens when there is none. Raises RegistryError where the registry offers none."""
        from mlflow.exceptions import MlflowException

        try:
            token: str | None = None
            while True:
                page = self._client.list_webhooks(page_token=token)
                for webhook in page:
                    if webhook.name == _webhook(name):
                        self._client.delete_webhook(webhook.webhook_id)
                if not (token := page.token):
                    return
        except MlflowException as error:
            raise RegistryError(f"the registry offers no webhooks: {error.message} Set serve.rollout.webhook to null.") from None

    def trained_on(self, name: str, snapshots: Collection[str]) -> tuple[str, ...]:
        """Versions of a model, as `name/version`, whose training run used one of the snapshots (digests); oldest first."""
        versions = self._client.search_model_versions(f"name='{name}'")
        runs = {item.run_id for item in versions}
        used = {run: self._client.get_run(run).data.tags.get("raymlp.snapshot") for run in runs}
        return tuple(f"{name}/{number}" for number in sorted(int(item.version) for item in versions if used[item.run_id] in snapshots))

    def _fetch(self, version: Any) -> Place:
        """The version's bundle in the storage, brought there once."""
        target: Place = self._cache / version.name / str(version.version)
        if not (target / MANIFEST).exists():
            from mlflow.artifacts import download_artifacts

            with tempfile.TemporaryDirectory() as folder:
                place = Path(download_artifacts(artifact_uri=f"{version.source}/bundle", dst_path=folder, tracking_uri=self._uri))
                with filled(target) as aside:
                    for file in place.iterdir():
                        (aside / file.name).write_bytes(file.read_bytes())
        registered, found = version.tags.get("raymlp.bundle"), json.loads((target / MANIFEST).read_text()).get("digest")
        if registered not in (None, found):
            raise RegistryError(
                f"{target} holds another bundle ({found[:12]}) than version {version.version} of {version.name} ({registered[:12]}), of "
                "another registry; expected one registry for a storage. Set runtime.storage or registry.tracking_uri."
            )
        return target


def _webhook(name: str) -> str:
    return f"raymlp-{name}"[:62].rstrip("-_")


def _as_pyfunc(bundle: Path, folder: Path) -> Path:
    """An MLflow model folder around a bundle: loaded by `raymlp.model.pyfunc`, without unpickling."""
    import shutil

    from mlflow.models import Model
    from mlflow.pyfunc import add_to_model

    folder.mkdir()
    shutil.copytree(bundle, folder / "bundle")
    model = Model()
    add_to_model(model, loader_module="raymlp.model.pyfunc", data="bundle", code=None)
    model.save(str(folder / "MLmodel"))
    return folder

"""Composes a Kustomize folder as `kubectl kustomize` does, for as much as cluster/k8s uses. What it does not know, it refuses."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KEYS = {"apiVersion", "kind", "namespace", "resources", "configMapGenerator", "generatorOptions", "patches", "images"}
CLUSTER_WIDE = {"Namespace"}


def documents(file: Path) -> list[Object]:
    """The objects of a YAML file."""
    return [document for document in yaml.load_all(file.read_text(), yaml.CSafeLoader) if document]


def compose(folder: Path) -> list[Object]:
    """The objects that applying the folder would send, in their order; the caller's own to change."""
    return copy.deepcopy(_compose(folder))


@cache
def _compose(folder: Path) -> list[Object]:
    settings = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(settings) - KEYS
    if unknown:
        raise ValueError(f"{folder}/kustomization.yaml uses {', '.join(sorted(unknown))}; expected only {', '.join(sorted(KEYS))}")
    objects: list[Object] = []
    for name in settings.get("resources", []):
        place = (folder / name).resolve()
        objects += compose(place) if place.is_dir() else documents(place)
    objects += [_config_map(folder, item) for item in settings.get("configMapGenerator", [])]
    for item in objects:
        if "namespace" in settings and item["kind"] not in CLUSTER_WIDE:
            item["metadata"]["namespace"] = settings["namespace"]
    for patch in settings.get("patches", []):
        hit = [item for item in objects if item["kind"] == patch["target"]["kind"]]
        if not hit:
            raise ValueError(f"{folder}: a patch of {patch['target']} meets nothing")
        for item in hit:
            for operation in yaml.safe_load(patch["patch"]):
                _apply(item, operation)
    for image in settings.get("images", []):
        for item in objects:
            _rename(item, image)
    return objects


def _config_map(folder: Path, item: Object) -> Object:
    lines = list(item.get("literals", []))
    for name in item.get("envs", []):
        lines += [line for line in (folder / name).read_text().splitlines() if line and not line.startswith("#")]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": item["name"]}, "data": dict(line.split("=", 1) for line in lines)}


def _apply(item: Object, operation: Object) -> None:
    """One operation of RFC 6902."""
    kind, (holder, key) = operation["op"], _place(item, operation["path"])
    if kind == "copy":
        source, name = _place(item, operation["from"])
        value = copy.deepcopy(source[name])
    else:
        value = copy.deepcopy(operation.get("value"))
    if kind in ("add", "copy"):
        if isinstance(holder, list):
            holder.insert(len(holder) if key == "-" else key, value)
        else:
            holder[key] = value
    elif kind == "replace":
        holder[key]  # raises where there is nothing to replace
        holder[key] = value
    else:
        raise ValueError(f"operation {kind}; expected add, copy or replace")


def _place(item: Any, pointer: str) -> tuple[Any, Any]:
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    for part in parts[:-1]:
        item = item[int(part)] if isinstance(item, list) else item[part]
    last = parts[-1]
    return item, int(last) if isinstance(item, list) and last != "-" else last


def _rename(item: Any, image: Object) -> None:
    if isinstance(item, dict):
        for key, value in item.items():
            if key in ("containers", "initContainers"):
                for container in value:
                    if container.get("image") == image["name"]:
                        container["image"] = f"{image['newName']}:{image['newTag']}"
            _rename(value, image)
    elif isinstance(item, list):
        for part in item:
            _rename(part, image)

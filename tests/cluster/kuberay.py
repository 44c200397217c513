"""What KubeRay's operator refuses after Kubernetes has accepted an object, as rules; and what raymlp asks of every pod.

The operator's rules are those of version 1.7.
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator
from typing import Any

import yaml

Object = dict[str, Any]
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
CRON = re.compile(r"(\S+ ){4}\S+")
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
UPGRADES = ("NewClusterWithIncrementalUpgrade", "NewCluster", "None")
LONGEST_NAME = {"RayCluster": 63, "RayJob": 47, "RayService": 47, "RayCronJob": 47}


def problems(item: Object) -> list[str]:
    """What is wrong with a KubeRay object; empty when nothing is."""
    return list(_problems(item))


def cluster_specs(item: Object) -> list[Object]:
    """The cluster that an object describes, alone in a list; empty for other kinds."""
    path = {
        "RayCluster": ["spec"],
        "RayJob": ["spec", "rayClusterSpec"],
        "RayService": ["spec", "rayClusterConfig"],
        "RayCronJob": ["spec", "jobTemplate", "rayClusterSpec"],
    }.get(item["kind"])
    if path is None:
        return []
    for part in path:
        item = item[part]
    return [item]


def pods(item: Any) -> Iterator[Object]:
    """Every pod's spec inside an object."""
    if isinstance(item, dict):
        if isinstance(item.get("containers"), list):
            yield item
        for value in item.values():
            yield from pods(value)
    elif isinstance(item, list):
        for value in item:
            yield from pods(value)


def pod_problems(pod: Object) -> list[str]:
    """What a pod may do and should not."""
    found = []
    settings = pod.get("securityContext", {})
    if not settings.get("runAsNonRoot") or not settings.get("runAsUser"):
        found.append("may run as root")
    if settings.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("has no seccomp profile")
    if pod.get("automountServiceAccountToken") is not False:
        found.append("holds the token of its account")
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")) or any(
        "hostPath" in volume for volume in pod.get("volumes", [])
    ):
        found.append("reaches into the host")
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            found.append(f"{container['name']} may gain privileges")
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            found.append(f"{container['name']} keeps capabilities")
        if own.get("readOnlyRootFilesystem") is not True:
            found.append(f"{container['name']} may write its root file system")
        if "memory" not in container.get("resources", {}).get("limits", {}):
            found.append(f"{container['name']} has no limit of memory")
        given = {variable["name"]: variable.get("value", "/") for variable in container.get("env", [])}
        secret = [name for name, value in given.items() if re.search(r"TOKEN$|PASSWORD|SECRET", name) and not value.startswith("/")]
        found += [f"{container['name']} has {name} in the file" for name in secret]
    return found


def _problems(item: Object) -> Iterator[str]:
    kind, name = item["kind"], item["metadata"]["name"]
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME[kind]:
        yield f"name {name}: expected a DNS label of at most {LONGEST_NAME[kind]} characters"
    for spec in cluster_specs(item):
        yield from _cluster(spec)
    if kind == "RayJob":
        yield from _job(item["spec"])
    elif kind == "RayCronJob":
        spec = item["spec"]
        if not CRON.fullmatch(spec["schedule"]):
            yield f"schedule {spec['schedule']}: expected five fields"
        if spec.get("timeZone", "UTC") not in zoneinfo.available_timezones():
            yield f"timeZone {spec['timeZone']} is unknown"
        unknown = set(spec) - {"schedule", "timeZone", "suspend", "jobTemplate"}
        if unknown:
            yield f"{', '.join(unknown)}: not fields of a RayCronJob"
        yield from _job(spec["jobTemplate"])
    elif kind == "RayService":
        yield from _service(item)


def _cluster(spec: Object) -> Iterator[str]:
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode: expected token"
    elif tuple(int(part) for part in spec.get("rayVersion", "0.0.0").split(".")) < (2, 52, 0):
        yield "rayVersion: token authentication needs 2.52 or later"
    if not spec.get("enableInTreeAutoscaling"):
        if "autoscalerOptions" in spec:
            yield "autoscalerOptions without enableInTreeAutoscaling"
    elif spec.get("autoscalerOptions", {}).get("version") == "v2":
        for group in (head, *workers):
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield "restartPolicy: autoscaler v2 needs Never, or none"
    names = [group["groupName"] for group in workers]
    if len(set(names)) < len(names) or not all(NAME.fullmatch(name) for name in names):
        yield f"group names {', '.join(names)}: expected DNS labels, each once"
    for group in workers:
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not 0 <= least <= group.get("replicas", least) <= most:
            yield f"{group['groupName']}: expected minReplicas <= replicas <= maxReplicas"
    for group in (head, *workers):
        if not group["template"]["spec"].get("containers"):
            yield "a group has no container"
            continue
        start = group.get("rayStartParams", {})
        if {"labels", "redis-username", "redis-password"} & set(start):
            yield "rayStartParams: labels and the state's keys have fields of their own"
        given = {variable["name"] for variable in group["template"]["spec"]["containers"][0].get("env", [])}
        if given & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}:
            yield "env: the state's address and keys belong into gcsFaultToleranceOptions"
        if "RAY_enable_autoscaler_v2" in given:
            yield "env: the autoscaler's version belongs into autoscalerOptions"


def _job(spec: Object) -> Iterator[str]:
    from ray.runtime_env import RuntimeEnv

    if spec.get("submissionMode", "K8sJobMode") not in MODES:
        yield f"submissionMode {spec['submissionMode']}: expected one of {', '.join(MODES)}"
    if ("rayClusterSpec" in spec) == ("clusterSelector" in spec):
        yield "expected one of rayClusterSpec and clusterSelector"
    if not spec.get("shutdownAfterJobFinishes") and (spec.get("ttlSecondsAfterFinished", 0) > 0 or spec.get("suspend")):
        yield "ttlSecondsAfterFinished and suspend need shutdownAfterJobFinishes"
    if spec.get("backoffLimit", 0) < 0 or ("clusterSelector" in spec and spec.get("backoffLimit", 0) > 0):
        yield "backoffLimit: expected 0 or more, and 0 with a clusterSelector"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "activeDeadlineSeconds: expected more than 0"
    if "gcsFaultToleranceOptions" in spec.get("rayClusterSpec", {}):
        yield "gcsFaultToleranceOptions: of no use to the cluster of one job"
    unknown = set(yaml.safe_load(spec.get("runtimeEnvYAML", "{}"))) - RuntimeEnv.known_fields
    if unknown:
        yield f"runtimeEnvYAML: {', '.join(unknown)} would be ignored"


def _service(item: Object) -> Iterator[str]:
    spec, cluster = item["spec"], item["spec"]["rayClusterConfig"]
    strategy = spec.get("upgradeStrategy", {})
    if strategy.get("type", "NewCluster") not in UPGRADES:
        yield f"upgradeStrategy.type {strategy['type']}: expected one of {', '.join(UPGRADES)}"
    elif strategy.get("type") == UPGRADES[0]:
        options = strategy.get("clusterUpgradeOptions", {})
        surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent", -1)
        if not cluster.get("enableInTreeAutoscaling"):
            yield "an incremental upgrade needs enableInTreeAutoscaling"
        if not 0 <= step <= surge <= 100:
            yield "expected 0 <= stepSizePercent <= maxSurgePercent <= 100"
        if options.get("intervalSeconds", 0) <= 0 or not options.get("gatewayClassName"):
            yield "expected intervalSeconds above 0 and a gatewayClassName"
    wait = item["metadata"].get("annotations", {}).get("ray.io/initializing-timeout", "1s")
    if not re.fullmatch(r"[1-9]\d*|(\d+(\.\d+)?(h|m|s))+", wait):
        yield f"ray.io/initializing-timeout {wait}: expected a duration such as 20m"

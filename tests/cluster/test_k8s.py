"""The Kubernetes files, held against everything that can be had without a cluster: Kubernetes' own schemas, Ray's reading of a KubeRay
cluster, KubeRay's rules, the pods' rights, who reaches whom, and what refers to what."""

from __future__ import annotations

import copy
import json
import os
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.kuberay import cluster_specs, pod_problems, pods, problems
from tests.cluster.kustomize import compose, documents
from tests.cluster.network import Pod, reaches

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "k8s"
FOLDERS = sorted(file.parent for file in FOLDER.rglob("kustomization.yaml"))
WHOLE = sorted((FOLDER / "overlays").iterdir())
RAY_KINDS = ("RayCluster", "RayJob", "RayService", "RayCronJob")
HEAD, WORKER = ({"ray.io/is-ray-node": "yes", "ray.io/node-type": kind} for kind in ("head", "worker"))
Object = dict[str, Any]


def name_of(folder: Path) -> str:
    return str(folder.relative_to(FOLDER))


def ray_objects() -> list[tuple[str, Object]]:
    return [(f"{name_of(folder)}: {item['kind']}", item) for folder in FOLDERS for item in compose(folder) if item["kind"] in RAY_KINDS]


def everything(folder: str = "overlays/gpu") -> list[Object]:
    return compose(FOLDER / folder)


# ------------------------------------------------------------------ composition


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_our_composition_is_that_of_kustomize(folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on the path")
    composed = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout

    def ordered(objects: list[Object]) -> list[Object]:
        return sorted(objects, key=lambda item: (item["kind"], item["metadata"]["name"]))

    assert ordered(compose(folder)) == ordered([item for item in yaml.safe_load_all(composed) if item])


def test_every_file_is_in_a_composition() -> None:
    composed = {(item["kind"], item["metadata"]["name"]) for folder in WHOLE for item in compose(folder)}
    files = [file for file in FOLDER.rglob("*.yaml") if file.name != "kustomization.yaml"]
    assert {(item["kind"], item["metadata"]["name"]) for file in files for item in documents(file)} <= composed


def test_nothing_unknown_to_the_composition_passes_silently(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("namePrefix: x-\n")
    with pytest.raises(ValueError, match="namePrefix"):
        compose(tmp_path)


# ------------------------------------------------------------------ schemas


@pytest.mark.parametrize("folder", WHOLE, ids=name_of)
def test_core_objects_have_kubernetes_schemas(folder: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    core = [item for item in compose(folder) if item["kind"] not in RAY_KINDS]
    assert len(core) > 15
    for item in core:
        validate.validate(item, "1.37", strict=True)


def test_a_planted_field_breaks_the_schema() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    policy = next(item for item in everything() if item["kind"] == "NetworkPolicy")
    policy["spec"]["podSelectors"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(policy, "1.37", strict=True)


@pytest.mark.parametrize(("name", "item"), ray_objects(), ids=lambda value: value if isinstance(value, str) else "")
def test_pods_of_ray_have_kubernetes_schemas(name: str, item: Object) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    found = list(pods(item))
    assert len(found) >= 2
    for pod in found:
        validate.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, "1.37", strict=True)


@pytest.mark.parametrize(("name", "item"), ray_objects(), ids=lambda value: value if isinstance(value, str) else "")
def test_ray_reads_the_groups_as_meant(name: str, item: Object) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    for spec in cluster_specs(item):
        read = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "raymlp"}, "spec": spec})
        types = read["available_node_types"]
        assert types["headgroup"]["resources"]["CPU"] == 0
        assert types["cpu"]["resources"]["CPU"] > 0
        assert set(types) == {"headgroup", *(group["groupName"] for group in spec["workerGroupSpecs"])}
        if "gpu" in types:
            assert types["gpu"]["resources"]["GPU"] == 1
            assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 4)


def test_ray_refuses_a_group_without_cpus() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    spec = next(iter(cluster_specs(compose(FOLDER / "cluster")[0])))
    del spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]
    with pytest.raises(ValueError, match="CPU"):
        _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "raymlp"}, "spec": spec})


def strict(schema: Any) -> Any:
    """An OpenAPI schema of a CRD as JSON Schema: no unknown field, and nothing required that has a default."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items() if key not in ("format", "description")}
    properties = schema.get("properties")
    if isinstance(properties, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
        schema["required"] = [name for name in schema.get("required", []) if "default" not in properties.get(name, {})]
    if schema.pop("x-kubernetes-int-or-string", False):
        schema = {"type": ["integer", "string"]}
    return schema


@pytest.mark.parametrize(("name", "item"), ray_objects(), ids=lambda value: value if isinstance(value, str) else "")
def test_ray_objects_have_the_schemas_of_kuberay(name: str, item: Object) -> None:
    place = os.environ.get("RAYMLP_KUBERAY_CRDS")
    if not place:
        pytest.skip("RAYMLP_KUBERAY_CRDS names no folder with KubeRay's ray.io_*.yaml")
    jsonschema = pytest.importorskip("jsonschema")
    crd = yaml.safe_load((Path(place) / f"ray.io_{item['kind'].lower()}s.yaml").read_text())
    schema = strict(next(v for v in crd["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft202012Validator(schema).validate(item)


# ------------------------------------------------------------------ KubeRay's rules


@pytest.mark.parametrize(("name", "item"), ray_objects(), ids=lambda value: value if isinstance(value, str) else "")
def test_kuberay_would_take_it(name: str, item: Object) -> None:
    assert problems(item) == []


@pytest.mark.parametrize(
    ("folder", "path", "value", "said"),
    [
        ("cluster", ["spec", "authOptions", "mode"], "disabled", "expected token"),
        ("cluster", ["spec", "rayVersion"], "2.51.0", "2.52"),
        ("cluster", ["spec", "workerGroupSpecs", 0, "minReplicas"], 9, "minReplicas <= replicas"),
        ("cluster", ["spec", "headGroupSpec", "template", "spec", "restartPolicy"], "Always", "restartPolicy"),
        ("train", ["spec", "submissionMode"], "HttpMode", "submissionMode"),
        ("train", ["spec", "shutdownAfterJobFinishes"], False, "shutdownAfterJobFinishes"),
        ("train", ["spec", "runtimeEnvYAML"], "env_var: {A: b}", "env_var would be ignored"),
        ("train", ["spec", "clusterSelector"], {"ray.io/cluster": "x"}, "one of rayClusterSpec"),
        ("serve", ["spec", "upgradeStrategy", "type"], "Incremental", "upgradeStrategy.type"),
        ("serve", ["spec", "upgradeStrategy", "clusterUpgradeOptions", "stepSizePercent"], 60, "stepSizePercent"),
        ("serve", ["spec", "rayClusterConfig", "enableInTreeAutoscaling"], False, "needs enableInTreeAutoscaling"),
        ("serve", ["metadata", "annotations", "ray.io/initializing-timeout"], "soon", "duration"),
        ("retrain", ["spec", "schedule"], "17 2 * *", "five fields"),
        ("retrain", ["spec", "timeZone"], "Etc/Nowhere", "timeZone"),
        ("retrain", ["spec", "concurrencyPolicy"], "Forbid", "not fields of a RayCronJob"),
    ],
)
def test_a_planted_error_is_found(folder: str, path: list[Any], value: Any, said: str) -> None:
    item = copy.deepcopy(next(item for item in compose(FOLDER / folder) if item["kind"] in RAY_KINDS))
    place = item
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert any(said in problem for problem in problems(item))


def test_the_endpoint_is_what_deploy_declares() -> None:
    from ray.serve.schema import ServeDeploySchema

    endpoint = runpy.run_path(str(FOLDER / "endpoint.py"))
    config = endpoint["serve_config"](endpoint["EXAMPLE"][0], endpoint["EXAMPLE"][1:])
    file = (FOLDER / "serve" / "rayservice.yaml").read_text()
    assert file == endpoint["written"](file, config), "the RayService has an old endpoint; run: make clusters"
    declared = ServeDeploySchema.model_validate(yaml.safe_load(yaml.safe_load(file)["spec"]["serveConfigV2"])).applications[0]
    assert declared.args["needs_key"]
    assert declared.args["keys"] == []
    assert declared.deployments[0].user_config["weights"] == {"v1": 1.0}


def test_another_config_gives_another_endpoint() -> None:
    endpoint = runpy.run_path(str(FOLDER / "endpoint.py"))
    config = endpoint["serve_config"]("v7=/storage/v7", ["experiment=flights", "serve.max_queued_requests=9"])
    service = (FOLDER / "serve" / "rayservice.yaml").read_text()
    changed = yaml.safe_load(endpoint["written"](service, config))
    assert yaml.safe_load(changed["spec"]["serveConfigV2"]) == config
    assert config["applications"][0]["deployments"][0]["max_queued_requests"] == 9
    assert changed["spec"]["rayClusterConfig"] == yaml.safe_load(service)["spec"]["rayClusterConfig"]


# ------------------------------------------------------------------ rights, ways, references


@pytest.mark.parametrize("folder", WHOLE, ids=name_of)
def test_no_pod_may_more_than_it_must(folder: Path) -> None:
    found = {item["metadata"]["name"]: pod_problems(pod) for item in compose(folder) for pod in pods(item)}
    assert len(found) >= 4
    assert not {name: said for name, said in found.items() if said}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["securityContext", "runAsNonRoot"], False, "root"),
        (["automountServiceAccountToken"], True, "token"),
        (["hostNetwork"], True, "host"),
        (["containers", 0, "securityContext", "capabilities"], {}, "capabilities"),
        (["containers", 0, "securityContext", "readOnlyRootFilesystem"], False, "write"),
        (["containers", 0, "env"], [{"name": "DB_PASSWORD", "value": "x"}], "DB_PASSWORD"),
    ],
)
def test_a_pod_with_a_right_too_much_is_found(path: list[Any], value: Any, said: str) -> None:
    pod = copy.deepcopy(next(pods(compose(FOLDER / "cluster"))))
    place: Any = pod
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert any(said in problem for problem in pod_problems(pod))


def test_the_autoscaler_alone_holds_a_token() -> None:
    for _, item in ray_objects():
        for spec in cluster_specs(item):
            options = spec["autoscalerOptions"]
            assert "scaling" in {mount["name"] for mount in options["volumeMounts"]}
            assert not options["securityContext"]["allowPrivilegeEscalation"]
            mounts = [mount["name"] for pod in pods(spec) for container in pod["containers"] for mount in container["volumeMounts"]]
            assert "scaling" not in mounts


OPERATOR = Pod({"app": "kuberay"}, {"kubernetes.io/metadata.name": "kuberay-system"})
PROMETHEUS = Pod({"app.kubernetes.io/name": "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"})
GATEWAY = Pod({"gateway.networking.k8s.io/gateway-name": "raymlp-gateway"})
ASKER = Pod({}, {"kubernetes.io/metadata.name": "gateway", "raymlp.io/asks-the-endpoint": "yes"})
STRANGER = Pod({"ray.io/is-ray-node": "yes"}, {"kubernetes.io/metadata.name": "default"})
DNS = Pod({}, {"kubernetes.io/metadata.name": "kube-system"})
SUBMITTER = Pod({"raymlp.io/submits": "yes"})
FILES = Pod({"app.kubernetes.io/name": "files-exporter"})
MLFLOW, POSTGRES, OBJECTS, REDIS = (Pod({"app.kubernetes.io/name": name}) for name in ("mlflow", "postgres", "objects", "redis"))


@pytest.mark.parametrize(
    ("source", "target", "port", "open_"),
    [
        (Pod(WORKER), Pod(HEAD), 6379, True),
        (Pod(HEAD), Pod(WORKER), 20_050, True),
        (OPERATOR, Pod(HEAD), 8265, True),
        (OPERATOR, Pod(HEAD), 6379, False),
        (OPERATOR, Pod(WORKER), 8265, False),
        (PROMETHEUS, Pod(WORKER), 8080, True),
        (PROMETHEUS, Pod(HEAD), 8265, False),
        (Pod({"app": "other"}, PROMETHEUS.namespace), Pod(WORKER), 8080, False),
        (PROMETHEUS, FILES, 9100, True),
        (Pod(WORKER), FILES, 9100, False),
        (GATEWAY, Pod(WORKER), 8000, True),
        (GATEWAY, Pod(HEAD), 8265, False),
        (GATEWAY, MLFLOW, 5000, False),
        (STRANGER, GATEWAY, 443, True),
        (Pod(WORKER), Pod({"app": "another"}), 80, False),
        (STRANGER, SUBMITTER, 80, False),
        (STRANGER, GATEWAY, 22, False),
        (ASKER, Pod(WORKER), 8000, True),
        (ASKER, Pod(HEAD), 8265, False),
        (ASKER, MLFLOW, 5000, False),
        (STRANGER, Pod(HEAD), 8265, False),
        (STRANGER, Pod(HEAD), 6379, False),
        (STRANGER, Pod(WORKER), 8000, False),
        (STRANGER, MLFLOW, 5000, False),
        (SUBMITTER, Pod(HEAD), 8265, True),
        (SUBMITTER, MLFLOW, 5000, False),
        (SUBMITTER, Pod({}, {}, "93.184.216.34"), 443, False),
        (Pod(WORKER), MLFLOW, 5000, True),
        (Pod(WORKER), OBJECTS, 8333, True),
        (Pod(WORKER), POSTGRES, 5432, False),
        (Pod(HEAD), REDIS, 6379, True),
        (MLFLOW, POSTGRES, 5432, True),
        (MLFLOW, OBJECTS, 8333, True),
        (MLFLOW, Pod(HEAD), 8265, False),
        (Pod(WORKER), Pod({}, {}, "93.184.216.34"), 443, True),
        (Pod(WORKER), Pod({}, {}, "169.254.169.254"), 443, False),
        (Pod(WORKER), Pod({}, {}, "93.184.216.34"), 22, False),
        (POSTGRES, Pod({}, {}, "93.184.216.34"), 443, False),
    ],
)
def test_who_reaches_whom(source: Pod, target: Pod, port: int, open_: bool) -> None:
    policies = [item for item in everything() if item["kind"] == "NetworkPolicy"]
    assert reaches(policies, source, target, port) is open_


def test_names_can_be_asked_for() -> None:
    policies = [item for item in everything() if item["kind"] == "NetworkPolicy"]
    assert reaches(policies, Pod(WORKER), DNS, 53, "UDP")
    assert not reaches(policies, Pod(WORKER), DNS, 8080)


def secrets() -> dict[str, set[str]]:
    """Names and keys of the Secrets that secrets.sh makes."""
    script = (FOLDER / "secrets.sh").read_text().splitlines()
    words = [line.split() for line in script if line.startswith("make raymlp")]
    return {line[1]: {word.removeprefix("--from-file=") for word in line if word.startswith("--from-file=")} for line in words}


def references(item: Any) -> Any:
    """(kind, name, key) of everything that an object asks for."""
    if isinstance(item, list):
        for part in item:
            yield from references(part)
    if not isinstance(item, dict):
        return
    for key, value in item.items():
        if key == "secretKeyRef":
            yield "Secret", value["name"], value["key"]
        elif key == "secret" and "secretName" in value:
            yield from (("Secret", value["secretName"], part["key"]) for part in value["items"])
        elif key == "authOptions":
            yield "Secret", value["secretName"], "auth_token"
        elif key == "configMapRef":
            yield "ConfigMap", value["name"], None
        elif key == "persistentVolumeClaim":
            yield "PersistentVolumeClaim", value["claimName"], None
        elif key == "serviceAccountName":
            yield "ServiceAccount", value, None
        yield from references(value)


@pytest.mark.parametrize("folder", WHOLE, ids=name_of)
def test_what_is_named_is_there(folder: Path) -> None:
    objects, made = compose(folder), secrets()
    there = {(item["kind"], item["metadata"]["name"]) for item in objects}
    asked = list(references(objects))
    assert {name for kind, name, _ in asked if kind == "Secret"} == set(made)
    for kind, name, key in asked:
        assert key in made[name] if kind == "Secret" else (kind, name) in there, (kind, name, key)


def test_the_secrets_are_made_and_random() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl on the path")

    def run() -> dict[str, dict[str, str]]:
        words = [FOLDER / "secrets.sh", "--dry-run=client", "-o", "json"]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        decoder, found, at = json.JSONDecoder(), {}, 0
        while at < len(text.rstrip()):
            item, at = decoder.raw_decode(text, at)
            found[item["metadata"]["name"]] = item["data"]
            at += len(text[at:]) - len(text[at:].lstrip())
        return found

    first, second = run(), run()
    assert {name: set(data) for name, data in first.items()} == secrets()
    assert not {value for data in first.values() for value in data.values()} & {
        value for data in second.values() for value in data.values()
    }


def test_settings_of_the_fast_path_and_of_faults_reach_every_ray_pod() -> None:
    for _, item in ray_objects():
        for pod in pods(item):
            names = {source["configMapRef"]["name"] for source in pod["containers"][0]["envFrom"]}
            assert {"raymlp-environment", "raymlp-places"} <= names
    data = next(item["data"] for item in everything() if item["metadata"]["name"] == "raymlp-environment")
    assert data["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert data["RAY_grpc_client_keepalive_time_ms"] == "10000"


def test_no_image_floats() -> None:
    images = {container["image"] for folder in WHOLE for item in compose(folder) for pod in pods(item) for container in pod["containers"]}
    assert all(":" in image and not image.endswith(":latest") for image in images)

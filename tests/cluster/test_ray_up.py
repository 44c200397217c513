"""The `ray up` files: Ray's own schema, least rights, and AWS's file for real on a mock of AWS."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "cluster" / "ray-up"
FILES = sorted(FOLDER.glob("*.yaml"))
CONFIGS = [file for file in FILES if file.stem in ("aws", "gcp", "onprem")]
Object = dict[str, Any]


def read(name: str) -> Object:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def checked(config: Object) -> Object:
    """What Ray makes of a file; raises what Ray would."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_ray_takes_the_file(file: Path) -> None:
    prepared = checked(read(file.stem))
    assert prepared["cluster_name"] == "raymlp"
    assert prepared["max_workers"] > 0


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["max_worker"], 3),
        (["available_node_types", "gpu", "min_worker"], 1),
        (["available_node_types", "gpu", "max_workers"], "two"),
        (["head_node_type"], "master"),
    ],
)
def test_ray_refuses_a_planted_error(path: list[str], value: Any) -> None:
    import jsonschema

    config = read("aws")
    place = config
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        checked(config)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_the_token_travels_as_a_file_and_the_dashboard_stays_at_home(file: Path) -> None:
    config = read(file.stem)
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert (ROOT / config["file_mounts"]["/home/ray/raymlp-env"] / "load.sh").is_file()
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert all(command.startswith(". /home/ray/raymlp-env/load.sh && ") for command in (head, worker))
    assert "chmod 600 /home/ray/.ray/auth_token" in config["setup_commands"]
    assert "AUTH_TOKEN=" not in file.read_text()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_ray_finds_what_it_is_to_copy(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `ray up` reads before it starts anything, in the project's root."""
    from ray.autoscaler._private.util import hash_runtime_conf

    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    mounts = {place: os.path.expanduser(source) for place, source in read(file.stem)["file_mounts"].items()}
    assert all(hash_runtime_conf(mounts, [], {}, generate_file_mounts_contents_hash=True))
    monkeypatch.chdir(FOLDER)
    with pytest.raises(FileNotFoundError):
        hash_runtime_conf(mounts, [], {}, generate_file_mounts_contents_hash=True)


def test_the_settings_are_loaded_with_their_spaces(tmp_path: Path) -> None:
    loader = FOLDER.parent / "env" / "load.sh"
    shown = subprocess.run(
        ["bash", "-euc", f". {loader} && env -0"], capture_output=True, check=True, cwd=tmp_path, env={"PATH": os.environ["PATH"]}
    ).stdout
    loaded = dict(item.split("=", 1) for item in shown.decode().split("\0") if item)
    lines = [line for file in loader.parent.glob("*.env") for line in file.read_text().splitlines() if line and line[0] != "#"]
    assert len(lines) > 15
    assert all(loaded[name] == value for name, value in (line.split("=", 1) for line in lines))
    assert loaded["RAY_SERVE_HAPROXY_RETRY_ON"] == "conn-failure empty-response junk-response"
    assert not [name for name in loaded if name.startswith("raymlp_")]


def test_every_machine_of_aws_has_a_named_role_group_and_subnet() -> None:
    types = read("aws")["available_node_types"]
    for name, kind in types.items():
        node = kind["node_config"]
        assert node["IamInstanceProfile"]["Name"] == ("raymlp-head" if name == "head" else "raymlp-worker")
        assert node["SecurityGroupIds"]
        assert node["SubnetIds"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
    assert {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]} == {"cpu-spot", "gpu-spot"}


def test_every_machine_of_google_has_an_account_of_its_own_and_no_public_address() -> None:
    for name, kind in read("gcp")["available_node_types"].items():
        node = kind["node_config"]
        assert [account["email"].split("@")[0] for account in node["serviceAccounts"]] == [
            f"raymlp-{'head' if name == 'head' else 'worker'}"
        ]
        assert not any("accessConfigs" in interface for interface in node["networkInterfaces"])


def grants(name: str) -> list[Object]:
    document = json.loads((FOLDER / f"aws-{name}-policy.json").read_text())
    return [{key: [value] if key in ("Action", "Resource") and isinstance(value, str) else value for key, value in statement.items()}
            for statement in document["Statement"]]  # fmt: skip


@pytest.mark.parametrize("name", ["head", "worker"])
def test_a_role_may_no_more_than_it_says(name: str) -> None:
    session = pytest.importorskip("botocore.session").get_session()
    known = {
        "ec2": set(session.get_service_model("ec2").operation_names),
        "s3": {"ListBucket", "GetBucketLocation", "GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload"},
        "iam": {"PassRole"},
    }
    for grant in grants(name):
        for action in grant["Action"]:
            service, operation = action.split(":")
            assert operation in known[service], action
            if "*" in grant["Resource"]:
                assert operation.startswith("Describe"), action
            if operation in ("TerminateInstances", "PassRole"):
                assert grant["Condition"]
    assert name == "head" or all(action.startswith("s3:") for grant in grants(name) for action in grant["Action"])


@pytest.mark.slow
def test_a_cluster_starts_on_a_mock_of_aws_with_no_right_of_rays_making(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray's bootstrap and its node provider, with nothing but AWS's answers replaced."""
    moto, boto3 = pytest.importorskip("moto"), pytest.importorskip("boto3")
    from ray.autoscaler._private.aws import config as aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    with moto.mock_aws():
        ec2, iam = boto3.client("ec2", "eu-west-1"), boto3.client("iam")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        real = {
            "subnet-00000000000000000": ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"],
            "sg-00000000000000000": ec2.create_security_group(GroupName="raymlp", Description="x", VpcId=vpc)["GroupId"],
            "ami-00000000000000000": ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"],
        }
        for role in ("head", "worker"):
            iam.create_role(RoleName=f"raymlp-{role}", AssumeRolePolicyDocument=(FOLDER / "aws-trust.json").read_text())
            document = (FOLDER / f"aws-{role}-policy.json").read_text().replace("ACCOUNT", "123456789012")
            iam.put_role_policy(RoleName=f"raymlp-{role}", PolicyName="raymlp", PolicyDocument=document)
            iam.create_instance_profile(InstanceProfileName=f"raymlp-{role}")
            iam.add_role_to_instance_profile(InstanceProfileName=f"raymlp-{role}", RoleName=f"raymlp-{role}")
        text = (FOLDER / "aws.yaml").read_text()
        for placeholder, name in real.items():
            text = text.replace(placeholder, name)
        roles, groups = iam.list_roles()["Roles"], ec2.describe_security_groups()["SecurityGroups"]

        config = aws.bootstrap_aws(AWSNodeProvider.fillout_available_node_types_resources(checked(yaml.safe_load(text))))

        assert iam.list_roles()["Roles"] == roles
        assert ec2.describe_security_groups()["SecurityGroups"] == groups
        kinds = config["available_node_types"]
        assert kinds["gpu"]["resources"]["GPU"] == 1
        assert kinds["cpu-spot"]["resources"]["CPU"] == 8
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name in ("head", "cpu-spot", "gpu"):
            provider.create_node(kinds[name]["node_config"], {TAG_RAY_NODE_KIND: name}, 1)
        machines = [item for group in ec2.describe_instances()["Reservations"] for item in group["Instances"]]
        assert {item["InstanceType"] for item in machines} == {"m7i.xlarge", "m7i.2xlarge", "g6.4xlarge"}
        assert {item["InstanceType"] for item in machines if item.get("InstanceLifecycle") == "spot"} == {"m7i.2xlarge"}
        assert all([group["GroupId"] for group in item["SecurityGroups"]] == [real["sg-00000000000000000"]] for item in machines)
        assert {item["IamInstanceProfile"]["Arn"].split("/")[-1] for item in machines} == {"raymlp-head", "raymlp-worker"}
        assert {tag["Value"] for item in machines for tag in item["Tags"] if tag["Key"] == "ray-cluster-name"} == {"raymlp"}
        provider.terminate_nodes([item["InstanceId"] for item in machines])
        states = [item["State"]["Name"] for group in ec2.describe_instances()["Reservations"] for item in group["Instances"]]
        assert set(states) <= {"shutting-down", "terminated"}

"""Who reaches whom under NetworkPolicies, as Kubernetes rules it: what no policy selects is open; what one selects is shut but for what
one of them allows; a connection needs both ends' consent."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
NAMESPACE = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Pod:
    """An end of a connection. `address` is for ends outside of the cluster."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: dict[str, str] = field(default_factory=lambda: {NAMESPACE: "raymlp"})
    address: str | None = None


def reaches(policies: list[Object], source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
    """Whether `source` may open a connection."""
    return _allows(policies, source, target, port, protocol, "Egress") and _allows(policies, target, source, port, protocol, "Ingress")


def _allows(policies: list[Object], own: Pod, other: Pod, port: int, protocol: str, direction: str) -> bool:
    mine = [
        policy["spec"]
        for policy in policies
        if own.address is None
        and policy["metadata"]["namespace"] == own.namespace[NAMESPACE]
        and direction in policy["spec"]["policyTypes"]
        and _matches(policy["spec"]["podSelector"], own.labels)
    ]
    side = "from" if direction == "Ingress" else "to"
    rules = [rule for spec in mine for rule in spec.get(direction.lower(), [])]
    here = own.namespace.get(NAMESPACE, "")
    return not mine or any(
        (not rule.get("ports") or any((item["port"], item.get("protocol", "TCP")) == (port, protocol) for item in rule["ports"]))
        and (not rule.get(side) or any(_is_peer(peer, other, here) for peer in rule[side]))
        for rule in rules
    )


def _is_peer(peer: Object, pod: Pod, here: str) -> bool:
    if "ipBlock" in peer:
        address = ipaddress.ip_address(pod.address or "10.0.0.1")
        block = peer["ipBlock"]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(part) for part in block.get("except", [])
        )
    if pod.address is not None:
        return False
    at_home = pod.namespace[NAMESPACE] == here if "namespaceSelector" not in peer else _matches(peer["namespaceSelector"], pod.namespace)
    return at_home and _matches(peer.get("podSelector", {}), pod.labels)


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    assert not set(selector) - {"matchLabels", "matchExpressions"}
    wanted = selector.get("matchExpressions", [])
    assert all(item["operator"] == "Exists" for item in wanted)
    equal = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return equal and all(item["key"] in labels for item in wanted)

"""The manifests for KubeRay: fields that the operator knows, no privilege, and the ports of the list.

The schema of RayCluster is kept by hand here: the fields of KubeRay's API reference for v1.6.2 (read November
2026), which is all that could be had of it. Pods, policies and accounts were checked once against the schemas
of Kubernetes 1.33, strictly (kubernetes-validate 1.37). Nothing was applied to a cluster.
"""

import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from fedray.cluster import ports
from fedray.runtime.ray_environment import WORKER_ENVIRONMENT

KUBERAY = Path(__file__).resolve().parents[3] / "cluster" / "kuberay"
BASE = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (KUBERAY / "base").glob("*.yaml")}
RAY = BASE["ray-cluster"]["spec"]
GROUPS = [RAY["headGroupSpec"], *RAY["workerGroupSpecs"]]
REGIONS = sorted(path.parent for path in KUBERAY.glob("*/kustomization.yaml") if path.parent.name != "base")


def only(required, **properties):
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT, NUMBER, YES = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
POD = {"type": "object", "required": ["spec"]}
AUTHENTICATION = only([], mode={"enum": ["disabled", "token"]}, secretName=TEXT, enableK8sTokenAuth=YES)
HEAD = only(["rayStartParams", "template"], template=POD, rayStartParams=TEXTS, labels=TEXTS, resources=TEXTS,
            enableIngress=YES, headService={"type": "object"},
            serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]})  # fmt: skip
WORKERS = only(["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"], groupName=TEXT,
               replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER, numOfHosts=NUMBER, suspend=YES,
               idleTimeoutSeconds=NUMBER, rayStartParams=TEXTS, labels=TEXTS, resources=TEXTS, template=POD,
               scaleStrategy={"type": "object"})  # fmt: skip
SPEC = only(["headGroupSpec"], headGroupSpec=HEAD, workerGroupSpecs={"type": "array", "items": WORKERS},
            rayVersion=TEXT, authOptions=AUTHENTICATION, enableInTreeAutoscaling=YES, suspend=YES,
            managedBy=TEXT, autoscalerOptions={"type": "object"}, headServiceAnnotations=TEXTS,
            gcsFaultToleranceOptions={"type": "object"})  # fmt: skip


def containers(group):
    spec = group["template"]["spec"]
    return [*spec["initContainers"], *spec["containers"]]


def test_fields_are_those_that_the_operator_knows():
    jsonschema.validate(RAY, SPEC)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(RAY | {"authOption": {}}, SPEC)


def test_token_is_asked_for_and_comes_from_a_secret():
    assert RAY["authOptions"] == {"mode": "token", "secretName": "fedray-token"}


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.get("groupName", "head"))
def test_every_node_speaks_tls_in_the_environment_of_workers(group):
    (ray,) = group["template"]["spec"]["containers"]
    told = {one["name"]: one.get("value") for one in ray["env"]}
    wanted = {"RAY_USE_TLS": "1", "RAY_health_check_failure_threshold": "20", **WORKER_ENVIRONMENT}
    assert {name: told.get(name) for name in wanted} == wanted
    files = {told[name] for name in ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY")}
    assert files == {f"/etc/fedray/tls/{name}" for name in ("ca.crt", "node.crt", "node.key")}


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.get("groupName", "head"))
def test_key_of_the_authority_is_mounted_where_certificates_are_made_alone(group):
    spec = group["template"]["spec"]
    (ray,) = spec["containers"]
    assert "authority" not in {mount["name"] for mount in ray["volumeMounts"]}
    assert {mount["name"] for each in containers(group) for mount in each["volumeMounts"]} == {
        volume["name"] for volume in spec["volumes"]
    }


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.get("groupName", "head"))
def test_pods_keep_to_the_restricted_standard(group):
    spec = group["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for each in containers(group):
        assert each["securityContext"]["allowPrivilegeEscalation"] is False
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert each["securityContext"]["readOnlyRootFilesystem"] is True
    assert {next(iter(set(volume) - {"name"})) for volume in spec["volumes"]} <= {
        "secret", "emptyDir", "persistentVolumeClaim",
    }  # fmt: skip


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.get("groupName", "head"))
def test_ports_are_those_of_the_list(group):
    given = {name: int(value) for name, value in group["rayStartParams"].items() if name.endswith("-port")}
    assert given == {
        "node-manager-port": ports.NODE_MANAGER, "object-manager-port": ports.OBJECT_MANAGER,
        "dashboard-agent-grpc-port": ports.AGENT_GRPC, "runtime-env-agent-port": ports.RUNTIME_ENV_AGENT,
        "metrics-export-port": ports.METRICS, "dashboard-agent-listen-port": ports.AGENT_HTTP,
        "min-worker-port": ports.WORKERS[0], "max-worker-port": ports.WORKERS[1],
    }  # fmt: skip


def test_dashboard_stays_in_the_heads_pod():
    assert RAY["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    assert RAY["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "enableIngress" not in RAY["headGroupSpec"]


def test_policy_opens_the_ports_between_nodes_and_no_other():
    spec = BASE["network-policy"]["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    (inward,) = spec["ingress"]
    assert [(one["port"], one["endPort"]) for one in inward["ports"]] == [*ports.BETWEEN_NODES]
    nodes = {"matchLabels": {"ray.io/cluster": BASE["ray-cluster"]["metadata"]["name"]}}
    assert inward["from"] == [{"podSelector": nodes}]
    assert spec["podSelector"] == inward["from"][0]["podSelector"]


@pytest.mark.parametrize("region", REGIONS, ids=lambda path: path.name)
def test_patch_of_a_region_finds_every_label(region):
    (patched,) = yaml.safe_load((region / "kustomization.yaml").read_text("utf-8"))["patches"]
    for one in yaml.safe_load(patched["patch"]):
        place = BASE["ray-cluster"]
        for step in one["path"].strip("/").split("/"):
            place = place[int(step)] if isinstance(place, list) else place[step]
        assert place == "REGION" and one["value"] == region.name


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize("region", REGIONS, ids=lambda path: path.name)
def test_kustomize_builds_a_region(region):
    built = subprocess.run(["kubectl", "kustomize", region], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    found = {document["kind"]: document for document in yaml.safe_load_all(built.stdout)}
    assert set(found) == {"Namespace", "ServiceAccount", "NetworkPolicy", "RayCluster"}
    spec = found["RayCluster"]["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert {group["labels"]["fedray.region"] for group in groups} == {region.name}
    jsonschema.validate(spec, SPEC)

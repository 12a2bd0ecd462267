"""What is shipped to run it elsewhere is well-formed, careful, and names only what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from compose_spec import PyCompose
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ratchet.programs.telemetry import PrometheusObserver
from ratchet.service.app import create_app
from ratchet.settings import Settings
from ratchet.testing.service import Clock, RecordingQueue, desk_in

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
FOREIGN = {"ScaledObject", "Kustomization"}
"""Kinds that are not Kubernetes's own; there is no schema of them here."""


def documents() -> list[tuple[str, dict[str, Any]]]:
    """All documents with the file they are in."""
    return [
        (path.name, document)
        for path in sorted(MANIFESTS.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


def pods() -> list[dict[str, Any]]:
    """The pods of all deployments and jobs."""
    return [each["spec"]["template"]["spec"] for _, each in documents() if each["kind"] in ("Deployment", "Job")]


def named(kind: str, name: str) -> dict[str, Any]:
    """The one document of this kind and name."""
    return next(each for _, each in documents() if (each["kind"], each.get("metadata", {}).get("name")) == (kind, name))


@pytest.mark.parametrize(("file", "document"), documents())
def test_manifests_fit_the_schemas_of_kubernetes(file: str, document: dict[str, Any]) -> None:
    if document["kind"] not in FOREIGN:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    assert "namespace" not in document.get("metadata", {}), "the namespace is the operator's choice"


def test_the_kustomization_lists_every_file_but_the_other_autoscaler() -> None:
    listed = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(
        {path.name for path in MANIFESTS.glob("*.yaml")} - {"kustomization.yaml", "hpa.yaml"}
    )


def test_pods_run_as_nobody_in_particular_and_write_only_where_they_must() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False  # the service `ratchet` would set RATCHET_PORT to an address
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


def test_no_pod_starts_without_the_master_key_that_all_share() -> None:
    # A pod that finds none makes one, which nobody else has and which goes with the pod.
    for pod in pods():
        for container in pod["containers"]:
            (key,) = [each for each in container["env"] if each["name"] == "RATCHET_KEYS"]
            assert key["valueFrom"] == {"secretKeyRef": {"name": "ratchet", "key": "RATCHET_KEYS"}}
    assert "--from-literal=RATCHET_KEYS=" in (ROOT / "docs" / "howto" / "deploy.md").read_text(encoding="utf-8")


def test_stopping_leaves_time_for_what_is_under_way() -> None:
    for name in ("ratchet-api", "ratchet-worker"):
        assert named("Deployment", name)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 35


def test_the_probes_ask_routes_there_are(tmp_path: Path) -> None:
    (api,) = named("Deployment", "ratchet-api")["spec"]["template"]["spec"]["containers"]
    asked = {api[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    desk = desk_in(tmp_path, queue=RecordingQueue(), clock=Clock())
    assert asked == {"/healthz", "/readyz"} <= set(create_app(desk).openapi()["paths"])
    desk.close()


def test_selectors_find_their_pods() -> None:
    labels = [each["spec"]["template"]["metadata"]["labels"] for _, each in documents() if each["kind"] == "Deployment"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        for _, each in documents():
            if each["kind"] == kind:
                assert each["spec"]["selector"]["matchLabels"] in labels
    assert named("Service", "ratchet")["spec"]["selector"] in labels


def test_every_setting_in_a_manifest_is_one_there_is() -> None:
    known = {f"RATCHET_{name.upper()}" for name in Settings.model_fields} | {"GPU_ENABLED", "MLFLOW_TRACKING_URI"}
    known |= {"HOME", "DSPY_CACHEDIR", "OPENAI_API_KEY"}
    assert set(named("ConfigMap", "ratchet")["data"]) <= known
    service = yaml.safe_load((ROOT / "docker-compose.dev.yml").read_text())["services"]["dspy-optimizer"]
    assert set(service["environment"]) <= known


def test_workers_follow_the_queue_by_their_own_concurrency() -> None:
    (trigger,) = named("ScaledObject", "ratchet-worker")["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == named("ConfigMap", "ratchet")["data"]["RATCHET_WORKER_CONCURRENCY"]
    (metric,) = named("HorizontalPodAutoscaler", "ratchet-worker")["spec"]["metrics"]
    assert metric["external"]["target"]["averageValue"] == trigger["metadata"]["threshold"]


def test_compose_files_fit_the_specification() -> None:
    for name in ("docker-compose.dev.yml", "docker-compose.gpu.yml"):
        merged = yaml.safe_load((ROOT / name).read_text())
        PyCompose.from_json(json.dumps(merged))
    services = yaml.safe_load((ROOT / "docker-compose.dev.yml").read_text())["services"]
    assert services["dspy-optimizer"]["ports"] == ["127.0.0.1:8004:8004"]
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    assert "./models:/app/models" in services["dspy-optimizer"]["volumes"]
    assert {"MLFLOW_TRACKING_URI", "GPU_ENABLED"} <= services["worker"]["environment"].keys()


# --- metrics ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all samples that the API and a worker show."""
    desk = desk_in(tmp_path_factory.mktemp("home"), queue=RecordingQueue(), clock=Clock())
    app = create_app(desk)
    observer = PrometheusObserver()
    texts = [generate_latest(app.state.metrics).decode(), generate_latest(observer.registry).decode()]
    names = set()
    for family in (family for text in texts for family in text_string_to_metric_families(text)):
        names.add(family.name)
        endings = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}.get(family.type, ())
        names |= {family.name + ending for ending in endings}
    desk.close()
    return names


def asked(tree: object) -> Iterator[str]:
    """The names of the metrics in a PromQL expression."""
    if isinstance(tree, promql_parser.VectorSelector):
        yield str(tree.name)
    for part in ("expr", "lhs", "rhs", "vector_selector", "args"):
        inner = getattr(tree, part, None)
        for each in inner if isinstance(inner, list) else [inner] if inner is not None else []:
            yield from asked(each)


def test_the_dashboard_and_the_autoscaler_ask_for_metrics_there_are(exposed: set[str]) -> None:
    board = json.loads((ROOT / "deploy" / "grafana" / "ratchet.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries.append(named("ScaledObject", "ratchet-worker")["spec"]["triggers"][0]["metadata"]["query"])
    for query in queries:
        names = set(asked(promql_parser.parse(query)))
        assert names == set(re.findall(r"ratchet_\w+", query)), query
        assert names <= exposed, query


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = json.loads((ROOT / "deploy" / "grafana" / "ratchet.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_a_status_that_nobody_has_is_zero(tmp_path: Path) -> None:
    desk = desk_in(tmp_path, queue=RecordingQueue(), clock=Clock())
    text = generate_latest(create_app(desk).state.metrics).decode()
    assert 'ratchet_optimizations{status="queued"} 0.0' in text
    assert "ratchet_workers 0.0" in text
    desk.close()

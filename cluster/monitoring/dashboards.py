"""Writes the Grafana dashboards into dashboards/: `python cluster/monitoring/dashboards.py`, or `make clusters`.

Names of raymlp's metrics are asked of the code that exports them, so a dashboard cannot show one that is not there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from raymlp.runtime.textfile import MonitorMetrics, RetrainMetrics
from raymlp.serve.export import ray_names
from raymlp.serve.metrics import ReplicaMetrics

FOLDER = Path(__file__).parent / "dashboards"
Panel = tuple[str, str, str, str]
"""Title, query, legend, and unit as Grafana names it."""


def exported() -> set[str]:
    """Every name of raymlp's own that Prometheus finds: the endpoint's at Ray's ports, monitoring's and retraining's in files."""
    files = [family.name for metrics in (MonitorMetrics(), RetrainMetrics()) for family in metrics.registry.collect()]
    return ray_names(ReplicaMetrics("model", "replica").registry) | set(files)


ENDPOINT: list[Panel] = [
    ("Requests", 'sum by (version, status) (rate(ray_raymlp_requests_total{model=~"$model"}[$__rate_interval]))', "{{version}} {{status}}", "reqps"),
    ("Errors", 'sum by (version) (rate(ray_raymlp_requests_total{model=~"$model", status=~"5.."}[$__rate_interval])) '
               '/ sum by (version) (rate(ray_raymlp_requests_total{model=~"$model"}[$__rate_interval]))', "{{version}}", "percentunit"),
    *[(f"Latency, {name}", f'histogram_quantile({q}, sum by (version, le) '
       f'(rate(ray_raymlp_latency_seconds_bucket_total{{model=~"$model"}}[$__rate_interval])))', "{{version}}", "s")
      for name, q in (("median", 0.5), ("99 %", 0.99))],
    ("Refused", 'sum by (status) (rate(ray_raymlp_requests_total{model=~"$model", status=~"4..|503"}[$__rate_interval]))', "{{status}}", "reqps"),
    ("Rows the log lost", 'sum(ray_raymlp_log_rows_dropped{model=~"$model"})', "rows", "short"),
    ("Replicas", 'count(count by (replica) (ray_raymlp_requests_total{model=~"$model"}))', "replicas", "short"),
]  # fmt: skip
ROLLOUT: list[Panel] = [
    ("Share of traffic", 'max by (version) (ray_raymlp_weight{model=~"$model"})', "{{version}}", "percentunit"),
    ("Requests by version", 'sum by (version) (rate(ray_raymlp_requests_total{model=~"$model"}[$__rate_interval]))', "{{version}}", "reqps"),
    ("Errors by version", 'sum by (version) (rate(ray_raymlp_requests_total{model=~"$model", status=~"5.."}[$__rate_interval])) '
                          '/ sum by (version) (rate(ray_raymlp_requests_total{model=~"$model"}[$__rate_interval]))', "{{version}}", "percentunit"),
    ("Latency by version, 99 %", 'histogram_quantile(0.99, sum by (version, le) '
     '(rate(ray_raymlp_latency_seconds_bucket_total{model=~"$model"}[$__rate_interval])))', "{{version}}", "s"),
    ("Mean latency by version", 'sum by (version) (rate(ray_raymlp_latency_seconds_sum_total{model=~"$model"}[$__rate_interval])) '
     '/ sum by (version) (rate(ray_raymlp_latency_seconds_count_total{model=~"$model"}[$__rate_interval]))', "{{version}}", "s"),
    ("Replicas that disagree on the shares", 'count by (version) (count by (version, replica) (ray_raymlp_weight{model=~"$model"}) > 0)', "{{version}}", "short"),
]  # fmt: skip
DRIFT: list[Panel] = [
    ("Beyond the threshold", 'abs(raymlp_monitor_value{problem=~"$problem"}) / raymlp_monitor_threshold and raymlp_monitor_alert == 1', "{{kind}}: {{name}} {{statistic}}", "short"),
    ("Drift of inputs, as a share of its threshold", 'raymlp_monitor_value{problem=~"$problem", kind="feature drift"} / raymlp_monitor_threshold', "{{name}} {{statistic}}", "percentunit"),
    ("Drift of predictions", 'raymlp_monitor_value{problem=~"$problem", kind="prediction drift"}', "{{name}} {{statistic}}", "short"),
    ("Quality", 'raymlp_monitor_value{problem=~"$problem", kind="quality"}', "{{name}} {{statistic}}", "short"),
    ("Predictions, and those with answers", 'raymlp_monitor_rows{problem=~"$problem"} or raymlp_monitor_labelled_rows{problem=~"$problem"}', "{{__name__}}", "short"),
    ("Hours since the last look", '(time() - raymlp_monitor_timestamp_seconds{problem=~"$problem"}) / 3600', "{{problem}}", "h"),
    ("How the last retrain ended", 'raymlp_retrain_outcome{problem=~"$problem"} == 1', "{{problem}}: {{outcome}}", "short"),
    ("Hours since the last retrain", '(time() - raymlp_retrain_timestamp_seconds{problem=~"$problem"}) / 3600', "{{problem}}", "h"),
]  # fmt: skip
TRAINING: list[Panel] = [
    ("Training jobs by state", "sum by (ray_train_run_name, ray_train_controller_state) (ray_train_controller_state) > 0", "{{ray_train_run_name}} {{ray_train_controller_state}}", "short"),
    ("Seconds spent on starting workers", "max by (ray_train_run_name) (ray_train_worker_group_start_total_time_s)", "{{ray_train_run_name}}", "s"),
    ("Seconds that workers waited for reports", "max by (ray_train_run_name) (ray_train_report_total_blocked_time_s)", "{{ray_train_run_name}}", "s"),
    ("Rows a second into training", "sum by (dataset) (rate(ray_data_output_rows[$__rate_interval]))", "{{dataset}}", "rowsps"),
    ("Processor", "avg by (NodeAddress) (ray_node_cpu_utilization)", "{{NodeAddress}}", "percent"),
    ("Memory", "max by (NodeAddress) (ray_node_mem_used / ray_node_mem_total)", "{{NodeAddress}}", "percentunit"),
    ("GPU", "avg by (NodeAddress, GpuIndex) (ray_node_gpus_utilization)", "{{NodeAddress}} {{GpuIndex}}", "percent"),
    ("GPU memory", "sum by (NodeAddress, GpuIndex) (ray_node_gram_used)", "{{NodeAddress}} {{GpuIndex}}", "decmbytes"),
    ("Disk", "max by (NodeAddress) (ray_node_disk_utilization_percentage)", "{{NodeAddress}}", "percent"),
    ("Nodes", "sum by (node_type) (ray_cluster_active_nodes)", "{{node_type}}", "short"),
    ("Objects on disk", "sum(ray_spill_manager_objects_bytes)", "spilled", "bytes"),
]  # fmt: skip
DASHBOARDS: dict[str, tuple[str, list[Panel], str | None]] = {
    "endpoint": ("raymlp: endpoint", ENDPOINT, "label_values(ray_raymlp_requests_total, model)"),
    "rollout": ("raymlp: rollout", ROLLOUT, "label_values(ray_raymlp_weight, model)"),
    "drift": ("raymlp: drift and retraining", DRIFT, "label_values(raymlp_monitor_timestamp_seconds, problem)"),
    "training": ("raymlp: training and nodes", TRAINING, None),
}


def dashboard(name: str) -> dict[str, Any]:
    """One dashboard as Grafana reads it: two panels a row, a variable for the model or problem, and the data source to be chosen."""
    title, panels, variable = DASHBOARDS[name]
    names = [] if variable is None else [re.split(r"[,)] ?", variable)[1]]
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "uid": f"raymlp-{name}",
        "title": title,
        "tags": ["raymlp"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                *(
                    {"name": label, "type": "query", "datasource": source, "query": variable, "includeAll": True, "refresh": 2}
                    for label in names
                ),
            ]
        },
        "panels": [
            {
                "id": place + 1,
                "title": panel,
                "type": "timeseries",
                "datasource": source,
                "gridPos": {"x": 12 * (place % 2), "y": 8 * (place // 2), "w": 12, "h": 8},
                "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
                "targets": [{"refId": "A", "datasource": source, "expr": query, "legendFormat": legend}],
            }
            for place, (panel, query, legend, unit) in enumerate(panels)
        ],
    }


def text_of(name: str) -> str:
    """The dashboard's file."""
    return json.dumps(dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(text_of(name))

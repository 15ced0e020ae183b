"""Makes tuwen.json, the Grafana dashboard, beside this file: `python deploy/grafana/build.py`.

Import the JSON in Grafana (Dashboards → New → Import) or provision it; it asks for the Prometheus data source. Every
API process shows the figures of the whole installation, so these are never summed over processes: hence `max by`. Only
the times of requests are each process's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueColorMode, StackingMode, TimeZoneBrowser
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, Threshold, ThresholdsMode

FILE = Path(__file__).with_name("tuwen.json")

SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
Query = tuple[str, str]
"""Expression, and how its series are named."""

QUANTILES = (0.5, 0.95, 0.99)


def quantiles(metric: str, by: str) -> list[Query]:
    """The quantiles of a histogram for each value of the label `by`."""
    return [
        (
            f"histogram_quantile({quantile}, max by (le, {by}) (rate({metric}_bucket[$__rate_interval])))",
            f"{{{{{by}}}}} p{quantile * 100:g}",
        )
        for quantile in QUANTILES
    ]


def panel(title: str, unit: str, *queries: Query, height: int = 8, width: int = 12, why: str = "") -> timeseries.Panel:
    """A graph of these queries; `unit` is one of Grafana's, `why` says what to look for."""
    graph = timeseries.Panel().title(title).unit(unit).height(height).span(width).datasource(SOURCE).min(0)
    if why:
        graph.description(why)
    for letter, (expression, name) in zip(ascii_uppercase, queries, strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(name)
        graph.with_target(query.datasource(SOURCE).ref_id(letter))
    return graph


def light(title: str, expression: str, name: str = "", *, bad_below: float | None = None) -> stat.Panel:
    """A number that is red below `bad_below`, or above zero where that is not given."""
    steps = (
        [Threshold(value=None, color="green"), Threshold(value=1, color="red")]
        if bad_below is None
        else [Threshold(value=None, color="red"), Threshold(value=bad_below, color="green")]
    )
    thresholds = dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
    query = prometheus.Dataquery().expr(expression).legend_format(name).instant().datasource(SOURCE).ref_id("A")
    number = stat.Panel().title(title).height(4).span(6).datasource(SOURCE)
    return number.thresholds(thresholds).color_mode(BigValueColorMode.BACKGROUND).with_target(query)


def stacked(graph: timeseries.Panel) -> timeseries.Panel:
    """The same graph, its series one upon the other."""
    return graph.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(30)


def rows() -> Iterator[tuple[str, list[timeseries.Panel | stat.Panel]]]:
    """Title and panels of each row."""
    mean = "max by (kind) (rate(tuwen_batch_size_{}[$__rate_interval]))"
    answers = "rate(tuwen_http_request_seconds_bucket[$__rate_interval])"
    yield (
        "State",
        [
            light("Parts that answer", "max by (component) (tuwen_up)", "{{component}}", bad_below=1),
            light("Workers", "sum(max by (device) (tuwen_workers)) or vector(0)", bad_below=1),
            light("Housekeepers", "max(tuwen_housekeepers)", bad_below=1),
            light(
                "Quarantined in this range",
                'sum(max by (kind) (increase(tuwen_jobs_finished_total{status="quarantined"}[$__range])))',
            ),
        ],
    )
    yield (
        "Jobs",
        [
            stacked(panel("Jobs that wait", "short", ("max by (kind) (tuwen_jobs_queued)", "{{kind}}"))),
            panel(
                "Age of the oldest job that may run",
                "s",
                ("max by (kind) (tuwen_oldest_job_age_seconds)", "{{kind}}"),
                why="It grows with time where no worker takes jobs of this kind.",
            ),
            stacked(panel("Jobs that run", "short", ("max by (kind) (tuwen_jobs_running)", "{{kind}}"))),
            stacked(
                panel(
                    "Jobs that ended, a second",
                    "ops",
                    (
                        "sum by (status) (max by (kind, status) (rate(tuwen_jobs_finished_total[$__rate_interval])))",
                        "{{status}}",
                    ),
                )
            ),
            panel("Time until a worker took the job", "s", *quantiles("tuwen_job_wait_seconds", "kind")),
            panel("Time from the claim to the end", "s", *quantiles("tuwen_job_run_seconds", "kind")),
        ],
    )
    yield (
        "Models",
        [
            panel(
                "Jobs in a forward pass",
                "short",
                (
                    f"{mean.format('sum')} / {mean.format('count')}",
                    "{{kind}}",
                ),
                why="Near the model's limit, workers are full; near one, they have little to do.",
            ),
            panel("Time of a forward pass", "s", *quantiles("tuwen_batch_seconds", "kind")),
            panel("Workers by device", "short", ("max by (device) (tuwen_workers)", "{{device}}")),
        ],
    )
    yield (
        "Data sets",
        [
            panel("Images a second", "short", ("max(tuwen_dataset_images_per_second)", "images")),
            panel("Tokens a second", "short", ("max(tuwen_dataset_tokens_per_second)", "tokens")),
            stacked(panel("Images", "short", ("max by (state) (tuwen_dataset_images)", "{{state}}"))),
            stacked(panel("Shards", "short", ("max by (status) (tuwen_dataset_shards)", "{{status}}"))),
        ],
    )
    yield (
        "Webhooks",
        [
            panel(
                "Undelivered",
                "short",
                ("max(tuwen_webhooks_waiting)", "waiting"),
                ("max(tuwen_webhooks_late)", "late"),
                ("max(tuwen_webhooks_given_up)", "given up"),
            ),
            panel("Age of the oldest that waits", "s", ("max(tuwen_oldest_webhook_age_seconds)", "oldest")),
        ],
    )
    yield (
        "API",
        [
            stacked(
                panel(
                    "Requests a second",
                    "reqps",
                    ("sum by (status) (rate(tuwen_http_request_seconds_count[$__rate_interval]))", "{{status}}"),
                )
            ),
            panel(
                "Time to the start of an answer, p95",
                "s",
                (
                    f"histogram_quantile(0.95, sum by (le, method, route) ({answers}))",
                    "{{method}} {{route}}",
                ),
                why="Requests that wait for their job (Prefer: wait) take as long as they wait.",
            ),
        ],
    )


def build() -> str:
    """The dashboard as JSON."""
    made = (
        dashboard.Dashboard("Tuwen 图文")
        .uid("tuwen")
        .tags(["tuwen"])
        .refresh("30s")
        .time("now-6h", "now")
        .timezone(TimeZoneBrowser)
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
    )
    ids = count(1)
    for title, panels in rows():
        made.with_row(dashboard.Row(title).id(next(ids)))
        for each in panels:
            made.with_panel(each.id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=2, ensure_ascii=False).encode(made.build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(build())

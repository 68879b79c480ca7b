"""One metric: its name, kind, help, labels, and how many series it may have at most.

Law: pure values, and their text in Prometheus' exposition format 0.0.4.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class MetricKind(Enum):
    """The type of a metric. An info is a gauge whose value is 1 and whose labels say something."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


class Per(Enum):
    """What a metric has series for. `VERSION`: the versions that are on the node or in its catalog; `SOURCE`: the kinds
    of sources that were used; `MODEL`: the models that a server serves, or has served."""

    PROGRAM = "program"
    VERSION = "version"
    SOURCE = "source"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `name`: as it is exposed (`…_total` of a counter, `…_info` of an info). `combinations`: of label
    values at most, for each of `per`. `buckets`: the upper bounds of a histogram, without infinity."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    combinations: int = 1
    per: Per = Per.PROGRAM
    buckets: tuple[float, ...] = ()

    @property
    def base(self) -> str:
        """The name without the suffix of its kind, as prometheus_client wants it."""
        return self.name.removesuffix("_total").removesuffix("_info")

    @property
    def series(self) -> int:
        """The most series for each of `per`; a histogram has its buckets, infinity, a sum and a count."""
        return self.combinations * (len(self.buckets) + 3 if self.kind is MetricKind.HISTOGRAM else 1)

    def head(self) -> str:
        """Return the lines `# HELP` and `# TYPE`."""
        kind = MetricKind.GAUGE if self.kind is MetricKind.INFO else self.kind
        return f"# HELP {self.name} {self.help}\n# TYPE {self.name} {kind.value}\n"

    def sample(self, value: float, *labels: str) -> str:
        """Return one sample with the values of its labels, in their order."""
        if not labels:
            return f"{self.name} {value:.16g}\n"
        pairs = ",".join(f'{name}="{escape(text)}"' for name, text in zip(self.labels, labels, strict=True))
        return f"{self.name}{{{pairs}}} {value:.16g}\n"


def escape(text: str) -> str:
    """Escape the value of a label."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

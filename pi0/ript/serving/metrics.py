"""Counts of a policy server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OUTCOMES = ("answered", "refused", "busy", "timeout", "stopping", "failed", "dropped")


class ServingMetrics:
    """What `/metrics` shows; each server has its own registry."""

    def __init__(self) -> None:
        """Begin with zeros, also for outcomes that have not come yet."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pi0_serve_requests", "requests by outcome", ["outcome"], registry=self.registry
        )
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
        self.seconds = Histogram(
            "pi0_serve_request_seconds", "from a request's arrival to its answer",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.batch_size = Histogram(
            "pi0_serve_batch_size", "requests that were inferred together",
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge("pi0_serve_waiting", "requests that wait for the policy", registry=self.registry)
        self.clients = Gauge("pi0_serve_clients", "open connections", registry=self.registry)

    def count(self, outcome: str) -> None:
        """Count a request that came to one of OUTCOMES."""
        self.requests.labels(outcome).inc()

    def text(self) -> bytes:
        """Return Prometheus' text format."""
        return generate_latest(self.registry)

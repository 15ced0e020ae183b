"""What operators see: figures for Prometheus and traces for OpenTelemetry."""

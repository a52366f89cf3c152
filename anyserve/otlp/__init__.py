"""Spans of requests, sent to an OpenTelemetry collector."""

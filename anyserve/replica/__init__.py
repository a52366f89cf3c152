"""The replica: serves KServe v2, owns queues, tensors and worker processes."""

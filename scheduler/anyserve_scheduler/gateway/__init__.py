"""The front door: KServe v2 for the whole fleet, whose requests go on to replicas as bytes."""

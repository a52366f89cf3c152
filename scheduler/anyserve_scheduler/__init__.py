"""The scheduler: which replica offers which capability, and where each request goes."""

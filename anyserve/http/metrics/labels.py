"""How many values a label of a metric may have, so that no number of names fills a Prometheus."""

MOST_LABELS = 256
OTHER = "other"
"""What all further ones are added up under; it is one of the `MOST_LABELS`."""

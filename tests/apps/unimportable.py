"""An app whose import fails."""

raise RuntimeError("broken on purpose")

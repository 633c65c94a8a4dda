"""Pare on one machine: the embedded stack, the demo and `pare run`. The command loads it only when asked."""

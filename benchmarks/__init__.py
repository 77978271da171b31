"""What the rings cost, against what Python offers without them: ``python -m benchmarks ring``."""

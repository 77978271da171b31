"""What the rings cost, against what else there is."""

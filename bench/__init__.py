"""Measurements of Ratchet beside its peers; what they printed stands in RESULTS.md."""

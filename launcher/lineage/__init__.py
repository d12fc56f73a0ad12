"""Lineage: what a run did, kept as a journal beside the artifacts and shown in MLflow."""

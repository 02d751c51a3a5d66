"""Atomic directories with manifests, content fingerprints, and the error that a user can fix."""

"""Builders of the catalog's rewards from their options; heavy imports are deferred."""

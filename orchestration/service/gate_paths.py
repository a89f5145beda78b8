"""Paths of the service, and the scope that each one wants of a token."""

SCORE, HEALTH, METRICS = "/v1/score", "/healthz", "/metrics"
SCOPE_OF = {SCORE: "score", "/v1/rewards": "score", "/openapi.json": "score", METRICS: "metrics"}
PATHS = (HEALTH, *SCOPE_OF)

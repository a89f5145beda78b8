"""The process that callers talk to: limits before authentication, tokens, turns and an audit."""

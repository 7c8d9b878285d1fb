"""Against a real API server, without a node."""

"""The operator without its decisions: store, queue, lease, routes, watches."""

"""A Kubernetes cluster on this machine. Start reading at `provider.py`."""

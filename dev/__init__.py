"""Everything a developer runs on one machine: the local cluster, its images, the Python environment, the models.

Only the standard library is used: this package makes the environment that everything else needs.
Start reading at `__main__.py`; the cluster itself starts in `cluster/provider.py`.
"""

"""The scheduler without a cluster: the same decisions over a trace of jobs and engines, in compressed time."""

"""The rank of this process: a training has one process for each GPU of each of its pods."""

import os
from dataclasses import dataclass

from sluice_api.pods import INDEX_ENV
from sluice_api.stages import Stage, StageSpec

LOCAL_ENV = "SLUICE_LOCAL_RANK"
"""The index of a process's GPU in its pod. Not called LOCAL_RANK, because libraries act on that."""


@dataclass(frozen=True)
class Rank:
    """One process of a group of pods x gpus."""

    pod: int = 0
    gpu: int = 0
    """Index of the GPU in its pod. The process of the first GPU starts the others."""
    pods: int = 1
    gpus: int = 1

    @classmethod
    def here(cls, stage: StageSpec) -> "Rank":
        """The rank of this process. Only Train has more than one process."""
        if stage.stage is not Stage.TRAIN:
            return cls()
        resources = stage.spec.resources
        return cls(
            int(os.environ.get(INDEX_ENV, "0")), int(os.environ.get(LOCAL_ENV, "0")), resources.nodes, resources.gpus
        )

    @property
    def number(self) -> int:
        """The rank in torch's sense, from 0."""
        return self.pod * self.gpus + self.gpu

    @property
    def size(self) -> int:
        """Processes of the group."""
        return self.pods * self.gpus

    @property
    def leads(self) -> bool:
        """Whether this is the leader: it reports, saves and has the result."""
        return self.number == 0

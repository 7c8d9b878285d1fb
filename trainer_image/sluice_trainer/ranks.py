"""Which of a group's processes this one is: a training has one for each GPU of each of its pods."""

import os
from dataclasses import dataclass

from sluice_api.pods import INDEX_ENV
from sluice_api.stages import Stage, StageSpec

LOCAL_ENV = "SLUICE_LOCAL_RANK"
"""Which GPU of its pod a process has. Not LOCAL_RANK, from which libraries make groups of their own."""


@dataclass(frozen=True)
class Rank:
    """One process of a group of pods x gpus."""

    pod: int = 0
    gpu: int = 0
    """Which one of the pod's GPUs; the process of the first one starts the others."""
    pods: int = 1
    gpus: int = 1

    @classmethod
    def here(cls, stage: StageSpec) -> "Rank":
        """This process; only Train has more than one."""
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
        """The one process that reports, saves and has the result."""
        return self.number == 0

"""Which namespaces does a selector select?"""

from collections.abc import Mapping

from sluice_api.selectors import NamespaceSelector
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World

NAME_LABEL = "kubernetes.io/metadata.name"
"""Every namespace has it, with its name."""


def labels_of(world: World, namespace: str) -> Mapping[str, str]:
    """A namespace's labels, always with its name, even if the namespace is not known."""
    view = world.namespaces.get(Key("Namespace", "", namespace))
    return {**(view.labels if view else {}), NAME_LABEL: namespace}


def selects(world: World, selector: NamespaceSelector | None, namespace: str) -> bool:
    """Whether a selector selects a namespace; no selector selects none."""
    return selector is not None and selector.selects(labels_of(world, namespace))

"""Which namespaces a selector means."""

from collections.abc import Mapping

from sluice_api.selectors import NamespaceSelector
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World

NAME_LABEL = "kubernetes.io/metadata.name"
"""On every namespace."""


def labels_of(world: World, namespace: str) -> Mapping[str, str]:
    """A namespace's labels; its name at least, which nobody can take away."""
    view = world.namespaces.get(Key("Namespace", "", namespace))
    return {**(view.labels if view else {}), NAME_LABEL: namespace}


def selects(world: World, selector: NamespaceSelector | None, namespace: str) -> bool:
    """Whether a selector means a namespace; no selector means none."""
    return selector is not None and selector.selects(labels_of(world, namespace))

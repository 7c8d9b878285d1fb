"""Ways to hold the operator at one moment without touching its code: admission says no, or a request does not end."""

import http.client
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

from tests.e2e.kubectl import Kubectl, Object, Refused
from tests.e2e.team import Team

_PROBES = {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}
"""Each rule refuses a ConfigMap of its own name as well: so one can ask whether it is in force."""

SLOTS_KEEP_THEIR_SIZE = (
    "e2e-slots-keep-their-size",
    {"operations": ["UPDATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]},
    "object.spec.replicas == oldObject.spec.replicas",
)
"""A slot that should stop goes on, and one that should start stays at 0."""


class Hold:
    """A rule of the API server that can be lifted."""

    def __init__(self, kubectl: Kubectl, team: Team, rule: tuple[str, Object, str]) -> None:
        self._kubectl = kubectl
        self._team = team
        self._name, self._resources, self._allows = rule

    def begin(self) -> None:
        """Returns when the API server obeys: it takes a new rule up a moment after it was written."""
        api = {"apiVersion": "admissionregistration.k8s.io/v1"}
        allows = f"object.kind == 'ConfigMap' ? object.metadata.name != '{self._name}' : ({self._allows})"
        self._kubectl.apply(
            {
                **api,
                "kind": "ValidatingAdmissionPolicy",
                "metadata": {"name": self._name},
                "spec": {
                    "failurePolicy": "Fail",
                    "matchConstraints": {"resourceRules": [self._resources, _PROBES]},
                    "validations": [{"expression": allows, "reason": "Forbidden"}],
                },
            },
            {
                **api,
                "kind": "ValidatingAdmissionPolicyBinding",
                "metadata": {"name": self._name},
                "spec": {
                    "policyName": self._name,
                    "validationActions": ["Deny"],
                    "matchResources": {
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self._team.name}}
                    },
                },
            },
        )
        while self._lets_through():
            pass

    def lift(self) -> None:
        """Remove the rule, if it is there."""
        what = f"validatingadmissionpolicybinding/{self._name}", f"validatingadmissionpolicy/{self._name}"
        self._kubectl("delete", *what, "--ignore-not-found")

    def _lets_through(self) -> bool:
        probe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": self._name}}
        try:
            self._kubectl("create", "--dry-run=server", f"--namespace={self._team.name}", "-f", "-", give=probe)
        except Refused:
            return False
        return True


@contextmanager
def holds(kubectl: Kubectl, team: Team, *rules: tuple[str, Object, str]) -> Iterator[list[Hold]]:
    """Holds that have not begun; all are lifted at the end."""
    with ExitStack() as stack:
        found = [Hold(kubectl, team, rule) for rule in rules]
        for hold in found:
            stack.callback(hold.lift)
        yield found


class HalfRequest:
    """A chat request to one replica whose last byte has not been sent: it is in flight until it is completed."""

    def __init__(self, team: Team, pod: str, model: str) -> None:
        url = urlsplit(team.url(pod))
        body = json.dumps(
            {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        ).encode()
        self._rest = body[-1:]
        self._connection = http.client.HTTPConnection(url.netloc, timeout=120)
        self._connection.putrequest("POST", f"{url.path}/v1/chat/completions")
        self._connection.putheader("Content-Type", "application/json")
        self._connection.putheader("Content-Length", str(len(body)))
        self._connection.endheaders(body[:-1])

    def complete(self) -> str:
        """Send the rest; returns the answer's text."""
        self._connection.send(self._rest)
        answer = self._connection.getresponse()
        said = answer.read()
        self._connection.close()
        assert answer.status == 200, f"a request in flight was answered {answer.status}: {said!r}"
        return str(json.loads(said)["choices"][0]["message"]["content"])

"""Runs in a pod of the cluster: one external metric, as an autoscaler asks for it. Its value is in /scratch/value.

How often it was asked for is in /scratch/asked.
"""

import json
import ssl
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

GROUP = "external.metrics.k8s.io/v1beta1"
METRIC = "requests-in-flight"
VALUE = Path("/scratch/value")
ASKED = Path("/scratch/asked")
NOW = "2026-01-01T00:00:00Z"


class Metrics(BaseHTTPRequestHandler):
    """What an API server of metrics answers: what it has, and how much of it."""

    def do_GET(self) -> None:
        if METRIC in self.path:
            ASKED.write_text(str(int(ASKED.read_text()) + 1))
            item = {"metricName": METRIC, "metricLabels": {}, "timestamp": NOW, "value": VALUE.read_text().strip()}
            answer = {"kind": "ExternalMetricValueList", "apiVersion": GROUP, "metadata": {}, "items": [item]}
        else:
            resource = {"name": METRIC, "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
            answer = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP, "resources": [resource]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    VALUE.write_text("2")
    ASKED.write_text("0")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain("/script/tls.crt", "/script/tls.key")
    server = HTTPServer(("", 6443), Metrics)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.serve_forever()

"""The Kubernetes API as a test speaks to it: JSON over HTTPS, and waiting for what is to become true."""

import json
import ssl
import time
import urllib.error
import urllib.request

# How long anything may take before it counts as hanging, in seconds.
PATIENCE = 120
PLURALS = {"DaemonSet": "daemonsets", "Deployment": "deployments", "EndpointSlice": "endpointslices", "Event": "events",
           "Namespace": "namespaces", "NetworkPolicy": "networkpolicies", "Node": "nodes", "Pod": "pods", "Service": "services"}
GROUPS = {"DaemonSet": "apis/apps/v1", "Deployment": "apis/apps/v1", "EndpointSlice": "apis/discovery.k8s.io/v1",
          "NetworkPolicy": "apis/networking.k8s.io/v1"}
UNBOUND = {"Namespace", "Node"}


class ApiError(Exception):
    """What the API server answered instead."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code


class Api:
    """As the user of a kubeconfig that `control_plane` wrote."""

    def __init__(self, kubeconfig, ca):
        config = json.loads(open(kubeconfig).read())
        self.server = config["clusters"][0]["cluster"]["server"]
        self.token = config["users"][0]["user"]["token"]
        self.context = ssl.create_default_context(cafile=ca)

    def request(self, method, path, body=None, kind="application/json"):
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.server}/{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.context) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ApiError(error.code, f"{method} {path}: {error.read().decode()}") from None

    def path(self, kind, name="", namespace="default"):
        place = "" if kind in UNBOUND else f"/namespaces/{namespace}"
        return f"{GROUPS.get(kind, 'api/v1')}{place}/{PLURALS[kind]}{f'/{name}' if name else ''}"

    def create(self, document):
        namespace = document["metadata"].get("namespace", "default")
        version = GROUPS.get(document["kind"], "api/v1").split("/", 1)[1]
        return self.request("POST", self.path(document["kind"], "", namespace), {"apiVersion": version} | document)

    def read(self, kind, name, namespace="default"):
        """None when there is none."""
        try:
            return self.request("GET", self.path(kind, name, namespace))
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def list(self, kind, labels="", namespace="default"):
        return self.request("GET", f"{self.path(kind, '', namespace)}?labelSelector={labels}")["items"]

    def patch(self, kind, name, patch, namespace="default"):
        kind_of_patch = "application/strategic-merge-patch+json"
        return self.request("PATCH", self.path(kind, name, namespace), patch, kind_of_patch)

    def delete(self, kind, name, namespace="default", grace=1):
        """Silent about what is absent."""
        try:
            self.request("DELETE", self.path(kind, name, namespace), {"gracePeriodSeconds": grace})
        except ApiError as error:
            if error.code != 404:
                raise


def wait_for(predicate, what, explain=lambda: "", patience=PATIENCE):
    """The first result that is true; an API server that is away meanwhile is waited for."""
    deadline = time.monotonic() + patience
    while True:
        problem = ""
        try:
            if result := predicate():
                return result
        except OSError as error:
            problem = f" ({error})"
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience} s: {what}{problem}\n{explain()}")
        time.sleep(0.1)


def is_ready(document):
    conditions = document.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

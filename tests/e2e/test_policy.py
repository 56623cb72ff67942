"""Who may talk to whom: NetworkPolicies, with pods that come and go, traffic that runs, and a proxy between."""

import itertools
import socket
import threading
import time

import machine
from cases import Case
from cluster import pod_document, pod_spec
from kube import wait_for
from test_pods import PROBE

# How long an asker waits that is not to be answered, in seconds: SYNs go at once and after one second.
SILENCE = 1.5
DENY_ALL = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def is_open(address, port, netns, patience=SILENCE):
    """The first packet arrives: somebody takes the connection, or says that nobody listens."""

    def attempt():
        try:
            socket.create_connection((address, port), timeout=patience).close()
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
        return True

    return machine.within(netns, attempt)


class Policies(Case):
    def policy(self, name, spec):
        self.api.create({"kind": "NetworkPolicy", "metadata": {"name": name}, "spec": spec})

    def labelled(self, name, node, **labels):
        self.api.create(pod_document(name, node, labels))
        return self.cluster.pod(name)

    def assert_open(self, asker, server, port=80):
        for address in server.addresses:
            wait_for(lambda: is_open(address, port, asker.netns), f"{asker.name} reaches {server.name} at {address}")

    def assert_closed_to(self, asker, server, port=80):
        for address in server.addresses:
            self.assertFalse(is_open(address, port, asker.netns), f"{asker.name} reaches {server.name} at {address}")

    def until_closed(self, asker, server):
        for address in server.addresses:
            wait_for(lambda: not is_open(address, 80, asker.netns), f"{asker.name} no longer reaches {server.name}")

    def test_a_policy_that_is_there_before_a_deployment_holds_from_its_pods_first_moment(self):
        self.policy("web", {"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"role": "client"}}}], "ports": [{"port": 80}]}]})
        client = self.labelled("client", self.nodes[0], role="client")
        strangers = self.pods(**{f"stranger-{node.name}": node for node in self.nodes})
        client.wait_until_ready()
        spec = pod_spec(container={"readinessProbe": PROBE})
        self.api.create({"kind": "Deployment", "metadata": {"name": "web"}, "spec": {
            "replicas": 6, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": spec}}})
        seen = set()

        def is_complete():
            documents = self.api.list("Pod", "app=web")
            for document, stranger in itertools.product(documents, strangers):
                for each in document["status"].get("podIPs", []):
                    seen.add(each["ip"])
                    self.assertFalse(is_open(each["ip"], 80, stranger.netns, 0.05), f"{stranger.name} to {each['ip']}")
            return self.api.read("Deployment", "web")["status"].get("availableReplicas") == 6

        wait_for(is_complete, "the Deployment is there")
        self.assertGreaterEqual(len(seen), 2, "addresses that were asked at before all pods were ready")
        for document in self.api.list("Pod", "app=web"):
            web = self.cluster.pod(document["metadata"]["name"]).wait_until_ready()
            self.assert_open(client, web)
            self.assert_closed_to(strangers[0], web)

    def test_a_policy_that_comes_during_traffic_ends_what_it_forbids_and_nothing_else(self):
        [near, far, server] = self.pods(near=self.nodes[0], far=self.nodes[1], server=self.nodes[0])
        talks = {pod.name: Talk(pod, server) for pod in (near, far)}
        self.addCleanup(lambda: [talk.close() for talk in talks.values()])
        for talk in talks.values():
            self.assertTrue(talk.goes_on())
        selects_server = {"podSelector": {"matchLabels": {"name": "server"}}}
        self.api.patch("Pod", "server", {"metadata": {"labels": {"name": "server"}}})
        self.api.patch("Pod", "near", {"metadata": {"labels": {"name": "near"}}})
        self.policy("only-near", selects_server | {"ingress": [
            {"from": [{"podSelector": {"matchLabels": {"name": "near"}}}]}]})
        wait_for(lambda: not talks["far"].goes_on(), "the connection that is forbidden ends")
        self.assertTrue(talks["near"].goes_on())
        self.assert_closed_to(far, server)
        self.assert_open(near, server)
        self.api.delete("NetworkPolicy", "only-near")
        self.assert_open(far, server)
        self.assertTrue(talks["near"].goes_on())

    def test_probes_of_the_kubelet_pass_where_everything_is_denied(self):
        self.policy("deny-all", DENY_ALL)
        pod = self.cluster.create_pod("probed", self.nodes[0], container={"readinessProbe": PROBE, "livenessProbe": PROBE})
        [other] = self.pods(other=self.nodes[0])
        pod.wait_until_ready()
        time.sleep(5)
        [status] = self.api.read("Pod", "probed")["status"]["containerStatuses"]
        self.assertEqual((status["restartCount"], status["ready"]), (0, True))
        self.assert_closed_to(other, pod)
        for address in pod.addresses:
            self.assert_served("probed", address, netns=self.nodes[0].netns)

    def test_services_lead_to_where_policy_allows(self):
        server = self.labelled("server", self.nodes[0], app="server").wait_until_ready()
        client = self.labelled("client", self.nodes[0], role="client").wait_until_ready()
        [near, far] = self.pods(near=self.nodes[0], far=self.nodes[1])
        self.api.create({"kind": "Service", "metadata": {"name": "server"}, "spec": {
            "selector": {"app": "server"}, "ports": [{"port": 8080, "targetPort": 80}]}})
        address = self.api.read("Service", "server")["spec"]["clusterIP"]
        for pod in (client, near, far):
            wait_for(lambda: is_open(address, 8080, pod.netns), f"{pod.name} reaches the Service")
        self.policy("server", {"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"role": "client"}}}], "ports": [{"port": 80}]}]})
        for pod in (near, far):
            wait_for(lambda: not is_open(address, 8080, pod.netns), f"{pod.name} no longer reaches the Service")
        self.assertTrue(is_open(address, 8080, client.netns))

    def test_what_is_in_force_stays_while_agents_are_killed(self):
        [asker, friend, server] = self.pods(asker=self.nodes[1], friend=self.nodes[2], server=self.nodes[0])
        self.api.patch("Pod", "server", {"metadata": {"labels": {"name": "server"}}})
        self.api.patch("Pod", "friend", {"metadata": {"labels": {"name": "friend"}}})
        self.policy("friends", {"podSelector": {"matchLabels": {"name": "server"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"name": "friend"}}}]}]})
        self.until_closed(asker, server)
        talk = Talk(friend, server)
        self.addCleanup(talk.close)
        passed, is_over = [], threading.Event()

        def ask():
            while not is_over.is_set():
                passed.extend(address for address in server.addresses if is_open(address, 80, asker.netns, 0.1))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            for _ in range(3):
                self.podspan.kill_agent(self.nodes[0])
                self.podspan.wait_for_agent(self.nodes[0])
                time.sleep(2)
        finally:
            is_over.set()
            thread.join()
        self.assertEqual(passed, [])
        self.assertTrue(talk.goes_on())


class Talk:
    """One connection that stays: each word is answered by the same word."""

    def __init__(self, asker, server):
        address = server.addresses[0]
        listener = machine.within(server.netns, lambda: socket.create_server((address, 0)))
        self.connection = machine.within(asker.netns, lambda: socket.create_connection(listener.getsockname(), timeout=5))
        self.server, _ = listener.accept()
        listener.close()
        self.server.settimeout(0.1)
        self.connection.settimeout(SILENCE)
        self.is_closed = False
        self.thread = threading.Thread(target=self.answer, daemon=True)
        self.thread.start()

    def answer(self):
        while not self.is_closed:
            try:
                self.server.sendall(self.server.recv(64))
            except OSError:
                # Nothing came yet, or no longer comes.
                pass

    def goes_on(self):
        try:
            self.connection.sendall(b"word")
            return self.connection.recv(64) != b""
        except OSError:
            return False

    def close(self):
        self.is_closed = True
        self.thread.join()
        self.connection.close()
        self.server.close()

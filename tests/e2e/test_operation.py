"""What an operator asks on a running cluster: each agent's doctor, and what a packet meets."""

import pathlib

from cases import Case
from kube import wait_for
from podspan import NAMESPACE, ROOT

EXPLAIN = ROOT / "deploy/explain.yaml"
NAME = "podspan-explain"


class Operation(Case):
    def test_doctor_finds_nothing_wrong_in_any_agent(self):
        for pod in self.podspan.pods():
            said = self.cluster.kubectl("exec", "--namespace", NAMESPACE, pod["metadata"]["name"], "--container", "agent",
                                        "--", "/podspan", "doctor")
            self.assertNotIn("WRONG", said)

    def test_explain_sees_every_hop_of_a_packet_and_sends_some(self):
        [asker, near, far] = self.pods(asker=self.nodes[0], near=self.nodes[0], far=self.nodes[1])
        for server in (near, far):
            said = self.explained(asker, server)
            self.assertNotIn("needs root", said)
            self.assertIn("tested: TCP connection: connected", said)
            self.assertIn("it should pass, and it does", said)
            for address in (asker.addresses[0], server.addresses[0]):
                self.assertIn(address, said)

    def explained(self, asker, server):
        """What it says of a packet to port 80, which passes."""
        text = EXPLAIN.read_text().partition("apiVersion:")
        text = "".join(text[1:])
        for word, value in (("NODE\n", f"{asker.node.name}\n"), ("FROM", f"default/{asker.name}"),
                            ("TO,", f"default/{server.name},"), ("PORT", "80")):
            self.assertIn(word, text)
            text = text.replace(word, value)
        file = pathlib.Path(self.cluster.home / "explain.yaml")
        file.write_text(text)
        self.cluster.kubectl("create", "-f", file)
        try:
            def ended():
                phase = self.api.read("Pod", NAME, NAMESPACE)["status"]["phase"]
                return phase if phase in ("Succeeded", "Failed") else None

            phase = wait_for(ended, f"{NAME} has ended")
            said = self.cluster.kubectl("logs", "--namespace", NAMESPACE, NAME)
            self.assertEqual(phase, "Succeeded", said)
            return said
        finally:
            self.api.delete("Pod", NAME, NAMESPACE)
            wait_for(lambda: self.api.read("Pod", NAME, NAMESPACE) is None, f"{NAME} is gone")

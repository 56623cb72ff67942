"""A client of the container runtime interface: one method of the service for each request in `cri.proto`."""

import pathlib
import subprocess

import grpc
from google.protobuf import descriptor_pb2, message_factory

PACKAGE = "runtime.v1"


def messages():
    """The messages of `cri.proto` by their names."""
    here = pathlib.Path(__file__).resolve().parent
    protoc = ["protoc", f"--proto_path={here}", "--descriptor_set_out=/dev/stdout", "cri.proto"]
    compiled = subprocess.run(protoc, check=True, stdout=subprocess.PIPE).stdout
    files = descriptor_pb2.FileDescriptorSet.FromString(compiled).file
    return {name.removeprefix(f"{PACKAGE}."): kind for name, kind in message_factory.GetMessages(files).items()}


class Client:
    """`client.RunPodSandbox(config=…)` sends a RunPodSandboxRequest and returns the RunPodSandboxResponse."""

    MESSAGES = messages()

    def __init__(self, socket):
        self.target = f"unix://{socket}"

    def __getattr__(self, method):
        request, response = self.MESSAGES[f"{method}Request"], self.MESSAGES[f"{method}Response"]

        def invoke(**fields):
            # A connection for each call: one that was made before the runtime was killed would break in the next.
            with grpc.insecure_channel(self.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                path = f"/{PACKAGE}.RuntimeService/{method}"
                call = channel.unary_unary(path, request.SerializeToString, response.FromString)
                try:
                    return call(request(**fields), timeout=60, wait_for_ready=True)
                except grpc.RpcError as error:
                    raise AssertionError(f"{method}: {error.code().name}: {error.details()}") from None

        return invoke

"""An image made on the spot: an OCI archive of one static busybox that says over HTTP who it is and whom it saw."""

import hashlib
import io
import json
import platform
import shutil
import tarfile

IMAGE = "web.test/web:1"
APPLETS = ["sh", "httpd", "hostname", "echo", "sleep"]
# On the host's network port 80 may be taken; what is measured there need not answer.
SERVE = "httpd -f -p 80 -h /www || exec sleep 1000000"
WHO = b"""#!/bin/sh
echo
echo "$(hostname) saw $REMOTE_ADDR"
"""


def write_image(path, name=IMAGE, command=SERVE):
    """The archive; what runs is the shell command."""
    with open(shutil.which("busybox"), "rb") as file:
        busybox = file.read()
    if b"/ld-linux" in busybox[:4096]:
        raise AssertionError("busybox is not static: install busybox-static")
    layer = archive(
        {f"{directory}/": None for directory in ["bin", "dev", "etc", "proc", "sys", "www", "www/cgi-bin"]}
        | {"bin/busybox": busybox, "www/cgi-bin/who": WHO}
        | {f"bin/{applet}": "busybox" for applet in APPLETS}
    )
    blobs = {}

    def blob(data, kind):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    root = blob(layer, "layer.v1.tar")
    config = {
        "os": "linux",
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "config": {"Entrypoint": ["/bin/sh", "-c", command], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [root["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(config, "config.v1+json"),
        "layers": [root],
    }
    names = {"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name}
    index = {"schemaVersion": 2, "manifests": [blob(manifest, "manifest.v1+json") | {"annotations": names}]}
    layout = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode()}
    path.write_bytes(archive(layout | blobs))


def archive(entries):
    """A tar archive: None is a directory, a string where a symbolic link leads, bytes an executable file."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name.rstrip("/"))
            entry.mode = 0o755
            if content is None:
                entry.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
            else:
                entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)
    return output.getvalue()

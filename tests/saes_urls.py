"""Places that Shards may lie in: a local folder by path and by URL, fsspec's memory, an S3-compatible server on this machine."""

import uuid

import pytest

PLACES = ("path", "file", "memory", "s3")


@pytest.fixture(scope="session")
def s3_bucket():
    """A bucket on a local server, with credentials in the environment, where s3fs would look for real ones."""
    pytest.importorskip("s3fs", reason="s3fs is missing: pip install s3fs")
    server = pytest.importorskip("moto.server", reason="moto is missing: pip install 'moto[server]'")
    logged = __import__("logging").getLogger("werkzeug")
    logged.setLevel("ERROR")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem(use_listings_cache=False).mkdir("bucket")
        yield "s3://bucket"
    running.stop()


def new_place(kind: str, tmp_path, request) -> str:
    """An address in a place of this kind where nothing is yet."""
    name = uuid.uuid4().hex
    if kind == "s3":
        return f"{request.getfixturevalue('s3_bucket')}/{name}"
    return {"path": str(tmp_path / name), "file": f"file://{tmp_path / name}", "memory": f"memory://{name}"}[kind]


def damage(address: str, change) -> None:
    """Replace a file's bytes by `change(bytes)`, or remove it if that is None, behind our back."""
    import fsspec

    files, path = fsspec.url_to_fs(address, use_listings_cache=False)
    changed = change(bytes(files.cat_file(path)))
    files.rm_file(path) if changed is None else files.pipe_file(path, changed)

"""A copy of a Shards folder to damage, and ways to change what its manifest and shards say."""

import hashlib
import json

import xxhash
from safetensors.torch import load_file, save_file
from unweave.saes import Shards
from unweave.saes.shards.manifest import fingerprint


def copied(folder, to):
    """A copy that a test may damage."""
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def edit(copy, **changes):
    path = copy / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, change in changes.items():
        manifest[key] = change(manifest[key])
    path.write_text(json.dumps(manifest))


def touch(copy):
    shards = Shards.open(copy)
    for site in shards.sites:
        shards[site][:]
    return shards


def rewritten(copy, number, change, head=None):
    """Write a shard anew as `change` makes it, or with other bytes before its data, and enter it in the manifest."""
    path = copy / f"shard-{number:05d}.safetensors"
    if head is None:
        save_file(change(load_file(path)), path)
    else:
        data = path.read_bytes()
        size = 8 + int.from_bytes(data[:8], "little")
        path.write_bytes(head(data[8:size]) + data[size:])
    data = path.read_bytes()
    sums = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "xxh3": xxhash.xxh3_128_hexdigest(data)}
    edit(copy, shards=lambda s: [{**one, **sums} if one["file"] == path.name else one for one in s])
    manifest = json.loads((copy / "manifest.json").read_text())
    edit(copy, fingerprint=lambda _: fingerprint(manifest["shards"]))

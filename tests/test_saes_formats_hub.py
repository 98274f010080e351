"""Dictionaries by name: from the cache and the hub, through SAELens' registry, and up again with a card."""

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import huggingface_hub
import pytest
import yaml
from saes_formats_samples import SAMPLES
from saes_formats_toys import made
from unweave.saes import Dictionary, UserError
from unweave.saes.formats import hub, releases

COMMIT = "0" * 40


def in_cache(monkeypatch, cache: Path, repository: str) -> Path:
    """The folder of a repository's snapshot in a cache of the hub's form."""
    folder = cache / ("models--" + repository.replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return folder / "snapshots" / COMMIT


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub: every call to it fails as it does offline, and no registry is at hand."""
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(releases, "_registry", lambda: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def refuse(*given, **more):
    raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")


@pytest.fixture
def reached(monkeypatch, tmp_path):
    """A hub that holds what lies in tmp_path/hub/OWNER/NAME; tells which files were fetched."""
    fetched = []

    def list_files(self, repository, **more):
        base = tmp_path / "hub" / repository
        if not base.is_dir():
            raise OSError(f"{repository} is not on the hub")
        files = sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

    def download(repository, allow_patterns=None, local_files_only=False, **more):
        if local_files_only:
            raise OSError("not in the cache")
        fetched.extend(allow_patterns or ["everything"])
        return str(tmp_path / "hub" / repository)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", list_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(releases, "_registry", lambda: None)
    monkeypatch.setattr(releases, "_fetched", lambda: None)
    return fetched


@pytest.mark.parametrize("inside", ["", "layer_3"])
def test_offline_the_cache_is_read(monkeypatch, tmp_path, offline, inside):
    own = made()
    own.save(in_cache(monkeypatch, tmp_path, "someone/saes") / inside)
    again = Dictionary.load("someone/saes" + (f"/{inside}" if inside else ""))
    assert again.fingerprint == own.fingerprint


def test_offline_without_a_copy_it_is_a_user_error(monkeypatch, tmp_path, offline):
    in_cache(monkeypatch, tmp_path, "someone/saes")
    for name in ("someone/else", "someone/saes/layer_9"):
        with pytest.raises(UserError, match="cache"):
            Dictionary.load(name)


def test_a_path_never_asks_the_hub(monkeypatch, tmp_path, reached):
    made().save(tmp_path / "hub" / "someone" / "saes")
    with pytest.raises(UserError, match="nothing"):
        Dictionary.load(Path("someone/saes"))
    assert not reached
    monkeypatch.chdir(tmp_path)
    made("transcoder").save(Path("someone/saes"))
    assert Dictionary.load("someone/saes").config.is_transcoder  # what is here comes first
    assert not reached


@pytest.mark.parametrize(
    "name", ["../secret/x", "a/../b", "/etc/x", "a//b", "./a/b", "~/a/b", "a/b\0", "a", "a/..", "c:\\a\\b"]
)
def test_names_that_leave_a_folder_are_no_names_of_the_hub(reached, name):
    with pytest.raises(UserError):
        Dictionary.load(name)
    assert not reached


def test_only_the_files_of_one_dictionary_are_fetched(tmp_path, reached):
    base = tmp_path / "hub" / "someone" / "saes"
    for layer in range(3):
        made(seed=layer).save(base / f"layer_{layer}")
    made(seed=7).save(base)
    assert Dictionary.load("someone/saes/layer_1").fingerprint == made(seed=1).fingerprint
    assert sorted(reached) == ["layer_1/cfg.json", "layer_1/sae_weights.safetensors"]
    reached.clear()
    assert Dictionary.load("someone/saes").fingerprint == made(seed=7).fingerprint
    assert sorted(reached) == ["cfg.json", "sae_weights.safetensors"]
    with pytest.raises(UserError, match="layer_0/sae_weights"):
        Dictionary.load("someone/saes/layer_9")


def test_a_file_is_fetched_with_its_config(tmp_path, reached):
    (tmp_path / "hub" / "someone" / "plt").mkdir(parents=True)
    SAMPLES["circuit_tracer plt topk"](tmp_path / "hub" / "someone" / "plt")
    assert Dictionary.load("someone/plt/layer_2.safetensors").read == "blocks.2.mlp.hook_in"
    assert sorted(reached) == ["config.yaml", "layer_2.safetensors"]


REGISTRY = {
    "own-res": {"repo_id": "someone/saes", "model": "m",
                "saes": [{"id": "blocks.1.hook", "path": "layer_1"}, {"id": "bad", "path": "../x"}]},
    "r1": {"repo_id": "someone/r1", "conversion_func": "llama_scope_r1_distill",
           "saes": [{"id": "l7r", "path": "L7R", "norm_scaling_factor": 0.5}]},
    "old": {"repo_id": "someone/t", "conversion_func": "temporal", "saes": [{"id": "x", "path": "x"}]},
}  # fmt: skip


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """A registry of SAELens' form at hand."""
    path = tmp_path / "pretrained_saes.yaml"
    path.write_text(yaml.safe_dump(REGISTRY))
    monkeypatch.setattr(releases, "_registry", lambda: path)


def test_a_release_is_found_through_the_registry(tmp_path, reached, registry):
    made(seed=1).save(tmp_path / "hub" / "someone" / "saes" / "layer_1")
    assert Dictionary.load("own-res/blocks.1.hook").fingerprint == made(seed=1).fingerprint
    with pytest.raises(UserError, match=r"blocks\.1\.hook"):
        Dictionary.load("own-res/blocks.2.hook")
    with pytest.raises(UserError, match="damaged"):
        Dictionary.load("own-res/bad")
    with pytest.raises(UserError, match="temporal"):
        Dictionary.load("old/x")


def test_the_registry_tells_a_scale_that_the_file_does_not(tmp_path, reached, registry):
    import json

    path, x, codes, _ = SAMPLES["llama_scope r1"](tmp_path)
    folder = tmp_path / "hub" / "someone" / "r1" / "L7R"
    folder.mkdir(parents=True)
    cfg = json.loads((path / "config.json").read_text())
    del cfg["dataset_average_activation_norm"]
    (folder / "config.json").write_text(json.dumps(cfg))
    (path / "sae_weights.safetensors").rename(folder / "sae_weights.safetensors")
    own = Dictionary.load("r1/l7r")
    there = 6**0.5 / 4  # the factor of the sample; here it is 0.5
    assert (own.encode(x * there / 0.5).dense(10) - codes).abs().max() < 1e-9


def test_the_registry_is_fetched_once_and_only_where_the_hub_may_be_asked(monkeypatch, tmp_path):
    asked = []

    def answer(address, timeout):
        asked.append(address)
        return io.BytesIO(yaml.safe_dump(REGISTRY).encode())

    monkeypatch.setattr("urllib.request.urlopen", answer)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert releases.find("r1/l7r", fetch=True) is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert releases.find("r1/l7r") is None and not asked
    found = releases.Release("someone/r1", "L7R", 0.5)
    assert releases.find("r1/l7r", fetch=True) == found
    assert releases.find("r1/l7r") == releases.find("r1/l7r", fetch=True) == found
    assert len(asked) == 1


def test_a_registry_that_cannot_be_reached_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert releases.find("r1/l7r", fetch=True) is None


def test_the_registry_of_saelens_itself_is_understood(monkeypatch):
    path = Path(__file__).parent.parent / "build" / "interop-saelens" / "sae_lens" / "pretrained_saes.yaml"
    if not path.exists():
        pytest.skip("make interop installs it")
    monkeypatch.setattr(releases, "_registry", lambda: path)
    found = releases.find("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")
    assert found == releases.Release("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", 0.0)
    assert releases.find("gpt2-small-res-jb/blocks.8.hook_resid_pre").repository == "jbloom/GPT2-Small-SAEs-Reformatted"
    assert releases.find("google/gemma-scope-2b-pt-res") is None


class Hub:
    """Stands for HfApi: remembers what it was asked."""

    calls: ClassVar[list] = []
    files: ClassVar[dict] = {}

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, private=None, exist_ok=False):
        assert exist_ok
        self.calls.append(("create", repo_id, private))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id if '/' in repo_id else 'me/' + repo_id}")

    def upload_folder(self, *, repo_id, folder_path, path_in_repo, commit_message, token):
        self.calls.append(("upload", repo_id, path_in_repo, commit_message))
        self.files.update({name: (Path(folder_path) / name).read_bytes() for name in os.listdir(folder_path)})


@pytest.fixture
def uploads(monkeypatch):
    """HfApi replaced by a `Hub` of this test."""
    kind = type("Hub", (Hub,), {"calls": [], "files": {}})
    monkeypatch.setattr(huggingface_hub, "HfApi", kind)
    return kind


def test_pushing_uploads_our_folder_and_a_card(tmp_path, uploads):
    own = made("sae", "batch_topk", model={"name": "someone/lm", "fingerprint": "f00d"}, keep={"drop_positions": 1})
    name = own.push_to_hub(
        "me/saes",
        "layer_3",
        metrics={"fvu": 0.12345678, "range": (0.1, 0.2), "note|": "a|b"},
        private=True,
        token="secret",
    )
    assert name == "me/saes/layer_3" and own.folder is None
    assert uploads.calls == [
        ("token", "secret"),
        ("create", "me/saes", True),
        ("upload", "me/saes", "layer_3", "Upload a dictionary"),
    ]
    assert sorted(uploads.files) == ["README.md", "cfg.json", "sae_weights.safetensors"]
    for file, data in uploads.files.items():
        (tmp_path / file).write_bytes(data)
    assert Dictionary.load(tmp_path).fingerprint == own.fingerprint
    _, head, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["library_name"] == "unweave" and about["base_model"] == "someone/lm"
    assert {"sparse-autoencoder", "saelens", "batch_topk"} <= set(about["tags"])
    assert (
        'Dictionary.load("me/saes/layer_3")' in text and "0.1235" in text and "0.1 to 0.2" in text and "a\\|b" in text
    )
    assert own.fingerprint in text and "f00d" in text and "secret" not in text


def test_a_card_says_when_saelens_cannot_express_it(uploads):
    made("crosscoder").push_to_hub("saes")
    text = uploads.files["README.md"].decode()
    assert "saelens" not in yaml.safe_load(text.split("---")[1])["tags"] and "refuses it by name" in text


def test_text_from_elsewhere_cannot_become_markup_of_the_card(uploads):
    made(model={"name": "<script>|\n---\n# x", "fingerprint": "f"}).push_to_hub("me/saes")
    text = uploads.files["README.md"].decode()
    assert "<script>" not in text.replace("\\<script\\>", "") and text.count("\n---\n") == 1


@pytest.mark.parametrize(
    ("repository", "folder"), [("a/b/c", ""), ("../x", ""), ("", ""), ("a/b", "../x"), ("a/b", "/x"), ("a b", "")]
)
def test_names_that_are_no_repository_are_a_user_error(uploads, repository, folder):
    with pytest.raises(UserError):
        made().push_to_hub(repository, folder)
    assert not uploads.calls


def test_a_hub_that_refuses_is_a_user_error(monkeypatch, uploads):
    monkeypatch.setattr(uploads, "create_repo", refuse)
    with pytest.raises(UserError, match="log in"):
        made().push_to_hub("me/saes")


def test_files_of_a_folder_are_told_from_others():
    files = ["a/cfg.json", "a/sae_weights.safetensors", "a/b/cfg.json", "W_enc_0.safetensors", "W_dec_0.safetensors", "config.yaml",
             "x/hyperparams.json", "x/checkpoints/final.safetensors", "README.md"]  # fmt: skip
    assert hub.belonging(files, "a") == ["a/sae_weights.safetensors", "a/cfg.json"]
    assert hub.belonging(files, "") == ["W_enc_0.safetensors", "W_dec_0.safetensors", "config.yaml"]
    assert hub.belonging(files, "x") == ["x/checkpoints/final.safetensors", "x/hyperparams.json"]
    assert hub.belonging(files, "y") == []
    trainer = ["t/config.json", "t/ae.pt", "t/checkpoints/ae_1.pt", "t/checkpoints/ae_2.pt"]
    assert hub.belonging(trainer, "t/checkpoints/ae_2.pt") == ["t/checkpoints/ae_2.pt", "t/config.json"]

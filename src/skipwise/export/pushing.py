"""Push an export to a repository on the Hugging Face hub: private unless asked, in one commit, and compared afterwards.

Nothing here is imported unless a push is asked for. What can be wrong is checked before the export begins. A commit
is made only when all files are there, so a repository never has half an export; files that an interrupted push has
sent are not sent again.
"""

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipwise.errors import CheckpointError, ConfigError
from skipwise.export import RECORD_FILE
from skipwise.export.sharing import hub_name, make_shareable, read_export
from skipwise.names import first_line

# What a new repository may have before anything is pushed to it.
_EMPTY = {".gitattributes", "README.md"}
# Weights of an earlier push that would be loaded instead of the new ones.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_READ_ONLY = "read"


@dataclass(frozen=True, slots=True)
class Destination:
    """A repository that can be pushed to.

    Attributes:
        name: `OWNER/NAME`.
        private: whether only its owner sees it.
        files: what it has already; empty for a new one.
        exists: whether it is there.
    """

    name: str
    private: bool
    files: tuple[str, ...] = ()
    exists: bool = False


def find_destination(name: str, to: str, *, public: bool = False) -> Destination:
    """Checks everything about a push that can be known before the export.

    Args:
        name: `OWNER/NAME`.
        to: format of the export.
        public: whether everybody may see it.

    Raises:
        ConfigError: the name is not one of a repository, the hub is switched off or cannot be reached, there is no
            token or it may not write there, or the repository has files of another kind or is seen by others than
            asked.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push is {name!r}; give OWNER/NAME ({first_line(error)})") from error
    if "/" not in name:
        raise ConfigError(f"--push is {name!r}; give OWNER/NAME, where OWNER is you or your organization on the hub")
    if constants.is_offline_mode():
        raise ConfigError("--push needs the hub, but HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it to push")
    if not get_token():
        raise ConfigError("--push needs a token of the hub that may write: run 'hf auth login', or set HF_TOKEN")
    api = HfApi()
    with _told(name):
        _check_owner(name, api.whoami())
        try:
            info = api.repo_info(name)
        except RepositoryNotFoundError:
            return Destination(name, private=not public)
        api.auth_check(name, write=True)
        files = tuple(api.list_repo_files(name))
    return _checked(Destination(name, bool(info.private), files, exists=True), to, public=public)


def push(folder: Path, destination: Destination) -> str:
    """Pushes an export, whose card and records are rewritten for others first (`sharing`), and compares what is there.

    Args:
        folder: the export.
        destination: where to; a new repository is made.

    Returns:
        The address of the repository.

    Raises:
        CheckpointError: the upload failed, after which the same push goes on; or the files there differ.
        ConfigError: the hub does not let this token write.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, name = HfApi(), destination.name
    made = read_export(folder)
    with _told(name):
        license = _license(api, made)
    make_shareable(folder, name, license)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    stale = [
        file
        for file in destination.files
        if made["format"] == "hf" and file not in files and any(fnmatch.fnmatch(file, kind) for kind in _WEIGHTS)
    ]
    with _told(name):
        if not destination.exists:
            api.create_repo(name, private=destination.private, exist_ok=True)
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(path_in_repo=file, path_or_fileobj=folder / file) for file in files),
                *(CommitOperationDelete(path_in_repo=file) for file in stale),
            ],
            commit_message=f"Export by skipwise: {made['format']}, {made['dtype']}",
        )
        there = api.verify_repo_checksums(name, revision=commit.oid, local_dir=folder)
    wrong = sorted({*there.extra_paths, *(one["path"] for one in there.mismatches)})
    if wrong or there.checked_count != len(files):
        raise CheckpointError(
            f"files on the hub differ from those in {str(folder)!r}: {', '.join(wrong)}; push again",
            page="weights-differ",
        )
    return f"{api.endpoint}/{name}"


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Errors of the hub in one line, without its token."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise ConfigError(
                f"the hub does not let this token write to {name} ({status}); make one that may write at "
                "https://huggingface.co/settings/tokens, then 'hf auth login' or HF_TOKEN"
            ) from None
        raise CheckpointError(_interrupted(name, error, get_token())) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(_interrupted(name, error, get_token())) from None
    except Exception as error:
        # Connections of the hub's client fail with errors of the library below it.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
            raise
        raise CheckpointError(_interrupted(name, error, get_token())) from None


def _interrupted(name: str, error: Exception, token: str | None) -> str:
    said = first_line(error)
    if token:
        said = said.replace(token, "***")
    return f"the push to {name} failed ({said}); give the same command again, which sends only what is not there yet"


def _check_owner(name: str, who: dict[str, Any]) -> None:
    """Raises if the owner is neither the token's user nor an organization where they may write."""
    owner = name.partition("/")[0]
    organisations = {one.get("name"): one.get("roleInOrg") for one in who.get("orgs", ())}
    own = [who["name"], *(one for one, role in organisations.items() if role != _READ_ONLY)]
    if owner.lower() not in (str(one).lower() for one in own):
        raise ConfigError(f"--push is {name!r}, but this token is of {who['name']}, who may write to: {', '.join(own)}")
    if who.get("auth", {}).get("accessToken", {}).get("role") == _READ_ONLY:
        raise ConfigError(
            f"--push is {name!r}, but this token may only read; make one that may write at "
            "https://huggingface.co/settings/tokens, then 'hf auth login' or HF_TOKEN"
        )


def _checked(found: Destination, to: str, *, public: bool) -> Destination:
    """Raises if an existing repository is not one to push this format to."""
    others = {*found.files} - _EMPTY
    if others and RECORD_FILE not in others:
        raise ConfigError(
            f"--push is {found.name!r}, which has files that skipwise did not push ({', '.join(sorted(others)[:3])}); "
            f"name another repository, or upload the folder yourself: hf upload {found.name} FOLDER"
        )
    if found.private == public:
        seen, flag = ("private", "leave --public out") if found.private else ("public", "give --public")
        raise ConfigError(
            f"--push is {found.name!r}, which is {seen}; {flag}, or change that in its settings on the hub"
        )
    kinds = {"gguf": "*.gguf", "adapter": "adapter_config.json", "hf": "model*.safetensors"}
    there = [kind for kind, pattern in kinds.items() if any(fnmatch.fnmatch(file, pattern) for file in others)]
    if there and to not in there:
        raise ConfigError(f"--push is {found.name!r}, which has an export of --to {there[0]}; name another repository")
    return found


def _license(api: Any, made: dict[str, Any]) -> str | None:
    """The license that the base model's card on the hub states; None if it states none."""
    from huggingface_hub.errors import HfHubHTTPError

    if not (base := hub_name(str(made["base"] or ""))):
        return None
    try:
        card = api.model_info(base).card_data
    except HfHubHTTPError:
        return None
    license = card.get("license") if card is not None else None
    return license if isinstance(license, str) else None

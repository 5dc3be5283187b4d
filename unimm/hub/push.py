"""Pushing a model's folder: every check first, then one commit, so that nobody ever sees half of a model."""

from __future__ import annotations

import fnmatch
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects, validate_repo_id
from transformers import AutoConfig

from ..checks import require_path
from ..configuration import UniMMConfig
from ..errors import CheckpointError, ConfigError, HubError, LicenseError, UniMMError
from .cards import CARD, CardFacts, Measurement, build_card, read_card, revise_card
from .errors import LOGIN, hub_errors
from .evaluations import read_records, results_files
from .licenses import License
from .parts import skeleton_of
from .remote_code import STUB_CODE, STUB_FILE, auto_map_of

logger = logging.getLogger(__name__)

_IGNORED = [*DEFAULT_IGNORE_PATTERNS, "__pycache__/*", "*/__pycache__/*", ".*.tmp", "training_args.bin"]
# Of an earlier push with other shards: a single file would be loaded in the place of its successors.
_REPLACED = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*")


@dataclass(frozen=True)
class Push:
    """A folder that has passed every check and is ready to be sent.

    Args:
        folder: of the model.
        repo_id: where to.
        license: of the weights.
        additions: what will be in the repository.
    """

    folder: Path
    repo_id: str
    license: License
    additions: tuple[CommitOperationAdd, ...]

    @classmethod
    def prepare(
        cls,
        folder: str | Path,
        repo_id: str,
        *,
        license: License | None = None,
        measurements: Sequence[Measurement] = (),
        token: str | bool | None = None,
    ) -> Push:
        """Checks a folder without a request to the Hub; the folder itself is left as it is.

        The card gets the licence, the evaluations that lie beside it (`evaluation*.json`) and the repository's id; a folder
        without a card gets one that says what the config says.

        Args:
            folder: a saved model.
            repo_id: `owner/name`, or a name in your own namespace.
            license: of the weights; that of the card when not given.
            measurements: for the card, instead of those that it has.
            token: of the Hub; the stored one when not given.

        Raises:
            LicenseError: neither the card nor `license` states one.
            CheckpointError: the folder holds no model of this package.
            ConfigError: the id, the card or an evaluation is malformed.
            HubError: there is no token.
        """
        folder = Path(require_path(folder, "the folder of a model", error=CheckpointError))
        check_repo_id(repo_id)
        if not isinstance(license, License | None):
            license = License.stated(license)
        config = _config_of(folder)
        card = read_card(folder / CARD) if (folder / CARD).is_file() else None
        chosen = license or (License() if card is None else License.of_card(card.data))
        if not chosen.is_known:
            raise LicenseError(_unlicensed(folder, card))
        check_token(token)
        records = read_records(folder)
        if card is None:
            facts = CardFacts(license=chosen, records=records, measurements=measurements)
            card = build_card(skeleton_of(config), facts, has_processor=(folder / "processor_config.json").is_file())
        card = revise_card(
            card,
            license=chosen,
            place=repo_id,
            records=records,
            measurements=measurements,
            skeleton=skeleton_of(config) if measurements else None,
        )
        written = {CARD: str(card), STUB_FILE: STUB_CODE, "config.json": _loadable_config(folder, config)}
        written |= results_files(records)
        names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
        content: dict[str, str | bytes] = {
            name: str(folder / name) for name in filter_repo_objects(names, ignore_patterns=_IGNORED)
        }
        content |= {name: text.encode() for name, text in written.items()}
        additions = [CommitOperationAdd(name, content[name]) for name in sorted(content)]
        return cls(folder, repo_id, chosen, tuple(additions))

    @property
    def files(self) -> list[tuple[str, int]]:
        """Paths in the repository and their bytes."""
        return [(one.path_in_repo, one.upload_info.size) for one in self.additions]

    def send(
        self,
        *,
        private: bool | None = None,
        revision: str | None = None,
        message: str | None = None,
        description: str | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Creates the repository where it does not exist, and sends all files as one commit.

        An interrupted push has committed nothing; the same call goes on with what the Hub does not have yet.

        Raises:
            HubError: the Hub refuses, cannot be reached, or `private` is asked of a repository that is public.
        """
        return commit(
            self.repo_id,
            self.additions,
            replaced=_REPLACED,
            private=private,
            revision=revision,
            message=message or f"Upload {self.folder.resolve().name} with unimm",
            description=description,
            token=token,
            create_pr=create_pr,
        )


def commit(
    repo_id: str,
    additions: Sequence[CommitOperationAdd],
    *,
    replaced: Sequence[str] = (),
    private: bool | None,
    revision: str | None,
    message: str,
    description: str | None = None,
    token: str | bool | None,
    create_pr: bool,
) -> CommitInfo:
    """One commit to a repository, which is created where it does not exist.

    Args:
        replaced: patterns of files at the repository's root that go unless they are among the additions.

    Raises:
        HubError: the Hub refuses or cannot be reached.
    """
    api = HfApi(token=token)
    with hub_errors(repo_id, failed=f"the push to '{repo_id}'"):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise HubError(
                f"'{repo_id}' exists already and is public: push without --private, or make it private in its settings first"
            )
        if revision is not None and not revision.startswith("refs/pr/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        added = {one.path_in_repo for one in additions}
        gone = [
            CommitOperationDelete(name)
            for name in (api.list_repo_files(repo_id, revision=revision) if replaced else ())
            if name not in added and any(fnmatch.fnmatch(name, pattern) for pattern in replaced) and "/" not in name
        ]
    interrupted = (
        f"the push to '{repo_id}' was interrupted and nothing was committed: the same command goes on. Sending"
    )
    with hub_errors(repo_id, failed=interrupted):
        return api.create_commit(
            repo_id,
            [*gone, *additions],
            commit_message=message,
            commit_description=description,
            revision=revision,
            create_pr=create_pr,
        )


def check_repo_id(repo_id: str) -> None:
    """Refuses what is no id of the Hub.

    Raises:
        ConfigError: with what is wrong.
    """
    if not isinstance(repo_id, str):
        raise ConfigError(f"an id of the Hub is a text (owner/name), given {repo_id!r}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"'{repo_id}' is no id of the Hub (owner/name): {error}") from error


def check_token(token: str | bool | None = None) -> None:
    """Refuses to go on without a token.

    Raises:
        HubError: none is given or stored.
    """
    if token is False or (not isinstance(token, str) and get_token() is None):
        raise HubError(f"pushing needs a token with the right to write: log in first ({LOGIN})")


def _config_of(folder: Path) -> UniMMConfig:
    if not (folder / "config.json").is_file():
        inside = folder / "final"
        hint = f"; the model of this run is '{inside}'" if (inside / "config.json").is_file() else ""
        raise CheckpointError(f"'{folder}' holds no model (no config.json){hint}")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"'{folder}' holds no weights (*.safetensors): save the model with save_pretrained first")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        if isinstance(error, UniMMError):
            raise
        raise CheckpointError(f"the config.json in '{folder}' cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, UniMMConfig):
        raise CheckpointError(
            f"'{folder}' holds a '{config.model_type}', which is no model of unimm: push it with `hf upload`"
        )
    return config


def _loadable_config(folder: Path, config: UniMMConfig) -> str:
    """The folder's `config.json` as it stands, with the entries for `trust_remote_code`."""
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values["auto_map"] = auto_map_of(config)
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _unlicensed(folder: Path, card: ModelCard | None) -> str:
    if card is None:
        found = "it has no card (README.md)"
    elif card.data.get("license") is None:
        found = "its card (README.md) has no license"
    else:
        found = f"its card (README.md) says license: {card.data.get('license')}"
        found += " without a license_name" if card.data.get("license") == "other" else ""
    return (
        f"nobody may use the weights in '{folder}' before their licence is stated: {found}. State it with --license, such as "
        "--license apache-2.0, or --license other --license_name NAME --license_link URL; weights that you converted or "
        "trained on others' keep the licence of those. Nothing was sent"
    )

"""`push_to_hub` of models and processors: transformers' arguments, with a full card and a stated licence."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd

from ..errors import CheckpointError, ConfigError, LicenseError
from ..files import staged_files
from .cards import CARD, CardFacts, read_card, write_card
from .licenses import License
from .push import Push, check_repo_id, check_token, commit
from .remote_code import STUB, RemoteCodeMixin, write_stub

#: Shards that a browser and a mobile connection can still load one by one.
MAX_SHARD_SIZE = "5GB"
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


class HubModelMixin(RemoteCodeMixin):
    """Put before `PreTrainedModel` among a model's bases."""

    def _initialize_weights(self, module: Any, is_custom_code: bool = False) -> None:
        # transformers spares modules of foreign code whose own parameters are all loaded, which also holds for those that
        # have none of their own (a head, a block). Ours write through `transformers.initialization`, which asks each tensor.
        super()._initialize_weights(module, is_custom_code=False)  # type: ignore[misc]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = MAX_SHARD_SIZE,
        **kwargs: Any,
    ) -> None:
        """As transformers', in shards of 5 GB, and with the stub that lets `trust_remote_code=True` load the folder.

        Raises:
            ConfigError: `push_to_hub`, which would publish weights without a card and a licence.
            OutputError: the folder cannot be written; it is as it was then.
        """
        if push_to_hub:
            raise ConfigError(
                "save_pretrained publishes nothing, because a card and a licence belong to it: save, then "
                'model.push_to_hub("owner/name", license="…")'
            )
        options = {"state_dict": state_dict, "max_shard_size": max_shard_size, **kwargs}
        if not is_main_process:
            super().save_pretrained(save_directory, is_main_process=False, **options)  # type: ignore[misc]
            return
        with staged_files(save_directory) as staging:
            super().save_pretrained(staging, is_main_process=True, **options)  # type: ignore[misc]
            written = {path.name for path in staging.iterdir()}
        if any(_WEIGHTS.fullmatch(name) for name in written):
            # Of an earlier save in other shards; a reader would take them for this model's.
            for path in Path(save_directory).iterdir():
                if _WEIGHTS.fullmatch(path.name) and path.name not in written:
                    path.unlink()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers', which reports missing keys and initialises them; but where nothing fits that is an error.

        Raises:
            CheckpointError: not one of the weights belongs to this class.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        expected = set(model.state_dict())
        if expected and info["unexpected_keys"] and expected <= set(info["missing_keys"]):
            raise CheckpointError(
                f"no weight of '{args[0] if args else kwargs.get('pretrained_model_name_or_path')}' belongs to a "
                f"{cls.__name__}: it holds a model of another class, which AutoModel.from_pretrained finds"
            )
        return (model, info) if output_loading_info else model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | License | None = None,
        card: CardFacts | None = None,
        processor: Any = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str = MAX_SHARD_SIZE,
        tags: list[str] | None = None,
    ) -> CommitInfo:
        """Publishes the model as it is now, with a new card, as one commit.

        A saved folder is published with its own card and scores by `unimm push FOLDER owner/name`.

        Args:
            repo_id: `owner/name`, or a name in your own namespace.
            license: of the weights, as the Hub spells it; by default that of `card`, or of the card in the folder that the
                model was loaded from.
            card: what the card tells.
            processor: saved beside the model.
            commit_message: first line of the commit.
            commit_description: its further lines.
            private: whether a new repository is private.
            token: of the Hub; the stored one when not given.
            revision: branch to push to, created where it does not exist.
            create_pr: open a pull request instead.
            max_shard_size: of a file with weights.
            tags: for the card.

        Raises:
            LicenseError: no licence is stated.
            HubError: there is no token, or the Hub refuses or cannot be reached.
        """
        check_repo_id(repo_id)
        facts = card or CardFacts()
        facts = replace(facts, license=self._stated_license(license, facts), tags=[*facts.tags, *(tags or ())])
        check_token(token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size)
            if processor is not None:
                processor.save_pretrained(folder)
            write_card(folder, self, facts)
            return Push.prepare(folder, repo_id, token=token).send(
                private=private,
                revision=revision,
                message=commit_message or f"Upload {type(self).__name__} with unimm",
                description=commit_description,
                token=token,
                create_pr=create_pr,
            )

    def _stated_license(self, given: str | License | None, facts: CardFacts) -> License:
        if given is not None and not isinstance(given, License):
            return License.stated(given)
        chosen = given or facts.license
        place = getattr(self, "name_or_path", None)
        if not chosen.is_known and place and (Path(place) / CARD).is_file():
            chosen = License.of_card(read_card(Path(place) / CARD).data)
        if not chosen.is_known:
            raise LicenseError(
                'nobody may use these weights before their licence is stated: push_to_hub(…, license="apache-2.0"), or '
                'license=License.stated("other", name=…, link=…). Nothing was sent'
            )
        return chosen


class HubProcessorMixin(RemoteCodeMixin):
    """Put before `ProcessorMixin` or an image processor's backend among a processor's bases.

    Subclasses name the Auto class that loads them.
    """

    auto_class: str

    def to_dict(self) -> dict[str, Any]:
        """As transformers', with the entry for `trust_remote_code`."""
        return super().to_dict() | {"auto_map": {self.auto_class: f"{STUB}.{type(self).__name__}"}}  # type: ignore[misc]

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """As transformers', with the stub that lets `trust_remote_code=True` load the folder.

        Raises:
            ConfigError: `push_to_hub`.
            OutputError: the folder cannot be written; it is as it was then.
        """
        if push_to_hub:
            raise ConfigError('save_pretrained publishes nothing: save, then processor.push_to_hub("owner/name")')
        with staged_files(save_directory) as staging:
            write_stub(staging)
            written = super().save_pretrained(os.fspath(staging), **kwargs)  # type: ignore[misc]
        return [str(Path(save_directory) / Path(path).relative_to(staging)) for path in written]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Publishes the processor as one commit; the card of the repository stays as it is.

        Args:
            repo_id: `owner/name`, or a name in your own namespace.
            commit_message: first line of the commit.
            commit_description: its further lines.
            private: whether a new repository is private.
            token: of the Hub; the stored one when not given.
            revision: branch to push to, created where it does not exist.
            create_pr: open a pull request instead.

        Raises:
            HubError: there is no token, or the Hub refuses or cannot be reached.
        """
        check_repo_id(repo_id)
        check_token(token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            return commit(
                repo_id,
                [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in paths],
                private=private,
                revision=revision,
                message=commit_message or f"Upload {type(self).__name__} with unimm",
                description=commit_description,
                token=token,
                create_pr=create_pr,
            )

"""The Hub's refusals in the package's own words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import HubError, UniMMError

LOGIN = "`hf auth login`, or the variable HF_TOKEN"


@contextlib.contextmanager
def hub_errors(repo_id: str, failed: str | None = None) -> Iterator[None]:
    """Turns what the Hub answers into a `HubError` of one sentence or two.

    Args:
        repo_id: what was asked for.
        failed: what has failed, where every error inside of the block is the connection's; None passes errors on that
            the Hub has not given.

    Raises:
        HubError: the Hub refuses, or cannot be reached.
    """
    try:
        yield
    except UniMMError:
        raise
    except Exception as error:
        message = _explained(error, repo_id)
        if message is None and failed is not None:
            cause = error.__cause__ or error
            reason = str(error).strip().splitlines() or [type(error).__name__]
            detail = "" if cause is error else f" ({str(cause).strip() or type(cause).__name__})"
            message = f"{failed} failed: {reason[0].rstrip('.')}{detail}"
        if message is None:
            raise
        raise HubError(message) from error


def _explained(error: BaseException | None, repo_id: str) -> str | None:
    while error is not None:
        message = _explained_one(error, repo_id)
        if message is not None:
            return message
        error = error.__cause__
    return None


def _explained_one(error: BaseException, repo_id: str) -> str | None:
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        return f"the Hub refuses the header of the card: {' '.join(str(error).splitlines()[1:]) or error}"
    page = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, GatedRepoError):
        return f"'{repo_id}' is gated: ask for access at {page}, and log in ({LOGIN})"
    if isinstance(error, DisabledRepoError):
        return f"'{repo_id}' is disabled by the Hub: see {page}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no repository '{repo_id}' at {constants.ENDPOINT}, or your token may not see it: check the name, and "
            f"log in if it is private ({LOGIN})"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"'{repo_id}' has no such branch, tag or commit: see {page}"
    if isinstance(error, EntryNotFoundError):
        return None
    if isinstance(error, OfflineModeIsEnabled):
        return f"'{repo_id}' cannot be reached in offline mode: unset HF_HUB_OFFLINE"
    if isinstance(error, LocalTokenNotFoundError):
        return f"no token of the Hub: log in ({LOGIN})"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return f"the Hub does not accept your token: log in again ({LOGIN})"
        if status == 403:
            return f"your token may not write to '{repo_id}': use one with the right to write there ({LOGIN})"
        said = error.server_message or str(error).strip().splitlines()[0]
        return f"the Hub refused what was asked for '{repo_id}' (status {status}): {said}"
    return None

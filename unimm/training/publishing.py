"""What a run tells on its card, and `--push_to_hub`: the finished `final/` folder as one commit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..data.cards import load_card
from ..errors import LicenseError, RecipeError
from ..hub.cards import CardFacts, Measurement
from ..hub.errors import hub_errors
from ..hub.evaluations import Record
from ..hub.licenses import License
from ..hub.push import Push, check_repo_id, check_token
from .recipes import Recipe

logger = logging.getLogger(__name__)

_HUB_FIELDS = ("hub_model_id", "hub_token", "hub_private_repo", "hub_revision")


@dataclass(frozen=True)
class Publication:
    """Where a finished run goes.

    Args:
        repo_id: of the Hub.
        license: of the weights.
        private: whether a new repository is private.
        revision: branch.
        token: of the Hub; the stored one when None.
    """

    repo_id: str
    license: License
    private: bool | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, recipe: Recipe, args: Any) -> Publication | None:
        """What the arguments ask for; None for a run that is not pushed.

        Raises:
            LicenseError: the recipe states no licence.
            RecipeError: fields that have no effect.
            ConfigError: a malformed id.
            HubError: there is no token.
        """
        if not args.push_to_hub:
            for name in _HUB_FIELDS:
                if getattr(args, name) is not None:
                    raise RecipeError(f"{recipe.source}: training.{name} has no effect without training.push_to_hub")
            return None
        license = recipe.card.weights_license()
        if not license.is_known:
            raise LicenseError(
                f"{recipe.source}: push_to_hub publishes weights, and card.license does not say under which licence: state it, "
                "such as --card.license apache-2.0. Nothing was trained or sent"
            )
        repo_id = args.hub_model_id or Path(args.output_dir).absolute().name
        check_repo_id(repo_id)
        check_token(args.hub_token)
        return cls(repo_id, license, args.hub_private_repo, args.hub_revision, args.hub_token)

    def check_login(self) -> None:
        """Asks the Hub whether it knows the token, before hours are spent on training.

        Raises:
            HubError: it does not, or cannot be reached.
        """
        with hub_errors(self.repo_id, failed="asking the Hub who you are"):
            HfApi(token=self.token).whoami()

    def send(self, final: Path) -> None:
        """Pushes a run's `final/` folder.

        Raises:
            HubError: the Hub refuses or cannot be reached; starting the finished run again pushes again.
        """
        push = Push.prepare(final, self.repo_id, license=self.license, token=self.token)
        logger.info("pushing %d files of '%s' to %s", len(push.files), final, self.repo_id)
        commit = push.send(private=self.private, revision=self.revision, token=self.token)
        logger.info("pushed: %s", commit.commit_url)


def card_facts(
    recipe: Recipe,
    *,
    metrics: Mapping[str, float],
    records: Sequence[Record],
    measurements: Sequence[Measurement],
    picture: Path | None,
) -> CardFacts:
    """What the card of a run tells.

    Args:
        recipe: of the run.
        metrics: last values of the training's own metrics.
        records: evaluations.
        measurements: speed and memory.
        picture: a PNG grid.
    """
    facts = CardFacts(
        title=recipe.card.title,
        description=recipe.card.description,
        license=recipe.card.weights_license(),
        stage=recipe.stage,
        tags=recipe.card.tags,
        datasets=recipe.card.datasets
        or list(dict.fromkeys(load_card(section.card).hub or section.card for section in recipe.data)),
        base_model=_base_models(recipe),
        records=records,
        measurements=measurements,
        metrics={name: value for name, value in metrics.items() if not name.endswith(("_runtime", "_per_second"))},
        recipe=recipe.resolved(),
        picture=picture,
    )
    if "system" in recipe.model:
        from ..systems import get_system

        system = get_system(recipe.model["system"])
        facts.system, facts.system_title, facts.paper = system.name, system.title, system.paper
    return facts


def reconstruction_record(recipe: Recipe, rows: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation of a visual tokenizer on held-out rows."""
    cards = [load_card(section.card) for section in recipe.evaluation.data]
    return {
        "benchmark": f"reconstruction of held-out rows of {', '.join(card.pretty_name for card in cards)}",
        "judge": "comparison with the originals, pixel by pixel",
        "dataset": cards[0].hub if len(cards) == 1 else None,
        "rows": dict(rows),
    }


def _base_models(recipe: Recipe) -> list[str]:
    """Hub ids among the paths that the weights come from."""
    tokenizer = getattr(recipe, "tokenizer", None)
    paths = [recipe.model.get("path"), tokenizer.get("path") if isinstance(tokenizer, dict) else tokenizer]
    return [
        path for path in paths if path and path.count("/") == 1 and not Path(path).exists() and path[0] not in "./~"
    ]

"""The licence of a model's weights, as the Hub spells it; without one nothing is published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from huggingface_hub import CardData

from ..errors import LicenseError, nearest

UNKNOWN = "unknown"
OTHER = "other"
_IDENTIFIERS = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research
intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c
mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 pddl postgresql unlicense
wtfpl zlib
"""
#: What the Hub accepts (https://huggingface.co/docs/hub/repositories-licenses), without `unknown` and `other`.
HUB_LICENSES = frozenset(_IDENTIFIERS.split())


@dataclass(frozen=True)
class License:
    """Under which terms weights may be used.

    Args:
        identifier: one of `HUB_LICENSES`, `other` for terms of their own, `unknown` where nothing is stated.
        name: of the terms, where the identifier is `other`.
        link: where the terms stand.
    """

    identifier: str = UNKNOWN
    name: str | None = None
    link: str | None = None

    @classmethod
    def stated(cls, identifier: str, name: str | None = None, link: str | None = None) -> License:
        """A licence that somebody states for their weights.

        Raises:
            LicenseError: `unknown`, an identifier that the Hub does not have, or `other` without a name.
        """
        if not isinstance(identifier, str):
            raise LicenseError(f"a licence is stated by its identifier, such as apache-2.0, given {identifier!r}")
        identifier = identifier.strip().lower()
        if identifier in ("", UNKNOWN):
            raise LicenseError(
                f"'{identifier or 'nothing'}' states no licence: name the terms under which the weights may be used, such "
                "as apache-2.0, or 'other' with their name"
            )
        if identifier == OTHER:
            if not name:
                raise LicenseError("the licence 'other' needs the name of the terms (--license_name, --license_link)")
            return cls(OTHER, name, link)
        if identifier not in HUB_LICENSES:
            hint = nearest(identifier, HUB_LICENSES)
            raise LicenseError(
                f"the Hub has no licence '{identifier}'{hint if 'did you mean' in hint else ''}; for terms of their own "
                "give 'other' and their name (--license other --license_name NAME --license_link URL)"
            )
        if name or link:
            raise LicenseError(f"a name and a link go with the licence 'other'; '{identifier}' has its own")
        return cls(identifier)

    @classmethod
    def released(cls, text: str) -> License:
        """The licence of a release in its own words: an identifier of the Hub where it is one, else `other` by that name."""
        identifier = text.strip().lower()
        if identifier in ("", UNKNOWN):
            return cls()
        return cls(identifier) if identifier in HUB_LICENSES else cls(OTHER, text.strip())

    @classmethod
    def of_card(cls, data: CardData) -> License:
        """The licence in a card's header; unknown where it has none."""
        identifier = data.get("license")
        if not isinstance(identifier, str):
            return cls()
        return cls(identifier.strip().lower() or UNKNOWN, data.get("license_name"), data.get("license_link"))

    @property
    def is_known(self) -> bool:
        """Whether terms are stated."""
        return self.identifier != UNKNOWN and (self.identifier != OTHER or bool(self.name))

    @property
    def header(self) -> dict[str, Any]:
        """The fields of a card's header."""
        return {"license": self.identifier, "license_name": self.name, "license_link": self.link}

    def __str__(self) -> str:
        if not self.is_known:
            return "not stated"
        if self.identifier != OTHER:
            return self.identifier
        return f"[{self.name}]({self.link})" if self.link else str(self.name)

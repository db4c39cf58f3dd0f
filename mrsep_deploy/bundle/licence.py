"""The licence of a model's weights, as their author states it.

It is written into the manifest when a checkpoint is exported, and shown wherever the model is used. Weights whose
author states nothing, or nothing that is known here to allow commercial use, count as not allowing it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from mrsep_deploy.errors import UsageError
from mrsep_deploy.files.strict_json import shown

NOT_STATED = "not stated"
MAX_CHARACTERS = 500

_SAFE = r"[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
"""A character that neither breaks a line, nor steers a terminal, nor turns text around."""
_WORDS = f"text of up to {MAX_CHARACTERS} characters in one line"
Words = Annotated[str, Meta(pattern=rf"\A{_SAFE}{{1,{MAX_CHARACTERS}}}\Z", description=_WORDS)]
WordsOrNone = Annotated[str, Meta(pattern=rf"\A{_SAFE}{{0,{MAX_CHARACTERS}}}\Z", description=_WORDS)]

_COMMERCIAL = (
    *(
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "ISC",
        "MIT",
        "MIT-0",
        "MPL-2.0",
        "Zlib",
    ),
    *("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "Unlicense", "WTFPL"),
    *("GPL-2.0", "GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0", "GPL-3.0-only", "GPL-3.0-or-later"),
    *("LGPL-2.1", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0", "LGPL-3.0-only", "LGPL-3.0-or-later"),
    *("AGPL-3.0", "AGPL-3.0-only", "AGPL-3.0-or-later"),
)
_NOT_COMMERCIAL = tuple(
    f"CC-BY-{kind}-{version}" for kind in ("NC", "NC-SA", "NC-ND") for version in ("3.0", "4.0")
)
_KNOWN = {name.lower(): (name, name in _COMMERCIAL) for name in (*_COMMERCIAL, *_NOT_COMMERCIAL)}
"""SPDX identifiers (https://spdx.org/licenses) of weights, and whether they allow commercial use."""


@dataclass(frozen=True)
class Licence:
    """What is known of the licence of a model's weights.

    Attributes:
        terms: an SPDX identifier, or the author's own words, or ``not stated``.
        source: where that was read: an address, or a file.
        commercial: whether it allows commercial use; False where that is not known.
    """

    terms: Words = NOT_STATED
    source: WordsOrNone = ""
    commercial: bool = False

    @property
    def is_stated(self) -> bool:
        return self.terms != NOT_STATED

    @property
    def is_contradictory(self) -> bool:
        """Whether commercial use is claimed for terms that are known to exclude it, or for none."""
        excluded = not self.is_stated or not _KNOWN.get(self.terms.lower(), ("", True))[1]
        return self.commercial and excluded

    @property
    def _is_name(self) -> bool:
        return not self.is_stated or " " not in self.terms

    @property
    def title(self) -> str:
        """For a line about a model: ``licence MIT``, ``licence not stated``, or the author's words in quotes."""
        return f"licence {self.terms}" if self._is_name else f'licence "{self.terms}"'

    @property
    def brief(self) -> str:
        """The terms for a cell of a table, where there is no room for words."""
        return self.terms if self._is_name else "author's words"

    def __str__(self) -> str:
        """Everything: the terms, what they mean for commercial use, and where they were read."""
        use = "commercial use allowed" if self.commercial else "commercial use not allowed"
        unknown = "" if self.is_stated else ", so that commercial use counts as not allowed"
        return f"{self.terms}{unknown or f'; {use}'}{f' ({self.source})' if self.source else ''}"


UNSTATED = Licence()


def stated(terms: str, source: str = "", commercial: bool | None = None) -> Licence:
    """Returns the licence that an author states.

    Args:
        terms: an SPDX identifier in any case, or words.
        source: where they were read.
        commercial: whether they allow commercial use; None where their name says it, or nothing does.

    Raises:
        UsageError: a text has several lines or is too long, or commercial use is claimed for terms known to exclude it.
    """
    terms, source = terms.strip(), source.strip()
    for text, least in ((terms, 1), (source, 0)):
        if not least <= len(text) <= MAX_CHARACTERS or not text.isprintable():
            raise UsageError(f"the licence is given as {shown(text)}, expected {_WORDS}", "Shorten it.")
    name, known = _KNOWN.get(terms.lower(), (terms, None))
    licence = Licence(name, source, bool(known if commercial is None else commercial))
    if licence.is_contradictory:
        raise UsageError(f"the licence {name} does not allow commercial use", "Leave out --commercial.")
    return licence


def of_all(licences: Iterable[Licence]) -> Licence:
    """Returns the licence of models that are used together: all their terms, and what all of them allow."""
    several = list(dict.fromkeys(licences))
    if len(several) == 1:
        return several[0]
    terms = " and ".join(dict.fromkeys(licence.terms for licence in several))
    sources = ", ".join(dict.fromkeys(licence.source for licence in several if licence.source))
    everything = all(licence.commercial for licence in several)
    return Licence(terms[:MAX_CHARACTERS], sources[:MAX_CHARACTERS], everything)


def require_commercial(name: str, licence: Licence) -> None:
    """Raises ``UsageError`` unless the weights of the model of that name are known to allow commercial use."""
    if not licence.commercial:
        raise UsageError(
            f"the model {name} is not known to allow commercial use ({licence.title})",
            "Choose another model (mrsep-deploy models list shows licences), or leave out --allow commercial. "
            "If you hold a licence that allows it, export the checkpoint again with --licence TEXT --commercial.",
        )

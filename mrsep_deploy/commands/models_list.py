"""What ``mrsep-deploy models`` lists: models that are here, and published ones that can be fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from mrsep_deploy.bundle.licence import Licence
    from mrsep_deploy.bundle.manifest import Manifest
    from mrsep_deploy.bundle.published import PublishedModel
    from mrsep_deploy.bundle.registry import RegisteredModel
    from mrsep_deploy.bundle.registry_file import Default

COST = "GFLOP/s"
COST_NOTE = (
    f"{COST}: 1e9 floating-point operations per second of music, without what segments overlap. "
    "Scores and sources: --json, docs/models.md."
)


@dataclass(frozen=True)
class _Facts:
    """Of a registered model: its bundle's manifest, or those of all in its bag."""

    manifests: Sequence[Manifest]
    licence: Licence

    @property
    def first(self) -> Manifest:
        return self.manifests[0]

    @property
    def bytes(self) -> int:
        return sum(info.bytes for manifest in self.manifests for info in manifest.files.values())

    @property
    def family(self) -> str:
        families = " and ".join(dict.fromkeys(manifest.model.family for manifest in self.manifests))
        return families if len(self.manifests) == 1 else f"{len(self.manifests)} of {families}"


def show(as_json: bool, everything: bool) -> None:
    """Prints the models that are here and, if ``everything``, the published ones."""
    from mrsep_deploy.bundle.published import published
    from mrsep_deploy.bundle.registry import default_model, list_models
    from mrsep_deploy.export.families import variants
    from mrsep_deploy.terminal.progress import WIDE, print_result

    default = default_model()
    here = [_opened(model) for model in list_models()]
    names = {model.name for model, _ in here}
    others = published().models if everything else {}
    licences = {name: published().licence(model) for name, model in others.items()}

    def state(name: str, model: PublishedModel) -> str:
        if not set(model.families) <= set(variants()):
            return "not supported yet"
        return "here" if name in names else "to fetch"

    def on_screen(screen: Console) -> None:
        width = screen.measure(_table(here), options=screen.options.update(width=WIDE)).maximum
        screen.print(_table(here, detailed=width <= screen.width))
        screen.print(f"* taken where no model is named: {default.why}")
        if everything:
            rows = [(name, model, licences[name], state(name, model)) for name, model in others.items()]
            screen.print("\nPublished models, for mrsep-deploy fetch NAME", style="bold")
            screen.print(_published_table(rows))
            screen.print(COST_NOTE, style="dim", soft_wrap=True)

    def plain() -> object:
        listed = [_plain(model, facts, default) for model, facts in here]
        if not everything:
            return listed
        more = [
            {**_plain_published(name, model), "licence": asdict(licences[name]), "state": state(name, model)}
            for name, model in others.items()
        ]
        return {"models": listed, "published": more}

    print_result(as_json, plain, on_screen)


def _opened(model: RegisteredModel) -> tuple[RegisteredModel, _Facts | None]:
    """A model and its facts; a bag is damaged, too, if its models open one by one and do not fit together."""
    from mrsep_deploy.errors import MrsepError

    try:
        return model, _facts(model) if model.status == "ok" else None
    except MrsepError:
        return replace(model, status="damaged"), None


def _facts(model: RegisteredModel) -> _Facts:
    from mrsep_deploy.bundle import Bundle
    from mrsep_deploy.bundle.bag_file import bag_in
    from mrsep_deploy.separation.bag import open_bag

    bag_file = bag_in(model.path)
    if bag_file is not None:
        bag = open_bag(bag_file, verify=False)
        return _Facts([bundle.manifest for bundle in bag.bundles], bag.licence)
    manifest = Bundle.open(model.path, verify=False).manifest
    return _Facts([manifest], manifest.licence)


def _table(found: list[tuple[RegisteredModel, _Facts | None]], detailed: bool = True) -> Table:
    """The list; on a narrow terminal without the columns that ``models show`` has, too."""
    from mrsep_deploy.terminal.tables import file_size, table

    details = ("segment", "layout") if detailed else ()
    columns = ("", "name", "family", "sources", *details, "size", "exported", "licence", "status")
    made = table(*columns, right=("segment", "size"))
    for column in made.columns:
        column.no_wrap = str(column.header) not in ("name", "family", "sources", "licence")
    for model, facts in found:
        row = [""] * (3 + len(details))
        status = model.status if facts is None or facts.first.model.trained else "untrained"
        if facts is not None:
            info = facts.first.model
            more = (f"{float(info.segment):g} s", facts.first.layout) if detailed else ()
            row = [facts.family, ", ".join(info.sources), *more, file_size(facts.bytes)]
        made.add_row(
            *("*" if model.is_default else "", model.name, *row, model.exported[:10] or "shipped"),
            *("" if facts is None else facts.licence.brief, status),
        )
    return made


def _published_table(rows: Sequence[tuple[str, PublishedModel, Licence, str]]) -> Table:
    from mrsep_deploy.terminal.tables import NOTHING, file_size, optional, table

    made = table("name", "sources", "size", COST, "licence", "commercial", "status", right=("size", COST))
    for name, model, licence, state in rows:
        cost = optional(model.gflop_per_second, "{:.0f}") if model.gflop_per_second else NOTHING
        allowed = "yes" if licence.commercial else "no"
        made.add_row(
            name, ", ".join(model.sources), file_size(model.bytes), cost, licence.brief, allowed, state
        )
    return made


def _plain(model: RegisteredModel, facts: _Facts | None, default: Default) -> dict[str, object]:
    plain: dict[str, object] = {
        "name": model.name,
        "path": str(model.path),
        "digest": model.digest,
        "exported": model.exported,
        "default": model.is_default,
        "default_reason": default.reason if model.is_default else None,
        "managed": model.managed,
        "shipped": model.shipped,
        "status": model.status,
    }
    if facts is not None:
        manifest = facts.first
        plain |= {
            "family": manifest.model.family,
            "sources": manifest.model.sources,
            "segment_seconds": float(manifest.model.segment),
            "layout": manifest.layout,
            "batch": manifest.batch,
            "trained": manifest.model.trained,
            "licence": asdict(facts.licence),
            "bytes": facts.bytes,
            "models": len(facts.manifests),
        }
    return plain


def _plain_published(name: str, model: PublishedModel) -> dict[str, object]:
    from mrsep_deploy.files.strict_json import plain

    return {"name": name, **plain(model), "bytes": model.bytes}

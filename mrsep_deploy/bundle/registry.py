"""Names for bundles: which name is which folder, and which one is taken where none is named.

One JSON file, ``registry.json`` in the data folder, replaced whole under a lock, so that two exports at once lose
nothing. A bundle at ``models_dir()/NAME`` is *managed*: removing the name deletes it. Any other
is only *referenced*: removing the name forgets it. Reading needs neither the lock nor a writable disk.

The default is the model that was chosen (``use``), or else the one exported last. The model that comes with the
package is in no registry: it is there as long as its name is not taken, and it is the default before any export.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from mrsep_deploy.bundle import ARCHIVE_SUFFIX, Bundle, shipped
from mrsep_deploy.bundle.bag_file import bag_in, read_bag_file
from mrsep_deploy.bundle.manifest_check import MANIFEST_FILE
from mrsep_deploy.bundle.registry_file import NAME, NAME_RULE, Default, Entry, changed, load
from mrsep_deploy.errors import BundleError, FormatError, UsageError
from mrsep_deploy.files.parts import explained
from mrsep_deploy.files.strict_json import is_unicode, shown

Status = Literal["ok", "missing", "damaged"]


@dataclass(frozen=True)
class RegisteredModel:
    """One line of ``list_models``.

    Attributes:
        path: the bundle's folder or archive.
        digest: the bundle's digest when it was registered.
        exported: when it was registered, ISO 8601 in UTC; empty for the shipped one.
        is_default: the one taken when no model is named.
        managed: removing the name deletes the bundle.
        shipped: it comes with this package, and cannot be removed.
        status: ``missing`` if nothing is at ``path``, ``damaged`` if it does not open.
    """

    name: str
    path: Path
    digest: str
    exported: str
    is_default: bool
    managed: bool
    status: Status
    shipped: bool = False


def validate_name(name: str) -> str:
    """The name, if it is one. Raises ``UsageError``."""
    if NAME.fullmatch(name) is None:
        raise UsageError(f"{shown(name)} is not a name for a model", f"Take {NAME_RULE}.")
    return name


def register(bundle: Bundle, name: str | None = None) -> None:
    """Give a bundle a name (its own by default); a name in use moves to it.

    It is the default from then on, unless another one was chosen (:func:`use`).

    Raises:
        UsageError: not a valid name, or one whose managed bundle would be lost from sight.
        FormatError: the registry file is damaged.
        OutputError: the registry cannot be written.
    """
    register_place(bundle.path, bundle.digest, bundle.manifest.name if name is None else name)


def register_place(path: Path, digest: str, name: str) -> None:
    """:func:`register` for a bundle, or a folder with a bag and its models, of that digest at an absolute path."""
    validate_name(name)
    if not is_unicode(str(path)):
        raise UsageError(f"{shown(str(path))} is no Unicode text", "Move the bundle to another path.")
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    with changed() as registry:
        registry.require_free(name, path)
        registry.models[name] = Entry(str(path), digest, now)
        registry.last = name


def check_free(name: str, path: Path) -> None:
    """Raise, as ``register`` would, if a bundle at ``path`` cannot have the name; ask before exporting."""
    load().require_free(validate_name(name), Path(os.path.abspath(path)))


def resolve(name_or_path: str | os.PathLike[str] | None) -> Path:
    """The bundle a user means: an existing path, a name, or ``None`` for the :func:`default_model`.

    A string is a path if it has a separator, ends in ``.zip``, or is a folder with a manifest.

    Raises:
        UsageError: nothing of that name; the message lists what there is.
        BundleError: the path, or the place a name stands for, is gone.
    """
    if name_or_path is None:
        return default_bundle()[0]
    if isinstance(name_or_path, str) and not _is_path(name_or_path):
        return load().place(name_or_path)
    path = Path(os.path.abspath(name_or_path))
    if not os.path.exists(path):
        raise BundleError(
            f"there is no bundle at {path}", "Check the path, or give a name: mrsep-deploy models"
        )
    return path


def _is_path(value: str) -> bool:
    if any(separator in value for separator in (os.sep, os.altsep or "/")):
        return True
    return value.lower().endswith(ARCHIVE_SUFFIX) or os.path.isfile(os.path.join(value, MANIFEST_FILE))


def default_bundle() -> tuple[Path, str]:
    """Returns the bundle of the :func:`default_model`, and why it is this one, for people.

    Raises:
        BundleError: the place that its name stands for is gone.
    """
    registry = load()
    return registry.place(registry.default.name), registry.default.why


def default_model() -> Default:
    """The model taken where none is named: the chosen one, or the one exported last, or the shipped one."""
    return load().default


def use(name: str | None) -> None:
    """Choose the default, which exports do not change then; ``None`` for the one exported last, as before.

    Raises:
        UsageError: no such name.
        OutputError: the registry cannot be written.
    """
    with changed() as registry:
        if name is not None and not registry.leaves_to_the_shipped(name):
            registry.entry(name)
        registry.chosen = name


def names() -> list[str]:
    """The names of all models, the shipped one's included; no bundle is opened."""
    return load().names


def removable_names() -> list[str]:
    """:func:`names` without the shipped model's."""
    return sorted(load().models)


def list_models() -> list[RegisteredModel]:
    """Every registered bundle by name, then the shipped one."""
    registry = load()
    found = [
        RegisteredModel(
            name=name,
            path=Path(entry.path),
            digest=entry.digest,
            exported=entry.registered,
            is_default=name == registry.default.name,
            managed=entry.is_managed_as(name),
            status=_status(Path(entry.path)),
        )
        for name, entry in sorted(registry.models.items())
    ]
    if registry.leaves_to_the_shipped(shipped.NAME):
        bundle, is_default = Bundle.open(shipped.BUNDLE, verify=False), registry.default.name == shipped.NAME
        model = (shipped.NAME, bundle.path, bundle.digest, "", is_default, False)
        found.append(RegisteredModel(*model, "ok", shipped=True))
    return found


def _status(path: Path) -> Status:
    if not os.path.exists(path):
        return "missing"
    try:
        bag = bag_in(path)
        models = [path] if bag is None else [path / name for name in read_bag_file(bag).models]
        for model in models:
            Bundle.open(model, verify=False)
    except (BundleError, FormatError):
        return "damaged"
    return "ok"


def remove(name: str) -> None:
    """Forget a name, and delete its bundle if that is managed. A default that was chosen is chosen no longer.

    Raises:
        UsageError: no such name.
        OutputError: the bundle or the registry cannot be changed; the name is still there.
    """
    with changed() as registry:
        if registry.leaves_to_the_shipped(name):
            raise UsageError(
                f"{name} comes with mrsep-deploy and cannot be removed",
                "Choose another default with mrsep-deploy models use NAME, or name a model with -n.",
            )
        entry = registry.entry(name)
        if entry.is_managed_as(name):
            # rmtree unlinks the links it meets and never goes through them
            with explained(Path(entry.path)):
                shutil.rmtree(entry.path)
        del registry.models[name]
        if registry.chosen == name:
            registry.chosen = None
        if registry.last == name:
            registry.last = max(
                registry.models, key=lambda each: registry.models[each].registered, default=None
            )

"""A model on the disk: what a bundle holds, how it is read and written, and which name it has."""

from mrsep_deploy.bundle.read import ARCHIVE_SUFFIX, RANGES_FILE, Bundle
from mrsep_deploy.bundle.write import (
    check_archive_place,
    check_bundle_place,
    require_folder,
    rewrite_bundle,
    write_archive,
    write_bundle,
)

__all__ = [
    "ARCHIVE_SUFFIX",
    "RANGES_FILE",
    "Bundle",
    "check_archive_place",
    "check_bundle_place",
    "require_folder",
    "rewrite_bundle",
    "write_archive",
    "write_bundle",
]

"""Files and folders on a disk: written whole or not at all, held open, read strictly."""

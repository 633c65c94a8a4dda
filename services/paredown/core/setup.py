"""`python -m paredown.core.setup` prepares a deployment: migrates the database, makes the bucket, prints the first key.

Safe to run again: it does only what is missing, and prints a key only when none exists.
"""

import sys

from paredown.core import access, migrate, storage
from paredown.core.db import Database
from paredown.core.errors import PareError
from paredown.core.settings import get_settings


def main() -> int:
    settings = get_settings()
    try:
        migrate.upgrade(settings)
        storage.open_store(settings).prepare()
        database = Database(settings, pool_size=1)
        with database.transaction() as session:
            key = access.bootstrap(session, settings)
        database.close()
    except PareError as error:
        sys.stderr.write(f"{error.detail}\n")
        return 1
    sys.stdout.write(f"First API key (shown once): {key}\n" if key else "Ready; keys exist already.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

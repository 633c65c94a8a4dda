"""The typed SDK (client.py) and the `pare` command (cli.py). Both speak HTTP only."""

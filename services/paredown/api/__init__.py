"""The HTTP API: FastAPI on core. Routes parse, call core and return; nothing here decides what a job may do."""

"""The compression engine: torch and transformers only; no database, no network, no credentials."""

"""What every part of Pare speaks: pydantic models only, no torch, no database, nothing else of ours."""

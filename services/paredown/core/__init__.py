"""The one truth: jobs, the catalogue, sources, storage and access, on PostgreSQL."""

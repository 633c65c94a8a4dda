"""The worker: takes hints, claims jobs, supervises the engine that does the work, publishes what comes of it."""

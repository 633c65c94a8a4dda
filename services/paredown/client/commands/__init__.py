"""Commands that speak to a service through the SDK, grouped by what they are about."""

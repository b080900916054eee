"""News for whoever follows: an outbox that changes write, and subscriptions that read it."""

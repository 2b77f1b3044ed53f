"""The HTTP edge for clients that cannot speak NATS; itself a NATS client like any other."""

"""The stream processor: from a message on a lane to a stored reply."""

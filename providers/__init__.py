"""Vendors' wire formats, one file each; a leaf that knows nothing of queues."""

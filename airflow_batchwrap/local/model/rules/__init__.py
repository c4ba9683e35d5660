"""What a client's bodies must fulfil beyond their shape, and the defaults that Batch fills in."""

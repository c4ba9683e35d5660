"""What the service knows: its entities, their legal transitions, and what may be in their bodies."""

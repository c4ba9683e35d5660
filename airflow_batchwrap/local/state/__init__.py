"""What the service knows: its entities, their legal transitions, and where they are kept."""

"""The live page: what the service holds, to look at and never to change."""

"""What a node does: directories, environment, processes, downloads, uploads; and who runs where."""

"""Published models by name: their files from the network or a folder, verified, exported and registered."""

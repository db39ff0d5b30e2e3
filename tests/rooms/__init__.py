"""How the packages are built: rooms, floors, arrows between rooms, circles, doors; held to ceilings.toml."""

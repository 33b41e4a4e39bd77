"""The shared module of SightRL: everything that every method needs, and nothing that belongs to one paper."""

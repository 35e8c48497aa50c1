"""How fast a bundle is on this machine, and against what."""

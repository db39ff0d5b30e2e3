"""How the operator answers probes, and how an installation is tested."""

"""Outside tools that drive us, a file each. None of them is needed by anything else here."""

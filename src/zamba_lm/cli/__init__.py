"""The front door: argv in, printing out. Importing this room imports no torch; a command does that when it runs."""

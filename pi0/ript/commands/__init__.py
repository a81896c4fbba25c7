"""The console commands: each is a module with `main`, or a script that the launcher starts."""

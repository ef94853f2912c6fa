"""The command line and its surroundings: launchers, signals, the environment. Nobody imports this package."""

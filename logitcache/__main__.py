"""``python -m logitcache``."""

from logitcache.cli.app import main

main()

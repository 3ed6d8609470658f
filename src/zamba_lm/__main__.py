"""``python -m zamba_lm`` is ``zamba-lm``."""

from zamba_lm.cli.main import main

if __name__ == "__main__":
    main()

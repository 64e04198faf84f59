"""The composition root: ``python train.py --help`` lists the commands, ``python train.py fit --help`` the settings."""

from lit_safe.cli import main

if __name__ == "__main__":
    main()

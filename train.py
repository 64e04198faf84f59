"""The composition root: ``python train.py --help`` lists the commands, ``python train.py fit --help`` the settings."""

from lit_safe.__main__ import main

if __name__ == "__main__":
    main()

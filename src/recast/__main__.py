"""`python -m recast`, the same as the command `recast`."""

import sys

if __name__ == "__main__":
    # A file of the working directory, such as its signal.py or torch.py, is no module of Python's.
    if not sys.flags.safe_path:
        del sys.path[0]
    from recast.cli import main

    main()

"""`python -m jobs` is `longtake`."""

from jobs.cli import main

if __name__ == "__main__":
    main()

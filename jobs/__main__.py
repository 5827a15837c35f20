"""`python -m jobs` is `sostenuto`."""

from jobs.cli import main

if __name__ == "__main__":
    main()

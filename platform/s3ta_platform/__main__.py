"""`python -m s3ta_platform` is the command `s3ta`."""

from s3ta_platform.cli import main

main()

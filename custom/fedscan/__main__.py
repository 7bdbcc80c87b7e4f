"""`python -m fedscan`: the same as the `fedscan` script."""

from fedscan.cli.main import main

main()

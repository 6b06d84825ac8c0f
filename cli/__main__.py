"""`python -m cli`: the same as `sluice`, without looking for the script."""

from cli.main import app

app(prog_name="sluice")

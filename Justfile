# Commands of the house. `uv run just` lists them.

_default:
    @just --list

# Install everything that development needs
setup:
    uv sync

# Serve real text and embeddings on 127.0.0.1:8001
run *OPTIONS:
    uv run python -m anyserve.replica --caps decode,embedding {{OPTIONS}}

# Serve one app, as in `just run-node examples.echo:app`
run-node TARGET *OPTIONS:
    uv run python -m anyserve.replica --app {{TARGET}} {{OPTIONS}}

# Route a fleet's requests, on 127.0.0.1:8000
run-scheduler *OPTIONS:
    uv run python -m anyserve_scheduler {{OPTIONS}}

# Simulate a fleet
simulate SCENARIO="examples/scenarios/faults.toml" *OPTIONS:
    uv run python -m anyserve_scheduler.simulate {{SCENARIO}} {{OPTIONS}}

# Run the tests
test *OPTIONS:
    uv run pytest {{OPTIONS}}

# Lint, formatting, types and layers
check:
    uv run ruff check
    uv run ruff format --check
    uv run mypy
    uv run lint-imports

# Generate the classes of the wire from the .proto files
gen-proto:
    uv run python protos/generate.py

# Measure, and print the tables of docs/performance.md
bench *OPTIONS:
    uv run python -m benchmarks {{OPTIONS}}

# A million calls of all kinds against one replica, and whether it stays as it was
soak *OPTIONS:
    uv run python -m benchmarks.soak {{OPTIONS}}

# Remove what tools left behind
clean:
    rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
    find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

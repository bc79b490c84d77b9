# Shortcuts; `just` lists them. Everything works without just: each line is the whole command.

[private]
default:
    @just --list

# Serve the bundled model on 127.0.0.1:8080 (options go to garrick)
run *options:
    cargo run --release -- serve {{options}}

# Everything that must pass: format, lints, tests
test:
    scripts/test.sh

# Tests whose name contains a word, without setting anything up
quick *words:
    cargo test {{words}}

fmt:
    cargo fmt

lint:
    cargo clippy --all-targets -- -D warnings

# Tokens a second of a model, without a server
bench *options:
    cargo run --release -- bench {{options}}

# API documentation of the library
doc:
    cargo doc --no-deps --open

# Licences, advisories and sources of the dependencies (needs cargo-deny)
deny:
    cargo deny check

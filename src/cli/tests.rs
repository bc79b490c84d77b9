use clap::{CommandFactory, Parser};

use super::args::{Cli, ServeArgs};
use super::*;

/// Any command's arguments, parsed alone.
#[derive(Debug, Parser)]
struct Alone {
    #[command(flatten)]
    serve: ServeArgs,
}

fn serve(args: &[&str]) -> Result<crate::base::config::Config, Failure> {
    let args = std::iter::once("garrick").chain(args.iter().copied());
    Alone::try_parse_from(args).unwrap().serve.load()
}

#[test]
fn the_definitions_are_sound() {
    Cli::command().debug_assert();
}

#[test]
fn help_tells_layers_and_exit_codes() {
    let help = Cli::command().render_help().to_string();
    for part in ["GARRICK__SECTION__KEY", "64 wrong arguments", "66 the model", "69 not available", "70 internal"] {
        assert!(help.contains(part), "{part} in\n{help}");
    }
}

#[test]
fn named_options_set_their_keys() {
    let c = serve(&[
        "--listen=127.0.0.1:0",
        "--model",
        "fake:",
        "--served-model-name",
        "m",
        "--max-model-len",
        "99",
        "--lanes=2",
        "--threads=2",
        "--kv-memory=64MiB",
        "--set",
        "engine.isa=avx2",
        "--set=model.served_name=hidden",
    ])
    .unwrap();
    assert_eq!(
        (c.server.listen.port(), c.model.path.as_str(), c.model.served_name.as_deref()),
        (0, "fake:", Some("m"))
    );
    assert_eq!((c.model.max_model_len, c.engine.lanes, c.engine.threads), (Some(99), 2, Some(2)));
    assert_eq!((c.kv.memory, c.engine.isa), (Some(64 << 20), crate::base::config::Isa::Avx2));
}

#[test]
fn mistakes_are_usage_errors_that_name_their_place() {
    let failure = serve(&["--lanes", "0"]).unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    assert!(failure.message.contains("--lanes: engine.lanes is '0', but must be an integer from 1 to 64"), "{failure}");
    let failure = serve(&["--config", "/nonexistent/garrick.yaml"]).unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    assert!(failure.message.contains("/nonexistent/garrick.yaml"), "{failure}");
}

#[test]
fn a_file_is_read_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.yaml");
    let path = path.to_str().unwrap();
    std::fs::write(path, "kv:\n  dtype: f32\n").unwrap();
    assert_eq!(serve(&["--config", path]).unwrap().kv.dtype, crate::base::config::KvDtype::F32);
    std::fs::write(path, "kv:\n  dtype: f16\n").unwrap();
    let failure = serve(&["--config", path]).unwrap_err();
    assert!(failure.message.contains(&format!("{path}:2:10: kv.dtype is 'f16', but must be one of")), "{failure}");
}

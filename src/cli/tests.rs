use clap::{CommandFactory, Parser};

use super::args::{BenchArgs, BuildKernelsArgs, Cli, KeysArgs, KeysCommand, Limit, RenderArgs, ServeArgs};
use super::*;

/// One command's arguments as a program of their own.
#[derive(Debug, Parser)]
struct Only<A: clap::Args> {
    #[command(flatten)]
    args: A,
}

fn serve(args: &[&str]) -> Result<crate::base::config::Config, Failure> {
    let args = std::iter::once("garrick").chain(args.iter().copied());
    Only::<ServeArgs>::try_parse_from(args).unwrap().args.load()
}

#[test]
fn the_definitions_are_sound() {
    Cli::command().debug_assert();
}

#[test]
fn a_chip_is_called_as_compilers_call_it() {
    let chips =
        |chip: &str| Only::<BuildKernelsArgs>::try_parse_from(["garrick", "--chip", chip]).map(|only| only.args.chip);
    for right in ["sm_80", "sm_90a", "sm_103f", "sm_120"] {
        assert_eq!(chips(right).unwrap(), [right]);
    }
    for wrong in ["", "sm_", "90a", "sm_75", "sm_90aa", "sm_1000", "sm_90b", "sm_+80", "sm_80; ls", "compute_90"] {
        assert!(chips(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn help_tells_layers_and_exit_codes() {
    let help = Cli::command().render_help().to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["GARRICK__SERVER__LISTEN", "64 wrong arguments", "66 the model", "69 not available", "70 internal"] {
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

fn parse<A: clap::Args>(line: &str) -> Result<A, String> {
    let words = std::iter::once("garrick").chain(line.split_whitespace());
    Only::<A>::try_parse_from(words).map(|only| only.args).map_err(|e| e.to_string())
}

#[test]
fn render_takes_exactly_one_source_of_the_template() {
    assert!(parse::<RenderArgs>("--model m --input -").is_ok());
    assert!(parse::<RenderArgs>("--chat-template t --input in.json").is_ok());
    assert!(parse::<RenderArgs>("--input -").is_err());
    assert!(parse::<RenderArgs>("--model m --chat-template t --input -").is_err());
    assert!(parse::<RenderArgs>("--model m").is_err());
}

#[test]
fn bench_takes_lists_within_limits() {
    let args = parse::<BenchArgs>("--model m --batch 1,8,32 --json").unwrap();
    assert_eq!((args.batch, args.prompt_tokens, args.json), (vec![1, 8, 32], 256, true));
    assert!(parse::<BenchArgs>("--batch 0").unwrap_err().contains("1..=4096"));
}

#[test]
fn a_limit_of_a_key_is_a_number_unlimited_or_the_default() {
    let args = parse::<KeysArgs>("create --tenant a --rpm 60 --tpm unlimited").unwrap();
    let KeysCommand::Create(create) = args.command else { panic!("not create") };
    assert_eq!((create.rpm, create.tpm, create.concurrency), (Some(Limit(Some(60))), Some(Limit(None)), None));
    assert_eq!(Limit::or_default(create.tpm, Some(5)), None);
    assert_eq!(Limit::or_default(create.concurrency, Some(5)), Some(5));
    for bad in ["0", "-1", "many", "1000000000001"] {
        let message = parse::<KeysArgs>(&format!("create --tenant a --rpm={bad}")).unwrap_err();
        assert!(message.contains("must be an integer from 1 to 1000000000000, or unlimited"), "{message}");
    }
    assert!(matches!(parse::<KeysArgs>("revoke k1").unwrap().command, KeysCommand::Revoke { id } if id == "k1"));
}

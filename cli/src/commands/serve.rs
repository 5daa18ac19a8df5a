//! `tritone serve`: a model for programs, over HTTP.

use crate::args::{EngineArgs, ModelArgs, at_least_one, not_started};
use crate::failure::{Result, Stop};
use crate::load;
use crate::output::note;
use clap::Args;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tritone_server::engine::EngineOptions;
use tritone_server::http::{Hosts, HttpLimits, Keys, Origins, ServeError, ServeOptions, serve};

/// What the command's help says after the options.
pub const HELP: &str = "The server speaks OpenAI's protocol: /v1/chat/completions, /v1/completions, /v1/responses,
/v1/embeddings and /v1/models, beside /tokenize, /detokenize, /health and /metrics. A browser finds
a page for conversations at /. SIGTERM or Ctrl-C lets answers finish and ends with status 0; a
second one ends them, too.

Examples:
  tritone serve -m model.gguf
  tritone serve -m model.gguf --host 0.0.0.0 --api-key-file keys.txt --parallel 16
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Who was Aesop?\"}]}'";

/// The longest file of keys.
const MAX_KEY_BYTES: u64 = 1 << 20;

/// Options of `serve`.
#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The address to listen on; 0.0.0.0 or :: for all
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// The port; 0: any that is free, which is printed
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    port: u16,
    #[command(flatten)]
    engine: EngineArgs,
    /// Requests that may wait; more are told to come again
    #[arg(long, value_name = "N", default_value_t = EngineOptions::default().max_queue)]
    max_queue: usize,
    /// Seconds that an answer may take, its time of waiting included
    #[arg(long, value_name = "SECONDS", value_parser = at_least_one, default_value_t = 600)]
    timeout: usize,
    /// Seconds that answers may go on after SIGTERM or Ctrl-C
    #[arg(long, value_name = "SECONDS", default_value_t = 100)]
    grace: u64,
    /// A file with the keys that clients may name, one a line; left out: anybody may ask
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// An origin whose pages may ask from a browser, such as `https://example.org`, or * for all; may be given several times
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
    /// A name with a dot that requests may call this server by, such as `example.org`, where it listens to this machine only
    /// and wants no key; for proxies that pass the name on; may be given several times
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
}

/// Runs the command.
pub fn run(args: &ServeArgs) -> Result<()> {
    let keys = args.api_key_file.as_deref().map(keys).transpose()?.unwrap_or_default();
    let origins = Origins::parse(&args.cors)
        .map_err(|error| Stop::usage(error, "--cors takes what a browser sends as Origin, or *"))?;
    let hosts = Hosts::parse(&args.allow_host)
        .map_err(|error| Stop::usage(error, "--allow-host takes a name, such as example.org"))?;
    let quiet = args.model.quiet;
    if keys.is_open() && !quiet && !matches!(args.host.as_str(), "127.0.0.1" | "::1" | "localhost") {
        note("warning: anybody who reaches this address may ask; --api-key-file FILE wants a key");
    }
    let engine = EngineOptions { max_queue: args.max_queue, ..args.engine.options(&args.model) };
    let options = ServeOptions {
        host: args.host.clone(),
        port: args.port,
        name: args.engine.name(args.model.model.as_deref()),
        engine,
        keys,
        origins,
        hosts,
        timeout: Duration::from_secs(args.timeout as u64),
        grace: Duration::from_secs(args.grace),
        limits: HttpLimits::default(),
    };
    let model = args.model.clone();
    let listening = |address: SocketAddr| note(format_args!("listening on http://{address}"));
    serve(options, move || load::model(&model), listening).map_err(|error| match error {
        ServeError::Load(stop) => stop,
        ServeError::Start(error) => not_started(error),
        ServeError::Bind { address, source } => Stop::runtime(format_args!(
            "cannot listen on {address}: {source}; --host and --port choose another address"
        )),
        ServeError::System(error) => Stop::runtime(format_args!("the system refused what a server needs: {error}")),
    })
}

/// The keys in a file.
fn keys(path: &Path) -> Result<Keys> {
    let refused =
        |why: &dyn std::fmt::Display| Stop::runtime(format_args!("cannot take keys from {}: {why}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| refused(&error))?.len();
    if size > MAX_KEY_BYTES {
        return Err(refused(&format_args!("it has more than {MAX_KEY_BYTES} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| refused(&error))?;
    Keys::parse(&text).map_err(|error| refused(&error))
}

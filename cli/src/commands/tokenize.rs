//! `tritone tokenize`: text to tokens and back.

use crate::args::{TextArgs, token_ids};
use crate::failure::{Result, Stop};
use crate::load;
use crate::output::Listing;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;

/// Options of `tokenize`.
#[derive(Args)]
pub struct TokenizeArgs {
    /// The model whose tokenizer is used; left out: the story model in the binary
    #[arg(short, long, value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    text: TextArgs,
    /// Only the ids, on one line
    #[arg(long, conflicts_with = "json")]
    ids: bool,
    /// The text of these tokens: 1,2,3
    #[arg(long, value_name = "IDS", conflicts_with_all = ["ids", "prompt", "file", "special", "no_bos"])]
    decode: Option<String>,
    /// JSON
    #[arg(long)]
    json: bool,
    /// Leave out the token that begins a text
    #[arg(long)]
    no_bos: bool,
}

/// Runs the command.
pub fn run(args: &TokenizeArgs) -> Result<()> {
    let tokenizer = load::tokenizer(args.model.as_deref())?;
    let mut out = Listing::new();
    if let Some(list) = &args.decode {
        let ids =
            token_ids(list).map_err(|message| Stop::usage(message, "tritone tokenize -p TEXT --ids prints ids"))?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= tokenizer.vocab_size()) {
            return Err(Stop::usage(
                format_args!("token {id} is not in the vocabulary"),
                "ids run from 0 to the size of the vocabulary less one, see tritone inspect",
            ));
        }
        let bytes = tokenizer.decode(&ids);
        if args.json {
            out.line(json!({"ids": ids, "text": String::from_utf8_lossy(&bytes)}))?;
        } else {
            out.bytes(&bytes)?;
            out.line("")?;
        }
        return out.finish();
    }

    let Some(text) = args.text.read()? else {
        return Err(Stop::usage("there is no text", "give it with -p TEXT, -f FILE or through a pipe"));
    };
    let ids = tokenizer.encode(&text, load::special(args.text.special), tokenizer.adds_bos() && !args.no_bos);
    let name = |id| String::from_utf8_lossy(tokenizer.token_name(id).unwrap_or_default()).into_owned();
    if args.json {
        let tokens: Vec<String> = ids.iter().map(|&id| name(id)).collect();
        out.line(json!({"ids": ids, "tokens": tokens}))?;
    } else if args.ids {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        out.line(ids.join(","))?;
    } else {
        for &id in &ids {
            out.line(format_args!("{id:>7}  {}", name(id).escape_debug()))?;
        }
    }
    out.finish()
}

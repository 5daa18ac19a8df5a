//! Arbitrary bodies for each endpoint and lines of a file of requests, byte by byte and as fields of the right names.
//! Nothing may panic or take memory out of proportion, what is accepted lies within the documented bounds, and refusals
//! are one line.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tritone_runtime::tokenizer::StopStrings;
use tritone_server::api::batch::BatchLine;
use tritone_server::api::chat::{ChatRequest, MAX_MESSAGES};
use tritone_server::api::completions::{CompletionsRequest, MAX_PROMPTS};
use tritone_server::api::embeddings::{EmbeddingsRequest, MAX_DIMENSIONS, MAX_TEXTS};
use tritone_server::api::error::ApiError;
use tritone_server::api::responses::ResponsesRequest;
use tritone_server::api::sampling::{MAX_ANSWERS, MAX_BIASES, MAX_TOKENS, MAX_TOP_LOGPROBS, Sampling};
use tritone_server::api::tokenize::{TokenizeRequest, decode_tokens};

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    /// A body as it is.
    Body(&'a str),
    /// Fields by number, with values as they are.
    Fields(Vec<(u8, &'a str)>),
    /// The same, with values by number.
    Known(Vec<(u8, u8)>),
}

const NAMES: [&str; 49] = [
    "custom_id",
    "method",
    "url",
    "body",
    "ignore_eos",
    "messages",
    "prompt",
    "input",
    "content",
    "tokens",
    "model",
    "stream",
    "stream_options",
    "stop",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "n",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "frequency_penalty",
    "presence_penalty",
    "repeat_penalty",
    "user",
    "metadata",
    "echo",
    "suffix",
    "best_of",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "modalities",
    "instructions",
    "text",
    "background",
    "include",
    "truncation",
    "encoding_format",
    "dimensions",
    "add_special",
    "parse_special",
    "no_such_field",
];

const VALUES: [&str; 50] = [
    "null",
    "true",
    "false",
    "0",
    "1",
    "-1",
    "0.5",
    "2",
    "7",
    "1e999",
    "1e30",
    "18446744073709551616",
    "-9223372036854775808",
    "\"\"",
    "\"text\"",
    "\"POST\"",
    "\"/v1/embeddings\"",
    "\"a\\u0000b\"",
    "\"\\ud800\"",
    "\"auto\"",
    "\"none\"",
    "\"required\"",
    "\"base64\"",
    "\"disabled\"",
    "[]",
    "{}",
    "[1,2,3]",
    "[[1],[2]]",
    "[\"a\",\"b\"]",
    "[\"a\",1]",
    "[1,[2]]",
    "{\"1\":5}",
    "{\"1\":-100,\"01\":3}",
    "{\"x\":1}",
    "[{\"role\":\"user\",\"content\":\"Hi\"}]",
    "[{\"role\":\"tool\",\"content\":\"1\"},{\"role\":\"tool\",\"content\":\"2\"}]",
    "[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"c\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}]",
    "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"image_url\"}]}]",
    "[{\"role\":\"user\",\"content\":[{\"type\":\"input_text\",\"text\":\"a\"}]}]",
    "[{\"role\":\"system\"}]",
    "{\"include_usage\":true}",
    "{\"type\":\"json_object\"}",
    "{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{\"type\":\"object\"}}}",
    "{\"format\":{\"type\":\"json_schema\",\"name\":\"x\",\"schema\":{}}}",
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"type\":\"object\"}}}]",
    "[{\"type\":\"function\",\"function\":{\"name\":\"two words\"}}]",
    "{\"type\":\"function\",\"function\":{\"name\":\"f\"}}",
    "[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]",
    "[\"text\"]",
    "\"float\"",
];

fn within_bounds(sampling: &Sampling) {
    assert!((1..=MAX_ANSWERS).contains(&sampling.n));
    assert!(sampling.max_tokens.is_none_or(|most| most <= MAX_TOKENS));
    assert!(sampling.sampler.validate().is_ok());
    assert!(StopStrings::new(&sampling.stop).is_ok());
    assert!(sampling.logit_bias.len() <= MAX_BIASES);
    assert!(sampling.logit_bias.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert!(sampling.logit_bias.iter().all(|(_, bias)| (-100.0..=100.0).contains(bias)));
    assert!(sampling.stream || !sampling.include_usage);
}

fn one_line<T>(result: Result<T, ApiError>) -> Option<T> {
    let error = match result {
        Ok(request) => return Some(request),
        Err(error) => error,
    };
    assert_eq!(error.status, 400);
    assert!(!error.message.is_empty() && error.message.len() < 500, "{} bytes", error.message.len());
    None
}

fuzz_target!(|input: Input<'_>| {
    let name = |name: u8| NAMES[usize::from(name) % NAMES.len()];
    let body = |fields: Vec<String>| format!("{{{}}}", fields.join(","));
    let text = match input {
        Input::Body(text) => text.to_owned(),
        Input::Fields(fields) => {
            body(fields.iter().map(|(field, value)| format!("\"{}\":{value}", name(*field))).collect())
        }
        Input::Known(fields) => {
            let value = |value: u8| VALUES[usize::from(value) % VALUES.len()];
            body(fields.iter().map(|(field, one)| format!("\"{}\":{}", name(*field), value(*one))).collect())
        }
    };
    if let Some(chat) = one_line(ChatRequest::decode(&text)) {
        // The tools may have made a message more.
        assert!((1..=MAX_MESSAGES + 1).contains(&chat.messages.len()));
        assert!(chat.messages.iter().all(|message| ["system", "user", "assistant"].contains(&message.role.as_str())));
        assert!(chat.logprobs.is_none_or(|top| top <= MAX_TOP_LOGPROBS));
        assert_ne!(chat.sampling.max_tokens, Some(0));
        within_bounds(&chat.sampling);
    }
    if let Some(completions) = one_line(CompletionsRequest::decode(&text)) {
        assert!((1..=MAX_PROMPTS).contains(&completions.prompts.len()));
        assert!(completions.logprobs.is_none_or(|top| top <= MAX_TOP_LOGPROBS && !completions.echo));
        assert!(completions.sampling.max_tokens.is_some());
        within_bounds(&completions.sampling);
    }
    if let Some(responses) = one_line(ResponsesRequest::decode(&text)) {
        assert!((1..=MAX_MESSAGES + 1).contains(&responses.messages.len()));
        assert_eq!(responses.sampling.n, 1);
        within_bounds(&responses.sampling);
    }
    if let Some(embeddings) = one_line(EmbeddingsRequest::decode(&text)) {
        assert!((1..=MAX_TEXTS).contains(&embeddings.texts.len()));
        assert!(embeddings.dimensions.is_none_or(|dimensions| (1..=MAX_DIMENSIONS).contains(&dimensions)));
    }
    match BatchLine::decode(text.as_bytes()) {
        Ok(line) => assert!(text.contains(&line.body)),
        Err(bad) => {
            assert!(!bad.message.is_empty() && bad.message.len() < 500, "{} bytes", bad.message.len());
            assert!(!bad.record(1).contains('\n'), "a record is a line");
        }
    }
    one_line(TokenizeRequest::decode(&text));
    one_line(decode_tokens(&text));
});

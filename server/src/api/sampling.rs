//! The fields that all ways of generating share.

use super::error::ApiError;
use super::fields::{Fields, OneOrMany};
use serde::Deserialize;
use serde_json::Number;
use std::collections::BTreeMap;
use tritone_runtime::sampler::SamplerConfig;
use tritone_runtime::tokenizer::StopStrings;

/// Fields that change no answer: who asks, what to keep of it, how it is billed and cached elsewhere.
pub const HARMLESS: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
];

/// More answers to a request are a mistake.
pub const MAX_ANSWERS: usize = 128;
/// The most tokens with a bias.
pub const MAX_BIASES: usize = 1024;
/// The most alternatives for a token.
pub const MAX_TOP_LOGPROBS: usize = 20;
/// The hottest; beyond it all tokens are the same.
pub const MAX_TEMPERATURE: f32 = 100.0;
/// More tokens than any context has.
pub const MAX_TOKENS: usize = 1 << 31;

/// How tokens are chosen, how many, and how they are sent.
#[derive(Clone, Debug)]
pub struct Sampling {
    /// Which model is asked for, if one is named.
    pub model: Option<String>,
    /// At most so many tokens an answer.
    pub max_tokens: Option<usize>,
    /// How many answers.
    pub n: usize,
    /// What ends an answer: checked.
    pub stop: Vec<String>,
    /// Whether an answer goes on after the model's end: not OpenAI's, for who measures.
    pub ignore_eos: bool,
    /// Within their range; which tokens there are is not known here.
    pub logit_bias: Vec<(u32, f32)>,
    /// Valid; the seed is the one below, or 0.
    pub sampler: SamplerConfig,
    /// Where random numbers begin; `None`: anywhere.
    pub seed: Option<u64>,
    /// Whether the answer comes in parts.
    pub stream: bool,
    /// Whether the last part says what the answer took.
    pub include_usage: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    /// Padding against those who count bytes; there is none.
    #[serde(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

impl Sampling {
    /// Takes the fields out. Answers are limited by the first of `limits` that is there, to at least `least` tokens; all must
    /// say the same.
    pub(super) fn take(fields: &mut Fields<'_>, limits: &[&'static str], least: usize) -> Result<Sampling, ApiError> {
        let mut max_tokens: Option<usize> = None;
        for name in limits {
            let given = fields.count(name, least, MAX_TOKENS)?;
            if let (Some(one), Some(other)) = (max_tokens, given)
                && one != other
            {
                return Err(ApiError::field(*name, format!("`{name}` is {other}, but another limit says {one}")));
            }
            max_tokens = max_tokens.or(given);
        }
        let seed = fields.take::<Number>("seed")?.map(|number| seed(&number)).transpose()?;
        let stream = fields.take("stream")?.unwrap_or(false);
        let include_usage = match fields.take::<StreamOptions>("stream_options")? {
            Some(_) if !stream => {
                return Err(ApiError::field("stream_options", "`stream_options` is only for answers with `stream`"));
            }
            options => options.and_then(|options| options.include_usage).unwrap_or(false),
        };
        let stop = fields.take::<OneOrMany>("stop")?.unwrap_or_default().0;
        StopStrings::new(&stop).map_err(|error| ApiError::field("stop", error.to_string()))?;
        Ok(Sampling {
            model: fields.take("model")?,
            max_tokens,
            n: fields.count("n", 1, MAX_ANSWERS)?.unwrap_or(1),
            stop,
            ignore_eos: fields.take("ignore_eos")?.unwrap_or(false),
            logit_bias: biases(fields)?,
            sampler: SamplerConfig { seed: seed.unwrap_or(0), ..sampler(fields)? },
            seed,
            stream,
            include_usage,
        })
    }
}

fn sampler(fields: &mut Fields<'_>) -> Result<SamplerConfig, ApiError> {
    let repeat_penalty = fields.number("repeat_penalty", 0.01, 100.0)?.unwrap_or(1.0);
    let sampler = SamplerConfig {
        temperature: fields.number("temperature", 0.0, MAX_TEMPERATURE)?.unwrap_or(1.0),
        top_k: fields.count("top_k", 0, usize::MAX)?.unwrap_or(0),
        // At 0 the likeliest token is left, as with the least that is more.
        top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0).max(f32::MIN_POSITIVE),
        min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
        repeat_penalty,
        frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        ..SamplerConfig::default()
    };
    sampler.validate().map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(sampler)
}

/// A whole number; those below zero count from the other end.
fn seed(number: &Number) -> Result<u64, ApiError> {
    let seed = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned));
    seed.ok_or_else(|| ApiError::field("seed", format!("`seed` is {number}; it must be a whole number of 64 bits")))
}

fn biases(fields: &mut Fields<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    let wrong = |what: String| ApiError::field("logit_bias", format!("`logit_bias` {what}"));
    let given: BTreeMap<String, f64> = fields.take("logit_bias")?.unwrap_or_default();
    if given.len() > MAX_BIASES {
        return Err(wrong(format!("has {} tokens, the limit is {MAX_BIASES}", given.len())));
    }
    let mut biases = BTreeMap::new();
    for (name, bias) in given {
        let token: u32 = name.parse().map_err(|_| {
            wrong(format!("has the name \"{}\", which is no token; names are ids such as \"464\"", name.escape_debug()))
        })?;
        if !(-100.0..=100.0).contains(&bias) {
            return Err(wrong(format!("gives token {token} {bias}; it must be from -100 to 100")));
        }
        biases.insert(token, bias as f32);
    }
    Ok(biases.into_iter().collect())
}
